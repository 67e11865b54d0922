"""Annotate in the browser what a run asks for: ``python -m alseg.annotate RUN_FOLDER``.

An entry point: ``alseg.annotation_page`` does the work.
"""

from __future__ import annotations

import signal
import sys

import hydra
from omegaconf import DictConfig

from alseg.config.command_line import with_run
from alseg.config.composition import conf_folder
from alseg.config.entry_points import run_hydra_entry_point
from alseg.config.messages import report_errors
from alseg.system.console import say


@hydra.main(version_base="1.3", config_path=conf_folder(), config_name="annotate")
def _hydra_main(config: DictConfig) -> None:
    say("starts; the address of the page follows within half a minute")  # imports take it
    from alseg.annotation_page.command import annotate  # here: --help answers without it

    with report_errors():
        annotate(config)


def main() -> None:
    """The entry point of ``python -m alseg.annotate``."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.argv[1:] = with_run(sys.argv[1:])
    run_hydra_entry_point(_hydra_main)


if __name__ == "__main__":
    main()
