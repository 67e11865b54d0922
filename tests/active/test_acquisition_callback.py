from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from alseg.active.acquisition_callback import Acquired, AcquisitionCallback
from alseg.active.answer_costs import AnswerCosts
from alseg.active.query_selection import Chooser, Chosen
from alseg.core.errors import NotAnnotatedYetError, ScoringError
from alseg.core.pool import Pool
from alseg.core.units import Answer, Query, whole
from alseg.data.formats.msd import read_msd
from alseg.oracles.costs import volume
from alseg.oracles.simulated import SimulatedOracle
from alseg.scoring.shrinkage import settled
from alseg.strategies.selectors import diverse, noisy, ranked
from alseg.strategies.strategy import CaseScore, Strategy, feature_vector
from tests.scoring.pass_by_pass import taken

TOP_K = Strategy(
    name="top", selector=ranked.top_k, measure=lambda s: s.mean, aggregation=lambda m, s: 0.0
)
RANDOM = Strategy(name="random", selector=noisy.random)


@pytest.fixture
def pool(phantoms: Path) -> Pool:
    return Pool.start(read_msd(phantoms).cases, ["phantom_000"])


def make(
    phantoms: Path,
    pool: Pool,
    strategy: Strategy,
    seed: int = 1,
    candidates: Sequence[str] | None = None,
) -> AcquisitionCallback:
    ids = pool.unlabelled if candidates is None else tuple(candidates)
    chooser = Chooser(strategy, 3, seed, 4, 2, pool, ids, pool.labelled)
    return AcquisitionCallback(
        chooser, SimulatedOracle(read_msd(phantoms)), AnswerCosts(volume), lambda chosen: None
    )


def acquire(
    acquisition: AcquisitionCallback, scores: Sequence[CaseScore] | None = None
) -> Acquired:
    acquisition.choose(scores)
    assert acquisition.chosen is not None
    return acquisition.annotate(acquisition.chosen)


def scores(pool: Pool) -> list[CaseScore]:
    return [CaseScore(case_id, float(int(case_id[-3:]) % 4)) for case_id in pool.unlabelled]


def test_the_highest_scores_are_acquired_and_ties_go_by_id(phantoms: Path, pool: Pool) -> None:
    acquisition = make(phantoms, pool, TOP_K)
    acquired = acquire(acquisition, scores(pool)[::-1])
    chosen = ["phantom_003", "phantom_007", "phantom_011"]
    assert [row["case_id"] for row in acquired.queries] == chosen
    first = {"round": 2, "case_id": chosen[0], "score": 3.0, "rank": 1, "cost": 1.0}
    assert acquired.queries[0] == first
    assert acquired.pool == pool.acquire(chosen)
    assert set(acquired.labels) == set(chosen)


def test_scores_that_ended_early_are_weighed_against_each_other_when_all_are_there(
    phantoms: Path, pool: Pool
) -> None:
    found = [
        taken(name, np.array([1.0 + 0.1 * i, 1.1 + 0.1 * i]), expected=1.0, cost=0.5)
        for i, name in enumerate(pool.unlabelled)
    ]
    odd = taken(pool.unlabelled[0], np.array([6.0, 3.5]), expected=1.0, cost=0.5)
    acquisition = make(phantoms, pool, TOP_K)
    for score in [*found[:0:-1], odd]:
        acquisition.keep([score])
    acquisition.on_predict_end(None, None)  # type: ignore[arg-type]
    assert acquisition.chosen is not None
    assert sorted(acquisition.chosen.case_scores, key=name_of) == settled([odd, *found[1:]])
    (shrunk,) = (s for s in acquisition.chosen.case_scores if s.name == odd.name)
    assert (shrunk.score or 0) < 3.0 < (odd.score or 0)


def name_of(score: CaseScore) -> str:
    return score.name


def test_scores_that_choose_nothing_are_told(
    phantoms: Path, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    acquisition = make(phantoms, pool, TOP_K)
    acquire(acquisition, scores(pool))
    assert not caplog.text
    acquire(acquisition, [CaseScore(case_id, 0.0) for case_id in pool.unlabelled])
    assert "all 11 candidates have the score 0, so it chooses none of them" in caplog.text


def test_random_draws_differ_by_seed_and_need_no_scores(phantoms: Path, pool: Pool) -> None:
    def draw(seed: int) -> list[str]:
        acquisition = make(phantoms, pool, RANDOM, seed)
        queries = acquire(acquisition).queries
        assert all(row["score"] is None for row in queries)
        return [row["case_id"] for row in queries]

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1


def test_the_scored_cases_must_be_the_pools(phantoms: Path, pool: Pool) -> None:
    acquisition = make(phantoms, pool, TOP_K)
    with pytest.raises(ScoringError, match="phantom_011"):
        acquire(acquisition, scores(pool)[:-1])
    with pytest.raises(ScoringError, match="phantom_000"):
        acquire(acquisition, [*scores(pool), CaseScore("phantom_000", 1.0)])
    with pytest.raises(ScoringError, match="repeated"):
        acquire(acquisition, [*scores(pool), scores(pool)[0]])


def test_a_pool_smaller_than_the_query_is_taken_whole(phantoms: Path) -> None:
    ids = list(read_msd(phantoms).cases)
    pool = Pool.start(ids, ids[:-2])
    acquisition = make(phantoms, pool, TOP_K)
    assert acquire(acquisition, scores(pool)).pool.unlabelled == ()


def test_a_selector_that_breaks_its_promise_is_refused() -> None:
    for answer in (["rehearsal_1"], ["rehearsal_1"] * 2, ["a", "b"]):
        with pytest.raises(ScoringError, match=r"must select 2 distinct candidates|twice"):
            Strategy(name="bad", selector=lambda c, k, rng, answer=answer: answer)


def test_labelled_candidates_are_repeated_at_no_cost(phantoms: Path) -> None:
    ids = list(read_msd(phantoms).cases)
    pool = Pool.start(ids, ids[:4])  # 3 has the highest score of the labelled ones
    acquisition = make(phantoms, pool, TOP_K, candidates=ids)
    acquired = acquire(acquisition, [CaseScore(i, float(int(i[-3:]) % 4)) for i in ids])
    chosen = [(row["case_id"], row["cost"]) for row in acquired.queries]
    assert chosen == [("phantom_003", 0.0), ("phantom_007", 1.0), ("phantom_011", 1.0)]
    assert acquired.pool == pool.acquire(["phantom_007", "phantom_011"]).repeat(["phantom_003"])


def test_a_labelled_candidate_serves_as_a_reference_too(phantoms: Path) -> None:
    ids = list(read_msd(phantoms).cases)
    pool = Pool.start(ids, ids[:1])
    core_set = Strategy("core_set", diverse.k_center, features="mean", deterministic=True)
    acquisition = make(phantoms, pool, core_set, candidates=ids)
    acquired = acquire(
        acquisition, [CaseScore(i, features=feature_vector([int(i[-3:])])) for i in ids]
    )
    # 0 is labelled: 11 is the farthest from it, then 5 (6 is as far, ties by id), then 8
    assert [r["case_id"][-3:] for r in acquired.queries] == ["011", "005", "008"]


class Slow(SimulatedOracle):
    """Annotates nothing but the first unit of a query."""

    def annotate(self, query: Query) -> Answer:
        return Answer(super().annotate(query[:1]).labels, query[1:])


def test_choosing_asks_nobody_and_is_kept_before_the_oracle_is_asked(
    phantoms: Path, pool: Pool
) -> None:
    logged: list[object] = []

    class Noted(SimulatedOracle):
        def annotate(self, query: Query) -> Answer:
            logged.append(query)
            return super().annotate(query)

    chooser = Chooser(TOP_K, 3, 1, 4, 2, pool, pool.unlabelled, pool.labelled)
    chosen = chooser.choose(scores(pool))
    assert chosen.query == whole(["phantom_003", "phantom_007", "phantom_011"])
    assert chosen.scores == dict.fromkeys(["phantom_003", "phantom_007", "phantom_011"], 3.0)
    assert len(chosen.case_scores) == 11
    acquisition = AcquisitionCallback(
        chooser, Noted(read_msd(phantoms)), AnswerCosts(volume), logged.append
    )
    acquired = acquire(acquisition, scores(pool))
    assert [type(each) for each in logged] == [Chosen, tuple]
    assert logged[1] == chosen.query
    # a query that was kept leads to the same pool without any score
    again = AcquisitionCallback(
        chooser, SimulatedOracle(read_msd(phantoms)), AnswerCosts(volume), logged.append
    )
    assert again.annotate(Chosen(chosen.query, chosen.scores)) == acquired


def test_what_is_not_annotated_yet_is_told_and_makes_no_pool(phantoms: Path, pool: Pool) -> None:
    chooser = Chooser(TOP_K, 3, 1, 4, 2, pool, pool.unlabelled, pool.labelled)
    acquisition = AcquisitionCallback(
        chooser, Slow(read_msd(phantoms)), AnswerCosts(volume), lambda chosen: None
    )
    with pytest.raises(
        NotAnnotatedYetError, match="not annotated yet: phantom_007, phantom_011; resume"
    ):
        acquire(acquisition, scores(pool))


def test_a_query_that_takes_all_that_is_left_is_told(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    n_left = len(pool.unlabelled)
    for query_size, is_reported in ((n_left, False), (n_left + 1, True)):
        chooser = Chooser(TOP_K, query_size, 1, 4, 2, pool, pool.unlabelled, pool.labelled)
        assert len(chooser.choose(scores(pool)).query) == n_left
        assert (f"{n_left} volumes are left to choose from" in caplog.text) == is_reported
