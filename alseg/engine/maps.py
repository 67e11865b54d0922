"""Spatial maps of chosen cases, from a run folder and its checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from alseg.active.figures import draw_query
from alseg.active.round_networks import fresh_network
from alseg.config.build import build
from alseg.config.earlier_versions import check_moved
from alseg.config.settings import flat, load_config
from alseg.config.trust import check_targets
from alseg.core.errors import ConfigError, DataError
from alseg.run.folder import CONFIG_FILE, round_folder
from alseg.run.stages import check_unchanged
from alseg.scoring.scorer import Scoring
from alseg.strategies.measures import entropy
from alseg.strategies.strategy import Measure
from alseg.training.fit import BEST, load_weights
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

    Runs on the CPU and records nothing. It builds the run's parts from its ``config.yaml``, as
    resuming does.

    Args:
        run_folder: a run folder with its checkpoints.
        round_number: from 1.
        case_ids: cases of the run's data set.
        measure: from statistics to a voxel map; any of ``alseg.strategies.measures``.
        trusted_packages: of your own, which the run's settings may name.

    Raises:
        ConfigError: if a case is not in the data set, or the settings name a function that is not
            to be trusted.
        DataError: if the run folder has no such checkpoint, or it is damaged.
    """
    checkpoint = round_folder(run_folder, round_number) / f"{BEST}.ckpt"
    if not checkpoint.is_file():
        raise DataError(f"there is no {checkpoint}")
    check_unchanged(checkpoint)
    config = load_config(run_folder)
    check_moved(flat(OmegaConf.to_container(config)), run_folder / CONFIG_FILE)
    check_targets(
        OmegaConf.to_container(config), source=run_folder / CONFIG_FILE, named=trusted_packages
    )
    config.tracking = {}
    config.trainer.accelerator = "cpu"
    experiment = build(config, run_folder)
    cache, plan = experiment.data.cache, experiment.plan
    network = fresh_network(experiment)
    load_weights(network, checkpoint)
    network.eval()
    scoring = Scoring(
        experiment.strategy,
        experiment.source,
        experiment.scoring_inferer,
        plan.seed,
        round_number,
    )
    maps = []
    for case_id in case_ids:
        if case_id not in cache.task.cases:
            raise ConfigError(f"{case_id} is not a case of {cache.task.name}")
        entry = cache.image(case_id)
        image = entry["image"].unsqueeze(0)  # [1, channels, D, H, W]
        statistics = scoring.statistics(network, image, case_id)
        maps.append(
            CaseMaps(
                case_id=case_id,
                image=entry["image"][0],
                prediction=hard_labels(statistics.mean.unsqueeze(0))[0, 0],  # [D, H, W]
                uncertainty=measure(statistics).float(),
                affine=entry["affine"],
                classes=cache.task.foreground,
            )
        )
    return maps
