"""What a campaign asks for, as somebody sees it who has the request folder and nothing else.

Needs neither alseg nor MONAI Label, so that the server may run in an environment of its own, or on
another computer that has a copy of the folder. docs/campaign.md says what lies in a request.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

ENDINGS = (".nii.gz", ".nii", ".nrrd")  # of labels that are taken
SLICER_SEGMENTATION = ".seg.nrrd"  # may be cropped, and has numbers of its own


class RequestError(ValueError):
    """Something that cannot be done with a request, in a sentence."""


@dataclass(frozen=True)
class RequestFolder:
    """The folder of one request.

    Attributes:
        folder: of the request.
        images: the first image file of each case, the most useful case first.
        classes: the value of each foreground class by its name, in the order of the values.
    """

    folder: Path
    images: dict[str, Path]
    classes: dict[str, int]

    @staticmethod
    def at(place: Path) -> RequestFolder:
        """The request in a folder: in itself, or the newest one if it is a run folder.

        Raises:
            RequestError: if there is none, or it cannot be read.
        """
        found = sorted(place.glob("requests/*/request.json"))
        path = found[-1] if found else place / "request.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = {unit["case_id"]: unit["images"][0] for unit in content["units"]}
            for name in (*names, *names.values()):
                if name != Path(name).name:
                    raise ValueError(f"{name} is not the name of a file")
            images = {case_id: path.parent / name for case_id, name in names.items()}
            values = sorted((int(value), name) for value, name in content["classes"].items())
        except FileNotFoundError as error:
            raise RequestError(
                f"{place} is neither a run folder nor a request folder that is complete; start the "
                "run with oracle=person first"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise RequestError(f"{path} cannot be read: {error!r}") from error
        return RequestFolder(path.parent, images, {name: value for value, name in values if value})

    def image(self, case_id: str) -> Path:
        """The image of a case, of several channels the first one.

        Raises:
            RequestError: if the case is not asked for.
        """
        if case_id not in self.images:
            raise RequestError(f"{self.folder} does not ask for a volume {case_id}")
        return self.images[case_id]

    def proposal(self, case_id: str) -> Path | None:
        """The proposed segmentation of a case; None without one."""
        self.image(case_id)
        path = self.folder / "labels" / "original" / f"{case_id}.nii.gz"
        return path if path.is_file() else None

    def label(self, case_id: str) -> Path | None:
        """The label that has been handed in for a case; None without one."""
        self.image(case_id)
        paths = (self._label_file(case_id, ending) for ending in ENDINGS)
        return next((path for path in paths if path.is_file()), None)

    def labelled(self) -> list[str]:
        """The cases that need no further label, in the order of the request.

        A label that the run has refused counts again once it has been saved anew.
        """
        table = self.folder / "request.csv"
        looked = table.stat().st_mtime_ns
        with table.open(encoding="utf-8", newline="") as rows:
            states = {row["case"]: row["state"] for row in csv.DictReader(rows)}
        saved = set(os.listdir(self.folder / "labels" / "final"))

        def is_done(case_id: str) -> bool:
            names = [name for ending in ENDINGS if (name := case_id + ending) in saved]
            if states.get(case_id) == "refused":
                files = [self.folder / "labels" / "final" / name for name in names]
                return any(file.stat().st_mtime_ns > looked for file in files)
            return bool(names) or states.get(case_id) == "annotated"

        return list(filter(is_done, self.images))

    def next_case(self, held: Collection[str] = ()) -> str | None:
        """The first case that needs a label; None if none does.

        Args:
            held: the cases that others work on; they are left out.
        """
        left_out = {*self.labelled(), *held}
        return next((case_id for case_id in self.images if case_id not in left_out), None)

    def save_label(
        self, case_id: str, file: Path, segments: Sequence[str] = (), annotator: str = ""
    ) -> Path:
        """Hand in a label; the run checks it when it takes it in.

        Args:
            case_id: the case.
            file: the label; it is copied.
            segments: the names of what the values 1, 2, ... of the file mean, if that is known:
                3D Slicer numbers the segments that are there, whatever their class is.
            annotator: who made it; empty if that is not known.

        Returns:
            Where it lies now; a label of the case that was there has been replaced.

        Raises:
            RequestError: if the case is not asked for, the file is of another type, or a segment is
                no class.
        """
        self.image(case_id)
        ending = next((ending for ending in ENDINGS if file.name.endswith(ending)), "")
        if not ending or file.name.endswith(SLICER_SEGMENTATION):
            raise RequestError(
                f"a label is saved as {', '.join(ENDINGS)}, and this one is {file.name}; in 3D "
                "Slicer, set the file extension of MONAI Label to .nii.gz"
            )
        values = self._values_of(segments)
        target = self._label_file(case_id, ending)
        arriving = target.with_name(f".{target.name}")  # what begins with a dot is not looked at
        if values == list(range(1, len(values) + 1)):
            shutil.copyfile(file, arriving)
        else:
            _save_with_values(file, arriving, values)
        if annotator:
            _note_annotator(target.with_name("answers.csv"), case_id, annotator)
        arriving.replace(target)
        for other in ENDINGS:  # two files of a case would both be left aside
            if other != ending:
                self._label_file(case_id, other).unlink(missing_ok=True)
        return target

    def _label_file(self, case_id: str, ending: str) -> Path:
        return self.folder / "labels" / "final" / f"{case_id}{ending}"

    def _values_of(self, segments: Sequence[str]) -> list[int]:
        if unknown := [name for name in segments if name not in self.classes]:
            raise RequestError(
                f"the segment {unknown[0]} is no class; the classes are {', '.join(self.classes)}: "
                "rename the segment, or delete it"
            )
        return [self.classes[name] for name in segments]


def _note_annotator(path: Path, case_id: str, annotator: str) -> None:
    """Say in ``answers.csv`` who made a label; a table with other columns is left as it is."""
    columns = ["case", "annotator", "minutes"]
    rows: dict[str, dict[str, str]] = {}
    if path.is_file():
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            if reader.fieldnames != columns:
                return
            rows = {row["case"]: row for row in reader}
    rows[case_id] = {"case": case_id, "minutes": ""} | rows.get(case_id, {})
    rows[case_id]["annotator"] = " ".join(annotator.split())
    arriving = path.with_name(f".{path.name}")
    with arriving.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows.values())
    arriving.replace(path)


def _save_with_values(file: Path, to: Path, values: Sequence[int]) -> None:
    """Copy a label, with other values in the place of 1, 2, ...; all else stays as it is."""
    if file.suffix == ".nrrd":
        raise RequestError(
            f"the segments of {file.name} are not the first classes in their order, and alseg "
            "renumbers them in NIfTI files only; in 3D Slicer, set the file extension of MONAI "
            "Label to .nii.gz"
        )
    image = nibabel.load(file)  # type: ignore[attr-defined]
    voxels = np.asanyarray(image.dataobj)
    numbers = np.rint(voxels).astype(np.int64)
    if not np.array_equal(numbers, voxels) or numbers.min() < 0 or numbers.max() > len(values):
        raise RequestError(f"{file.name} holds other values than its {len(values)} segments")
    dtype = np.uint8 if max(values, default=0) < 2**8 else np.int16
    renumbered = np.array([0, *values], dtype)[numbers]
    header = image.header.copy()
    header.set_data_dtype(dtype)
    nibabel.save(type(image)(renumbered, image.affine, header), to)  # type: ignore[attr-defined]
