"""The initial pool by a proxy task: a network trained without human labels ranks the volumes.

V. Nath, D. Yang, H. R. Roth, D. Xu: "Warm start active learning with proxy labels and selection via
semi-supervised fine-tuning" (MICCAI 2022; arXiv 2209.06285).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.callbacks import LambdaCallback

from alseg.active.experiment import Experiment
from alseg.active.proxy_settings import Proxy
from alseg.active.round_networks import new_network
from alseg.core.errors import DataError
from alseg.core.seeding import seed_for
from alseg.data.pseudo_labelled import IntensityLabel, ProxyDraws
from alseg.scoring.scorer import Scoring
from alseg.strategies.strategy import CaseScore, candidates_from
from alseg.system.distributed import from_first, rank, wait_for_all
from alseg.system.files import locked, write_atomically
from alseg.system.interruption import interruption
from alseg.training.callbacks.non_finite import NonFiniteGuard
from alseg.training.callbacks.predictions import predictions
from alseg.training.callbacks.progress import progress_callbacks
from alseg.training.module import SegmentationModule
from alseg.training.scoring_module import ScoringModule

log = logging.getLogger(__name__)


def proxy_start(experiment: Experiment, proxy: Proxy) -> tuple[str, ...]:
    """Choose the initial volumes with a network trained on pseudo-labels.

    No label is read. The choice is a function of the seed of labels, the images and the settings of
    data, model, training and proxy, so all strategies of a seed share it; it is kept in the cache
    folder, under a name made of them, and trained for once. An interrupted start begins again.

    Args:
        experiment: the parts.
        proxy: the proxy task.

    Raises:
        ConfigError: if the network has no dropout where the proxy's source needs it.
        DataError: if no pseudo-label holds any foreground.
        TrainingError: if a loss is not finite and such steps are not to be left out.
    """
    proxy.source.check(experiment.make_network())
    plan = experiment.plan
    experiment = replace(experiment, plan=replace(plan, seed=plan.seed_of_labels))
    folder = experiment.data.cache.folder
    kept = folder / f"proxy-{experiment.proxy_key}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked_by_first(kept.with_suffix(".lock")):
        if not from_first(kept.is_file()):
            chosen = _chosen_by_proxy(experiment, proxy)
            write_atomically(kept, json.dumps(chosen))
            wait_for_all()
        else:
            log.info(f"proxy task: its choice is known from an earlier run, in {kept}")
        return tuple(json.loads(kept.read_text(encoding="utf-8")))


def _chosen_by_proxy(experiment: Experiment, proxy: Proxy) -> list[str]:
    data, plan = experiment.data, experiment.plan
    case_ids = sorted(data.splits.training)
    data.prepare(case_ids)
    label = proxy.label_of(data.cache.task)
    with_foreground = [i for i in case_ids if data.cache.derived(i, repr(label), label).any()]
    if not with_foreground:
        raise DataError(
            f"the proxy label {label} finds no foreground in any of {len(case_ids)} volumes; "
            "set proxy.labels or proxy.modality to suit the preprocessed intensities"
        )
    n_empty = len(case_ids) - len(with_foreground)
    if n_empty > len(with_foreground):
        log.warning(
            f"the proxy label {label} finds no foreground in {n_empty} of {len(case_ids)} volumes: "
            "its window should suit the preprocessed intensities"
        )
    log.info(f"proxy task: training {proxy.steps} steps on {len(with_foreground)} volumes")
    module = trained_on_proxy(experiment, proxy, label, with_foreground)
    scoring = Scoring(
        proxy.strategy, proxy.source.exact, experiment.scoring_inferer, plan.seed, round_number=0
    )
    scorer = ScoringModule(module.network, scoring)
    scores: list[CaseScore] = predictions(
        experiment.make_trainer, scorer, data.volumes(case_ids), "proxy task"
    )
    rng = np.random.default_rng(seed_for(plan.seed, 0, "proxy/selection"))
    return proxy.strategy.select(candidates_from(scores), plan.initial, rng)


def trained_on_proxy(
    experiment: Experiment,
    proxy: Proxy,
    label: IntensityLabel,
    case_ids: list[str],
) -> SegmentationModule:
    """A network trained on pseudo-labels; the last weights, as no label may choose better ones.

    It is the run's network with all its classes, of which the proxy task uses the first two.
    """
    data, plan = experiment.data, experiment.plan
    draws = ProxyDraws(
        label,
        data.cache,
        {},
        case_ids,
        data.augment,
        proxy.steps * data.batch_size,
        seed_for(plan.seed, 0, "proxy/draws"),
        0,
    )
    # one plain network, also where the rounds train a committee
    recipe = experiment.recipe.for_steps(proxy.steps)
    module = experiment.make_module(new_network(experiment), recipe)
    trainer = experiment.make_trainer(
        max_steps=proxy.steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        # Lightning's own handler of SIGTERM would end nothing here
        added_callbacks=[
            LambdaCallback(on_train_start=lambda *_: interruption.reinstall_handlers()),
            NonFiniteGuard(experiment.on_nonfinite, experiment.folder / "nonfinite_proxy.pt"),
            *progress_callbacks("proxy task"),
        ],
    )
    torch.manual_seed(seed_for(plan.seed, 0, f"proxy/training/{rank()}"))
    trainer.fit(module, data.batches(draws))
    return module


@contextmanager
def _locked_by_first(lock: Path) -> Iterator[None]:
    """Let one run at a time in; under torchrun the first process holds the lock for all."""
    if rank() > 0:
        yield
        return
    with locked(lock):
        yield
