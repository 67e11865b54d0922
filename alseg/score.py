"""Score an archive: ``python -m alseg.score RUN_FOLDER images=FOLDER output=FOLDER``.

An entry point: ``alseg.engine.score`` does the work. With ``-m``, Hydra's launchers run the shards.
"""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from alseg.config.command_line import with_run
from alseg.config.composition import conf_folder
from alseg.config.entry_points import run_hydra_entry_point
from alseg.config.messages import report_errors


@hydra.main(version_base="1.3", config_path=conf_folder(), config_name="score")
def _hydra_main(config: DictConfig) -> None:
    from alseg.engine.score import score  # here: --help answers without it

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        score(config)  # Hydra keeps what a shard raises until the others are done
        return
    with report_errors():
        score(config)


def main() -> None:
    """The entry point of ``python -m alseg.score``."""
    sys.argv[1:] = with_run(sys.argv[1:])
    run_hydra_entry_point(_hydra_main)


if __name__ == "__main__":
    main()
