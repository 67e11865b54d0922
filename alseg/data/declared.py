"""What a data set says about itself, compared with what is there."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from alseg.core.counts import counted
from alseg.data.file_types import NIFTI_ENDINGS, case_of_channel, name_without_ending
from alseg.data.findings import Finding, listed, warning
from alseg.data.naming import nfc, short

_BACKGROUND = ("bg", "bkg", "none", "other", "unlabeled", "unlabelled", "clear label")


def number_of(content: Mapping[str, Any], key: str, n_found: int, found: str) -> Iterator[Finding]:
    """A number that dataset.json gives, if it is another one than was found.

    Args:
        content: of dataset.json.
        key: such as numTraining.
        n_found: what it should be.
        found: how that was found, such as ``10 cases are listed``.
    """
    stated = content.get(key, n_found)
    if stated != n_found and str(stated) != str(n_found):
        yield warning(key, f"dataset.json says {key} {short(stated)}, but {found}")


def tested_on_training(training: Collection[Path], test: Collection[Path]) -> Iterator[Finding]:
    """Images that dataset.json lists for training and under 'test' as well."""
    both = sorted(path.name for path in set(training) & set(test))
    if both:
        yield warning(
            "test",
            f"'test' lists {counted(len(both), 'image')} that 'training' lists as well: "
            f"{listed(both)}",
        )


def missing_test_images(test: Collection[Path], used: Collection[Path]) -> Iterator[Finding]:
    """Images under 'test' that are not there, unless none is: then they were never copied."""
    missing = sorted(path.name for path in set(test) - set(used))
    if missing and len(missing) < len(test):
        yield warning(
            "test",
            f"'test' lists {counted(len(missing), 'image that is', 'images that are')} not there "
            f"or not in the data set's folder; not used: {listed(missing)}",
        )


def differ_in_case(case_ids: Collection[str]) -> Iterator[Finding]:
    """Cases whose names a disk may take for one, as those of macOS and Windows do."""
    by_folded: dict[str, list[str]] = {}
    for case_id in case_ids:
        by_folded.setdefault(case_id.casefold(), []).append(case_id)
    alike = [case_id for group in by_folded.values() if len(group) > 1 for case_id in group]
    if alike:
        yield warning(
            "capital letters",
            f"the names of {len(alike)} cases differ in capital letters only: {listed(alike)}; on "
            "a disk that takes them for one, their pictures and maps replace each other",
        )


def image_size(content: Mapping[str, Any], n_channels: int) -> Iterator[Finding]:
    """MSD's tensorImageSize (3D for one channel, 4D for several) if it contradicts the channels."""
    stated = content.get("tensorImageSize")
    expected = "3D" if n_channels == 1 else "4D"
    if stated is not None and str(stated).upper() != expected:
        yield warning(
            "tensorImageSize",
            f"dataset.json says tensorImageSize {short(stated)}, but names "
            f"{counted(n_channels, 'channel')}, which is {expected}",
        )


def channel_names(
    content: Mapping[str, Any], read: str, channels: Sequence[str]
) -> Iterator[Finding]:
    """Channels that dataset.json names twice and differently, or names with a meaning.

    Args:
        content: of dataset.json.
        read: the key that was read.
        channels: their names.
    """
    for key in ("modality", "channel_names"):
        other = content.get(key, {})
        names = list(other.values()) if isinstance(other, dict) else [other]
        if key != read and names and names != list(channels):
            yield warning(
                "channel names",
                f"{key} names other channels than {read}, which is read: {short(names)}",
            )
    skipped = [name for name in channels if name.casefold() == "nonorm"]
    if skipped:
        yield warning(
            "noNorm",
            f"dataset.json names a channel {skipped[0]}, which nnU-Net leaves as it is; here "
            "data.preprocess says what becomes of intensities",
        )


def background(classes: Sequence[str]) -> Iterator[Finding]:
    """A name of value 0 that does not sound like the background."""
    name = classes[0].strip().casefold()
    if "background" not in name and name not in _BACKGROUND:
        yield warning(
            "background", f"the class of value 0 is called {classes[0]}; it is taken as background"
        )


def links_out(folder: Path, files: Collection[Path]) -> Iterator[Finding]:
    """Files that are read from elsewhere, because the folder holds links."""
    home = folder.resolve()
    leaving = sorted(path for path in files if not path.resolve().is_relative_to(home))
    if leaving:
        names = [str(path.relative_to(folder)) for path in leaving]
        yield warning(
            "links",
            f"{counted(len(names), 'file is a link', 'files are links')} out of the data set's "
            f"folder, read in another one ({leaving[0].resolve().parent}): {listed(names)}",
        )


def not_used(
    folder: Path, used: Collection[Path], otherwise: Collection[Path], listing: str
) -> Iterator[Finding]:
    """NIfTI files beside those that are used, a finding a folder.

    Args:
        folder: of the data set.
        used: images and labels of the cases.
        otherwise: files that are listed for another purpose.
        listing: what does not name them, such as ``'training'``.
    """
    for parent, names in _unused(folder, used, otherwise).items():
        yield warning(
            "not used",
            f"{parent.relative_to(folder)} holds {counted(len(names), 'file')} that {listing} "
            f"does not name; not used: {listed(names)}",
        )


def not_used_nnunet(
    folder: Path, used: Collection[Path], case_ids: Collection[str]
) -> Iterator[Finding]:
    """The same for imagesTr and labelsTr of nnU-Net, where names say what is missing."""
    for parent, names in _unused(folder, used, ()).items():
        cases = {name: nfc(case_of_channel(name_without_ending(PurePath(name)))) for name in names}
        incomplete = set(cases.values()) - {"", *case_ids} if parent.name == "imagesTr" else set()
        if incomplete:
            yield warning(
                "channels missing",
                f"{counted(len(incomplete), 'case')} of imagesTr without a label and not all "
                f"channels; not used: {listed(sorted(incomplete))}",
            )
        others = [name for name in names if cases[name] not in incomplete]
        if others:
            yield warning(
                "not used",
                f"{parent.name} holds {counted(len(others), 'file')} of no case or channel; not "
                f"used: {listed(others)}",
            )


def _unused(
    folder: Path, used: Collection[Path], otherwise: Collection[Path]
) -> dict[Path, list[str]]:
    """Names of NIfTI files in the folders of the data set that nothing names, by folder."""
    parents = {path.parent for path in used} | {folder / "imagesTr", folder / "labelsTr"}
    found: dict[Path, list[str]] = {}
    for parent in sorted(parents):
        if parent.is_dir():
            names = sorted(
                name
                for name in os.listdir(parent)
                if name.endswith(NIFTI_ENDINGS)
                and not name.startswith(".")  # ._X: macOS's own
                and parent / name not in used
                and parent / name not in otherwise
            )
            found |= {parent: names} if names else {}
    return found
