"""Reads run folders into one tidy table of learning curves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from alseg.comparison.budget import annotated, budget_label, read_off
from alseg.core.earlier_settings import with_as_before
from alseg.core.errors import ConfigError, DataError
from alseg.core.metric_names import DICE
from alseg.core.pool import Pool
from alseg.run.folder import (
    CALIBRATION_FILE,
    CASES_FILE,
    CONFIG_FILE,
    ROUNDS_FOLDER,
    STATE_FILE,
    round_folder,
)
from alseg.run.measure import CROSS, FOLDS, TEST, Measure
from alseg.run.stages import check_unchanged
from alseg.run.state import RunState

SKIPPED_FOLDERS = frozenset({"mlartifacts", "mlruns", "cache", ROUNDS_FOLDER})
# Settings that may differ between the runs of one comparison without making it unfair.
FREE_SETTINGS = ("strategy", "seed", "tracking", "trainer", "output_dir", "cache_dir", "resume",
                 "experiment_name", "pictures", "save_maps", "target_dice", "sweep", "hydra",
                 "trusted_packages")  # fmt: skip
CALIBRATION = ("bin_low", "bin_high", "n_voxels", "confidence", "accuracy")  # of calibration.csv


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it lies.
        config: the resolved configuration.
        state: the pool, and the rows of the rounds that are finished.
    """

    folder: Path
    config: Mapping[str, Any]
    state: RunState

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return str(self.config["strategy"]["name"])

    @property
    def seed(self) -> int:
        """The seed, which pairs runs of different strategies."""
        return int(self.config["seed"])

    @property
    def data(self) -> str:
        """The data set's name."""
        return str(self.config["data"]["name"])

    @property
    def cost_unit(self) -> str:
        """What the annotation cost counts."""
        return str(self.config.get("cost", "volume"))

    @property
    def unit(self) -> str:
        """What was annotated in one go: ``volume``, ``patch`` or ``slice``."""
        return str(self.config["pool"].get("unit", "volume"))

    @property
    def full_data(self) -> bool:
        """Whether all training volumes were labelled from the start."""
        return bool(self.config["strategy"].get("full_data", False))

    @property
    def reads_labels(self) -> bool:
        """Whether the strategy sees hidden labels."""
        return bool(self.config["strategy"].get("reads_labels", False))

    @property
    def repeats(self) -> bool:
        """Whether labelled volumes could be acquired again, which labels less than planned."""
        return bool(self.config["pool"].get("repeat_uncertain", False))

    @property
    def n_volumes(self) -> int:
        """The number of training volumes, labelled or not."""
        return len(self.state.pool.labelled) + len(self.state.pool.unlabelled)

    @property
    def planned_rounds(self) -> int:
        """The rounds of the plan; a spent budget or a dry pool ends a run before that."""
        return 1 if self.full_data else int(self.config["pool"]["rounds"])

    @property
    def complete(self) -> bool:
        """Whether the plan is fulfilled, the budget is spent or the pool has run dry."""
        state = self.state
        fulfilled = state.finished_rounds >= self.planned_rounds
        return bool(state.history) and (fulfilled or not state.has_asked)

    @property
    def has_dice(self) -> bool:
        """Whether a round has finished whose Dice is defined."""
        state = self.state
        return any(not math.isnan(row[state.measure.column]) for row in state.history)

    def round_folder(self, round_number: int) -> Path:
        """Where a round left its files."""
        return round_folder(self.folder, round_number)

    def split(self) -> dict[str, tuple[str, ...]]:
        """The case ids of each part, as far as the run folder says them."""
        training = sorted((*self.state.pool.labelled, *self.state.pool.unlabelled))
        parts = {"training": tuple(training)}
        columns = self.state.history[0] if self.state.history else {}
        if columns and self.state.measure is not TEST:
            # which cases have validated so far follows from the rule and what was annotated
            rule = self.config["data"].get("splits") or {}
            if self.state.measure is CROSS:
                rule = {**rule, **(self.config.get("validation") or {})}
            return parts | {"validation": tuple(f"{k}={v}" for k, v in sorted(rule.items()))}
        cases = self.round_folder(1) / CASES_FILE
        if cases.is_file():
            table = read_table(cases, {"case_id": str, "part": str})
            parts |= {
                str(name): tuple(sorted(part["case_id"]))
                for name, part in table.groupby("part")
                if name == TEST.part or FOLDS not in columns  # folds are of what was annotated
            }
        return parts


@dataclass(frozen=True)
class LeftOut:
    """A run that the comparison does not use, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class RunSet:
    """Comparable runs: one data set, one split, at most one run for a strategy and a seed.

    Attributes:
        runs: the runs that are used, sorted by strategy and seed.
        reference: the strategy that the others are compared with.
        left_out: the runs that are not.
        budget: what their learning curves run along, of ``alseg.comparison.budget.BUDGETS``.
    """

    runs: tuple[Run, ...]
    reference: str
    left_out: tuple[LeftOut, ...] = ()
    budget: str = "labelled"

    @property
    def budget_label(self) -> str:
        """What the learning curves run along, such as ``labelled volumes``."""
        learning = [run for run in self.runs if not run.full_data] or list(self.runs)
        units = dict.fromkeys(run.unit for run in learning)
        costs = dict.fromkeys(run.cost_unit for run in learning)
        return budget_label(self.budget, units, costs)

    @property
    def data(self) -> str:
        """The data set's name."""
        return self.runs[0].data

    @property
    def strategies(self) -> tuple[str, ...]:
        """The names of the strategies that have a learning curve, sorted."""
        return tuple(sorted({run.strategy for run in self.runs if not run.full_data}))

    @property
    def reads_labels(self) -> frozenset[str]:
        """The names of the strategies that see hidden labels."""
        return frozenset(run.strategy for run in self.runs if run.reads_labels)

    @property
    def measure(self) -> Measure:
        """By which Dice the runs are compared: of the test part, or without one of validation."""
        return self.runs[0].state.measure

    @property
    def further_metrics(self) -> tuple[str, ...]:
        """The metrics beside Dice that the runs have."""
        return self.measure.further_metrics(self.runs[0].state.history[0])

    @property
    def classes(self) -> tuple[str, ...]:
        """The foreground class names."""
        return self.measure.classes(self.runs[0].state.history[0])


def find_run_folders(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The run folders among and below the given folders, each once, sorted; links are followed.

    The copies of run folders that a tracking store keeps (``mlartifacts``) are not searched.

    Raises:
        ConfigError: if a path is not a folder, or there is no run folder in it.
    """
    found: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise ConfigError(
                f"{path} is not a folder; give run folders, or folders that hold them"
            )
        here = set(_search(path))
        if not here:
            raise ConfigError(
                f"no run folder in {path}: a run folder holds {CONFIG_FILE} and {STATE_FILE}"
            )
        found |= {folder.resolve() for folder in here}
    return tuple(sorted(found))


def _search(path: Path) -> Iterable[Path]:
    seen = set()  # a link may lead back to where the search has come from
    for folder, subfolders, files in os.walk(path, followlinks=True):
        if (place := os.path.realpath(folder)) in seen:
            subfolders.clear()
            continue
        seen.add(place)
        if STATE_FILE in files or CONFIG_FILE in files:
            subfolders.clear()  # runs do not nest
            yield Path(folder)
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]


def read_run(folder: Path) -> Run:
    """Read one run folder; nothing in it is executed or unpickled.

    A folder without ``state.json`` is a run that was ended before its first round.

    Raises:
        DataError: if its configuration or its state cannot be read.
    """
    path = folder / CONFIG_FILE
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["strategy"]["name"], int(config["seed"]), config["data"]["name"]
        int(config["pool"]["rounds"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not the configuration of a run: {error!r}") from error
    state = (
        RunState.load(folder) if RunState.is_in(folder) else RunState(Pool((), ()), config_hash="")
    )
    try:  # half of a surrogate pair, which JSON and YAML can hold, could be written nowhere
        json.dumps([config, asdict(state)], ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{folder} holds a name that is not text: {error.reason}") from error
    return Run(folder, config, state)


def read_table(path: Path, columns: Mapping[str, type]) -> pd.DataFrame:
    """Read a table that a round's evaluation has left.

    Args:
        path: the CSV file.
        columns: what it has at least, with the type of each.

    Raises:
        DataError: if it cannot be read, was changed or lacks a column.
    """
    check_unchanged(path)
    try:
        # a case may be called NA or null: only what is not text can be missing, and is empty then
        missing_values = {name: [""] for name, kind in columns.items() if kind is not str}
        table = pd.read_csv(
            path, dtype=dict(columns), keep_default_na=False, na_values=missing_values
        )
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path} cannot be read: {error}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}")
    return table


def gather_runs(
    folders: Sequence[Path],
    *,
    reference: str = "random",
    include_incomplete: bool = False,
    left_out: Iterable[LeftOut] = (),
    budget: str = "labelled",
) -> RunSet:
    """Read run folders and check that they can be compared.

    Args:
        folders: the run folders.
        reference: the strategy that all others are compared with.
        include_incomplete: also use runs that have not finished all rounds.
        left_out: runs that are known to be unusable already.
        budget: what the learning curves run along.

    Raises:
        ConfigError: if no run is left, data sets or splits are mixed, a strategy has two runs of
            one seed or two meanings, or the reference is missing.
        DataError: if a run folder cannot be read.
    """
    runs = [read_run(folder) for folder in folders]
    return comparable(
        runs,
        reference=reference,
        include_incomplete=include_incomplete,
        left_out=left_out,
        budget=budget,
    )


def gather_by_data(
    folders: Sequence[Path],
    *,
    reference: str = "random",
    include_incomplete: bool = False,
    left_out: Iterable[LeftOut] = (),
    budget: str = "labelled",
) -> tuple[RunSet, ...]:
    """Read run folders of one or several data sets, and check that those of each can be compared.

    A data set of which no run is complete yet is left out, as long as another one has some; the
    first set of runs lists that. Arguments and errors as those of ``gather_runs``.

    Returns:
        A set of runs for each data set, sorted by its name.
    """
    by_data: dict[str, list[Run]] = {}
    for run in map(read_run, folders):
        by_data.setdefault(run.data, []).append(run)
    begun = [d for d, runs in by_data.items() if any(_usable(r, include_incomplete) for r in runs)]
    waiting = [d for d in by_data if d not in begun] if begun else []
    unused = [*left_out, *(_left_out(run) for data in waiting for run in by_data[data])]
    found: list[RunSet] = []
    for data in sorted(begun or by_data):
        run_set = comparable(
            by_data[data],
            reference=reference,
            include_incomplete=include_incomplete,
            left_out=() if found else unused,
            budget=budget,
        )
        found.append(run_set)
    return tuple(found)


def comparable(
    runs: Sequence[Run],
    *,
    reference: str = "random",
    include_incomplete: bool = False,
    left_out: Iterable[LeftOut] = (),
    budget: str = "labelled",
) -> RunSet:
    """Runs of one data set, checked; arguments and errors as those of ``gather_runs``."""
    used = [run for run in runs if _usable(run, include_incomplete)]
    unused = [*left_out, *(_left_out(run) for run in runs if run not in used)]
    if not used:
        raise ConfigError(
            f"none of the {len(unused)} runs is complete: "
            + "; ".join(f"{run.name}: {run.reason}" for run in unused[:5])
            + ". --include-incomplete uses the rounds they have finished"
        )
    used.sort(key=lambda run: (run.strategy, run.seed))
    check_same_data(used)
    check_unique(used)
    check_same_strategy(used)
    run_set = RunSet(tuple(used), reference, tuple(unused), budget)
    if reference not in run_set.strategies:
        raise ConfigError(
            f"there is no complete run of the reference strategy {reference!r} on {run_set.data}; "
            f"the runs are of: {', '.join(run_set.strategies) or 'full data only'}; run "
            "strategy=random too, or name another with --reference"
        )
    return run_set


def _usable(run: Run, include_incomplete: bool) -> bool:
    return run.has_dice and (run.complete or include_incomplete)


def _left_out(run: Run) -> LeftOut:
    return LeftOut(describe(run), _progress(run))


def describe(run: Run) -> str:
    """How a run is called where it is listed."""
    return f"{run.strategy}, seed {run.seed} ({run.folder.name})"


def _progress(run: Run) -> str:
    finished = f"{run.state.finished_rounds} of {run.planned_rounds} rounds finished"
    return f"{finished}, none with a Dice" if run.complete and not run.has_dice else finished


def check_same_data(runs: Sequence[Run]) -> None:
    """Check that all runs have the same data set, classes and splits.

    Raises:
        ConfigError: naming two runs that differ, and in what.
    """
    first = runs[0]
    split = first.split()
    columns = set(first.state.history[0])
    for run in runs[1:]:
        if run.data != first.data:
            raise ConfigError(
                f"runs of different data sets cannot be compared: {first.folder} is of "
                f"{first.data!r}, {run.folder} of {run.data!r}"
            )
        if run.state.measure is not first.state.measure:
            ours, theirs = (r.state.measure.name for r in (first, run))
            if TEST not in (first.state.measure, run.state.measure):
                raise ConfigError(
                    f"runs of held-out cases and of cross-validation cannot be compared: "
                    f"{first.folder} is judged by {ours}, {run.folder} by {theirs}; give one kind "
                    "of them"
                )
            raise ConfigError(
                f"runs with and without a test part cannot be compared: {first.folder} is judged "
                f"by its {ours} cases, {run.folder} by its {theirs} cases; give one kind of them"
            )
        check_same_evaluation(first, run)
        if set(run.state.history[0]) != columns:
            difference = ", ".join(sorted(columns ^ set(run.state.history[0])))
            raise ConfigError(
                f"{first.folder} and {run.folder} have different metrics: {difference}"
            )
        for part, ids in run.split().items():
            if ids != split.get(part, ids):
                raise ConfigError(
                    f"runs of different splits cannot be compared: {first.folder} and "
                    f"{run.folder} have different {part} cases"
                )


def check_same_evaluation(first: Run, run: Run) -> None:
    """Check that the metrics of two runs mean the same.

    Raises:
        ConfigError: naming the setting of ``evaluation`` in which they differ.
    """
    settings = ({"evaluation": r.config.get("evaluation") or {}} for r in (first, run))
    ours, theirs = (with_as_before(dict(_flat(each))) for each in settings)
    for name in sorted({*ours, *theirs}):
        values = [str(settings.get(name, "not there")) for settings in (ours, theirs)]
        if values[0] != values[1]:
            raise ConfigError(
                f"runs that are evaluated in two ways cannot be compared: {first.folder} has "
                f"{name} {values[0]}, {run.folder} has {values[1]}"
            )


def check_unique(runs: Sequence[Run]) -> None:
    """Check that there is at most one run for a strategy and a seed.

    Raises:
        ConfigError: naming two runs of the same strategy and seed.
    """
    for (strategy, seed), group in groupby(runs, key=lambda run: (run.strategy, run.seed)):
        same = list(group)
        if len(same) > 1:
            raise ConfigError(
                f"strategy {strategy!r} has {len(same)} complete runs of seed {seed}: "
                f"{same[0].folder} and {same[1].folder}; give one of them (runs of other "
                "settings want a strategy.name=... of their own)"
            )


def check_same_strategy(runs: Sequence[Run]) -> None:
    """Check that runs whose strategies have one name have one strategy.

    A setting that is ``data.groups`` in both runs is the same, whatever the groups of their data.

    Args:
        runs: sorted by strategy.

    Raises:
        ConfigError: naming two runs that do not, and the settings in which they differ.
    """
    for name, group in groupby(runs, key=lambda run: run.strategy):
        first, *others = ((run, dict(_flat(run.config["strategy"], "strategy"))) for run in group)
        for run, settings in others:
            of_the_data = first[0].config["data"].get("groups"), run.config["data"].get("groups")
            names = sorted({*settings, *first[1]})
            values = [(n, (first[1].get(n), settings.get(n))) for n in names]
            if differ := [n for n, pair in values if pair[0] != pair[1] and pair != of_the_data]:
                raise ConfigError(
                    f"{first[0].folder} and {run.folder} call two strategies {name!r}: they differ "
                    f"in {', '.join(differ)}; runs of other settings want a strategy.name=... of "
                    "their own"
                )


def learning_curves(run_set: RunSet) -> pd.DataFrame:
    """One row a run and round.

    Columns: ``strategy``, ``seed``, ``full_data``, ``round``, ``labelled`` (units), ``dice`` and
    ``dice_CLASS`` (by which the runs are compared, see ``RunSet.measure``), likewise
    ``surface_dice`` and ``hd95`` where the runs have them, the other columns of
    the history, the seconds of the timings, and ``cost`` (annotation cost up to the round, in the
    unit of the run's cost model) where the run folders carry one. Of rounds that labelled nothing
    new the last one stays; rounds without a Dice, whose validation labels hold no foreground, are
    left out. A run that may repeat volumes reaches labelled counts of its own; it is read off,
    linearly, at those of the other runs. Of runs of regions also ``annotated_voxels``,
    ``annotated_foreground_voxels``, ``annotated_slices`` and ``annotated_effort``.
    """
    rows = [
        {"strategy": run.strategy, "seed": run.seed, "full_data": run.full_data}
        | timing
        | history
        | _cost(run, history)
        | _annotated(run, history)
        for run in run_set.runs
        for history, timing in zip(run.state.history, run.state.timings, strict=True)
    ]
    table = pd.DataFrame(rows).sort_values(["strategy", "seed", "round"], ignore_index=True)
    table = table.drop_duplicates(["strategy", "seed", "labelled"], keep="last")
    table = table.rename(columns=metric_columns(run_set)).dropna(subset=["dice"])
    repeating = {(run.strategy, run.seed) for run in run_set.runs if run.repeats}
    keys = pd.MultiIndex.from_frame(table[["strategy", "seed"]])
    others = table[~keys.isin(repeating) & ~table["full_data"]]
    if not repeating or others.empty:
        return table.reset_index(drop=True)
    budgets = np.unique(others["labelled"])
    parts = [
        read_off(run, budgets) if key in repeating else run
        for key, run in table.groupby(["strategy", "seed"])
    ]
    return pd.concat(parts, ignore_index=True)


def timing_table(run_set: RunSet) -> pd.DataFrame:
    """One row a run and round: ``strategy``, ``seed``, ``round`` and its seconds."""
    return pd.DataFrame(
        {"strategy": run.strategy, "seed": run.seed} | timing
        for run in run_set.runs
        for timing in run.state.timings
    )


def metric_columns(run_set: RunSet) -> dict[str, str]:
    """What the columns of metrics.csv that are compared are called in a comparison."""
    measure, columns = run_set.measure, {}
    for metric in (DICE, *run_set.further_metrics):
        columns[measure.of_metric(metric)] = metric
        columns |= {measure.of_metric(metric, n): f"{metric}_{n}" for n in run_set.classes}
    return columns


def _cost(run: Run, row: Mapping[str, Any]) -> dict[str, float]:
    """The annotation cost up to a round: its own column, or the sum over the queries before it."""
    if "cost" in row:
        return {"cost": float(row["cost"])}
    queries = run.state.queries
    if not queries or any(query.get("cost") is None for query in queries):
        return {}
    return {"cost": float(sum(q["cost"] for q in queries if q["round"] < row["round"]))}


def _annotated(run: Run, row: Mapping[str, Any]) -> dict[str, float]:
    """What annotating has taken up to a round, for runs of regions."""
    return annotated([q for q in run.state.queries if q["round"] < row["round"]])


def query_table(run_set: RunSet) -> pd.DataFrame:
    """One row a labelled case: ``strategy``, ``seed``, ``round`` (0: initial), ``case_id``, ...

    A case that was acquired again has only its first row.
    """
    return pd.DataFrame(
        [
            {"strategy": run.strategy, "seed": run.seed} | query
            for run in run_set.runs
            if not run.full_data
            for query in _first_of_each_case(run.state.queries)
        ]
    )


def _first_of_each_case(queries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for query in queries:
        first.setdefault(query["case_id"], dict(query))
    return list(first.values())


def differing_settings(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Settings that differ between runs and may make the comparison unfair, with their values.

    The strategy, the seed and where things are stored may differ; the number of labelled volumes
    of a full-data run is not a setting of it.
    """
    flat = [(run, dict(_flat(run.config))) for run in runs]
    names = {name for _, settings in flat for name in settings}
    differing = {}
    for name in sorted(names):
        values = {
            str(settings.get(name))
            for run, settings in flat
            if not (run.full_data and name.startswith("pool."))
        }
        if len(values) > 1:
            differing[name] = tuple(sorted(values))
    return differing


def _flat(content: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(content, Mapping):
        yield prefix, content
        return
    for key, value in content.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        # where the data lie may differ between machines; the split is compared by its case ids
        if name not in FREE_SETTINGS and key != "root":
            yield from _flat(value, name)


def calibration_table(run_set: RunSet) -> pd.DataFrame:
    """The reliability histograms of the rounds that have a ``calibration.csv``; may be empty.

    Full-data runs have no rounds to compare and are left out.

    Columns: ``strategy``, ``seed``, ``round``, ``bin_low``, ``bin_high``, ``n_voxels``,
    ``confidence`` (mean in the bin), ``accuracy`` (share of correct voxels in the bin).
    """
    tables = []
    for run in run_set.runs:
        for row in () if run.full_data else run.state.history:
            path = run.round_folder(row["round"]) / CALIBRATION_FILE
            if path.is_file():
                table = read_table(path, dict.fromkeys(CALIBRATION, float))
                tables.append(
                    table.assign(strategy=run.strategy, seed=run.seed, round=row["round"])
                )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
