"""Kill a real run at random moments, resume it until it ends, and compare it with a whole one.

    python scripts/chaos.py --kills 25
    python scripts/chaos.py --stress 8    # so many runs at once, on a fresh cache and MLflow store

Each life of a run is a process of its own, forked from this one, which has imported the libraries;
it calls the same ``alseg.train.main`` as the command line. Lives are ended by SIGKILL after a
random time. Queries, metrics, scores and final weights must be bit-identical to those of the run
that was not interrupted; exit code 1 if they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alseg import train
from alseg.run.folder import STAGES_FILE, STATE_FILE, TRAINING_CURVES_FILE
from alseg.run.state import RunState
from alseg.system.files import read_tensors
from alseg.tracking.mlflow_runs import fetch_runs
from alseg.tracking.record import curve_points

SMOKE = (
    "experiment=smoke",
    "trainer=cpu",
    "steps_per_round=6",
    "val_interval=2",
    "checkpoint_every_n_steps=2",
    "data.num_workers=0",
    "pictures=1",
)
VARIANTS = {
    "variance": ("strategy=variance", "round_start=continue", "pool.rounds=3"),
    "ensemble": ("strategy=variance", "uncertainty=ensemble", "uncertainty.n_members=2"),
    "features": ("strategy=badge", "pool.candidates=4"),
    "mlflow": ("strategy=entropy", "tracking=mlflow"),
}


@dataclass
class Report:
    """What happened to the runs that were killed.

    Attributes:
        moments: for each kill, what the run was doing.
        runs: the runs that were compared.
        different: what differed, in words.
    """

    moments: list[str] = field(default_factory=list)
    runs: int = 0
    different: list[str] = field(default_factory=list)


def start(overrides: Sequence[str], output: Path) -> int:
    """Fork a process that runs ``python -m alseg.train`` with these overrides; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (
            os.fdopen(1, "w", encoding="utf-8"),
            os.fdopen(2, "w", buffering=1, encoding="utf-8"),
        )
        torch.set_num_threads(1)
        sys.argv = ["alseg.train", *overrides]
        train.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def finished(overrides: Sequence[str], output: Path, seconds: float | None = None) -> int | None:
    """Run to the end, or kill after some seconds; returns the exit code, None if it was killed."""
    process, started = start(overrides, output), time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if seconds is not None and time.monotonic() - started > seconds:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None
        time.sleep(0.005)


def moment(folder: Path) -> str:
    """What a run was doing when it was killed, from what it has left."""
    if not (folder / STATE_FILE).is_file():
        return "preprocessing" if (folder / "config.yaml").is_file() else "starting"
    n_finished = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["finished_rounds"]
    current = folder / "rounds" / f"round_{n_finished + 1:02d}"
    where = f"round {n_finished + 1}: "
    if not current.is_dir():
        return f"after round {n_finished}"
    if list(current.glob("partial_scores_*")):
        return where + "scoring"
    if (current / STAGES_FILE).is_file():
        return (
            where
            + "after "
            + list(json.loads((current / STAGES_FILE).read_text(encoding="utf-8")))[-2]
        )
    return where + ("training" if list(current.glob("*.ckpt")) else "its first steps")


def results(folder: Path) -> dict[str, Any]:
    """What must be equal: pool, queries and metrics, scores, and the weights of all rounds."""
    state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    found: dict[str, Any] = {key: state[key] for key in ("pool", "queries", "history")}
    for path in sorted(folder.glob("rounds/*/*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".ckpt":
            found[name] = torch.load(path, weights_only=True)["state_dict"]
        elif path.name == TRAINING_CURVES_FILE:
            # except their times, and Lightning's epoch, which a trainer that only tests begins at 0
            points = curve_points(folder, int(path.parent.name[-2:]))
            found[name] = sorted((p.name, p.step, p.value) for p in points if p.name != "epoch")
        elif path.suffix == ".csv":
            found[name] = path.read_text(encoding="utf-8")
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of the results that differ in any bit."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, dict) and all(isinstance(v, torch.Tensor) for v in a.values()):
            return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        return repr(a) == repr(b)  # repr: NaN is not equal to itself

    names = [*one, *(name for name in other if name not in one)]
    return [n for n in names if n not in one or n not in other or not equal(one[n], other[n])]


def chaos(
    folder: Path,
    kills: int,
    seed: int,
    variants: Sequence[str] = tuple(VARIANTS),
    say: Callable[[str], None] = print,
) -> Report:
    """Kill runs of the variants in turn until there were ``kills`` kills, and let all of them end.

    Args:
        folder: for the runs.
        kills: how often.
        seed: of the moments.
        variants: names of VARIANTS.
        say: called with what happens.
    """
    rng, report = random.Random(seed), Report()
    expected: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    while len(report.moments) < kills:
        variant = variants[report.runs % len(variants)]
        settings = [*SMOKE, *VARIANTS[variant]]
        if "tracking=mlflow" not in settings:
            settings.append("tracking=none")
        log = folder / "output.log"
        if variant not in expected:
            whole, began = folder / f"{variant}_whole", time.monotonic()
            # a cache of its own, filled here as in each run that is killed
            places = [f"output_dir={folder}/{variant}_out", f"hydra.run.dir={whole}"]
            code = finished([*settings, *places], log)
            assert code == 0, log.read_text(encoding="utf-8")[-3000:]
            seconds[variant] = time.monotonic() - began
            expected[variant] = results(whole)
            say(f"{variant}: not interrupted, {seconds[variant]:.1f} s")
        run = folder / f"{variant}_killed_{report.runs}"
        places = [f"output_dir={folder}/{variant}_out_{report.runs}", f"hydra.run.dir={run}"]
        overrides = [*settings, *places]
        while True:
            due = len(report.moments) < kills
            life = rng.uniform(0.0, 0.5 * seconds[variant]) if due else None
            code = finished(overrides, log, life)
            if code == 0:
                break
            assert code is None, f"exit code {code}: {log.read_text(encoding='utf-8')[-3000:]}"
            report.moments.append(f"{variant}, {moment(run)}")
            say(f"kill {len(report.moments)}: {report.moments[-1]}")
            if (run / "config.yaml").is_file():
                overrides = [f"resume={run}", f"hydra.run.dir={folder}/unused"]
        report.runs += 1
        differing = differences(expected[variant], results(run))
        left = [p.name for p in run.rglob(".tmp-*")] + [p.name for p in run.rglob("partial*")]
        report.different += [f"{run.name}: {name}" for name in [*differing, *left]]
        say(f"{run.name}: {'differs in ' + ', '.join(differing) if differing else 'bit-identical'}")
    return report


def stress(folder: Path, n_runs: int) -> list[str]:
    """Start runs at one moment on a fresh cache, fresh phantoms and a fresh MLflow store.

    Returns:
        What went wrong, in words.
    """
    jobs = {}
    for seed in range(1, n_runs + 1):
        places = (f"output_dir={folder}/out", f"hydra.run.dir={folder}/{seed}", f"seed={seed}")
        overrides = ("experiment=smoke", "trainer=cpu", "data.num_workers=0", "pictures=0", *places)
        jobs[start(overrides, folder / f"{seed}.log")] = seed
    wrong = []
    while jobs:
        process, status = os.wait()
        seed = jobs.pop(process)
        if code := os.waitstatus_to_exitcode(status):
            output = (folder / f"{seed}.log").read_text(encoding="utf-8")
            wrong.append(f"run {seed}: exit code {code}: {output}")
    computed = 0
    for seed in range(1, n_runs + 1):
        state = RunState.load(folder / str(seed))
        computed += sum(row["preprocessed_volumes"] for row in state.timings)
    entries = list(folder.glob("out/cache/image-*.pt"))
    for entry in folder.glob("out/cache/*.pt"):
        read_tensors(entry)
    if computed != len(entries):
        wrong.append(f"{computed} images were preprocessed for {len(entries)} entries")
    wrong += [f"left behind: {path}" for path in folder.rglob(".tmp-*")]
    stored = fetch_runs(f"sqlite:///{folder}/out/mlflow.db", "smoke", folder / "fetched")
    if [run.status for run in stored] != ["FINISHED"] * n_runs:
        wrong.append(f"the store has the runs {[(run.name, run.status) for run in stored]}")
    print(f"{n_runs} runs at once, {len(entries)} images, {len(stored)} runs in the store")
    return wrong


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--stress", type=int, metavar="RUNS", help="instead of kills")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.stress:
            wrong = stress(Path(folder), arguments.stress)
        else:
            report = chaos(Path(folder), arguments.kills, arguments.seed, arguments.variants)
            wrong = report.different
            print(f"{len(report.moments)} kills in {report.runs} runs; {len(wrong)} differences")
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
