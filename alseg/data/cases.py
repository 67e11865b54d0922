"""What a data set holds: its classes, channels and cases, and how the cases are split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np

from alseg.data.volumes import Header, read_header
from alseg.errors import ConfigError, DataError, check_whole_number

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
        root: the resolved folder of the data set.
        channels: the names of the image channels, such as ``("CT",)``.
        classes: the class names by label value; index 0 is the background.
        cases: the labelled cases by id, sorted.
    """

    name: str
    root: Path
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    cases: Mapping[str, Case]

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
    cases: dict[str, Case] = {}
    entries = content.get("training")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} lists no cases under 'training'")
    for entry in entries:
        if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
            raise DataError(
                f"{path}: each entry of 'training' needs 'image' and 'label', got {_short(entry)}"
            )
        image = _inside(folder, entry["image"], path)
        case = Case(case_id_of(image), (image,), _inside(folder, entry["label"], path))
        _add_case(cases, case, path)
    return Task(
        name=_name_of(content, folder, path),
        root=folder,
        channels=_names_by_index(content.get("modality"), "modality", path),
        classes=_names_by_index(content.get("labels"), "labels", path, at_least=2),
        cases=dict(sorted(cases.items())),
    )


def read_nnunet(root: str | Path) -> Task:
    """Read an nnU-Net v2 raw data set (``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``).

    Args:
        root: a folder such as ``nnUNet_raw/Dataset003_Liver``.

    Raises:
        DataError: as ``read_msd``; also for region labels, an ignore label and file endings other
            than NIfTI, which alseg does not read.
    """
    folder, content = _read_dataset_json(root)
    path = folder / "dataset.json"
    ending = content.get("file_ending")
    if ending not in (".nii.gz", ".nii"):
        raise DataError(f"{path}: file_ending is {ending!r}; alseg reads .nii.gz and .nii")
    channels = _names_by_index(content.get("channel_names"), "channel_names", path)
    labels = content.get("labels")
    if not isinstance(labels, dict) or not all(type(v) is int for v in labels.values()):
        raise DataError(
            f"{path}: 'labels' must map each class name to one integer, got {_short(labels)}"
        )
    if "ignore" in labels:
        raise DataError(f"{path}: alseg does not read data sets with an ignore label yet")
    by_value = {str(value): name for name, value in labels.items()}
    if len(by_value) < len(labels):
        raise DataError(f"{path}: 'labels' gives two classes one value: {_short(labels)}")
    cases: dict[str, Case] = {}
    for label in sorted((folder / "labelsTr").glob(f"[!.]*{ending}")):  # ._X: macOS's own
        case_id = label.name.removesuffix(ending)
        names = [f"imagesTr/{case_id}_{index:04d}{ending}" for index in range(len(channels))]
        images = tuple(_inside(folder, name, path) for name in names)
        _add_case(
            cases, Case(case_id, images, _inside(folder, f"labelsTr/{label.name}", path)), path
        )
    if not cases:
        raise DataError(f"{folder / 'labelsTr'} holds no label files ending in {ending}")
    return Task(
        name=folder.name,
        root=folder,
        channels=channels,
        classes=_names_by_index(by_value, "labels", path, at_least=2),
        cases=cases,
    )


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
                raise DataError(f"{path}: '{part}' holds {_short(entry)}, which names no case")
            ids.append(case_id_of(PurePosixPath(name)))
        for case_id in ids:
            if case_id not in known:
                raise DataError(
                    f"{path}: '{part}' names {_short(case_id)}, which the data set has not"
                )
            if case_id in seen:
                raise DataError(f"{path} names {case_id} twice")
            seen.add(case_id)
        parts[part] = tuple(ids)
    return Splits(**parts)


def check_headers(task: Task, case_ids: Iterable[str], *, labels: bool) -> None:
    """Check files from their headers alone.

    Args:
        task: the data set.
        case_ids: the cases to check.
        labels: whether to open the label files too; not for cases whose label is hidden.

    Raises:
        DataError: naming the first file that is unreadable or does not fit.
    """
    for case_id in case_ids:
        case = task.cases[case_id]
        check_image_headers(task, case)
        if labels:
            check_label_header(case, case.label)


def check_image_headers(task: Task, case: Case) -> Header:
    """Check that the images of a case are readable NIfTI on one grid, with the task's channels.

    Returns:
        The header of the first image.

    Raises:
        DataError: naming the file that is not.
    """
    first = read_header(case.images[0])
    n_channels = first.shape[3] if len(first.shape) == 4 else len(case.images)
    if len(first.shape) not in (3, 4) or n_channels != len(task.channels):
        raise DataError(
            f"{case.images[0]} has shape {first.shape}; a 3D volume with {len(task.channels)} "
            f"channel(s) is needed"
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
    if header.shape != image.shape[:3]:
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


def case_id_of(path: PurePath) -> str:
    """The case id of an image path: its file name without ``.nii`` or ``.nii.gz``."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _read_dataset_json(root: str | Path) -> tuple[Path, dict[str, Any]]:
    if not isinstance(root, (str, Path)) or not str(root):
        raise DataError(f"data.root is {root!r}; it must be the path of a folder")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.root is {folder}, which is not a folder")
    if not (folder / "dataset.json").is_file():
        raise DataError(f"{folder} holds no dataset.json; data.root must be the data set's folder")
    folder = folder.resolve()
    return folder, _read_json_object(_inside(folder, "dataset.json", folder))


def _read_json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DataError(
            f"{path} is {path.stat().st_size} bytes large; at most {MAX_JSON_BYTES} are read"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def _names_by_index(mapping: Any, key: str, path: Path, at_least: int = 1) -> tuple[str, ...]:
    """Turn ``{"0": "background", "1": "liver"}`` into a tuple; the indices must be 0, 1, 2, ..."""
    expected = [str(index) for index in range(len(mapping))] if isinstance(mapping, dict) else []
    if len(expected) < at_least or mapping.keys() != set(expected):
        raise DataError(
            f"{path}: '{key}' must number at least {at_least} name(s) as 0, 1, 2, ..., "
            f"got {_short(mapping)}"
        )
    names = tuple(mapping[index] for index in expected)
    for name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise DataError(f"{path}: '{key}' holds the name {_short(name)}, which is no text")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: '{key}' holds a name twice: {_short(mapping)}")
    return names


def _name_of(content: Mapping[str, Any], folder: Path, path: Path) -> str:
    name = content.get("name", folder.name)
    if not isinstance(name, str) or not name.isprintable():
        raise DataError(f"{path}: 'name' is {_short(name)}, which is no text")
    return name


def _inside(folder: Path, name: Any, source: Path) -> Path:
    """Resolve a file name from ``source``; it must exist and lie inside the data set's folder."""
    # unprintable: control characters, and bytes that are no text
    if not isinstance(name, str) or not name.isprintable():
        raise DataError(
            f"{source}: a file name must be a string of printable characters, got {_short(name)}"
        )
    try:
        path = (folder / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(folder):
            raise DataError(
                f"{source} names {name}, which lies outside the data set's folder {folder}"
            )
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise DataError(f"{source} names {_short(name)}, which is no path: {error}") from error
    if not is_file:
        raise DataError(f"{source} names {name}, but there is no file {path}")
    return path


def _short(value: Any) -> str:
    """A value from a file in a message: a broken file may hold megabytes."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _add_case(cases: dict[str, Case], case: Case, source: Path) -> None:
    if not case.id:
        raise DataError(f"{source} names {case.images[0].name}, which gives the case no name")
    if case.id in cases:
        raise DataError(f"{source} names the case {case.id} twice")
    cases[case.id] = case
