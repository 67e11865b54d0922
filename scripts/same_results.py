"""Does a change of the code change results? Runs the smoke experiment in many ways and compares.

    git switch main
    python scripts/same_results.py record before.json
    git switch my_branch
    python scripts/same_results.py compare before.json

All strategies and sources of uncertainty of conf/ run for two rounds on tiny phantoms, and so do
the proxy start, the pseudo-labels and adaptive passes behind a gate: a minute on one core.
``compare`` prints what differs and ends with exit code 1 if anything does.

A recorded table holds hashes of the files, which agree to the bit on one machine with one version
of torch. ``record --small`` leaves them out: then queries must be the same, and scores and Dice
agree within tolerances that the arithmetic of other CPUs stays in; tests/same_results.json is such
a table.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from alseg.config.composition import composed, conf_folder
from alseg.engine.runs import train
from alseg.run.state import RunState

SMOKE = (
    "experiment=smoke",
    "trainer=cpu",
    "tracking=none",
    "pictures=0",
    "data.num_workers=0",
    "evaluation.space=grid",
    "seed=3",  # of the first eight, the one whose queries are farthest from a tie
)
# what depends on the clock, or on what an earlier run has left in the cache
OTHERWISE = r".*_seconds|preprocessed_volumes"
# The first steps of AdamW follow the sign of a gradient, however small, and so magnify how a CPU
# rounds. Between vector units (ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41, and without
# them) scores differed by 0.3%, and Dice by 0.003.
SCORE_TOLERANCE = 0.02  # relative
DICE_TOLERANCE = 0.01
N_DIGITS = 6
# K-means on features that are almost alike: on another CPU it finds other clusters.
OF_ONE_MACHINE = ("strategy=typiclust",)

Result = dict[str, Any]


def experiments() -> dict[str, tuple[str, ...]]:
    """The overrides of each run, by its name."""
    strategies = {name: (name,) for name in choices("strategy")}
    sources = {
        name: ("strategy=bald", name)
        for name in choices("uncertainty")
        if not name.startswith("uncertainty=mc_dropout")
    }
    return {
        **strategies,
        **sources,
        "uncertainty=mc_dropout": (
            "strategy=bald",
            "uncertainty=mc_dropout",
            "uncertainty.n_passes=2",
        ),
        "pseudo_label": ("semi_supervised=pseudo_label", "semi_supervised.step_share=0.5"),
        "proxy": ("strategy=entropy", "pool.start=proxy", "proxy.steps=4"),
        # two windows a volume, of which the passes can leave one out
        "adaptive": (
            "data.inferer.roi_size=[16,32,32]",
            "uncertainty.n_passes=6",
            "uncertainty.passes=adaptive",
            "uncertainty.gate=0.05",
        ),
    }


def choices(group: str) -> list[str]:
    """``GROUP=CHOICE`` for each file of a group."""
    names = sorted(path.stem for path in Path(conf_folder(), group).glob("*.yaml"))
    return [f"{group}={name}" for name in names]


def result(overrides: Sequence[str], shared: Path) -> Result:
    """Run an experiment and say what came out.

    Args:
        overrides: of the smoke experiment.
        shared: keeps phantoms and preprocessed volumes for all runs.

    Returns:
        ``files``: a hash of each file of results; ``queries``: (round, case) in order; ``scores``
        of the last pool that was scored, by case; ``dice``: the columns of metrics.csv that hold
        one, a number a round.
    """
    settings = [*SMOKE, f"output_dir='{shared}'", *overrides]
    with tempfile.TemporaryDirectory() as name, redirect_stdout(io.StringIO()):
        folder = Path(name)
        train(composed(settings), folder, settings)
        state = RunState.load(folder)
        tables = [*sorted(folder.glob("*.csv")), *sorted(folder.glob("rounds/*/scores.csv"))]
        files = {str(path.relative_to(folder)): digest(path) for path in tables}
        scores = [path for path in tables if path.name == "scores.csv"]
        last = pd.read_csv(scores[-1], index_col="case_id")["score"] if scores else pd.Series()
    dice = pd.DataFrame(state.history).filter(regex="_dice")
    return {
        "files": files,
        "queries": [[row["round"], row["case_id"]] for row in state.queries],
        "scores": {str(case): float(f"{score:.{N_DIGITS}g}") for case, score in last.items()},
        "dice": {str(name): column.round(N_DIGITS).tolist() for name, column in dice.items()},
    }


def digest(path: Path) -> str:
    """A hash of a table without the columns that the clock and the cache are in."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    text = table.drop(columns=table.filter(regex=OTHERWISE).columns).to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Result, now: Result) -> Iterator[str]:
    """What differs between two results of one experiment, a sentence each."""
    for file in sorted({*before.get("files", ()), *now["files"]} if "files" in before else ()):
        if before["files"].get(file) != now["files"].get(file):
            yield f"{file} is another one"
    if before["queries"] != now["queries"]:
        yield f"queries are {now['queries']}, and were {before['queries']}"
    yield from distances("score of", before["scores"], now["scores"], is_score_near)
    for name in sorted({*before["dice"], *now["dice"]}):
        old, new = (dict(enumerate(each["dice"].get(name, ()), 1)) for each in (before, now))
        yield from distances(f"{name} of round", old, new, is_dice_near)


def distances(
    what: str,
    before: Mapping[Any, float],
    now: Mapping[Any, float],
    is_near: Callable[[float, float], bool],
) -> Iterator[str]:
    """The values, by case or by round, that differ."""
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if old is None or new is None or not is_near(old, new):
            yield f"{what} {key} is {new}, and was {old}"


def is_score_near(old: float, new: float) -> bool:
    """Whether two scores of one case are the same, whatever CPU they come from."""
    return abs(new - old) <= SCORE_TOLERANCE * abs(old)


def is_dice_near(old: float, new: float) -> bool:
    """Whether two Dice are the same, whatever CPU they come from."""
    return abs(new - old) <= DICE_TOLERANCE


def results(names: Collection[str]) -> Iterator[tuple[str, Result]]:
    """Run experiments, one after another in this process."""
    with tempfile.TemporaryDirectory() as shared:
        for name in names:
            yield name, result(experiments()[name], Path(shared))


def record(file: Path, *, small: bool) -> None:
    """Run all experiments and write what came out."""
    table = {}
    names = [name for name in experiments() if not (small and name in OF_ONE_MACHINE)]
    for name, now in results(names):
        print(name, flush=True)
        table[name] = {key: now[key] for key in now if not (small and key == "files")}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def compare(file: Path) -> bool:
    """Run all experiments; print what is not as it was recorded. Returns whether all is."""
    table = json.loads(file.read_text(encoding="utf-8"))
    is_small = not any("files" in before for before in table.values())
    expected = {name for name in experiments() if not (is_small and name in OF_ONE_MACHINE)}
    found = [
        f"{name}: is not both in {file} and in conf/" for name in sorted(expected ^ set(table))
    ]
    for name, now in results([name for name in table if name in expected]):
        different = [f"{name}: {text}" for text in differences(table[name], now)]
        print("\n".join(different) or f"{name}: same", flush=True)
        found += different
    print("\n".join(found) if found else f"all {len(table)} runs are as in {file}")
    return not found


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--small", action="store_true", help="without hashes: for other machines")
    given = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    torch.set_num_threads(1)
    if given.what == "record":
        record(given.file, small=given.small)
    elif not compare(given.file):
        sys.exit(1)


if __name__ == "__main__":
    main()
