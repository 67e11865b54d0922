"""Data sets in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alseg.core.errors import DataError
from alseg.data import declared
from alseg.data.findings import listed
from alseg.data.formats.dataset_json import (
    CONVERT,
    cases_by_id,
    check_background,
    name_of,
    names_by_index,
    read_dataset_json,
    with_annotated_classes,
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
    labelled = [Case(case_id, (image,), label) for case_id, image, label in parts]
    test = content.get("test")
    test = test if isinstance(test, list) else []
    test_files = {folder / os.path.normpath(name) for name in test if isinstance(name, str)}
    unlabelled = _unlabelled(test, folder, path, labelled)
    cases = cases_by_id([*labelled, *unlabelled], path)
    channels = names_by_index(content.get("modality"), "modality", path)
    classes = names_by_index(content.get("labels"), "labels", path, at_least=2)
    check_background(classes, path)
    used = {file for case in cases.values() for file in case.files}
    findings = [
        *declared.number_of(
            content, "numTraining", len(entries), f"'training' lists {len(entries)} case(s)"
        ),
        *declared.number_of(content, "numTest", len(test), f"'test' lists {len(test)}"),
        *declared.tested_on_training(images, test_files),
        *declared.missing_test_images(test_files - {*images}, used),
        *declared.differ_in_case(cases),
        *declared.image_size(content, len(channels)),
        *declared.channel_names(content, "modality", channels),
        *declared.background(classes),
        *declared.not_used(folder, used, test_files, "'training'"),
        *declared.links_out(folder, used),
    ]
    return Task(
        name=name_of(content, folder, path),
        root=folder,
        channels=channels,
        classes=classes,
        cases=with_annotated_classes(cases, content, classes, path),
        findings=tuple(findings),
    )


def _unlabelled(
    test: Sequence[Any], folder: Path, source: Path, labelled: Sequence[Case]
) -> list[Case]:
    """The images of 'test' that are there and not in 'training', as cases without a label.

    One that is called as a labelled case is named by its folder as well.
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
    """``inside``, with a word on images that are called as in nnU-Net."""
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
