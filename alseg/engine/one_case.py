"""What a round makes of a case of its own run, on the image's grid."""

from __future__ import annotations

import torch
from omegaconf import OmegaConf
from torch import Tensor

from alseg.config.build import build_inferers
from alseg.config.composition import instantiate
from alseg.data.cache import VolumeCache
from alseg.data.source_grid import classes_on_source_grid
from alseg.data.task import Task
from alseg.engine.trained_run import TrainedRun
from alseg.scoring.sources import plain_pass


def preprocessed(run: TrainedRun, task: Task, case_id: str) -> dict[str, Tensor]:
    """The image of a case as the run preprocesses it, with its affines; nothing is written.

    Raises:
        DataError: if the image cannot be used.
    """
    preprocess = run.config.data.preprocess
    text = OmegaConf.to_yaml(preprocess, resolve=True)
    cache = VolumeCache(task, instantiate(preprocess), text, run.folder)
    return cache.preprocess(task.cases[case_id])


def segmented(run: TrainedRun, task: Task, case_id: str) -> Tensor:
    """Segment a case, on the CPU; nothing is written.

    Args:
        run: gives the network, or several whose mean prediction it is.
        task: the data set of the run.
        case_id: the case.

    Returns:
        Class indices [D, H, W] on the grid of the image.

    Raises:
        DataError: if the image cannot be used.
    """
    entry = preprocessed(run, task, case_id)
    inferer, _ = build_inferers(run.config)
    with torch.inference_mode():
        probabilities = plain_pass(run.evaluated, entry["image"].unsqueeze(0), inferer)
    return classes_on_source_grid(probabilities, entry)
