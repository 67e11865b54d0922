"""The semi-supervised second stage of a round (Nath et al., MICCAI 2022)."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alseg.active.pseudo_labels import PseudoLabeller, SemiSupervised, most_confident
from alseg.active.round import Round
from alseg.active.round_networks import round_training
from alseg.data.pseudo_labelled import MixedDraws, PseudoLabel
from alseg.scoring.scorer import Scoring
from alseg.strategies.aggregations import mean
from alseg.strategies.measures import entropy
from alseg.strategies.selectors.ranked import top_k
from alseg.strategies.strategy import Strategy
from alseg.system.distributed import rank, wait_for_all
from alseg.system.files import read_tensors, write_tensors
from alseg.training.callbacks.predictions import predictions
from alseg.training.fit import (
    BEST,
    FINE_TUNED,
    LAST,
    SUPERVISED,
    Training,
    load_weights,
)
from alseg.training.module import SegmentationModule

log = logging.getLogger(__name__)

# The labeller takes only the statistics; any strategy of many passes would do.
JUDGED_BY = Strategy("pseudo_labels", top_k, entropy, mean)


def train_on_pseudo_labels(
    this_round: Round,
    settings: SemiSupervised,
    module: SegmentationModule,
    first_dice: float | None,
) -> dict[str, Any]:
    """Fine-tune the round's best network with pseudo-labels of unlabelled volumes.

    It reads their images and never a label of them. Afterwards the module's network has the last
    weights, and the round's best checkpoint is the better one, by validation Dice, of both stages.

    Args:
        this_round: the round; some of its pool is unlabelled.
        settings: of the second stage.
        module: of the first stage.
        first_dice: its best validation Dice; None if it never was a number.

    Returns:
        ``seconds`` and ``skipped_steps``. An interrupted stage begins again.
    """
    started = time.monotonic()
    folder = this_round.folder
    load_weights(module.network, folder / f"{SUPERVISED}.ckpt")
    labels_folder, better, skipped_steps = folder / "pseudo_labels", SUPERVISED, 0
    try:
        pseudo_labels = label_unlabelled(this_round, settings, module, labels_folder)
        if not pseudo_labels:
            log.info("no unlabelled volume shows foreground; the second stage is left out")
        else:
            training = fine_tune(this_round, settings, module, pseudo_labels)
            dice, skipped_steps = training.best_dice, training.guard.skipped
            if dice is not None and (first_dice is None or dice > first_dice):
                better = FINE_TUNED
        if rank() == 0:
            write_tensors(folder / f"{BEST}.ckpt", read_tensors(folder / f"{better}.ckpt"))
        wait_for_all()
    finally:
        shutil.rmtree(labels_folder, ignore_errors=True)
    return {"seconds": round(time.monotonic() - started, 3), "skipped_steps": skipped_steps}


def fine_tune(
    this_round: Round,
    settings: SemiSupervised,
    module: SegmentationModule,
    pseudo_labels: Mapping[str, PseudoLabel],
) -> Training:
    """Train the module's network on annotated and pseudo-labelled volumes.

    Returns:
        The finished training.
    """
    experiment, data = this_round.experiment, this_round.experiment.data
    n_steps = settings.steps(experiment.steps_per_round)
    draws = MixedDraws(
        pseudo_labels,
        settings.annotated_share,
        data.cache,
        data.labels,
        this_round.parts_with_repeats.training,
        data.augment,
        n_steps * data.batch_size,
        this_round.seed("second_stage/draws"),
        this_round.number,
    )
    title = f"{len(pseudo_labels)} pseudo-labelled"
    training = round_training(this_round, FINE_TUNED, title, n_steps)
    recipe = experiment.round_recipe.fine_tuning(settings.learning_rate_factor, n_steps)
    fine_tuned = experiment.make_module(module.network, recipe)
    torch.manual_seed(this_round.seed(f"second_stage/{rank()}"))
    training.trainer.fit(fine_tuned, data.batches(draws), data.val_dataloader())
    training.trainer.save_checkpoint(this_round.folder / f"{LAST}.ckpt", weights_only=True)
    training.checkpoint.delete()
    wait_for_all()
    return training


def label_unlabelled(
    this_round: Round,
    settings: SemiSupervised,
    module: SegmentationModule,
    folder: Path,
) -> dict[str, PseudoLabel]:
    """Pseudo-labels of the unlabelled volumes that the network is most sure of."""
    experiment, data = this_round.experiment, this_round.experiment.data
    case_ids = sorted(this_round.pool.unlabelled)
    if settings.max_candidates is not None:
        rng = np.random.default_rng(this_round.seed("second_stage/candidates"))
        drawn = rng.permutation(len(case_ids))[: settings.max_candidates]
        case_ids = sorted(case_ids[i] for i in drawn)
    data.prepare(case_ids)
    folder.mkdir(exist_ok=True)
    scoring = Scoring(
        JUDGED_BY,
        experiment.source,
        experiment.scoring_inferer,
        experiment.plan.seed,
        this_round.number,
    )
    labeller = PseudoLabeller(module.network, scoring, folder, settings.dilation_voxels)
    title = f"{this_round.title} · pseudo-labels"
    judged = predictions(experiment.make_trainer, labeller, data.volumes(case_ids), title)
    chosen = most_confident(judged, settings.case_share)
    return {
        case_id: PseudoLabel(folder / f"{case_id}.pt", settings.pseudo_weight * confidence)
        for case_id, confidence in chosen.items()
    }
