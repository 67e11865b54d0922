"""What does a training step cost, and what would it cost in a loop of one's own?

    python scripts/benchmark_training.py                          # some minutes on a core
    python scripts/benchmark_training.py --json runs/benchmark/training.json
    python scripts/benchmark_training.py -- model=unet_tiny data.batch_size=2

Trains the network of a first round on the default phantoms, in alseg's way (its module, trainer,
loader, callbacks and curves) and in a bare PyTorch loop over the same volumes in memory, with the
same transforms, network, loss, optimiser, schedule, batches and seeds. The two run in turn in one
process, ``--repeats`` times; only the steps are measured, loading and augmentation included, in
seconds of the process's own processor time. Both have to end with the same weights, bit by bit.
Prints a Markdown table. What stands behind ``--`` goes to alseg.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from monai.data.utils import list_data_collate
from monai.transforms import Compose
from torch import nn
from torch.utils.data import DataLoader, Dataset

from alseg.active.initial_state import initial_state
from alseg.active.round import Round
from alseg.active.round_loop import prepare
from alseg.active.round_networks import new_network, round_training
from alseg.config.build import build
from alseg.config.composition import composed
from alseg.core.seeding import seed_for
from alseg.data.datamodule import TrainingDraws, without_metadata
from alseg.system.files import write_atomically
from alseg.system.memory import keep_freed_memory

Found = dict[str, Any]


class Clock(pl.Callback):
    """Processor seconds from the beginning of a training to the end of its last step."""

    seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is loaded yet."""
        self._started = time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any
    ) -> None:
        """The last one counts."""
        self.seconds = time.process_time() - self._started
        self.loss = float(batch[0]["loss"])


class Volumes(Dataset):
    """The same draws as ``TrainingDraws`` makes, of volumes in memory."""

    def __init__(self, draws: TrainingDraws, augment: Sequence[Callable[[Any], Any]]) -> None:
        self.samples = {case_id: draws.sample(case_id) for case_id in set(draws.case_ids)}
        self.case_ids, self.augment = draws.case_ids, Compose(augment)
        self.seed = draws.base_seed, draws.round_number

    def __len__(self) -> int:
        return len(self.case_ids)

    def __getitem__(self, index: int) -> Any:
        case_id = self.case_ids[index]
        self.augment.set_random_state(seed_for(*self.seed, f"augment/{index}", case_id))
        return self.augment(dict(self.samples[case_id]))


def main() -> None:
    """Run both ways in turn and compare."""
    arguments = parsed()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    rows: list[Found] = []
    with tempfile.TemporaryDirectory() as name:
        this_round = first_round(arguments, Path(name))
        in_alsegs_way(this_round)  # what a process does once is no matter of steps
        for repeat in range(arguments.repeats):
            for way, run in (("alseg", in_alsegs_way), ("bare", in_a_bare_loop)):
                rows.append({"repeat": repeat, "way": way, **run(this_round)})
                print(rows[-1], file=sys.stderr)
    result = compared(rows, arguments.steps)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.json, json.dumps({"rows": rows, **result}, indent=1))
    print(report(rows, result))
    if not result["same weights"]:
        sys.exit("the two ways have ended with different weights: the comparison is worth nothing")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--volumes", type=int, default=24, help="phantoms; 5 of them train")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for what was found")
    parser.add_argument("--quick", action="store_true", help="few steps of a tiny network")
    parser.add_argument("settings", nargs="*", help="of alseg, behind --")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.volumes, arguments.steps, arguments.repeats = 12, 3, 2
        arguments.settings = ["model=unet_tiny", *arguments.settings]
    return arguments


def first_round(arguments: argparse.Namespace, folder: Path) -> Round:
    """The first round of a run, with all that it reads in the cache."""
    settings = [
        f"output_dir={folder}",
        f"data.phantom.n_volumes={arguments.volumes}",
        "data.num_workers=0",
        f"steps_per_round={arguments.steps}",
        f"val_interval={arguments.steps}",
        "trainer=cpu",
        "tracking=none",
        *arguments.settings,
    ]
    experiment = build(composed(settings), folder)
    experiment.tracker.open(experiment.folder, experiment.settings, experiment.tags)
    state = initial_state(experiment)
    prepare(experiment, state)
    return Round.after(experiment, state)


def in_alsegs_way(this_round: Round) -> Found:
    """Train as a round does."""
    experiment, n_steps = this_round.experiment, this_round.experiment.steps_per_round
    module = experiment.make_module(new_network(experiment), experiment.round_recipe)
    experiment.data.start_round(this_round.parts_with_repeats, this_round.number, n_steps)
    loggers = experiment.tracker.round_loggers(this_round.number, 5, this_round.folder)
    training = round_training(this_round, "best", "5 labelled", n_steps, loggers)
    clock = Clock()
    training.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    training.fit(module, experiment.data, this_round.seed("training"))
    return found(clock.seconds, clock.loss, module.network)


def in_a_bare_loop(this_round: Round) -> Found:
    """The same training in PyTorch only."""
    experiment = this_round.experiment
    network, recipe = new_network(experiment), experiment.round_recipe
    network.train()
    optimizer = recipe.make_optimizer(network.parameters())
    schedule = recipe.make_schedule(optimizer)
    loader = DataLoader(
        volumes(this_round), experiment.data.batch_size, collate_fn=list_data_collate
    )
    torch.manual_seed(this_round.seed("training"))
    with without_metadata():
        started = time.process_time()
        for batch in loader:
            optimizer.zero_grad()
            loss = recipe.loss(network(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
        seconds = time.process_time() - started
    return found(seconds, float(loss.detach()), network)


def volumes(this_round: Round) -> Volumes:
    """What the bare loop trains on, read from the cache."""
    data = this_round.experiment.data
    served: Any = data.train_dataloader().dataset
    draws = served.dataset
    assert isinstance(draws, TrainingDraws)
    return Volumes(draws, data.augment)


def found(seconds: float, loss: float, network: nn.Module) -> Found:
    """What is kept of a training: its seconds, and by what two are compared."""
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.numpy().tobytes())
    return {"seconds": seconds, "loss": loss, "weights": digest.hexdigest()[:16]}


def compared(rows: Sequence[Found], n_steps: int) -> Found:
    """Medians, the ratios of the pairs, and whether all weights are the same."""
    by_way = pd.DataFrame(rows).pivot(index="repeat", columns="way", values="seconds")
    ratios = (by_way["alseg"] / by_way["bare"]).sort_values()
    return {
        "ms a step": (1000 / n_steps * by_way.median()).round(2).to_dict(),
        "ratio": round(float(ratios.median()), 3),
        "ratios": ratios.round(3).tolist(),
        "best of each": round(float(by_way["alseg"].min() / by_way["bare"].min()), 3),
        "same weights": len({(row["weights"], row["loss"]) for row in rows}) == 1,
    }


def report(rows: Sequence[Found], result: Found) -> str:
    """A Markdown table."""
    lines = ["| way | ms a step | last loss | weights |", "|---|---|---|---|"]
    for way in ("alseg", "bare"):
        last = next(row for row in reversed(rows) if row["way"] == way)
        ms = result["ms a step"][way]
        lines.append(f"| {way} | {ms:.1f} | {last['loss']:.6f} | {last['weights']} |")
    low, high = result["ratios"][0], result["ratios"][-1]
    lines += ["", f"alseg / bare: {result['ratio']:.3f} ({low:.3f} to {high:.3f}); best of each"]
    lines[-1] += f" {result['best of each']:.3f}"
    return "\n".join([f"`{' '.join(sys.argv)}`", "", *lines])


if __name__ == "__main__":
    main()
