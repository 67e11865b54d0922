"""How much does it matter on which grid a network is evaluated, and what does it cost?

    python scripts/evaluation_spaces.py RUN_FOLDER ...

For each run folder, its last round's network and a perfect segmenter, whose prediction is the label
on the preprocessed grid, are evaluated on the test part, on that grid and in the files. Prints rows
of a table in Markdown: Dice, surface Dice (with the run's tolerance), HD95, and seconds of
the CPU a case, of Dice only and of all three (no loader processes: data.num_workers=0). The perfect
segmenter's have no network in them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import one_hot

from alseg.active.experiment import Experiment
from alseg.active.round_networks import fresh_network
from alseg.config.build import build
from alseg.config.settings import load_config, load_start
from alseg.core.metric_names import TITLES
from alseg.core.units import whole
from alseg.data.annotation import revealed
from alseg.oracles.base import annotated
from alseg.run.folder import round_folder
from alseg.run.state import RunState
from alseg.training.evaluation import GRID, SOURCE, Evaluation
from alseg.training.fit import BEST, load_weights
from alseg.training.metrics import CaseMetrics
from alseg.training.module import SegmentationModule

HEADINGS = ("run", "segmenter", "space", *TITLES.values(), "CPU s a case, Dice", "all")


class PerfectSegmenter(SegmentationModule):
    """Predicts the label, as it is on the preprocessed grid."""

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Evaluate the label against itself."""
        n_classes = len(self.case_metrics.classes) + 1
        classes = one_hot(batch["label"][:, 0].long().clamp(min=0), n_classes)  # [1, D, H, W, C]
        self._compare(batch, 50.0 * classes.movedim(-1, 1))

    def on_test_epoch_end(self) -> None:
        """Log nothing."""


def rows_of(folder: Path) -> Iterator[list[str]]:
    """The rows of a run's table."""
    experiment, state = loaded(folder)
    network = fresh_network(experiment)
    load_weights(network, round_folder(folder, state.finished_rounds) / f"{BEST}.ckpt")
    measured(
        experiment, PerfectSegmenter, network, experiment.evaluation
    )  # first calls take longer
    for kind, segmenter in ((PerfectSegmenter, "perfect"), (SegmentationModule, "network")):
        for space in (GRID, SOURCE):
            seconds = []
            for metrics in (("dice",), tuple(TITLES)):
                used = replace(experiment.evaluation, space=space, metrics=metrics)
                found, each = measured(experiment, kind, network, used)
                seconds.append(each)
            means = [f"{found.mean(metric):.3f}" for metric in TITLES]
            yield [folder.name, segmenter, space, *means, *(f"{s:.3f}" for s in seconds)]


def loaded(folder: Path) -> tuple[Experiment, RunState]:
    """A run's experiment, whose test labels are revealed, and its state."""
    config = load_config(folder)
    config.tracking = {}
    experiment, state = build(config, folder), RunState.load(folder)
    test = experiment.data.splits.test
    answer = annotated(experiment.oracle, whole(test))
    experiment.data.reveal(revealed(answer, state.pool))
    experiment.data.prepare(test)
    return experiment, state


def measured(
    experiment: Experiment,
    kind: type[SegmentationModule],
    network: torch.nn.Module,
    evaluation: Evaluation,
) -> tuple[CaseMetrics, float]:
    """The metrics of the test part, and the CPU's seconds a case."""
    classes = experiment.data.cache.task.foreground
    module = kind(network, experiment.round_recipe, experiment.inferer, classes, evaluation)
    test = experiment.data.splits.test
    trainer = experiment.make_trainer(logger=False, enable_checkpointing=False)
    volumes = experiment.data.evaluation_volumes(test, in_source=evaluation.in_source)
    started = time.process_time()
    trainer.test(module, volumes, verbose=False)
    return module.case_metrics, (time.process_time() - started) / len(test)


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for folder in parser.parse_args().runs:
        run = folder.absolute()
        with chdir(load_start(run).folder):
            for row in rows_of(run):
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
