"""The settings of the proxy task: a network trained without human labels ranks the volumes.

V. Nath, D. Yang, H. R. Roth, D. Xu: "Warm start active learning with proxy labels and selection via
semi-supervised fine-tuning" (MICCAI 2022; arXiv 2209.06285).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from alseg.core.errors import ConfigError, check_whole_number
from alseg.data.pseudo_labelled import IntensityLabel
from alseg.data.task import Task
from alseg.scoring.sources import UncertaintySource
from alseg.strategies.strategy import Strategy

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
