"""A run from Python, without the command line: what docs/python.md shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf

from alseg.config.command_line import override
from alseg.config.composition import composed
from alseg.config.settings import differences, flat, load_config, load_start
from alseg.core.errors import ConfigError, DataError
from alseg.engine.runs import train
from alseg.run.state import RunState
from tests.smoke_runs import resume_smoke, smoke_config, smoke_overrides

QUICK = (
    "strategy=random",
    "pool.rounds=1",
    "pool.query_size=1",
    "steps_per_round=1",
    "val_interval=1",
)
PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_lines_of_the_page_run_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, tables, more = re.findall(
        r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    (resume,) = re.findall(
        r"`(train\(composed\(\[\"resume=.*?\)), run\)`", PAGE.read_text(encoding="utf-8")
    )
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    names: dict[str, Any] = {}
    exec(run + tables + f"again = {resume}, run)", names)
    assert (tmp_path / "runs" / "from_python" / "state.json").is_file()
    assert len(names["metrics"]) == len(names["queries"]["round"].unique())
    assert names["again"] == names["area"]
    assert caplog.text.count("the run had finished its 2 rounds before") == 1
    exec(more, names)
    assert "resumed with other settings: pool.rounds: 2 -> 3" in caplog.text
    assert len(pd.read_csv(tmp_path / "runs" / "from_python" / "metrics.csv")) == 3


def start(folder: Path, shared: Path, *overrides: str) -> DictConfig:
    config = smoke_config(shared, *QUICK, *overrides)
    train(config, folder)
    return config


def test_a_run_from_python_is_resumed_with_other_settings_from_either_side(
    shared: Path, tmp_path: Path
) -> None:
    start(tmp_path, shared)
    assert load_start(tmp_path).overrides == tuple(smoke_overrides(shared, *QUICK))
    before = load_config(tmp_path)
    resume_smoke(tmp_path, "pool.rounds=2")  # as the command line does
    force = [override("resume", tmp_path), "resume_force=true"]
    train(composed([*force, "pool.rounds=3"]), tmp_path)
    assert RunState.load(tmp_path).finished_rounds == 3
    changes = differences(
        flat(OmegaConf.to_container(before)), flat(OmegaConf.to_container(load_config(tmp_path)))
    )
    assert changes == ["pool.rounds: 1 -> 3"]
    assert (load_start(tmp_path).overrides or ())[-1] == "pool.rounds=3"


def test_what_may_not_change_is_refused_from_python_too(shared: Path, tmp_path: Path) -> None:
    start(tmp_path, shared)
    again = override("resume", tmp_path)
    with pytest.raises(ConfigError, match=r"other settings: pool\.rounds: 1 -> 3; resume_force="):
        train(composed([again, "pool.rounds=3"]), tmp_path)
    with pytest.raises(ConfigError, match=r"pool\.unit: volume -> slice"):
        train(composed([again, "pool.unit=slice", "resume_force=true"]), tmp_path)


def test_fewer_rounds_than_are_finished_are_refused(shared: Path, tmp_path: Path) -> None:
    start(tmp_path, shared, "pool.rounds=2")
    fewer = [override("resume", tmp_path), "pool.rounds=1", "resume_force=true"]
    with pytest.raises(
        ConfigError, match=r"pool\.rounds: 2 -> 1: .*finished 2 rounds.*rounds=2 to"
    ):
        train(composed(fewer), tmp_path)
    assert load_config(tmp_path).pool.rounds == 2


def test_a_configuration_that_was_changed_since_is_told_where_its_overrides_are_needed(
    shared: Path, tmp_path: Path
) -> None:
    config = smoke_config(shared, *QUICK)
    config.seed = 7
    train(config, tmp_path)
    assert load_start(tmp_path).overrides is None
    again = override("resume", tmp_path)
    with pytest.raises(ConfigError, match=r"in Python was not as composed\(\[\.\.\.\]\) had made"):
        train(composed([again, "pictures=1"]), tmp_path)
    changed = composed([again])
    changed.pool.rounds = 3
    with pytest.raises(ConfigError, match=r"what it changes cannot be told; give all of it as"):
        train(changed, tmp_path)
    train(composed([again]), tmp_path)  # as it was
    assert load_config(tmp_path).seed == 7


def test_bad_files_and_settings_raise_errors_of_alseg(shared: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text('{"training": ["case_00"]}')
    from_file = ["data/splits=file", override("data.splits.file", split)]
    with pytest.raises(DataError, match=r"split\.json: 'training' names 'case_00', which"):
        start(tmp_path / "run", shared, *from_file)
    with pytest.raises(ConfigError, match=r"^training\.loss: 'NoneType' object is not callable"):
        start(tmp_path / "run", shared, "training.loss=null")
    with pytest.raises(ConfigError, match=r"^strategy\.selector is None; it must be a selector"):
        start(tmp_path / "run", shared, "strategy.selector=null")
