"""Any folder of images, with or without labels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from alseg.core.counts import counted
from alseg.core.errors import ConfigError, DataError
from alseg.data import declared
from alseg.data.file_types import ENDINGS, looks_like_a_volume
from alseg.data.findings import Finding, listed, warning
from alseg.data.formats.dataset_json import data_folder
from alseg.data.naming import case_id_of, inside, nfc, short
from alseg.data.task import Case, Task

LONGEST_ID = 200  # bytes: files of a run are named by it, and names have 255 at most
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_WORDS = re.compile(r"[/_\-. ]+")
_LABEL_WORDS = {  # of names of folders and files
    "label", "labels", "labelstr", "labelsts", "mask", "masks", "seg", "segs", "segmentation",
    "segmentations", "annotation", "annotations", "gt", "groundtruth",
}  # fmt: skip


def read_folder(
    root: str | Path,
    classes: Sequence[str] | None,
    channels: Sequence[str] = ("image",),
    labels: str | Path | None = None,
) -> Task:
    """Read a folder of NIfTI, NRRD or MetaImage files, each of them a case.

    Folders in it are searched as well, those behind links are not. The id of a case is its path in
    the folder, without the ending and with ``_`` between the parts: ``p01/ct.nii.gz`` is p01_ct. So
    an id does not change when other files come or go.

    With several channels, a case is one file that holds them all, or a file a channel, numbered as
    nnU-Net does: ``p01_0000.nii.gz``, ``p01_0001.nii.gz``.

    Args:
        root: the folder.
        classes: names of the foreground classes, of the label values 1, 2, ...; the background may
            stand before them.
        channels: names of the image channels.
        labels: a folder of label files named like the cases.

    Raises:
        DataError: if the folder holds no images, two files give one id, an id is too long, channels
            are missing, or no label goes with an image.
        ConfigError: if classes or channels are not given, or images and labels are in one folder.
    """
    folder = data_folder(root)
    names = _class_names(classes)
    channel_names = _names("data.channels", channels)
    label_folder = None if labels is None else data_folder(labels, "data.labels")
    if label_folder is not None and label_folder.samefile(folder):
        raise ConfigError(
            f"data.labels is {label_folder}, the folder of the images; labels need one of their own"
        )
    found = files_in(folder, without=label_folder)
    names_by_case, problems = images_by_case(found.files, folder, len(channel_names))
    if problems:
        raise DataError(f"{folder}: {next(iter(problems.values()))}")
    for case_id in names_by_case:
        if len(os.fsencode(case_id)) > LONGEST_ID:
            raise DataError(
                f"{folder}: the id {case_id} is longer than {LONGEST_ID} bytes, and files are "
                "named by it; shorten the names of its folders"
            )
    images = {
        case_id: tuple(inside(folder, name, folder) for name in files)
        for case_id, files in sorted(names_by_case.items())
    }
    by_label, unused = _labels(label_folder, images)
    cases = {
        case_id: Case(case_id, files, by_label.get(case_id)) for case_id, files in images.items()
    }
    findings = [
        *declared.differ_in_case(cases),
        *unused,
        *doubts(found),
        *declared.links_out(folder, {file for files in images.values() for file in files}),
    ]
    return Task(folder.name, folder, channel_names, names, cases, findings=tuple(findings))


def _names(setting: str, value: Sequence[str] | None) -> tuple[str, ...]:
    names = [] if value is None or isinstance(value, str) else list(value)
    if not names or not all(isinstance(n, str) and n.strip() and n.isprintable() for n in names):
        example = value if isinstance(value, str) and "," in value else "one,two"
        raise ConfigError(
            f"{setting} is {short(value)}; it must be a list of names: '{setting}=[{example}]'"
        )
    return tuple(names)


def _class_names(value: Sequence[str] | None) -> tuple[str, ...]:
    if value is None or (isinstance(value, Sequence) and not value):
        raise ConfigError(
            "data.classes is not given; name the classes that the labels of this folder have or "
            "will have, such as data.classes=[liver,tumour] for the values 1 and 2"
        )
    names = _names("data.classes", value)
    values = [i for i, name in enumerate(names) if name.casefold() == "background"]
    if values not in ([], [0]) or len(set(names)) < len(names) or (names[1:] == () and values):
        raise ConfigError(
            f"data.classes is {list(names)}; each class is named once, and the background, which "
            "need not be named, comes first"
        )
    return names if values else ("background", *names)


@dataclass(frozen=True)
class Found:
    """The names of what is in a folder and its folders, such as ``p01/ct.nii.gz``, sorted.

    Attributes:
        files: the volumes, which nobody has looked at.
        linked: links to folders, which are not followed.
        unread: files that look like volumes of a kind that alseg does not read.
    """

    files: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def files_in(folder: Path, without: Path | None = None) -> Found:
    """The volumes in a folder and its folders.

    Args:
        folder: the folder.
        without: a folder in it that is not searched, by whatever path or link it is named.

    Raises:
        DataError: if a folder cannot be read.
    """
    found, left_out = Found(), without.resolve() if without is not None else None

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        home = Path(place)
        before = "" if home == folder else f"{home.relative_to(folder).as_posix()}/"
        visible = [name for name in folders if not name.startswith(".")]
        if left_out is not None:
            visible = [name for name in visible if (home / name).resolve() != left_out]
        found.linked.extend(before + name for name in visible if (home / name).is_symlink())
        folders[:] = sorted(visible)
        for name in names:
            if name.startswith("."):  # ._X: macOS's own
                continue
            if name.endswith(ENDINGS):
                found.files.append(before + name)
            elif looks_like_a_volume(PurePath(name)):
                found.unread.append(before + name)
    for names_found in (found.files, found.linked, found.unread):
        names_found.sort()
    return found


def id_of(name: str) -> str:
    """The id that the name of a file in the folder gives."""
    path = PurePosixPath(name)
    return "_".join([*map(nfc, path.parent.parts), case_id_of(path)])


def images_by_case(
    names: Sequence[str], folder: Path, n_channels: int
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The image files of each case, and which cases are unclear.

    Args:
        names: of the files, in the folder.
        folder: for messages.
        n_channels: of a case.

    Returns:
        The names of its files by the id of a case; and by id, what is wrong with those names.

    Raises:
        DataError: if there are no files, or they look like channels of cases that have one.
    """
    if not names:
        raise DataError(
            f"{folder} holds no images; alseg reads files ending in {', '.join(ENDINGS)}"
        )
    images: dict[str, tuple[str, ...]] = {}
    problems: dict[str, str] = {}
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        case_id = id_of(name)
        if case_id in images:
            other = images[case_id][0]
            problems[case_id] = f"{other} and {name} both give the id {case_id}; rename one of them"
            continue
        images[case_id] = (name,)
        if match := _CHANNEL.match(case_id):
            groups.setdefault(match["case"], {})[int(match["channel"])] = case_id
    if n_channels == 1:
        _check_one_channel(groups, folder)
    else:
        for case_id, group in groups.items():
            _join(case_id, group, images, problems, n_channels)
    return images, problems


def _join(
    case_id: str,
    group: dict[int, str],
    images: dict[str, tuple[str, ...]],
    problems: dict[str, str],
    n_channels: int,
) -> None:
    """Make one case of the files of its channels, whose ids by number are ``group``."""
    if sorted(group) != list(range(n_channels)) or case_id in images:
        there = sorted([*group.values(), *[case_id] * (case_id in images)])
        problems[case_id] = (
            f"the case {case_id} has {', '.join(there)}; with {n_channels} channels "
            f"(data.channels) it needs {case_id}_0000 to {case_id}_{n_channels - 1:04d}, or "
            "one file that holds them all"
        )
    channels = [group[number] for number in sorted(group)]
    for channel in channels:
        if channel in problems:
            problems[case_id] = problems.pop(channel)
    files = [images.pop(channel)[0] for channel in channels]
    images[case_id] = (*images.get(case_id, ()), *files)


def _check_one_channel(groups: dict[str, dict[int, str]], folder: Path) -> None:
    """Refuse files that look like channels of one case where one channel is named."""
    several = {case: group for case, group in groups.items() if len(group) > 1 and 0 in group}
    for group in several.values():
        first = [group[index] for index in sorted(group)]
        raise DataError(
            f"{folder}: {listed(first)} look like channels of one case, but data.channels names "
            f"one; name them all, such as data.channels=[T1,T2], or rename the files"
        )


def _labels(
    folder: Path | None, images: dict[str, tuple[Path, ...]]
) -> tuple[dict[str, Path], list[Finding]]:
    """The label file of each case that has one, and what is not used."""
    if folder is None:
        return {}, []
    labels: dict[str, Path] = {}
    for file in files_in(folder).files:
        name = id_of(file)
        if name in labels:
            raise DataError(f"{folder} holds two labels of the case {name}; remove one of them")
        labels[name] = inside(folder, file, folder)
    if not labels:
        raise DataError(f"data.labels is {folder}, which holds no label files")
    apart = sorted(set(labels) - set(images))
    if len(apart) == len(labels):
        raise DataError(
            f"no label of data.labels={folder} is named like an image: there are the labels "
            f"{listed(apart)} and the images {listed(sorted(images))}"
        )
    message = f"{counted(len(apart), 'label')} without an image, not used: {listed(apart)}"
    return labels, [warning("label without image", message)] if apart else []


def doubts(found: Found) -> Iterator[Finding]:
    """What is in a folder and is not used, or may be something else than an image."""
    if found.linked:
        yield warning(
            "links",
            f"{counted(len(found.linked), 'link')} to folders, not followed: "
            f"{listed(found.linked)}",
        )
    if found.unread:
        yield warning(
            "not used",
            f"{counted(len(found.unread), 'file')} named like volumes, not used, as alseg reads "
            f"files ending in {', '.join(ENDINGS)}: {listed(found.unread)}",
        )
    labels = [n for n in found.files if not _LABEL_WORDS.isdisjoint(_WORDS.split(n.casefold()))]
    if labels:
        yield warning(
            "images named as labels",
            f"{counted(len(labels), 'file')} named like labels, taken for images: "
            f"{listed(labels)}; if they are labels, keep them outside of the folder of the images",
        )
