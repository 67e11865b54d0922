"""Spatial maps of chosen cases, from a run folder and its checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alseg.active.figures import draw_query
from alseg.config.data_of_run import task_of_run
from alseg.core.errors import ConfigError
from alseg.engine.one_case import preprocessed
from alseg.engine.trained_run import load_trained
from alseg.strategies.measures import entropy
from alseg.strategies.strategy import Measure
from alseg.training.metrics import hard_labels


@dataclass(frozen=True)
class CaseMaps:
    """What a round's network says about one case, on the preprocessed grid.

    Attributes:
        case_id: the case.
        image: intensities of the first channel, shape [D, H, W].
        prediction: class indices of the mean over passes, the same shape.
        uncertainty: the voxel map of the measure, the same shape.
        affine: from voxel indices to RAS millimetres, shape [4, 4].
        classes: the foreground class names.
    """

    case_id: str
    image: Tensor
    prediction: Tensor
    uncertainty: Tensor
    affine: Tensor
    classes: tuple[str, ...]

    def draw(self, path: Path) -> Path:
        """Write a picture of image, prediction and uncertainty; returns its path."""
        draw_query(
            path,
            image=self.image,
            prediction=self.prediction,
            uncertainty=self.uncertainty,
            label=None,
            affine=self.affine,
            classes=self.classes,
            title=self.case_id,
        )
        return path


@torch.no_grad()
def case_maps(
    run_folder: Path,
    round_number: int,
    case_ids: Iterable[str],
    measure: Measure = entropy,
    trusted_packages: Collection[str] = (),
) -> list[CaseMaps]:
    """Maps of cases by the best network of a round, with the masks that the round scored with.

    Runs on the CPU and writes nothing. It builds the run's parts from its ``config.yaml``, as
    resuming does.

    Args:
        run_folder: a run folder with its checkpoints.
        round_number: from 1.
        case_ids: cases of the run's data set.
        measure: from statistics to a voxel map; any of ``alseg.strategies.measures``.
        trusted_packages: of your own, which the run's settings may name.

    Raises:
        ConfigError: if a case is not in the data set, the run has not evaluated the round, or the
            settings name a function that is not to be trusted.
        DataError: if the round's checkpoint is missing or damaged.
    """
    run = load_trained(str(run_folder), round_number, trusted_packages)
    task = task_of_run(run.folder, run.config, trusted_packages)
    scoring = run.scoring(run.own_strategy(trusted_packages))
    maps = []
    for case_id in case_ids:
        if case_id not in task.cases:
            raise ConfigError(f"{case_id} is not a case of {task.name}")
        entry = preprocessed(run, task, case_id)
        image = entry["image"].unsqueeze(0)  # [1, channels, D, H, W]
        statistics = scoring.statistics(run.network, image, case_id)
        maps.append(
            CaseMaps(
                case_id=case_id,
                image=entry["image"][0],
                prediction=hard_labels(statistics.mean.unsqueeze(0))[0, 0],  # [D, H, W]
                uncertainty=measure(statistics).float(),
                affine=entry["affine"],
                classes=task.foreground,
            )
        )
    return maps
