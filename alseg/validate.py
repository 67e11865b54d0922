"""Check a data set before a run: ``python -m alseg.validate data=msd data.root=FOLDER``.

An entry point: ``alseg.engine.data_report`` looks at the data set.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from alseg.config.composition import conf_folder
from alseg.config.entry_points import run_hydra_entry_point
from alseg.config.messages import report_errors


@hydra.main(version_base="1.3", config_path=conf_folder(), config_name="validate")
def _hydra_main(config: DictConfig) -> None:
    from alseg.engine.data_report import validate  # here: --help answers without it

    with report_errors():
        validate(config)


def main() -> None:
    """The entry point of ``python -m alseg.validate``."""
    run_hydra_entry_point(_hydra_main)


if __name__ == "__main__":
    main()
