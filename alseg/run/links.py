"""Links in a folder that is written: those that lead out of it are refused.

A run folder may come from somebody else, and a link in it would lead what is written there to any
place that the user may write: over other people's labels, or behind a file that a shell runs.
"""

from __future__ import annotations

import os
from pathlib import Path

from alseg.core.errors import ConfigError
from alseg.run.folder import REQUESTS_FOLDER
from alseg.system.files import is_within

_LAID_OUT = (".nii.gz", ".nii")  # images in a request folder are links, which are only read


def check_links(folder: Path) -> None:
    """Check that no link in a folder leads out of it, but for the images of requests.

    Args:
        folder: of a run, or of other results; it may itself be a link.

    Raises:
        ConfigError: naming the link.
    """
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *names)):
            if path.is_symlink() and not is_within(path, folder) and not _is_image(path, folder):
                raise ConfigError(
                    f"{path} is a link to {os.readlink(path)}, out of {folder}: alseg writes into "
                    "that folder only; put the content in the place of the link"
                )


def _is_image(path: Path, folder: Path) -> bool:
    return path.parent.parent == folder / REQUESTS_FOLDER and path.name.endswith(_LAID_OUT)
