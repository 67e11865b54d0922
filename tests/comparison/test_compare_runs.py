"""Run folders become one tidy table, and what cannot be compared is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from synthetic import BUDGETS, CASES, CLASSES, dice_rows, write_run, write_sweep

from alseg.comparison.analysis import analyse
from alseg.comparison.conclusions import sentences
from alseg.comparison.runs import (
    RunSet,
    differing_settings,
    find_run_folders,
    gather_runs,
    learning_curves,
    query_table,
    read_run,
)
from alseg.core.errors import ConfigError, DataError
from alseg.run.measure import CROSS, VALIDATION
from alseg.run.state import RunState


def gathered(root: Path, reference: str = "random") -> RunSet:
    return gather_runs(find_run_folders([root]), reference=reference)


def test_each_run_is_found_once_and_stored_copies_are_not(sweep: Path, tmp_path: Path) -> None:
    write_sweep(tmp_path, ("random",), (1, 2))
    shutil.copytree(tmp_path / "random_seed1", tmp_path / "mlartifacts" / "id" / "artifacts")
    found = find_run_folders([tmp_path, tmp_path / "random_seed1"])
    assert [folder.name for folder in found] == ["random_seed1", "random_seed2"]
    assert len(find_run_folders([sweep])) == 6 * 4 + 1


def test_links_to_runs_and_to_sweeps_are_followed_and_count_once(tmp_path: Path) -> None:
    write_sweep(tmp_path / "here", ("random",), (1, 2))
    write_sweep(tmp_path / "scratch", ("entropy",), (1, 2))
    chosen = tmp_path / "here" / "chosen"
    chosen.mkdir()
    (chosen / "one").symlink_to(tmp_path / "scratch/entropy_seed1")
    (tmp_path / "here" / "all").symlink_to(tmp_path / "scratch")
    (chosen / "back").symlink_to(tmp_path / "here")  # a circle
    names = ["random_seed1", "random_seed2", "entropy_seed1", "entropy_seed2"]
    assert [folder.name for folder in find_run_folders([tmp_path / "here"])] == names
    assert [folder.name for folder in find_run_folders([chosen / "one"])] == ["entropy_seed1"]


def test_the_tidy_table_has_every_round(sweep: Path) -> None:
    run_set = gathered(sweep)
    curves = learning_curves(run_set)
    assert len(curves) == 5 * 4 * len(BUDGETS) + 4
    assert run_set.classes == ("anterior", "posterior")
    assert run_set.reads_labels == {"oracle_foreground"}
    one = curves[(curves["strategy"] == "random") & (curves["seed"] == 2)]
    assert one["labelled"].tolist() == list(BUDGETS)
    history = read_run(sweep / "random_seed2").state.history
    assert one["dice"].tolist() == [row["test_dice"] for row in history]
    assert curves[curves["full_data"]]["labelled"].tolist() == [len(CASES)] * 4


def test_unfinished_runs_are_left_out_and_listed(sweep: Path) -> None:
    (left_out,) = gathered(sweep).left_out
    assert left_out.name == "power, seed 9 (power_seed9)"
    assert left_out.reason == "3 of 6 rounds finished"
    all_runs = gather_runs(find_run_folders([sweep]), reference="random", include_incomplete=True)
    assert len(all_runs.runs) == 25
    assert all_runs.left_out == ()


def test_a_run_that_ended_before_its_first_round_is_left_out(tmp_path: Path) -> None:
    write_sweep(tmp_path, ("random",), (1, 2))
    (tmp_path / "random_seed2" / "state.json").unlink()
    (left_out,) = gathered(tmp_path).left_out
    assert left_out.reason == "0 of 6 rounds finished"


def test_a_dry_pool_completes_a_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "random", 1, rounds=3, cases=CASES[:15])
    assert read_run(folder).state.finished_rounds == 3
    assert read_run(folder).complete


def test_annotation_cost_adds_up_over_the_queries_before_a_round(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "random", 1)
    state = RunState.load(folder)
    replace(state, queries=tuple(query | {"cost": 2.5} for query in state.queries)).save(folder)
    curves = learning_curves(gathered(tmp_path))
    assert curves["cost"].tolist() == [2.5 * n for n in BUDGETS]


def test_queries_have_the_round_they_were_acquired_after(sweep: Path) -> None:
    queries = query_table(gathered(sweep))
    counts = queries.groupby(["strategy", "seed", "round"]).size()
    assert (counts == 5).all()
    assert set(queries["round"]) == set(range(6))
    assert "full" not in set(queries["strategy"])


def test_settings_that_differ_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "random", 1)
    write_run(tmp_path / "b", "variance", 1, steps_per_round=100, output_dir="elsewhere")
    assert differing_settings(gathered(tmp_path).runs) == {"steps_per_round": ("100", "600")}


def test_mixed_data_sets_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "random", 1)
    write_run(tmp_path / "b", "random", 2, data={"name": "liver"})
    with pytest.raises(ConfigError, match=r"different data sets .*'hippocampus'.*'liver'"):
        gathered(tmp_path)


def test_mixed_splits_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "random", 1)
    write_run(tmp_path / "b", "random", 2, cases=CASES[:-1])
    with pytest.raises(ConfigError, match="different training cases"):
        gathered(tmp_path)
    write_run(tmp_path / "c" / "d", "random", 1)
    other = write_run(tmp_path / "c" / "e", "random", 2)
    cases = other / "rounds" / "round_01" / "cases.csv"
    cases.write_text(cases.read_text().replace("test_0", "test_9"))
    with pytest.raises(ConfigError, match="different test cases"):
        gathered(tmp_path / "c")


def test_two_complete_runs_of_a_strategy_and_seed_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "random", 1)
    write_run(tmp_path / "b", "random", 1)
    with pytest.raises(ConfigError, match=r"'random' has 2 complete runs of seed 1: .*/a and .*/b"):
        gathered(tmp_path)


def test_two_strategies_of_one_name_are_refused_whatever_their_seeds(tmp_path: Path) -> None:
    for seed, beta in ((1, 1.0), (2, 2.0)):
        config = write_run(tmp_path / f"seed{seed}", "power", seed) / "config.yaml"
        content = yaml.safe_load(config.read_text())
        content["strategy"]["selector"] = {"_target_": "power", "beta": beta, "grid": [4, 4]}
        config.write_text(yaml.safe_dump(content))
        write_run(tmp_path / f"random{seed}", "random", seed)
    with pytest.raises(
        ConfigError, match=r"seed1 and .*seed2 call two .* 'power': .* in strategy\.selector\.beta;"
    ):
        gathered(tmp_path)


def test_an_unfinished_run_beside_its_repetition_is_no_duplicate(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "random", 1, rounds=2)
    write_run(tmp_path / "b", "random", 1)
    assert [run.folder.name for run in gathered(tmp_path).runs] == ["b"]


def test_a_missing_reference_is_told_with_what_there_is(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "variance", 1)
    with pytest.raises(
        ConfigError, match=r"strategy 'random' on hippocampus; the runs are of: variance"
    ):
        gathered(tmp_path)


def test_nothing_to_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        find_run_folders([tmp_path / "missing"])
    with pytest.raises(ConfigError, match="no run folder in"):
        find_run_folders([tmp_path])
    write_run(tmp_path / "a", "random", 1, rounds=2)
    with pytest.raises(ConfigError, match=r"none of the 1 runs is complete: .*2 of 6 rounds"):
        gathered(tmp_path)


@pytest.mark.parametrize(
    "text", ["seed: [", "- 1", "", "seed: 1\nstrategy: x", "!!python/object/apply:os.system [ls]"]
)
def test_a_broken_configuration_is_named_and_never_executed(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "a", "random", 1)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=r"a/config\.yaml"):
        read_run(folder)


def test_a_run_with_repeats_is_read_off_at_the_others_budgets(tmp_path: Path) -> None:
    write_run(tmp_path / "random", "random", 1)
    classes = [f"_{name}" for name in CLASSES]
    own = (0.50, 0.60, 0.62, 0.70, 0.78, 0.80)
    history = [
        {"round": number, "labelled": labelled}
        | {f"{part}_dice{k}": dice for part in ("val", "test") for k in ("", *classes)}
        for number, (labelled, dice) in enumerate(zip((5, 8, 8, 12, 16, 19), own, strict=True), 1)
    ]
    pool = {"initial": 5, "query_size": 5, "rounds": 6, "repeat_uncertain": True}
    write_run(tmp_path / "variance", "variance", 1, history=history, pool=pool)
    curves = learning_curves(gathered(tmp_path))
    curve = curves[curves["strategy"] == "variance"]
    assert curve["labelled"].tolist() == [5, 10, 15]
    # 10 lies half-way between 8 (its last round with them) and 12, 15 three quarters to 16
    assert curve["dice"].tolist() == pytest.approx([0.5, (0.62 + 0.70) / 2, 0.76])
    assert curve["round"].tolist() == [1, 4, 5]


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "random", 1, data={"name": "\ud800"})
    with pytest.raises(DataError, match="holds a name that is not text: surrogates not allowed"):
        read_run(folder)


def without_test_part(strategy: str, seed: int) -> list[dict]:
    rows = dice_rows(strategy, seed, BUDGETS, 0.004)
    return [{k: v for k, v in row.items() if not k.startswith("test_")} for row in rows]


def write_growing(folder: Path, strategy: str, seed: int, share: float = 0.25) -> None:
    data = {"name": "hippocampus", "splits": {"validation_share": share, "seed": 0}}
    history = without_test_part(strategy, seed)
    write_run(folder / f"{strategy}_{seed}", strategy, seed, history=history, data=data)


def test_runs_without_a_test_part_are_compared_by_their_validation_dice(tmp_path: Path) -> None:
    for strategy in ("random", "variance"):
        for seed in (1, 2, 3):
            write_growing(tmp_path, strategy, seed)
    run_set = gathered(tmp_path)
    assert run_set.measure is VALIDATION
    assert run_set.classes == CLASSES
    one = learning_curves(run_set).query("strategy == 'random' and seed == 1")
    history = without_test_part("random", 1)
    assert one["dice"].tolist() == [row["val_dice"] for row in history]
    assert one["dice_anterior"].tolist() == [row["val_dice_anterior"] for row in history]
    first, second, *_ = sentences(analyse(run_set, 0.8))
    assert "mean validation Dice (no test part)" in first
    assert "not a fair comparison" in second


def test_a_round_without_a_dice_is_left_out(tmp_path: Path) -> None:
    history = without_test_part("random", 1)
    history[0] |= dict.fromkeys([c for c in history[0] if "dice" in c], float("nan"))
    write_run(tmp_path / "one" / "run", "random", 1, history=history)
    assert learning_curves(gathered(tmp_path / "one"))["labelled"].tolist() == list(BUDGETS[1:])
    for row in history:
        row |= dict.fromkeys([c for c in row if "dice" in c], float("nan"))
    write_run(tmp_path / "all" / "run", "random", 1, history=history)
    with pytest.raises(ConfigError, match="6 of 6 rounds finished, none with a Dice"):
        gathered(tmp_path / "all")


def test_runs_with_and_without_a_test_part_are_not_mixed(tmp_path: Path) -> None:
    write_growing(tmp_path, "random", 1)
    write_run(tmp_path / "variance_1", "variance", 1)
    with pytest.raises(ConfigError, match="with and without a test part cannot be compared"):
        gathered(tmp_path)


def write_cross(folder: Path, strategy: str, folds: int = 5) -> None:
    data = {"name": "hippocampus", "splits": {"_target_": "alseg.data.splits.annotated_split"}}
    history = [row | {"folds": min(folds, 4)} for row in without_test_part(strategy, 1)]
    run = folder / strategy
    write_run(run, strategy, 1, history=history, data=data)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"validation": {"folds": folds}}))


def test_cross_validated_runs_are_compared_by_a_dice_of_that_name_and_not_mixed(
    tmp_path: Path,
) -> None:
    write_cross(tmp_path / "same", "random")
    write_cross(tmp_path / "same", "variance")
    run_set = gathered(tmp_path / "same")
    assert run_set.measure is CROSS
    first, second, *_ = sentences(analyse(run_set, 0.8))
    assert "its mean cross-validated Dice was" in first
    assert "not a fair comparison" in second
    assert "choose the weights" not in second
    write_cross(tmp_path / "folds", "random")
    write_cross(tmp_path / "folds", "variance", folds=4)
    with pytest.raises(ConfigError, match="have different validation cases"):
        gathered(tmp_path / "folds")
    write_cross(tmp_path / "kinds", "random")
    write_growing(tmp_path / "kinds", "variance", 1)
    with pytest.raises(ConfigError, match="held-out cases and of cross-validation cannot be"):
        gathered(tmp_path / "kinds")
    write_cross(tmp_path / "parts", "random")
    write_run(tmp_path / "parts" / "variance_1", "variance", 1)
    with pytest.raises(ConfigError, match="with and without a test part cannot be compared"):
        gathered(tmp_path / "parts")


def test_runs_whose_cases_validate_by_other_rules_are_not_mixed(tmp_path: Path) -> None:
    write_growing(tmp_path, "random", 1)
    write_growing(tmp_path, "variance", 1, share=0.3)
    with pytest.raises(ConfigError, match="have different validation cases"):
        gathered(tmp_path)
