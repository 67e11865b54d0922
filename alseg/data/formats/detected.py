"""Data sets of whatever format: dataset.json says which it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alseg.data.formats.dataset_json import data_folder, read_json_object
from alseg.data.formats.folder import read_folder
from alseg.data.formats.msd import read_msd
from alseg.data.formats.nnunet import read_nnunet
from alseg.data.task import Task


def read_detected(
    root: str | Path,
    classes: Sequence[str] | None = None,
    channels: Sequence[str] = ("image",),
    labels: str | Path | None = None,
) -> Task:
    """Read a data set of MSD or nnU-Net v2, or a folder of images.

    Args:
        root: the folder; its dataset.json says which format it has; without one it holds images.
        classes: of a folder of images, see ``read_folder``.
        channels: likewise.
        labels: likewise.

    Raises:
        DataError: as the format's own function.
        ConfigError: likewise.
    """
    path = data_folder(root) / "dataset.json"
    if not path.is_file():
        return read_folder(root, classes, channels, labels)
    is_nnunet = {"channel_names", "file_ending"} & read_json_object(path).keys()
    return read_nnunet(root) if is_nnunet else read_msd(root)
