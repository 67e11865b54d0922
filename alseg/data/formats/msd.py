"""Data sets in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alseg.core.counts import counted
from alseg.core.errors import DataError
from alseg.data import declared
from alseg.data.findings import Finding, listed
from alseg.data.formats.dataset_json import (
    CONVERT,
    cases_by_id,
    check_background,
    described_task,
    files_of,
    name_of,
    names_by_index,
    read_dataset_json,
)
from alseg.data.naming import case_id_of, case_ids_of, inside, nfc, short
from alseg.data.task import Case, Task


def read_msd(root: str | Path) -> Task:
    """Read a Medical Segmentation Decathlon data set (Antonelli et al., Nat. Commun. 13, 2022).

    Args:
        root: the folder that holds dataset.json, imagesTr and labelsTr.

    Images of the list 'test' are cases without a label, where they are there.

    Raises:
        DataError: if the folder or dataset.json is missing or broken, or a listed file is missing,
            is named twice or lies outside the folder.
    """
    folder, content = read_dataset_json(root)
    path = folder / "dataset.json"
    labelled = _labelled(folder, content, path)
    test = content.get("test")
    test = test if isinstance(test, list) else []
    cases = cases_by_id([*labelled, *_unlabelled(test, folder, path, labelled)], path)
    channels = names_by_index(content.get("modality"), "modality", path)
    classes = names_by_index(content.get("labels"), "labels", path, at_least=2)
    check_background(classes, path)
    return described_task(
        folder,
        content,
        name=name_of(content, folder, path),
        channels=channels,
        channels_key="modality",
        classes=classes,
        cases=cases,
        findings=[
            *_test_findings(folder, content, test, cases),
            *declared.image_size(content, len(channels)),
        ],
    )


def _labelled(folder: Path, content: Mapping[str, Any], path: Path) -> list[Case]:
    """The cases of 'training'."""
    entries = content.get("training")
    if "training" not in content and {"channel_names", "file_ending"} & content.keys():
        raise DataError(f"{path} describes an nnU-Net v2 raw data set; use data=nnunet")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} lists no cases under 'training'")
    for entry in entries:
        if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
            raise DataError(
                f"{path}: each entry of 'training' needs 'image' and 'label', got {short(entry)}"
            )
    images = _found([entry["image"] for entry in entries], _inside_msd, folder, path)
    labels = _found([entry["label"] for entry in entries], inside, folder, path)
    seen: set[Path] = set()
    for image in images:
        if image in seen:
            raise DataError(f"{path} names the case {case_id_of(image)} twice")
        seen.add(image)
    ids = case_ids_of([image.relative_to(folder) for image in images], path)
    parts = zip(ids, images, labels, strict=True)
    return [Case(case_id, (image,), label) for case_id, image, label in parts]


def _test_findings(
    folder: Path, content: Mapping[str, Any], test: Sequence[Any], cases: Mapping[str, Case]
) -> Iterator[Finding]:
    """Where the numbers and the lists of dataset.json contradict each other and the files."""
    images = {case.images[0] for case in cases.values() if case.label is not None}
    files, used = (
        {folder / os.path.normpath(n) for n in test if isinstance(n, str)},
        files_of(cases),
    )
    n_listed = len(content["training"])
    yield from declared.number_of(
        content, "numTraining", n_listed, f"'training' lists {counted(n_listed, 'case')}"
    )
    yield from declared.number_of(content, "numTest", len(test), f"'test' lists {len(test)}")
    yield from declared.tested_on_training(images, files)
    yield from declared.missing_test_images(files - images, used)
    yield from declared.not_used(folder, used, files, "'training'")


def _unlabelled(
    test: Sequence[Any], folder: Path, source: Path, labelled: Sequence[Case]
) -> list[Case]:
    """The images of 'test' that are there and not in 'training', as cases without a label.

    One that is named like a labelled case gets the name of its folder as well.
    """
    taken = {file for case in labelled for file in case.files}
    images: list[Path] = []
    for name in test:
        try:
            image = inside(folder, name, source)
        except DataError:  # copies of a data set are often made without imagesTs
            continue
        if image not in taken:
            images.append(image)
            taken.add(image)
    relative = [image.relative_to(folder) for image in images]
    ids = case_ids_of(relative, source) if images else []
    known = {case.id for case in labelled}
    ids = [
        "_".join([*map(nfc, place.parent.parts), case_id]) if case_id in known else case_id
        for case_id, place in zip(ids, relative, strict=True)
    ]
    return [Case(case_id, (image,), None) for case_id, image in zip(ids, images, strict=True)]


def _found(
    names: Sequence[Any], find: Callable[[Path, Any, Path], Path], folder: Path, source: Path
) -> list[Path]:
    """The files of these names; an error names all that are missing."""
    paths: list[Path] = []
    errors: dict[str, DataError] = {}
    for name in names:
        try:
            paths.append(find(folder, name, source))
        except DataError as error:
            errors[str(name)] = error
    if errors:
        first, *others = errors
        more = f"; {len(others)} more cannot be found either: {listed(others)}" if others else ""
        raise DataError(f"{errors[first]}{more}")
    return paths


def _inside_msd(folder: Path, name: Any, source: Path) -> Path:
    """``inside``, with a hint where images are named like those of nnU-Net."""
    try:
        return inside(folder, name, source)
    except DataError as error:
        if isinstance(name, str) and name.isprintable():
            plain = folder / name
            case_id = case_id_of(plain)
            renamed = plain.with_name(plain.name.replace(case_id, f"{case_id}_0000", 1))
            if case_id and ".." not in plain.parts and os.path.isfile(renamed):
                raise DataError(
                    f"{error}; there is {renamed.name}, as in nnU-Net v1: {CONVERT}"
                ) from error
        raise
