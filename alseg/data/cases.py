"""What a data set holds: its classes, channels and cases, and how the cases are split."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alseg.data import statements
from alseg.data.findings import Finding
from alseg.data.naming import case_id_of, case_ids_of, composed, inside, known_case, short
from alseg.data.volumes import Header, read_header
from alseg.errors import ConfigError, DataError, check_whole_number

_CONVERT = "convert it with nnUNetv2_convert_old_nnUNet_dataset for data=nnunet"
MAX_JSON_BYTES = 100_000_000  # hundreds of thousands of cases


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


@dataclass(frozen=True)
class Splits:
    """Case ids for training (the active-learning pool), validation and test.

    Validation and test are the same in all rounds, seeds and strategies.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def read_msd(root: str | Path) -> Task:
    """Read a Medical Segmentation Decathlon data set (Antonelli et al., Nat. Commun. 13, 2022).

    Args:
        root: the folder that holds dataset.json, imagesTr and labelsTr.

    Raises:
        DataError: if the folder or dataset.json is missing or broken, or a listed file is missing,
            is named twice or lies outside the folder.
    """
    folder, content = _read_dataset_json(root)
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
    images = [_inside_msd(folder, entry["image"], path) for entry in entries]
    labels = [inside(folder, entry["label"], path) for entry in entries]
    seen: set[Path] = set()
    for image in images:
        if image in seen:
            raise DataError(f"{path} names the case {case_id_of(image)} twice")
        seen.add(image)
    ids = case_ids_of([image.relative_to(folder) for image in images], path)
    parts = zip(ids, images, labels, strict=True)
    cases = _cases((Case(case_id, (image,), label) for case_id, image, label in parts), path)
    channels = _names_by_index(content.get("modality"), "modality", path)
    classes = _names_by_index(content.get("labels"), "labels", path, at_least=2)
    _check_background(classes, path)
    test = content.get("test")
    test = test if isinstance(test, list) else []
    test_files = {folder / os.path.normpath(name) for name in test if isinstance(name, str)}
    used = {*images, *labels}
    findings = [
        *statements.number_of(
            content, "numTraining", len(entries), f"'training' lists {len(entries)} case(s)"
        ),
        *statements.number_of(content, "numTest", len(test), f"'test' lists {len(test)}"),
        *statements.tested_on_training(images, test_files),
        *statements.differ_in_case(cases),
        *statements.image_size(content, len(channels)),
        *statements.channel_names(content, "modality", channels),
        *statements.background(classes),
        *statements.not_used(folder, used, test_files, "'training'"),
        *statements.links_out(folder, used),
    ]
    return Task(
        name=_name_of(content, folder, path),
        root=folder,
        channels=channels,
        classes=classes,
        cases=cases,
        findings=tuple(findings),
    )


def read_nnunet(root: str | Path) -> Task:
    """Read an nnU-Net v2 raw data set (``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``).

    As in nnU-Net v2, the key ``dataset`` of dataset.json names the images and the label of each
    case, if it is there; imagesTr and labelsTr are then not searched.

    Args:
        root: a folder such as ``nnUNet_raw/Dataset003_Liver``.

    Raises:
        DataError: as ``read_msd``; also for region labels, an ignore label and file endings other
            than NIfTI, which alseg does not read.
    """
    folder, content = _read_dataset_json(root)
    path = folder / "dataset.json"
    if "training" in content and not {"channel_names", "file_ending"} & content.keys():
        entries = content["training"]
        first = entries[0] if isinstance(entries, list) and entries else None
        image = first.get("image") if isinstance(first, dict) else None
        if isinstance(image, str) and image.isprintable() and os.path.isfile(folder / image):
            raise DataError(f"{path} is of the Medical Segmentation Decathlon; use data=msd")
        raise DataError(f"{path} is of nnU-Net v1; {_CONVERT}")
    ending = content.get("file_ending")
    if ending not in (".nii.gz", ".nii"):
        raise DataError(
            f"{path}: file_ending is {ending!r}; alseg reads .nii.gz and .nii, into which "
            "SimpleITK converts most formats"
        )
    channels = _names_by_index(content.get("channel_names"), "channel_names", path)
    labels = content.get("labels")
    if not isinstance(labels, dict) or not all(type(v) is int for v in labels.values()):
        raise DataError(
            f"{path}: 'labels' must map each class name to one integer, got {short(labels)}; "
            "regions, which overlap, are not read: name each value as a class of its own"
        )
    if "ignore" in labels:
        raise DataError(f"{path}: alseg does not read data sets with an ignore label yet")
    by_value = {str(value): name for name, value in labels.items()}
    if len(by_value) < len(labels):
        raise DataError(f"{path}: 'labels' gives two classes one value: {short(labels)}")
    classes = _names_by_index(by_value, "labels", path, at_least=2)
    _check_background(classes, path)
    named = "dataset" in content
    found = _named_cases if named else _found_cases
    cases = _cases(found(folder, content, path, len(channels)), path)
    used = {file for case in cases.values() for file in (*case.images, case.label)}
    unused = (
        statements.not_used(folder, used, (), "'dataset'")
        if named
        else statements.not_used_nnunet(folder, used, cases)
    )
    n_cases = f"{len(cases)} case(s) have a label"
    findings = [
        *statements.number_of(content, "numTraining", len(cases), n_cases),
        *statements.differ_in_case(cases),
        *statements.channel_names(content, "channel_names", channels),
        *statements.background(classes),
        *unused,
        *statements.links_out(folder, used),
    ]
    return Task(
        name=folder.name,
        root=folder,
        channels=channels,
        classes=classes,
        cases=cases,
        findings=tuple(findings),
    )


def _found_cases(
    folder: Path, content: Mapping[str, Any], path: Path, n_channels: int
) -> Iterator[Case]:
    """The cases of an nnU-Net data set by the files of labelsTr."""
    ending = content["file_ending"]
    labels = sorted((folder / "labelsTr").glob(f"[!.]*{ending}"))  # ._X: macOS's own
    if not labels:
        raise DataError(f"{folder / 'labelsTr'} holds no label files ending in {ending}")
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
        yield Case(composed(name), images, inside(folder, f"labelsTr/{label.name}", path))


def _named_cases(
    folder: Path, content: Mapping[str, Any], path: Path, n_channels: int
) -> Iterator[Case]:
    """The cases of an nnU-Net data set by the key ``dataset``."""
    entries = content["dataset"]
    if not isinstance(entries, dict) or not entries:
        raise DataError(f"{path}: 'dataset' must name at least one case, got {short(entries)}")
    for name, entry in entries.items():
        if not name.strip() or not name.isprintable() or "/" in name:
            raise DataError(f"{path}: 'dataset' names the case {short(name)}, which is no name")
        images = entry.get("images") if isinstance(entry, dict) else None
        if not isinstance(images, list) or len(images) != n_channels or "label" not in entry:
            raise DataError(
                f"{path}: the case {short(name)} of 'dataset' needs 'images' with {n_channels} "
                f"file(s), one a channel, and 'label', got {short(entry)}"
            )
        yield Case(
            composed(name),
            tuple(inside(folder, image, path) for image in images),
            inside(folder, entry["label"], path),
        )


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
                    f"{error}; there is {renamed.name}, as in nnU-Net v1: {_CONVERT}"
                ) from error
        raise


def split_by_fraction(
    case_ids: Iterable[str], *, validation: float, test: float, seed: int
) -> Splits:
    """Split cases at random into training, validation and test.

    Args:
        case_ids: all cases; their order does not matter.
        validation: the share of validation cases, in (0, 1).
        test: the share of test cases, in (0, 1).
        seed: the split's own seed. It is not the run's, so that all seeds share one test set.

    Raises:
        ConfigError: if a share is out of range or a part would be empty.
    """
    ids = sorted(case_ids)
    for name, share in (("validation", validation), ("test", test)):
        if type(share) is not float or not 0 < share < 1:
            raise ConfigError(f"data.splits.{name} is {share!r}; it must lie between 0 and 1")
    check_whole_number("data.splits.seed", seed, at_least=0)
    order = np.random.default_rng(seed).permutation(len(ids))
    n_validation, n_test = round(validation * len(ids)), round(test * len(ids))
    if min(n_validation, n_test, len(ids) - n_validation - n_test) < 1:
        raise ConfigError(
            f"data.splits leaves a part empty: {len(ids)} cases with validation={validation} and "
            f"test={test}"
        )
    shuffled = [ids[i] for i in order]
    return Splits(
        training=tuple(sorted(shuffled[n_validation + n_test :])),
        validation=tuple(sorted(shuffled[:n_validation])),
        test=tuple(sorted(shuffled[n_validation : n_validation + n_test])),
    )


def split_from_file(case_ids: Iterable[str], *, file: str | Path) -> Splits:
    """Read an explicit split: a JSON file with the lists ``training``, ``validation``, ``test``.

    An entry is a case id, or an object with an ``image`` path, as in the MONAI tutorial's file.

    Raises:
        DataError: if the file is missing or broken, names an unknown case, or names one twice.
    """
    if not isinstance(file, (str, Path)):
        raise ConfigError(f"data.splits.file is {file!r}; it must be the path of a JSON file")
    path = Path(file)
    content = _read_json_object(path)
    known, seen = set(case_ids), set()
    parts: dict[str, tuple[str, ...]] = {}
    for part in ("training", "validation", "test"):
        entries = content.get(part)
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{path}: '{part}' must be a list with at least one case")
        ids = []
        for entry in entries:
            name = entry.get("image") if isinstance(entry, dict) else entry
            if not isinstance(name, str):
                raise DataError(f"{path}: '{part}' holds {short(entry)}, which names no case")
            ids.append(known_case(name, known))
        for case_id in ids:
            if case_id not in known:
                raise DataError(
                    f"{path}: '{part}' names {short(case_id)}, which the data set has not"
                )
            if case_id in seen:
                raise DataError(f"{path} names {case_id} twice")
            seen.add(case_id)
        parts[part] = tuple(ids)
    return Splits(**parts)


def check_headers(
    task: Task, case_ids: Iterable[str], *, labels: bool
) -> dict[str, tuple[Finding, ...]]:
    """Check files from their headers alone.

    Args:
        task: the data set.
        case_ids: the cases to check.
        labels: whether to open the label files too; not for cases whose label is hidden.

    Returns:
        What the image header of each case leaves open or says twice and differently.

    Raises:
        DataError: naming the first file that is unreadable or does not fit.
    """
    findings: dict[str, tuple[Finding, ...]] = {}
    for case_id in case_ids:
        case = task.cases[case_id]
        findings[case_id] = check_image_headers(task, case).findings
        if labels:
            check_label_header(case, case.label)
    return findings


def check_image_headers(task: Task, case: Case) -> Header:
    """Check that the images of a case are readable NIfTI on one grid, with the task's channels.

    Returns:
        The header of the first image.

    Raises:
        DataError: naming the file that is not.
    """
    first = read_header(case.images[0])
    # either one file with all channels or one file a channel
    n_channels = len(task.channels) if len(case.images) == 1 else 1
    if first.n_channels != n_channels:
        raise DataError(
            f"{case.images[0]} has shape {first.shape}; a 3D volume with {n_channels} channel(s) "
            "is needed"
        )
    for path in case.images[1:]:
        other = read_header(path)
        if other.shape != first.shape:
            raise DataError(
                f"{path} has shape {other.shape}, but {case.images[0]} has {first.shape}"
            )
        _check_same_grid(path, other, case.images[0], first)
    return first


def check_label_header(case: Case, label: Path) -> Header:
    """Check that a label file is readable NIfTI on the grid of its image.

    Returns:
        The header of the label.

    Raises:
        DataError: if it is not.
    """
    header, image = read_header(label), read_header(case.images[0])
    if header.shape[:3] != image.shape[:3] or header.n_channels != 1:
        raise DataError(
            f"label {label} has shape {header.shape}, but its image {case.images[0]} has "
            f"{image.shape[:3]}"
        )
    _check_same_grid(label, header, case.images[0], image)
    return header


def _check_same_grid(path: Path, header: Header, other: Path, reference: Header) -> None:
    # 1e-3 mm: headers store the affine in float32
    if np.allclose(header.affine, reference.affine, rtol=1e-5, atol=1e-3):
        return
    spacings = [[round(float(s), 4) for s in h.spacing_mm] for h in (header, reference)]
    what = (
        f"the spacing {spacings[0]} mm, but {other} has {spacings[1]} mm"
        if spacings[0] != spacings[1]
        else f"another direction or origin than {other}"
    )
    raise DataError(f"{path} has {what}; they must lie on one grid")


def _read_dataset_json(root: str | Path) -> tuple[Path, dict[str, Any]]:
    if not isinstance(root, (str, Path)) or not str(root):
        raise DataError(f"data.root is {root!r}; it must be the path of a folder")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.root is {folder}, which is not a folder")
    if not (folder / "dataset.json").is_file():
        raise DataError(f"{folder} holds no dataset.json; data.root must be the data set's folder")
    # its own name, not that of a folder which it may link to
    folder = folder.resolve() if ".." in folder.parts else folder.absolute()
    return folder, _read_json_object(folder / "dataset.json")


def _read_json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DataError(
            f"{path} is {path.stat().st_size} bytes large; at most {MAX_JSON_BYTES} are read"
        )
    try:
        # bytes: UTF-8, or UTF-16 as PowerShell writes, with a byte-order mark or without
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repetition)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that comes twice, one value would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {short(twice)} comes twice in one object")
    return content


def _names_by_index(mapping: Any, key: str, path: Path, at_least: int = 1) -> tuple[str, ...]:
    """Turn ``{"0": "background", "1": "liver"}`` into a tuple; the indices must be 0, 1, 2, ..."""
    expected = [str(index) for index in range(len(mapping))] if isinstance(mapping, dict) else []
    if len(expected) < at_least or mapping.keys() != set(expected):
        raise DataError(
            f"{path}: '{key}' must number at least {at_least} name(s) as 0, 1, 2, ..., "
            f"got {short(mapping)}"
        )
    names = tuple(mapping[index] for index in expected)
    for name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise DataError(f"{path}: '{key}' holds the name {short(name)}, which is no text")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: '{key}' holds a name twice: {short(mapping)}")
    return names


def _name_of(content: Mapping[str, Any], folder: Path, path: Path) -> str:
    name = content.get("name", folder.name)
    if not isinstance(name, str) or not name.isprintable():
        raise DataError(f"{path}: 'name' is {short(name)}, which is no text")
    return name


def _check_background(classes: tuple[str, ...], path: Path) -> None:
    values = [value for value, name in enumerate(classes) if name.casefold() == "background"]
    if values and values != [0]:
        raise DataError(
            f"{path}: 'labels' gives {classes[values[-1]]} the value {values[-1]}; it must be 0"
        )


def _cases(cases: Iterable[Case], source: Path) -> dict[str, Case]:
    """The cases by id, sorted; each label and each image belongs to one."""
    by_id: dict[str, Case] = {}
    owners: dict[Path, str] = {}
    for case in cases:
        if case.id in by_id:
            raise DataError(f"{source} names the case {case.id} twice")
        by_id[case.id] = case
        for file in (*case.images, case.label):
            if file in owners:
                raise DataError(
                    f"{source} names {file} twice, for {owners[file]} and for {case.id}"
                )
            owners[file] = case.id
    return dict(sorted(by_id.items()))
