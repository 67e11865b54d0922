"""Turn DICOM series into a folder of NIfTI files: ``python -m alseg.import_dicom SRC DST``.

``patient_ids=plain`` keeps patient ids, descriptions and source folders in the table; otherwise
ids are hashed with a secret salt of yours, and the rest is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alseg.config.entry_points import run_entry_point
from alseg.core.errors import check_choice


def main() -> None:
    """The entry point of ``python -m alseg.import_dicom``."""
    parser = argparse.ArgumentParser(prog="python -m alseg.import_dicom", description=__doc__)
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of DICOM files")
    parser.add_argument("target", type=Path, metavar="DST", help="folder of the NIfTI files")
    parser.add_argument(
        "patient_ids",
        nargs="?",
        default="patient_ids=hashed",
        metavar="patient_ids=plain",
        help="leave ids as they are",
    )
    parser.add_argument("--version", action="store_true", help="print the versions and end")

    def run() -> None:
        from alseg.data.dicom import import_dicom  # here: --help answers without it

        arguments = parser.parse_args()
        name, _, value = arguments.patient_ids.partition("=")
        check_choice("setting", name, ["patient_ids"])
        import_dicom(arguments.source, arguments.target, value)

    run_entry_point(run)


if __name__ == "__main__":
    main()
