"""A segmentation task: its classes, channels and cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alseg.data.findings import Finding


@dataclass(frozen=True)
class Case:
    """One volume: its image file or files (one a channel), and its label, if there is one.

    Attributes:
        id: its name.
        images: the files.
        label: the file; None for a case that nobody has labelled.
        annotated_classes: values of the foreground classes that were annotated in it, sorted; None
            for all. Voxels of the others are background in the label.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    annotated_classes: tuple[int, ...] | None = None

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

    @property
    def labelled(self) -> list[str]:
        """The ids of the cases whose label the data set holds, sorted."""
        return [case.id for case in self.cases.values() if case.label is not None]

    @property
    def unlabelled(self) -> list[str]:
        """The ids of the cases without a label, sorted."""
        return [case.id for case in self.cases.values() if case.label is None]

    @property
    def lacks_classes(self) -> bool:
        """Whether some class was not annotated in some case."""
        return any(case.annotated_classes is not None for case in self.cases.values())

    def not_annotated(self, case_id: str) -> tuple[int, ...]:
        """Values of the classes that were not annotated in a case."""
        annotated = self.cases[case_id].annotated_classes
        if annotated is None:
            return ()
        return tuple(v for v in range(1, len(self.classes)) if v not in annotated)
