"""The initial pool by a proxy task: a network trained without human labels ranks the volumes.

V. Nath, D. Yang, H. R. Roth, D. Xu: "Warm start active learning with proxy labels and selection via
semi-supervised fine-tuning" (MICCAI 2022; arXiv 2209.06285).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.callbacks import LambdaCallback
from torch import Tensor

from alseg.active.experiment import Experiment
from alseg.active.round_networks import new_network
from alseg.core.errors import ConfigError, DataError, check_whole_number
from alseg.core.seeding import seed_for
from alseg.data.pseudo import IntensityLabel, ProxyDraws
from alseg.data.task import Task
from alseg.scoring.scorer import Scoring
from alseg.scoring.sources import UncertaintySource
from alseg.strategies.strategy import CaseScore, Strategy, candidates_from
from alseg.system.distributed import from_first, rank, wait_for_all
from alseg.system.files import locked, write_atomically
from alseg.system.interruption import interruption
from alseg.training.callbacks.collection import predictions
from alseg.training.callbacks.non_finite import NonFiniteGuard
from alseg.training.callbacks.progress import progress_callbacks
from alseg.training.fit import spanning
from alseg.training.module import SegmentationModule

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]
MODALITIES = ("CT", "MRI")


@dataclass(frozen=True)
class Proxy:
    """The proxy task.

    Attributes:
        labels: how a volume is labelled, by modality: ``CT`` and ``MRI``.
        strategy: ranks the volumes by the proxy network's uncertainty and chooses the first query.
        source: of that uncertainty. It is not the run's, so that runs which differ in theirs share
            the initial pool.
        steps: optimiser steps.
        modality: ``CT``, ``MRI``, or ``auto`` for what the first channel of the data set is called:
            CT if a word of it begins or ends so (CTA, CBCT), else MRI.

    Raises:
        ConfigError: if a setting is out of range.
    """

    labels: Mapping[str, IntensityLabel]
    strategy: Strategy
    source: UncertaintySource
    steps: int
    modality: str = "auto"

    def __post_init__(self) -> None:
        check_whole_number("proxy.steps", self.steps, at_least=1)
        if self.modality not in ("auto", *MODALITIES) or set(self.labels) != set(MODALITIES):
            raise ConfigError(
                f"proxy.modality is {self.modality!r} and proxy.labels are for "
                f"{', '.join(self.labels)}; allowed are auto, CT and MRI, with labels for both"
            )

    def label_of(self, task: Task) -> IntensityLabel:
        """The pseudo-label for a data set."""
        if self.modality != "auto":
            return self.labels[self.modality]
        words = re.findall("[A-Z]+", task.channels[0].upper())
        is_ct = any(word.startswith("CT") or word.endswith("CT") for word in words)
        return self.labels["CT" if is_ct else "MRI"]


def proxy_start(
    experiment: Experiment, proxy: Proxy, loss: Loss, size: int, key: str
) -> tuple[str, ...]:
    """Choose the initial volumes with a network trained on pseudo-labels.

    No label is read. The choice is a function of the seed, the images and the settings of data,
    model, training and proxy, so all strategies of a seed share it; it is kept in the cache folder
    under ``key`` and trained for once. A start that was interrupted begins again.

    Args:
        experiment: the parts.
        proxy: the proxy task.
        loss: of its training.
        size: how many volumes to choose.
        key: names all that the choice depends on.

    Raises:
        ConfigError: if the network has no dropout where the proxy's source needs it.
        DataError: if no pseudo-label holds any foreground.
        TrainingError: if a loss is not finite and such steps are not to be left out.
    """
    proxy.source.check(experiment.make_network())
    folder = experiment.data.cache.folder
    kept = folder / f"proxy-{key}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with _held_by_first(kept.with_suffix(".lock")):
        if not from_first(kept.is_file()):
            chosen = _chosen_by_proxy(experiment, proxy, loss, size)
            write_atomically(kept, json.dumps(chosen))
            wait_for_all()
        else:
            log.info(f"proxy task: its choice is known from an earlier run, in {kept}")
        return tuple(json.loads(kept.read_text(encoding="utf-8")))


def _chosen_by_proxy(experiment: Experiment, proxy: Proxy, loss: Loss, size: int) -> list[str]:
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
    module = trained_on_proxy(experiment, proxy, loss, label, with_foreground)
    module.scoring = Scoring(
        proxy.strategy, proxy.source, experiment.scoring_inferer, plan.seed, round_number=0
    )
    scores: list[CaseScore] = predictions(
        experiment.make_trainer, module, data.volumes(case_ids), "proxy task"
    )
    rng = np.random.default_rng(seed_for(plan.seed, 0, "proxy/selection"))
    return proxy.strategy.select(candidates_from(scores), size, rng)


def trained_on_proxy(
    experiment: Experiment,
    proxy: Proxy,
    loss: Loss,
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
    keywords = spanning(experiment.make_module, proxy.steps).keywords | {"loss": loss}
    module = SegmentationModule(new_network(experiment), **keywords)
    trainer = experiment.make_trainer(
        max_steps=proxy.steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        # Lightning's own handler of SIGTERM would end nothing here
        callbacks=[
            LambdaCallback(on_train_start=lambda *_: interruption.take_back()),
            NonFiniteGuard(experiment.on_nonfinite, experiment.folder / "nonfinite_proxy.pt"),
            *progress_callbacks("proxy task"),
        ],
    )
    torch.manual_seed(seed_for(plan.seed, 0, f"proxy/training/{rank()}"))
    trainer.fit(module, data.batches(draws))
    return module


@contextmanager
def _held_by_first(lock: Path) -> Iterator[None]:
    """Let one run at a time in; under torchrun the first process holds the lock for all."""
    if rank() > 0:
        yield
        return
    with locked(lock):
        yield
