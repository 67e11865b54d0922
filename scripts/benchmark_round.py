"""How does a round grow: seconds and memory against the pool, the size of volumes and T?

    python scripts/benchmark_round.py --json runs/benchmark/round.json --plots docs/images
    python scripts/benchmark_round.py --only volume --sizes 64 96 128 --repeats 3

One round of ``strategy=variance`` with the default network: it preprocesses, trains for 20 steps,
evaluates two volumes and scores the pool. Volumes are cubes of noise with a liver and a tumour in
them. Each point is measured in a process of its own: seconds of its processor time by part, and its
largest resident set up to the end of each part. What is in the JSON file is not measured again, so
a command that was interrupted continues; a point that takes longer than ``--minutes`` is given up,
and kept as such. Prints a Markdown table a series, medians of the repeats with their ranges; bold
are seconds that have grown by more than the power ``FLAG`` of what was made larger.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from benchmark_growth import peak_mib

from alseg.active.initial_state import initial_state
from alseg.active.round import Round
from alseg.active.round_acquisition import acquire
from alseg.active.round_evaluation import evaluate
from alseg.active.round_loop import prepare
from alseg.active.round_training import train
from alseg.config.build import build
from alseg.config.composition import composed
from alseg.system.files import write_atomically
from alseg.system.memory import keep_freed_memory

PARTS = ("preprocessing", "training", "evaluation", "scoring")
AXES = {"pool": "volumes to score", "volume": "voxels a volume", "passes": "T"}
WINDOW, INTERVAL = 64, 48  # voxels: sliding windows, and from one to the next
FLAG = 1.15
Point = dict[str, Any]


def main() -> None:
    """Measure the points that are missing, print the tables, draw."""
    arguments = parsed()
    found: dict[str, Point] = {}
    if arguments.json.is_file():
        found = json.loads(arguments.json.read_text(encoding="utf-8"))
    for repeat, series in product(range(1, 1 + arguments.repeats), arguments.only):
        for point in points(arguments, series):
            name = f"{series} {point['pool']} x {point['size']}, T = {point['T']}, run {repeat}"
            if name not in found:
                found[name] = {"series": series, **point, **measured(point, arguments)}
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(arguments.json, json.dumps(found, indent=1))
                print(name, found[name], flush=True)
    for series in AXES:
        finished = [p for p in found.values() if p["series"] == series and "scoring" in p]
        grouped = by_point(finished)
        if grouped:
            print("\n".join(["", *table(series, grouped)]))
        if arguments.plots and len(grouped) > 1:
            draw(series, grouped, arguments.plots / f"growth_{series}.png")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--pools", nargs="+", type=int, default=[4, 16, 64, 256])
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[64, 96, 128, 192, 256, 384], help="voxels a side"
    )
    parser.add_argument("--passes", nargs="+", type=int, default=[2, 5, 10, 20, 50], help="T")
    parser.add_argument("--steps", type=int, default=20, help="of training")
    parser.add_argument("--minutes", type=float, default=20.0, help="at most, of a point")
    parser.add_argument("--repeats", type=int, default=1, help="of each point")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmark/round.json"))
    parser.add_argument("--plots", type=Path, help="folder for growth_pool.png, ...")
    return parser.parse_args()


def points(arguments: argparse.Namespace, series: str) -> list[Point]:
    """What is measured in a series: volumes to score, their voxels a side, T."""
    if series == "pool":
        return [{"pool": n, "size": WINDOW, "T": 5} for n in arguments.pools]
    if series == "volume":
        return [{"pool": 2, "size": n, "T": 2} for n in arguments.sizes]
    return [{"pool": 4, "size": WINDOW, "T": n} for n in arguments.passes]


def measured(point: Point, arguments: argparse.Namespace) -> Point:
    """What a process of its own finds, or that it has taken too long."""
    with tempfile.TemporaryDirectory() as name:
        folder, result = Path(name), Path(name, "result.json")
        in_a_process(write_volumes, folder / "data", point["pool"] + 4, point["size"])
        limit = 60 * arguments.minutes
        if not in_a_process(write_round, folder, point, arguments.steps, limit=limit):
            return {"given up after minutes": arguments.minutes}
        found: Point = json.loads(result.read_text(encoding="utf-8"))
        return found


def in_a_process(work: Callable[..., None], *given: Any, limit: float | None = None) -> bool:
    """Do something in a process that has imported all and done nothing; whether it was in time."""
    process = get_context("fork").Process(target=work, args=given)
    process.start()
    process.join(limit)
    if process.exitcode is None:
        process.terminate()
        process.join()
        return False
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} has failed, see above")
    return True


def write_volumes(root: Path, n_volumes: int, size: int) -> None:
    """A data set of the Medical Segmentation Decathlon: a liver with a tumour in noise."""
    axes = np.ogrid[tuple(slice(-1, 1, size * 1j) for _ in range(3))]
    radius = np.sqrt(axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2)
    label = (radius < 0.6).astype(np.uint8) + (radius < 0.2)
    rng = np.random.default_rng(0)
    for kind in ("imagesTr", "labelsTr"):
        (root / kind).mkdir(parents=True)
    names = [f"ct_{index:04d}.nii.gz" for index in range(n_volumes)]
    for name in names:
        image = rng.normal(0, 20, label.shape).astype(np.int16) + 40 * label
        for kind, voxels in (("imagesTr", image), ("labelsTr", label)):
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), root / kind / name)
    task = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
        "training": [{"image": f"imagesTr/{n}", "label": f"labelsTr/{n}"} for n in names],
    }
    (root / "dataset.json").write_text(json.dumps(task), encoding="utf-8")
    cases = [name.removesuffix(".nii.gz") for name in names]
    parts = {"validation": cases[:1], "test": cases[1:2], "training": cases[2:]}
    (root / "parts.json").write_text(json.dumps(parts), encoding="utf-8")


def write_round(folder: Path, point: Point, n_steps: int) -> None:
    """Run a round and write down what it has taken."""
    keep_freed_memory()
    torch.set_num_threads(1)
    settings = {
        "data": "msd",
        "data.root": folder / "data",
        "data/splits": "file",
        "data.split_file": folder / "data" / "parts.json",
        "data.spacing_mm": "[1,1,1]",
        "data.patch_size": "[32,32,32]",
        "data.inferer.roi_size": f"[{WINDOW},{WINDOW},{WINDOW}]",
        "data.num_workers": 0,
        "uncertainty.n_passes": point["T"],
        "pool.initial": 2,
        "pool.query_size": 2,
        "pool.rounds": 2,
        "steps_per_round": n_steps,
        "val_interval": n_steps,
        "trainer": "cpu",
        "tracking": "none",
        "pictures": 0,
        "output_dir": folder,
    }
    config = composed([f"{name}={value}" for name, value in settings.items()])
    result: Point = {"peak MiB at the start": peak_mib()}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        result[name] = round(time.process_time() - started, 2)
        result[f"peak MiB, {name}"] = peak_mib()

    experiment = build(config, folder)
    experiment.tracker.open(experiment.folder, experiment.settings, experiment.tags)
    state = initial_state(experiment)
    with part("preprocessing"):
        prepare(experiment, state)
    this_round = Round.after(experiment, state)
    with part("training"):
        trained = train(this_round)
    with part("evaluation"):
        evaluate(this_round, trained.trainer, trained.module)
    with part("scoring"):
        acquire(this_round, trained)
    write_atomically(folder / "result.json", json.dumps(result))


def grown(series: str, point: Point) -> int:
    """What is made larger in a series, in a point of it."""
    if series == "volume":
        return int(point["size"]) ** 3
    return int(point["pool"] if series == "pool" else point["T"])


def n_windows(size: int) -> int:
    """Windows of a cubic volume."""
    return (1 + max(0, math.ceil((size - WINDOW) / INTERVAL))) ** 3


def by_point(finished: Sequence[Point]) -> list[list[Point]]:
    """The repeats of each point, the smallest point first."""
    grouped: dict[tuple[int, ...], list[Point]] = {}
    for run in finished:
        grouped.setdefault((run["pool"], run["size"], run["T"]), []).append(run)
    return [runs for _, runs in sorted(grouped.items())]


def median(runs: Sequence[Point], name: str) -> float:
    """Of the repeats of a point."""
    return float(np.median([run[name] for run in runs]))


def cell(runs: Sequence[Point], name: str, form: str) -> str:
    """The median of the repeats, with their range where it shows."""
    values = [run[name] for run in runs]
    low, high = format(min(values), form), format(max(values), form)
    middle = format(median(runs, name), form)
    return middle if low == high else f"{middle} ({low} to {high})"


def table(series: str, grouped: Sequence[Sequence[Point]]) -> list[str]:
    """The lines of a table: seconds of the parts, and the largest memory."""
    heads = [AXES[series], *(["windows"] if series == "volume" else [])]
    heads += [*(f"{part}, s" for part in PARTS), "peak, MiB", "of it before", "reached in", "runs"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for before, runs in zip([None, *grouped], grouped, strict=False):
        cells = [f"{grown(series, runs[0]):,}"]
        cells += [str(n_windows(runs[0]["size"]))] if series == "volume" else []
        for part in PARTS:
            seconds = cell(runs, part, ".1f")
            cells.append(f"**{seconds}**" if is_flagged(series, before, runs, part) else seconds)
        peaks = [median(runs, f"peak MiB, {part}") for part in PARTS]
        cells.append(cell(runs, f"peak MiB, {PARTS[-1]}", ".0f"))
        cells.append(cell(runs, "peak MiB at the start", ".0f"))
        cells += [PARTS[peaks.index(peaks[-1])], str(len(runs))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def is_flagged(
    series: str, before: Sequence[Point] | None, runs: Sequence[Point], part: str
) -> bool:
    """Whether a part's seconds have grown by more than they may, and by more than a second."""
    if before is None or median(runs, part) - median(before, part) < 1:
        return False
    larger = grown(series, runs[0]) / grown(series, before[0])
    return median(runs, part) > median(before, part) * larger**FLAG


def draw(series: str, grouped: Sequence[Sequence[Point]], path: Path) -> None:
    """Seconds by part, on logarithmic axes (dashed: in proportion), and memory; medians."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.array([grown(series, runs[0]) for runs in grouped])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for part in PARTS:
        left.plot(x, [median(runs, part) for runs in grouped], marker="o", label=part)
    longest = max(median(grouped[-1], part) for part in PARTS)
    left.plot(x, longest * x / x[-1], "--", color="grey", label="in proportion")
    left.set_ylabel("seconds of processor time")
    left.set_yscale("log")
    left.legend(fontsize=8)
    peaks = [median(runs, "peak MiB, scoring") for runs in grouped]
    right.plot(x, peaks, marker="o", color="black")
    right.set_ylabel("largest resident set, MiB")
    right.set_ylim(0, 1.1 * max(peaks))
    right.ticklabel_format(axis="x", style="plain")
    right.xaxis.set_major_locator(MaxNLocator(5))
    first = [runs[0] for runs in grouped]
    names = [f"{p['size']}³" if series == "volume" else str(grown(series, p)) for p in first]
    left.set_xscale("log")
    left.set_xticks(x, names)
    left.set_xticks([], minor=True)
    for axes in (left, right):
        axes.set_xlabel(AXES[series])
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
