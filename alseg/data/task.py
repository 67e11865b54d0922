"""A segmentation task: its classes, channels and cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alseg.data.findings import Finding


@dataclass(frozen=True)
class Case:
    """One volume: its image file or files (one a channel) and the place of its label."""

    id: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class Task:
    """A segmentation task: a data set as its dataset.json describes it.

    Attributes:
        name: the name in dataset.json.
        root: the folder of the data set.
        channels: the names of the image channels, such as ``("CT",)``.
        classes: the class names by label value; index 0 is the background.
        cases: the labelled cases by id, sorted.
        ignore_value: what voxels that nobody annotated have in the label files; None for none.
        findings: what the data set says about itself that does not hold, and what is not used.
    """

    name: str
    root: Path
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    cases: Mapping[str, Case]
    ignore_value: int | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def foreground(self) -> tuple[str, ...]:
        """The class names without the background."""
        return self.classes[1:]
