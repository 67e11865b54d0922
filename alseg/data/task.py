"""A segmentation task: its classes, channels and cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alseg.data.findings import Finding


@dataclass(frozen=True)
class Case:
    """One volume: its image file or files (one a channel), and its label, if there is one."""

    id: str
    images: tuple[Path, ...]
    label: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """The image files and the label file, if there is one."""
        return self.images if self.label is None else (*self.images, self.label)


@dataclass(frozen=True)
class Task:
    """A segmentation task: a data set as its dataset.json describes it.

    Attributes:
        name: the name in dataset.json.
        root: the folder of the data set.
        channels: the names of the image channels, such as ``("CT",)``.
        classes: the class names by label value; index 0 is the background.
        cases: all cases with images by id, sorted, with or without a label.
        findings: what the data set says about itself that does not hold, and what is not used.
    """

    name: str
    root: Path
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    cases: Mapping[str, Case]
    findings: tuple[Finding, ...] = ()

    @property
    def foreground(self) -> tuple[str, ...]:
        """The class names without the background."""
        return self.classes[1:]

    @property
    def labelled(self) -> list[str]:
        """The ids of the cases whose label the data set holds, sorted."""
        return [case.id for case in self.cases.values() if case.label is not None]

    @property
    def unlabelled(self) -> list[str]:
        """The ids of the cases without a label, sorted."""
        return [case.id for case in self.cases.values() if case.label is None]
