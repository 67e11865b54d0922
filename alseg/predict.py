"""Segment new scans: ``python -m alseg.predict RUN_FOLDER images=FOLDER output=FOLDER``.

An entry point: ``alseg.engine.predict`` does the work.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from alseg.config.command_line import with_run
from alseg.config.composition import conf_folder
from alseg.config.entry_points import run_hydra_entry_point
from alseg.config.messages import report_errors


@hydra.main(version_base="1.3", config_path=conf_folder(), config_name="predict")
def _hydra_main(config: DictConfig) -> None:
    from alseg.engine.predict import predict  # here: --help answers without it

    with report_errors():
        predict(config)


def main() -> None:
    """The entry point of ``python -m alseg.predict``."""
    sys.argv[1:] = with_run(sys.argv[1:])
    run_hydra_entry_point(_hydra_main)


if __name__ == "__main__":
    main()
