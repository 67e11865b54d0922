"""The endings of the files that hold volumes, and of those that nnU-Net numbers by channel."""

from __future__ import annotations

import re
from pathlib import PurePath

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".nrrd", ".mha", ".mhd")  # NRRD and MetaImage
ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS)
ANSWER_ENDINGS = (*NIFTI_ENDINGS, ".nrrd")  # of labels that people hand in, each one whole file
_OTHERS = (".nhdr", ".hdr", ".img", ".mgz", ".mgh", ".mnc", ".gipl", ".dcm")  # of volumes, too
_CHANNEL = re.compile(r"^(?P<case>.+)_\d{4}$")


def ending_of(path: PurePath) -> str:
    """Which of ``ENDINGS`` a file has; empty for none."""
    return next((ending for ending in ENDINGS if path.name.endswith(ending)), "")


def looks_like_a_volume(path: PurePath) -> bool:
    """Whether a file that has none of ``ENDINGS`` may hold a volume all the same."""
    return not ending_of(path) and path.name.casefold().endswith((*ENDINGS, *_OTHERS))


def name_without_ending(path: PurePath) -> str:
    """The name of a file without its ending of ``ENDINGS``; also without ``.gz`` of another one."""
    return path.name.removesuffix(ending_of(path) or ".gz")


def case_of_channel(name: str) -> str:
    """The case of one of nnU-Net's channels, such as ``a`` of ``a_0000``; empty for another name.

    Args:
        name: of a file, without its ending.
    """
    match = _CHANNEL.match(name)
    return match["case"] if match else ""
