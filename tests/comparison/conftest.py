from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import draw, write_calibration, write_run, write_sweep

from alseg.comparison.analysis import Comparison, analyse
from alseg.comparison.runs import find_run_folders, gather_runs


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 strategies and full data, 4 seeds each, and an unfinished run; not to be changed."""
    root = write_sweep(tmp_path_factory.mktemp("sweep"))
    write_run(root / "power_seed9", "power", 9, rounds=3)
    write_calibration(root / "variance_seed1")
    draw(root / "variance_seed1" / "rounds" / "round_01" / "pictures" / "01_case_007.png")
    return root


@pytest.fixture(scope="session")
def comparison(sweep: Path) -> Comparison:
    return analyse(gather_runs(find_run_folders([sweep]), reference="random"))
