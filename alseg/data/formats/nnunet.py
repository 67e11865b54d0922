"""Data sets in the layout of nnU-Net v2."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from alseg.core.counts import counted
from alseg.core.errors import DataError
from alseg.data import declared
from alseg.data.file_types import NIFTI_ENDINGS
from alseg.data.formats.dataset_json import (
    CONVERT,
    cases_by_id,
    check_background,
    described_task,
    files_of,
    names_by_index,
    read_dataset_json,
)
from alseg.data.naming import inside, nfc, short
from alseg.data.task import Case, Task

IGNORE = "ignore"  # what nnU-Net calls the label of voxels that nobody annotated


def read_nnunet(root: str | Path) -> Task:
    """Read an nnU-Net v2 raw data set (``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``).

    A label called ``ignore`` marks voxels that nobody annotated; its value must be the highest.

    As in nnU-Net v2, the key ``dataset`` of dataset.json names the images and the label of each
    case, if it is there; imagesTr and labelsTr are then not searched. Otherwise a case of imagesTr
    without a file in labelsTr is a case without a label.

    Args:
        root: a folder such as ``nnUNet_raw/Dataset003_Liver``.

    Raises:
        DataError: as ``read_msd``; also for region labels and file endings other
            than NIfTI, which alseg does not read.
    """
    folder, content = read_dataset_json(root)
    path = folder / "dataset.json"
    _check_layout(folder, content, path)
    channels = names_by_index(content.get("channel_names"), "channel_names", path)
    classes, ignore_value = _classes(content, path)
    is_named = "dataset" in content
    find = _named_cases if is_named else _found_cases
    cases = cases_by_id(find(folder, content, path, len(channels)), path)
    n_labelled = sum(case.label is not None for case in cases.values())
    unused = (
        declared.not_used(folder, files_of(cases), (), "'dataset'")
        if is_named
        else declared.not_used_nnunet(folder, files_of(cases), cases)
    )
    return described_task(
        folder,
        content,
        name=folder.name,
        channels=channels,
        channels_key="channel_names",
        classes=classes,
        cases=cases,
        ignore_value=ignore_value,
        findings=[
            *declared.number_of(
                content,
                "numTraining",
                n_labelled,
                f"{counted(n_labelled, 'case has', 'cases have')} a label",
            ),
            *unused,
        ],
    )


def _check_layout(folder: Path, content: Mapping[str, Any], path: Path) -> None:
    """Check that dataset.json is of nnU-Net v2 and of files that alseg reads."""
    if "training" in content and not {"channel_names", "file_ending"} & content.keys():
        entries = content["training"]
        first = entries[0] if isinstance(entries, list) and entries else None
        image = first.get("image") if isinstance(first, dict) else None
        if isinstance(image, str) and image.isprintable() and os.path.isfile(folder / image):
            raise DataError(f"{path} is of the Medical Segmentation Decathlon; use data=msd")
        raise DataError(f"{path} is of nnU-Net v1; {CONVERT}")
    ending = content.get("file_ending")
    if ending not in NIFTI_ENDINGS:
        raise DataError(
            f"{path}: file_ending is {ending!r}; alseg reads {' and '.join(NIFTI_ENDINGS)}, into "
            "which SimpleITK converts most formats"
        )


def _classes(content: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], int | None]:
    """The class names by label value, and the value of voxels that nobody annotated."""
    labels = content.get("labels")
    if not isinstance(labels, dict) or not all(type(v) is int for v in labels.values()):
        raise DataError(
            f"{path}: 'labels' must map each class name to one integer, got {short(labels)}; "
            "regions, which overlap, are not read: name each value as a class of its own"
        )
    by_value = {str(value): name for name, value in labels.items()}
    if len(by_value) < len(labels):
        raise DataError(f"{path}: 'labels' gives two classes one value: {short(labels)}")
    ignore_value = labels.get(IGNORE)
    if ignore_value is not None and ignore_value != max(labels.values()):
        raise DataError(
            f"{path}: 'labels' gives {IGNORE} the value {ignore_value}; it must be the highest "
            "value, behind those of all classes"
        )
    by_value.pop(str(ignore_value), None)
    classes = names_by_index(by_value, "labels", path, at_least=2)
    check_background(classes, path)
    return classes, ignore_value


def _found_cases(
    folder: Path, content: Mapping[str, Any], path: Path, n_channels: int
) -> Iterator[Case]:
    """The cases of an nnU-Net data set by the files of labelsTr, then those without a label."""
    ending = content["file_ending"]
    labels = sorted((folder / "labelsTr").glob(f"[!.]*{ending}"))  # ._X: macOS's own
    unlabelled = _unlabelled(folder, ending, path, n_channels, {label.name for label in labels})
    if not labels and not unlabelled:
        raise DataError(
            f"{folder} holds no cases: imagesTr has no images and labelsTr no labels ending in "
            f"{ending}"
        )
    yield from unlabelled
    for label in labels:
        name = label.name.removesuffix(ending)
        if not name:
            raise DataError(f"{folder / 'labelsTr'} holds {label.name}, which names no case")
        plain = folder / "imagesTr" / label.name
        if plain.is_file() and not any((folder / "imagesTr").glob(f"*_0000{ending}")):
            raise DataError(
                f"{plain} has no channel number; nnU-Net calls it {name}_0000{ending}. Rename the "
                "images, or name them under 'dataset' in dataset.json"
            )
        names = [f"imagesTr/{name}_{index:04d}{ending}" for index in range(n_channels)]
        images = tuple(inside(folder, image, path) for image in names)
        yield Case(nfc(name), images, inside(folder, f"labelsTr/{label.name}", path))


def _unlabelled(
    folder: Path, ending: str, path: Path, n_channels: int, labels: Collection[str]
) -> list[Case]:
    """The cases of imagesTr that have all their channels and no label."""
    first, cases = f"_0000{ending}", []
    for image in sorted((folder / "imagesTr").glob(f"[!.]*{first}")):
        name = image.name.removesuffix(first)
        files = [f"{name}_{index:04d}{ending}" for index in range(n_channels)]
        known = {nfc(label) for label in labels}
        is_whole = all((folder / "imagesTr" / file).is_file() for file in files)
        if name and nfc(f"{name}{ending}") not in known and is_whole:
            images = tuple(inside(folder, f"imagesTr/{file}", path) for file in files)
            cases.append(Case(nfc(name), images, None))
    return cases


def _named_cases(
    folder: Path, content: Mapping[str, Any], path: Path, n_channels: int
) -> Iterator[Case]:
    """The cases of an nnU-Net data set by the key ``dataset``."""
    entries = content["dataset"]
    if not isinstance(entries, dict) or not entries:
        raise DataError(f"{path}: 'dataset' must name at least one case, got {short(entries)}")
    for name, entry in entries.items():
        if not name.strip() or not name.isprintable() or "/" in name:
            raise DataError(f"{path}: 'dataset' names the case {short(name)}, which is not a name")
        images = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(images, list) or len(images) != n_channels or "label" not in entry:
            raise DataError(
                f"{path}: the case {short(name)} of 'dataset' needs 'images' with "
                f"{counted(n_channels, 'file')}, one a channel, and 'label', got {short(entry)}"
            )
        yield Case(
            nfc(name),
            tuple(inside(folder, image, path) for image in images),
            inside(folder, entry["label"], path),
        )
