"""What the formats with a dataset.json share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alseg.core.counts import counted
from alseg.core.errors import DataError
from alseg.data import declared
from alseg.data.findings import Finding
from alseg.data.naming import matching_case, short
from alseg.data.task import Case, Task

CONVERT = "convert it with nnUNetv2_convert_old_nnUNet_dataset for data=nnunet"
ANNOTATED_CLASSES = "annotated_classes"
MAX_JSON_BYTES = 100_000_000  # hundreds of thousands of cases


def read_dataset_json(root: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a data set, and what its dataset.json holds."""
    folder = data_folder(root)
    if not (folder / "dataset.json").is_file():
        raise DataError(f"{folder} holds no dataset.json; data.root must be the data set's folder")
    return folder, read_json_object(folder / "dataset.json")


def data_folder(root: str | Path, setting: str = "data.root") -> Path:
    """The folder that a setting names, by its own name, not that of a folder it may link to.

    Raises:
        DataError: if it is none.
    """
    if not isinstance(root, (str, Path)) or not str(root):
        raise DataError(f"{setting} is {root!r}; it must be the path of a folder")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{setting} is {folder}, which is not a folder")
    return folder.resolve() if ".." in folder.parts else folder.absolute()


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file that anybody may have written."""
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


def names_by_index(mapping: Any, key: str, path: Path, at_least: int = 1) -> tuple[str, ...]:
    """Turn ``{"0": "background", "1": "liver"}`` into a tuple; the indices must be 0, 1, 2, ..."""
    expected = [str(index) for index in range(len(mapping))] if isinstance(mapping, dict) else []
    if len(expected) < at_least or mapping.keys() != set(expected):
        raise DataError(
            f"{path}: '{key}' must number at least {counted(at_least, 'name')} as 0, 1, 2, ..., "
            f"got {short(mapping)}"
        )
    names = tuple(mapping[index] for index in expected)
    for name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise DataError(f"{path}: '{key}' holds the name {short(name)}, which is not text")
    # two channels may be of one modality: nnU-Net normalises by the name
    if key == "labels" and len(set(names)) < len(names):
        raise DataError(f"{path}: '{key}' holds a name twice: {short(mapping)}")
    return names


def name_of(content: Mapping[str, Any], folder: Path, path: Path) -> str:
    """The name of a data set, by default its folder's."""
    name = content.get("name", folder.name)
    if not isinstance(name, str) or not name.isprintable():
        raise DataError(f"{path}: 'name' is {short(name)}, which is not text")
    return name


def check_background(classes: tuple[str, ...], path: Path) -> None:
    """Check that the background, if it is named, is label 0."""
    values = [value for value, name in enumerate(classes) if name.casefold() == "background"]
    if values and values != [0]:
        raise DataError(
            f"{path}: 'labels' gives {classes[values[-1]]} the value {values[-1]}; it must be 0"
        )


def cases_by_id(cases: Iterable[Case], source: Path) -> dict[str, Case]:
    """The cases by id, sorted; each label and each image belongs to one."""
    by_id: dict[str, Case] = {}
    owners: dict[Path, str] = {}
    for case in cases:
        if case.id in by_id:
            raise DataError(f"{source} names the case {case.id} twice")
        by_id[case.id] = case
        for file in case.files:
            if file in owners:
                raise DataError(
                    f"{source} names {file} twice, for {owners[file]} and for {case.id}"
                )
            owners[file] = case.id
    return dict(sorted(by_id.items()))


def described_task(
    folder: Path,
    content: Mapping[str, Any],
    *,
    name: str,
    channels: tuple[str, ...],
    channels_key: str,
    classes: tuple[str, ...],
    cases: Mapping[str, Case],
    findings: Iterable[Finding],
    ignore_value: int | None = None,
) -> Task:
    """The task of a data set with a dataset.json, and what that says wrongly about it.

    Args:
        folder: of the data set.
        content: of dataset.json.
        name: of the data set.
        channels: their names.
        channels_key: the key that they were read from.
        classes: the class names by label value.
        cases: by id; which classes were annotated in them is read here.
        findings: what only this format can know.
        ignore_value: of voxels that nobody annotated; None for none.

    Raises:
        DataError: as ``with_annotated_classes``.
    """
    return Task(
        name=name,
        root=folder,
        channels=channels,
        classes=classes,
        cases=with_annotated_classes(cases, content, classes, folder / "dataset.json"),
        ignore_value=ignore_value,
        findings=(
            *findings,
            *declared.differ_in_case(cases),
            *declared.channel_names(content, channels_key, channels),
            *declared.background(classes),
            *declared.links_out(folder, files_of(cases)),
        ),
    )


def files_of(cases: Mapping[str, Case]) -> set[Path]:
    """The images and labels of all cases."""
    return {file for case in cases.values() for file in case.files}


def with_annotated_classes(
    cases: Mapping[str, Case], content: Mapping[str, Any], classes: Sequence[str], path: Path
) -> dict[str, Case]:
    """The cases with the classes that were annotated in each of them.

    They are in the key ``annotated_classes`` of dataset.json, which is alseg's own and other tools
    pass over: ``{"case_01": ["liver", "spleen"]}``. In cases that it does not name all classes were
    annotated.

    Args:
        cases: by id.
        content: of dataset.json.
        classes: the class names by label value.
        path: of dataset.json.

    Raises:
        DataError: if it names a case or a class that there is not, no class of a case, or a case
            twice.
    """
    lists = content.get(ANNOTATED_CLASSES, {})
    if not isinstance(lists, dict):
        raise DataError(
            f"{path}: {ANNOTATED_CLASSES!r} must give a list of class names for each case that "
            f"lacks classes, got {short(lists)}"
        )
    found, said = dict(cases), set[str]()
    for name, names in lists.items():
        case_id = matching_case(name, set(cases))
        if case_id in said:
            raise DataError(f"{path}: {ANNOTATED_CLASSES!r} names the case {case_id} twice")
        said.add(case_id)
        if case_id not in cases:
            raise DataError(
                f"{path}: {ANNOTATED_CLASSES!r} names the case {short(name)}, which the data set "
                "does not have"
            )
        if cases[case_id].label is None:
            raise DataError(
                f"{path}: {ANNOTATED_CLASSES!r} names the case {short(name)}, which has no label"
            )
        if not isinstance(names, list) or not names:
            raise DataError(
                f"{path}: {ANNOTATED_CLASSES!r} must name at least one class of {case_id}, got "
                f"{short(names)}"
            )
        if unknown := [each for each in names if each not in classes[1:]]:
            raise DataError(
                f"{path}: {ANNOTATED_CLASSES!r} gives {case_id} the class {short(unknown[0])}; "
                f"there are {', '.join(classes[1:])}"
            )
        values = tuple(v for v in range(1, len(classes)) if classes[v] in names)
        if len(values) < len(classes) - 1:
            found[case_id] = replace(cases[case_id], annotated_classes=values)
    return found
