"""Send what a tracking store has missed: ``python -m alseg.sync RUN_FOLDER...``.

The store is the one of the run's settings. A sweep's folder stands for all runs in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from alseg.config.entry_points import run_entry_point
from alseg.core.errors import ConfigError, DataError


def sync_all(folders: Sequence[Path]) -> None:
    """Send what waits in run folders, and in all run folders below them.

    Raises:
        DataError: if a folder is not there.
        ConfigError: if something could not be sent, or a run is still at work.
    """
    from alseg.config.settings import load_config
    from alseg.run.folder import JOURNAL_FILE
    from alseg.run.lock import locked_run
    from alseg.tracking.mlflow import sync

    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}")
    journals = [path for folder in folders for path in sorted(folder.rglob(JOURNAL_FILE))]
    for journal in journals:
        with locked_run(journal.parent):
            store = OmegaConf.select(load_config(journal.parent), "tracking.mlflow.uri")
            if store is None:
                raise ConfigError(f"{journal.parent} is no longer recorded in MLflow")
            outbox = sync(store, journal.parent)
        if outbox.n_waiting:
            raise ConfigError(
                f"{outbox.n_waiting} operations still wait in {journal}: {outbox.error}"
            )
        print(f"{journal.parent}: the tracking store is up to date")
    if not journals:
        print("nothing waits to be sent")


def main() -> None:
    """The entry point of ``python -m alseg.sync``."""
    parser = argparse.ArgumentParser(prog="python -m alseg.sync", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--version", action="store_true", help="print the versions and end")
    run_entry_point(lambda: sync_all(parser.parse_args().folders))


if __name__ == "__main__":
    main()
