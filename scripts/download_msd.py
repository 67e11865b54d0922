"""Fetch and verify a task of the Medical Segmentation Decathlon.

    python scripts/download_msd.py Task04_Hippocampus --root data

Uses MONAI's downloader, which checks the archive's MD5 sum. Task03_Liver takes 27 GB.
"""

import argparse
import sys
from pathlib import Path
from urllib.error import URLError

from monai.apps import DecathlonDataset, download_and_extract

from alseg.core.errors import AlsegError
from alseg.data.formats.msd import read_msd
from alseg.data.headers import check_headers


def main() -> None:
    """Download one task into ROOT and check its headers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(DecathlonDataset.resource), metavar="TASK")
    parser.add_argument(
        "--root", type=Path, default=Path("data"), help="where the task's folder goes"
    )
    arguments = parser.parse_args()
    folder = arguments.root / arguments.task
    try:
        if not folder.is_dir():
            arguments.root.mkdir(parents=True, exist_ok=True)
            download_and_extract(
                url=DecathlonDataset.resource[arguments.task],
                filepath=arguments.root / f"{arguments.task}.tar",
                output_dir=arguments.root,
                hash_val=DecathlonDataset.md5[arguments.task],
            )
        task = read_msd(folder)
        check_headers(task, task.labelled, labels=True)
        check_headers(task, task.unlabelled, labels=False)
    except URLError as error:
        sys.exit(
            f"cannot reach the server of the Medical Segmentation Decathlon ({error.reason}); "
            f"download {arguments.task}.tar from http://medicaldecathlon.com on a machine with a "
            f"network and unpack it in {arguments.root}"
        )
    except (AlsegError, RuntimeError) as error:  # RuntimeError: the MD5 sum does not match
        sys.exit(f"{arguments.task} is not usable: {error}")
    print(f"{len(task.labelled)} labelled cases in {folder}; use it with data.root={folder}")


if __name__ == "__main__":
    main()
