"""Hand on what a run has: ``python -m alseg.export RUN_FOLDER bundle=FOLDER`` or ``nnunet=FOLDER``.

An entry point: ``alseg.engine.bundle`` and ``alseg.engine.nnunet_export`` do the work.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from alseg.config.command_line import with_run
from alseg.config.composition import conf_folder
from alseg.config.entry_points import run_hydra_entry_point
from alseg.config.messages import report_errors
from alseg.core.errors import ConfigError


@hydra.main(version_base="1.3", config_path=conf_folder(), config_name="export")
def _hydra_main(config: DictConfig) -> None:
    from alseg.engine.bundle import export  # here: --help answers without them
    from alseg.engine.nnunet_export import export_for_nnunet

    with report_errors():
        if (config.bundle is None) == (config.nnunet is None):
            raise ConfigError("give either bundle=FOLDER or nnunet=FOLDER, a new folder")
        if config.nnunet is None:
            export(config)
        else:
            export_for_nnunet(config)


def main() -> None:
    """The entry point of ``python -m alseg.export``."""
    sys.argv[1:] = with_run(sys.argv[1:])
    run_hydra_entry_point(_hydra_main)


if __name__ == "__main__":
    main()
