"""The scans of a folder that may hold millions: of each, ids and names of files are in memory.

Files are looked at when a scan is read, so that one that cannot be used holds up no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from alseg.core.errors import DataError
from alseg.data.formats.folder import files_in, images_by_case, not_read
from alseg.data.naming import inside
from alseg.data.task import Case
from alseg.system.text import printable

log = logging.getLogger(__name__)

_FIRST_CHANNEL = "_0000"


@dataclass(frozen=True, eq=False)
class Archive(Mapping[str, Case]):
    """The scans of a folder by their ids; a case is made when it is asked for.

    Attributes:
        folder: the folder.
        names: of the files of each scan, in the folder, by its id.
        unclear: what is wrong with the names of some of the scans, by id.
    """

    folder: Path
    names: Mapping[str, tuple[str, ...]]
    unclear: Mapping[str, str]

    def __getitem__(self, case_id: str) -> Case:
        return Case(case_id, tuple(self.folder / name for name in self.names[case_id]), None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def only(self, chosen: Callable[[str], bool]) -> Archive:
        """The scans whose ids are chosen."""
        return replace(self, names={i: names for i, names in self.names.items() if chosen(i)})

    def check(self, case_id: str) -> None:
        """Check that the names of a scan are clear and its files are there.

        Raises:
            DataError: if not.
        """
        if case_id in self.unclear:
            raise DataError(self.unclear[case_id])
        for name in self.names[case_id]:
            inside(self.folder, name, self.folder)


def archive_of(folder: Path, n_channels: int) -> Archive:
    """List the scans of a folder, sorted by their ids, which are those of ``read_folder``.

    What looks like a scan and is not read is told in the log.

    Where each file is named like nnU-Net's first channel, ``_0000`` is not part of the id. An id
    has escapes for what cannot be printed.

    Args:
        folder: the folder.
        n_channels: of a scan.

    Raises:
        DataError: as ``read_folder``, if it holds no scans or a folder in it cannot be read.
    """
    found = files_in(folder)
    for finding in not_read(found):
        log.warning(printable(finding.message))
    names, unclear = images_by_case(found.files, folder, n_channels)
    if n_channels == 1 and all(i.endswith(_FIRST_CHANNEL) for i in names if i.isprintable()):
        names = {i.removesuffix(_FIRST_CHANNEL): found for i, found in names.items()}
        unclear = {i.removesuffix(_FIRST_CHANNEL): why for i, why in unclear.items()}
    for case_id in [i for i in names if not i.isprintable()]:
        names[printable(case_id)] = names.pop(case_id)
        unclear[printable(case_id)] = (
            f"{folder} names {printable(case_id)}, which has characters that cannot be printed; "
            "rename the file"
        )
    return Archive(folder, dict(sorted(names.items())), unclear)
