"""What does a run of the tutorial's experiment cost, and what would it cost in the tutorial's way?

    python scripts/benchmark_tutorial.py                  # on the CPU, 15 minutes
    python scripts/benchmark_tutorial.py --device cuda --size 128 --steps 200 --patch 96
    python scripts/benchmark_tutorial.py -- uncertainty.gate=0.3 uncertainty.passes=adaptive

Runs ``experiment=tutorial_liver`` with ``strategy=variance`` on phantom CTs, and beside it the same
experiment in the way of the MONAI tutorial, written here for the purpose: T stacked passes with the
whole network in training mode, variances and their mean by NumPy on the CPU, all volumes loaded and
preprocessed anew in each round, a validation each 5 epochs. Volumes, network, windows, batches,
augmentation, optimiser, steps and T are the same, and so are the sizes of the pool; the queries are
each way's own. The two run in turn, each in a process of its own, ``--repeats`` times, and leave
what they took in the file ``--json``, with which the same command continues where it was. It prints
the time of each part as a Markdown table, medians over the repeats: of its processor on a CPU, of
the clock on a GPU. What stands behind ``--`` goes to alseg.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from monai import transforms as mt
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.utils import set_determinism
from torch import nn

from alseg.active import round_loop
from alseg.config.composition import composed
from alseg.data.phantom import write_phantom_dataset
from alseg.engine import runs
from alseg.run.state import RunState
from alseg.system.files import write_atomically
from alseg.system.memory import keep_freed_memory

PARTS = ("preprocessing", "training", "evaluation", "scoring")
WAYS = ("alseg", "tutorial")


def main() -> None:
    """Run both ways in turn and compare."""
    arguments = parsed()
    if arguments.way:
        run = alseg if arguments.way == "alseg" else tutorial
        print(json.dumps(run(arguments)))
        return
    own = ("json", "repeats", "way")
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in own}
    found: dict[str, Any] = {"settings": settings, "rows": []}
    if arguments.json.is_file():
        found = json.loads(arguments.json.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        sys.exit(f"{arguments.json} was made with other settings; give another file by --json")
    phantoms(arguments)
    done = {(row["repeat"], row["way"]) for row in found["rows"]}
    for repeat, way in itertools.product(range(arguments.repeats), WAYS):
        if (repeat, way) not in done:
            row = measured([sys.executable, sys.argv[0], "--way", way, *sys.argv[1:]])
            found["rows"].append({"repeat": repeat, "way": way, **row})
            print(found["rows"][-1], file=sys.stderr)
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(arguments.json, json.dumps(found, indent=1))
    print(report(arguments, pd.DataFrame(found["rows"])))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--volumes", type=int, default=24, help="of which 4 validate and 4 test")
    parser.add_argument("--size", type=int, default=96, help="of a phantom, voxels a side")
    parser.add_argument("--patch", type=int, default=32, help="and windows of 1.5 times that")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--query", type=int, default=3, help="volumes at the start and a query")
    parser.add_argument("--steps", type=int, default=40, help="of training, a round")
    parser.add_argument("--passes", type=int, default=10, help="T")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark/tutorial"))
    parser.add_argument("--json", type=Path, default=Path("runs/benchmark/tutorial.json"))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="of alseg, behind --")
    return parser.parse_args()


def phantoms(arguments: argparse.Namespace) -> Path:
    """The data set, with a split file beside it."""
    field = 400.0 / arguments.size
    root = write_phantom_dataset(
        arguments.folder / "phantoms",
        n_volumes=arguments.volumes,
        size=arguments.size,
        spacing_mm=(field, field, field),
    )
    listed = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["training"]
    names = [Path(entry["image"]).name.removesuffix(".nii.gz") for entry in listed]
    parts = {"validation": names[:4], "test": names[4:8], "training": names[8:]}
    (arguments.folder / "split.json").write_text(json.dumps(parts), encoding="utf-8")
    return root


def spacing(arguments: argparse.Namespace) -> list[float]:
    """Of the preprocessed volumes: a tenth coarser than the files."""
    return [1.1 * 400.0 / arguments.size] * 3


def measured(command: Sequence[str]) -> dict[str, float]:
    """What a process takes, in seconds of the clock and of processors, and what it prints."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    clock = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    printed: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"all, clock": clock, "all, processor": processor, **printed}


class Clock:
    """Seconds by part."""

    def __init__(self, device: str) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.device = device

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part, or another piece of it."""
        started = self._now()
        yield
        self.seconds[name] += self._now() - started

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time belongs to a part."""

        def timed_work(*given: Any) -> Any:
            with self.part(name):
                return work(*given)

        return timed_work

    def _now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


# alseg.


def alseg(arguments: argparse.Namespace) -> dict[str, float]:
    """The experiment in alseg's way, with a cache of its own that is empty at the start."""
    keep_freed_memory()  # as the command does
    clock = Clock(arguments.device)
    stages = {
        (runs, "prepare"): "preprocessing",
        (round_loop, "prepare_round"): "preprocessing",
        (round_loop, "train"): "training",
        (round_loop, "evaluate"): "evaluation",
        (round_loop, "acquire"): "scoring",
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for (module, name), part in stages.items():
            stage = clock.timed(part, getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, stage))
        settings = settings_of(arguments, folder)
        runs.train(composed(settings), folder / "run", settings)
        state = RunState.load(folder / "run")
    return dict(clock.seconds) | {"dice": state.history[-1]["test_dice"]}


def settings_of(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The settings of alseg's run."""
    settings = {
        "experiment": "tutorial_liver",
        "strategy": "variance",
        "data.root": phantoms(arguments),
        "data.split_file": arguments.folder / "split.json",
        "data.spacing_mm": spacing(arguments),
        "data.patch_size": [arguments.patch] * 3,
        "data.inferer.roi_size": [round(1.5 * arguments.patch)] * 3,
        "steps_per_round": arguments.steps,
        "pool.initial": arguments.query,
        "pool.query_size": arguments.query,
        "pool.rounds": arguments.rounds,
        "uncertainty.n_passes": arguments.passes,
        "trainer": "cpu" if arguments.device == "cpu" else "gpu",
        "tracking": "none",
        "pictures": 0,
        "data.num_workers": 0,
        "output_dir": folder,
    }
    given = [f"{name}={value}".replace(" ", "") for name, value in settings.items()]
    return [*given, *arguments.settings]


# The tutorial's way.


def tutorial(arguments: argparse.Namespace) -> dict[str, float]:
    """The experiment in the tutorial's way."""
    set_determinism(0)
    clock = Clock(arguments.device)
    root = phantoms(arguments)
    split = json.loads((arguments.folder / "split.json").read_text(encoding="utf-8"))
    files = {
        name: [{"image": root / f"imagesTr/{i}.nii.gz", "label": root / f"labelsTr/{i}.nii.gz"}
               for i in cases]
        for name, cases in split.items()
    }  # fmt: skip
    labelled = files["training"][: arguments.query]
    unlabelled = files["training"][arguments.query :]
    network = UNet(
        3, 1, 3, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2,
        norm="batch", dropout=0.2,
    ).to(arguments.device)  # fmt: skip
    dice = 0.0
    for number in range(arguments.rounds):
        with clock.part("training"):  # its validations are a part of it, as in alseg
            train(arguments, network, labelled, files["validation"])
        with clock.part("evaluation"):
            for name in ("validation", "test"):
                dice = evaluated(arguments, network, files[name])
        if number + 1 < arguments.rounds:
            with clock.part("scoring"):
                scores = [score(arguments, network, file) for file in unlabelled]
            chosen = set(np.argsort(scores)[-arguments.query :].tolist())
            labelled = labelled + [f for i, f in enumerate(unlabelled) if i in chosen]
            unlabelled = [f for i, f in enumerate(unlabelled) if i not in chosen]
    return dict(clock.seconds) | {"dice": dice}


def preprocessing(arguments: argparse.Namespace, keys: Sequence[str]) -> list[Any]:
    """The deterministic transforms of ``conf/data/msd_liver.yaml``, with dictionaries."""
    modes = ["bilinear", "nearest"][: len(keys)]
    return [
        mt.LoadImaged(keys),
        mt.EnsureChannelFirstd(keys),
        mt.Orientationd(keys, axcodes="RAS", labels=None),
        mt.Spacingd(keys, pixdim=spacing(arguments), mode=modes),
        mt.ScaleIntensityRanged("image", a_min=-21, a_max=189, b_min=0, b_max=1, clip=True),
        mt.CropForegroundd(keys, source_key="image"),
    ]


def augmentation(arguments: argparse.Namespace) -> list[Any]:
    """The random transforms of ``conf/data/msd_liver.yaml``."""
    keys, patch = ["image", "label"], [arguments.patch] * 3
    return [
        mt.SpatialPadd(keys, patch),
        mt.RandCropByPosNegLabeld(keys, "label", patch, 1, 1, 4, "image", 0),
        mt.RandShiftIntensityd("image", offsets=0.1, prob=0.5),
        mt.RandAdjustContrastd("image", prob=0.5),
        mt.RandScaleIntensityd("image", factors=0.1, prob=0.5),
        mt.RandGaussianNoised("image", prob=0.5),
        *(mt.RandFlipd(keys, prob=0.3, spatial_axis=[axis]) for axis in range(3)),
        mt.RandRotate90d(keys, prob=0.3, max_k=3),
    ]


def train(
    arguments: argparse.Namespace,
    network: nn.Module,
    labelled: Sequence[dict[str, Path]],
    validation: Sequence[dict[str, Path]],
) -> None:
    """Train a round, with a validation each 5 epochs; the best weights are taken."""
    chain = mt.Compose(preprocessing(arguments, ["image", "label"]) + augmentation(arguments))
    loader = DataLoader(CacheDataset(labelled, chain, progress=False), batch_size=1, shuffle=True)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    best, best_weights, step, epoch = -1.0, network.state_dict(), 0, 0
    while step < arguments.steps:
        network.train()
        for batch in loader:
            optimizer.zero_grad()
            image, label = (batch[name].to(arguments.device) for name in ("image", "label"))
            loss(network(image), label).backward()
            optimizer.step()
            if (step := step + 1) == arguments.steps:
                break
        epoch += 1
        if epoch % 5 == 0 or step == arguments.steps:
            dice = evaluated(arguments, network, validation)
            if dice > best:
                best = dice
                best_weights = {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(best_weights)


def inferer(arguments: argparse.Namespace) -> SlidingWindowInferer:
    """Windows as in alseg's run."""
    return SlidingWindowInferer([round(1.5 * arguments.patch)] * 3, 4, 0.25)


@torch.no_grad()
def evaluated(
    arguments: argparse.Namespace, network: nn.Module, files: Sequence[dict[str, Path]]
) -> float:
    """Mean foreground Dice over volumes that are preprocessed anew."""
    network.eval()
    metric, discrete = DiceMetric(include_background=False), mt.AsDiscrete(argmax=True, to_onehot=3)
    chain = mt.Compose(preprocessing(arguments, ["image", "label"]))
    for batch in DataLoader(Dataset(files, chain), batch_size=1):
        logits = inferer(arguments)(batch["image"].to(arguments.device), network)
        predictions = [discrete(p) for p in decollate_batch(logits)]
        labels = [
            torch.as_tensor(mt.AsDiscrete(to_onehot=3)(y)) for y in decollate_batch(batch["label"])
        ]
        metric([torch.as_tensor(p).cpu() for p in predictions], labels)
    mean = metric.aggregate()
    assert isinstance(mean, torch.Tensor)
    return float(mean)


@torch.no_grad()
def score(arguments: argparse.Namespace, network: nn.Module, file: dict[str, Path]) -> float:
    """The mean variance of T stacked passes, the network in training mode."""
    network.train()
    image = mt.Compose(preprocessing(arguments, ["image"]))({"image": file["image"]})["image"]
    passes = []
    for _ in range(arguments.passes):
        logits = inferer(arguments)(image[None].to(arguments.device), network)
        assert isinstance(logits, torch.Tensor)
        passes.append(torch.softmax(logits, 1).cpu())
    stack = torch.cat(passes).numpy()[:, 1:]  # [T, C - 1, D, H, W]
    stack[stack <= 0] = 0.0005
    return float(np.nanmean(np.nansum(np.nanvar(stack, axis=0), axis=0)))


# The report.


def report(arguments: argparse.Namespace, rows: pd.DataFrame) -> str:
    """A Markdown table: medians over the repeats, and ratios of the pairs."""
    unit = "processor" if arguments.device == "cpu" else "clock"
    rows = rows.assign(start=rows[f"all, {unit}"] - rows.filter(PARTS).sum(axis=1))
    columns = [*PARTS, "start", "all, processor", "all, clock"]
    pairs = rows.pivot(index="repeat", columns="way")
    lines = [
        f"| part, s of the {unit} | alseg | tutorial | tutorial / alseg |",
        "|---|---|---|---|",
    ]
    for name in columns:
        ours, theirs = pairs[name]["alseg"], pairs[name]["tutorial"]
        ratios = (theirs / ours).dropna().sort_values()
        cells = [
            f"{values.median():.1f}" if values.notna().all() else "" for values in (ours, theirs)
        ]
        ratio = (
            f"{ratios.median():.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
            if len(ratios)
            else ""
        )
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {ratio} |")
    dice = rows.groupby("way")["dice"].mean()
    return "\n".join([f"`{' '.join(sys.argv)}`", "", *lines, "", f"Test Dice: {dice.to_dict()}"])


if __name__ == "__main__":
    main()
