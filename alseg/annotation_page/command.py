"""What ``python -m alseg.annotate`` does."""

from __future__ import annotations

import webbrowser
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alseg.annotation_page.desk import Desk
from alseg.annotation_page.review_desk import ReviewDesk
from alseg.annotation_page.server import serve
from alseg.config.data_of_run import task_of_run
from alseg.config.settings import load_config
from alseg.core.errors import (
    ConfigError,
    DataError,
    check_flag,
    check_names,
    check_text,
    check_whole_number,
)
from alseg.run.folder import CONFIG_FILE
from alseg.run.links import check_links
from alseg.system.console import has_display, say

PERSON = "alseg.oracles.person.PersonOracle"


def annotate(config: DictConfig) -> None:
    """Serve the page of a run until Ctrl-C; print its address.

    Args:
        config: of conf/annotate.yaml.

    Raises:
        AlsegError: with one clear sentence, if there is nothing to annotate or no port.
    """
    check_whole_number("port", config.port, at_least=1)
    check_whole_number("claim_minutes", config.claim_minutes, at_least=1)
    check_flag("open_browser", config.open_browser)
    check_flag("review", config.review)
    desk: Desk | ReviewDesk
    if config.review:
        desk = review_desk_of(config.run, config.trusted_packages)
    else:
        desk = desk_of(config.run, config.claim_minutes, config.trusted_packages)
    verb = "review" if config.review else "annotate"
    serve(desk, config.port, partial(_announce, verb, desk.run_folder, config.open_browser))


def desk_of(run: object, claim_minutes: int, trusted_packages: Any = ()) -> Desk:
    """The desk of a run folder.

    Raises:
        ConfigError: if the run asks nobody, or its settings name what is not to be trusted.
        DataError: if the folder is no run folder, or its data set is missing.
    """
    folder, config = _read(run, trusted_packages)
    if OmegaConf.select(config, "oracle._target_") != PERSON:
        raise ConfigError(
            f"the run in {folder} asks nobody for labels: it was started without oracle=person; "
            "review=true shows what it has asked for"
        )
    return Desk(task_of_run(folder, config, trusted_packages), folder, claim_minutes)


def review_desk_of(run: object, trusted_packages: Any = ()) -> ReviewDesk:
    """The review of a run folder, of a simulation as well.

    Raises:
        ConfigError: if the run's settings name what is not to be trusted.
        DataError: if the folder is no run folder, or its data set is missing.
    """
    folder, config = _read(run, trusted_packages)
    return ReviewDesk(task_of_run(folder, config, trusted_packages), folder, trusted_packages)


def _read(run: object, trusted_packages: Any) -> tuple[Path, DictConfig]:
    """A run folder, and its settings."""
    check_text("run", run)
    check_names("trusted_packages", trusted_packages)
    folder = Path(str(run)).expanduser().absolute()
    if not (folder / CONFIG_FILE).is_file():
        raise DataError(f"{folder} is no run folder: it has no {CONFIG_FILE}")
    check_links(folder)
    return folder, load_config(folder)


def _announce(verb: str, folder: Path, open_browser: bool, address: str) -> None:
    kept = "drafts" if verb == "annotate" else "reviews"
    say(f"{verb} {folder.name} at {address}\nCtrl-C ends; {kept} are kept")
    if open_browser and has_display():
        webbrowser.open(address)
