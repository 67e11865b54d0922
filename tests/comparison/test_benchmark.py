"""Runs of several data sets: a comparison of each, and what they say together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from synthetic import write_run, write_sweep

from alseg.compare import compare
from alseg.comparison.analysis import analyse
from alseg.comparison.benchmark import (
    Benchmark,
    analyse_together,
    mean_matrix,
    mean_ranks,
    sentences_together,
)
from alseg.comparison.benchmark_page import (
    folders_of,
    overview_table,
    penalty_table,
    rank_table,
    reach_table,
)
from alseg.comparison.runs import find_run_folders, gather_by_data
from alseg.core.errors import ConfigError

STRATEGIES = ("random", "variance", "power", "oracle_foreground")
SETS = ("heart", "liver")


def write_sets(root: Path, seeds: tuple[int, ...] = (1, 2, 3)) -> Path:
    for number, name in enumerate(SETS):
        for seed in seeds:
            for strategy in STRATEGIES:
                folder = root / name / f"{strategy}_seed{seed}"
                config = {"data": {"name": name}, "experiment_name": "benchmark"}
                write_run(folder, strategy, seed + 10 * number, **config)
    return root


def together(root: Path) -> Benchmark:
    run_sets = gather_by_data(find_run_folders([root]))
    return analyse_together({run_set.data: analyse(run_set) for run_set in run_sets})


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


def test_several_data_sets_give_a_page_each_and_one_over_all(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = compare([str(sets)])
    assert page == Path("runs/compare_benchmark/index.html")
    printed = capsys.readouterr().out
    assert "Over 2 data sets (heart, liver), power has the best mean rank" in printed
    assert "power is above random in 6 of 6 settings (100%)" in printed
    assert "heart: power " in printed
    for name in SETS:
        assert f'href="{name}/index.html"' in page.read_text()
        own = page.parent / name
        assert f"Comparison of strategies on {name}" in (own / "index.html").read_text()
    tables = {path.stem for path in (page.parent / "tables").glob("*.csv")}
    assert tables == {"overview", "ranks", "differences", "penalty"}
    # no curve mixes data sets: that of each is what it is without the other
    alone = compare([str(sets / "heart"), "--output", str(tmp_path / "alone")])
    for path in (alone.parent / "tables").glob("*.csv"):
        assert (page.parent / "heart" / "tables" / path.name).read_text() == path.read_text()


def test_ranks_wins_and_certainty_by_hand(sets: Path) -> None:
    benchmark = together(sets)
    wide = benchmark.areas.pivot(index=["data", "seed"], columns="strategy", values="area")
    assert len(wide) == benchmark.n_settings == 6
    expected = wide.rank(axis=1, ascending=False).mean().sort_values()
    pd.testing.assert_series_equal(
        benchmark.ranks["all"], expected, check_names=False, check_index_type=False
    )
    table = benchmark.overview.set_index("strategy")
    for strategy in STRATEGIES:
        difference = wide[strategy] - wide["random"]
        assert table.loc[strategy, "n_above"] == (difference > 0).sum()
        assert table.loc[strategy, "difference"] == pytest.approx(
            difference.groupby("data").mean().mean()
        )
        if strategy != "random":
            intervals = [
                stats.t.interval(0.95, 2, group.mean(), stats.sem(group))
                for _, group in difference.groupby("data")
            ]
            assert table.loc[strategy, "surely_above"] == sum(low > 0 for low, _ in intervals)
            assert table.loc[strategy, "surely_below"] == sum(high < 0 for _, high in intervals)
    blocks = stats.friedmanchisquare(*(wide[name] for name in wide))
    assert benchmark.ranking is not None
    assert benchmark.ranking.p == pytest.approx(blocks.pvalue)


def test_a_seed_of_a_data_set_that_lacks_a_strategy_is_no_setting_of_the_ranks() -> None:
    rows = [("a", 1, "x", 0.5), ("a", 1, "y", 0.4), ("a", 2, "x", 0.1), ("b", 1, "x", 0.3),
            ("b", 1, "y", 0.3)]  # fmt: skip
    areas = pd.DataFrame(rows, columns=["data", "seed", "strategy", "area"])
    ranks = mean_ranks(areas)
    assert ranks.loc["x"].tolist() == [1, 1.5, 1.25]
    assert ranks.loc["y"].tolist() == [2, 1.5, 1.75]
    with pytest.raises(ConfigError, match="no seed of any data set has runs of all strategies"):
        mean_ranks(areas.iloc[2:4].assign(strategy=["x", "y"]))


def test_the_penalty_matrix_weighs_each_data_set_alike() -> None:
    names = ["x", "y", "only_here"]
    first = pd.DataFrame(np.arange(9.0).reshape(3, 3), index=names, columns=names)
    second = pd.DataFrame(0.0, index=names[:2], columns=names[:2])
    found = mean_matrix([first, second], ["x", "y"])
    assert found is not None
    assert found.to_numpy().tolist() == [[0, 0.5], [1.5, 2]]
    assert mean_matrix([first, None], ["x"]) is None


def test_a_strategy_that_reads_labels_does_not_win(tmp_path: Path) -> None:
    for name in SETS:
        write_sweep(tmp_path / name, ("random", "oracle_foreground"), (1,), data={"name": name})
    benchmark = together(tmp_path)
    assert benchmark.ranks.index[0] == "oracle_foreground"
    first, second = sentences_together(benchmark)
    assert "random has the best mean rank" in first
    assert second == "No strategy that may compete has a better mean rank than random."
    assert overview_table(benchmark).shown["strategy"].tolist() == [
        "oracle_foreground (reads labels)"
    ]
    assert "it takes 3 strategies" in rank_table(benchmark).notes[0]
    assert penalty_table(benchmark).data.empty


def test_strategies_that_some_data_sets_lack_are_named_and_not_ranked(tmp_path: Path) -> None:
    for name in SETS:
        write_sweep(tmp_path / name, ("random", "variance"), (1,), data={"name": name})
    write_run(tmp_path / "power", "power", 1, data={"name": "heart"})
    benchmark = together(tmp_path)
    assert benchmark.strategies == ("random", "variance")
    assert sentences_together(benchmark)[-1] == ("power has runs only on heart, and is not ranked.")


def test_a_data_set_without_a_finished_run_waits_and_is_listed(tmp_path: Path) -> None:
    for name in SETS:
        write_sweep(tmp_path / name, ("random", "variance"), (1,), data={"name": name})
    write_run(tmp_path / "later", "random", 1, rounds=2, data={"name": "kidney"})
    first, second = gather_by_data(find_run_folders([tmp_path]))
    assert (first.data, second.data) == SETS
    assert [run.name for run in first.left_out] == ["random, seed 1 (later)"]
    with pytest.raises(ConfigError, match="none of the 1 runs is complete"):
        gather_by_data([tmp_path / "later"])


def test_a_name_stands_for_one_strategy_on_all_data_sets_except_for_its_groups(
    tmp_path: Path,
) -> None:
    def write(name: str, groups: str | None, **selector: object) -> None:
        data = {"name": name, "groups": groups}
        write_sweep(tmp_path / name, ("random", "mine"), (1,), data=data)
        path = tmp_path / name / "mine_seed1" / "config.yaml"
        config = yaml.safe_load(path.read_text())
        parts = {"rank": {"pattern": groups}, "rest": {"deeper": {"pattern": groups}}}
        config["strategy"]["selector"] = {"beta": 1, "pattern": groups} | parts | selector
        path.write_text(yaml.safe_dump(config))

    write("heart", r"patient\d+")
    write("liver", None)
    assert together(tmp_path).strategies == ("mine", "random")
    # groups that are not those of the data are another strategy
    write("brain", None, rank={"pattern": "left"})
    with pytest.raises(ConfigError, match=r"two strategies 'mine'.*strategy\.selector\.rank"):
        together(tmp_path)
    shutil.rmtree(tmp_path / "brain")
    write("kidney", None, beta=2)
    with pytest.raises(ConfigError, match=r"two strategies 'mine'.*strategy\.selector\.beta"):
        together(tmp_path)


def test_labels_for_99_percent_of_the_full_dice_are_those_of_each_data_set(tmp_path: Path) -> None:
    for name in SETS:
        write_sweep(tmp_path / name, ("random", "power"), (1, 2), data={"name": name})
    assert reach_table(together(tmp_path)).data.empty
    write_run(tmp_path / "full", "full", 1, data={"name": "liver"})
    benchmark = together(tmp_path)
    table = reach_table(benchmark)
    own = benchmark.comparisons["liver"].reach
    assert own is not None
    expected = own[own["share"] == 0.99].set_index("strategy")["median"]
    pd.testing.assert_series_equal(table.data.set_index("strategy")["median"], expected)
    assert list(table.shown.columns) == ["strategy", "liver"]  # the heart has no full data


def test_no_two_data_sets_share_a_folder() -> None:
    names = ["a b", "a_b", "tables"]
    assert folders_of(names) == {"a b": "a_b", "a_b": "a_b_2", "tables": "tables_2"}
