"""Send what a tracking store has missed: ``python -m alseg.sync RUN_FOLDER...``.

The store is the one of the run's settings. A sweep's folder stands for all runs in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from alseg.config.entry_points import run_entry_point
from alseg.core.errors import AlsegError, ConfigError, DataError


def sync_all(folders: Sequence[Path]) -> None:
    """Send what the tracking stores miss of run folders, and of all run folders below them.

    Raises:
        DataError: if a folder is not there.
        ConfigError: if something could not be sent, or a run is still at work; after the others.
    """
    from alseg.run.folder import TRACKING_FILE

    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}")
    found = {path.parent.resolve() for folder in folders for path in folder.rglob(TRACKING_FILE)}
    errors = []
    for run in sorted(found):
        try:
            print(f"{run}: {sync(run)}")
        except AlsegError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError("; ".join(errors))
    if not found:
        print("no run has been recorded there: nothing to send")


def sync(run: Path) -> str:
    """Send what the tracking store misses of one run folder; returns what there is to say.

    Raises:
        ConfigError: if the store does not answer, or another process works on the run.
    """
    from alseg.config.settings import load_config, started_in
    from alseg.run.lock import locked_run
    from alseg.tracking.mlflow import send_missing

    with locked_run(run), started_in(run):
        chosen = OmegaConf.select(load_config(run), "tracking.mlflow")
        if chosen is None:
            return "not recorded in MLflow, so there is nothing to send"
        send_missing(run, {str(name): value for name, value in chosen.items()})
    return "the tracking store is up to date"


def main() -> None:
    """The entry point of ``python -m alseg.sync``."""
    parser = argparse.ArgumentParser(prog="python -m alseg.sync", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--version", action="store_true", help="print the versions and end")
    run_entry_point(lambda: sync_all(parser.parse_args().folders))


if __name__ == "__main__":
    main()
