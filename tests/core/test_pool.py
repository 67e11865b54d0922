from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alseg.core.pool import Pool, random_start
from alseg.core.units import Answer, Unit, whole


def test_acquire_moves_cases_and_keeps_their_order() -> None:
    pool = Pool.start(["d", "b", "a", "c"], initial=["c"])
    assert pool == Pool(labelled=("c",), unlabelled=("a", "b", "d"))
    assert pool.acquire(["d", "a"]) == Pool(labelled=("c", "d", "a"), unlabelled=("b",))


def test_acquire_refuses_what_is_not_unlabelled() -> None:
    pool = Pool.start("abc", initial="a")
    with pytest.raises(ValueError, match="not unlabelled: a, z"):
        pool.acquire(["z", "a"])
    with pytest.raises(ValueError, match="twice in the pool: b"):
        pool.acquire(["b", "b"])


@given(st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=3), st.integers(0, 2**32 - 1))
def test_random_start_depends_on_the_set_of_ids_and_the_seed_alone(
    ids: set[str], seed: int
) -> None:
    shuffled = list(np.random.default_rng(seed).permutation(sorted(ids)))
    start = random_start(ids, 3, seed)
    assert start == random_start(shuffled, 3, seed)
    assert len(set(start)) == 3
    assert set(start) <= ids


def test_a_repeated_case_stays_labelled_once_and_trains_more_often() -> None:
    pool = Pool.start("abc", initial="ab").repeat("a").acquire("c").repeat("ac")
    assert pool == Pool(("a", "b", "c"), (), repeated=("a", "a", "c"))
    assert pool.labelled_with_repeats == ("a", "b", "c", "a", "a", "c")
    with pytest.raises(ValueError, match="not labelled: b"):
        Pool.start("ab", initial="a").repeat("b")


def test_the_pool_after_an_answer_has_its_units_in_order() -> None:
    pool = Pool.start("abcde", ["a", "b"])
    labels = {unit: Path(unit.case_id) for unit in whole(["d", "b", "c"])}
    after = pool.after(Answer(labels, pending=whole(["e"])))
    assert after == Pool(labelled=("a", "b", "d", "c"), unlabelled=("e",), repeated=("b",))
    with pytest.raises(ValueError, match="x"):
        pool.after(Answer({Unit("x"): Path("x")}))
