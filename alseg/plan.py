"""Plan a training before it starts: ``python -m alseg.plan data.root=FOLDER``.

An entry point: ``alseg.engine.plan_report`` makes the plan and measures what it costs.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from alseg.config.composition import conf_folder
from alseg.config.entry_points import run_hydra_entry_point
from alseg.config.messages import report_errors


@hydra.main(version_base="1.3", config_path=conf_folder(), config_name="plan")
def _hydra_main(config: DictConfig) -> None:
    from alseg.engine.plan_report import report_plan  # here: --help answers without it

    with report_errors():
        report_plan(config)


def main() -> None:
    """The entry point of ``python -m alseg.plan``."""
    run_hydra_entry_point(_hydra_main)


if __name__ == "__main__":
    main()
