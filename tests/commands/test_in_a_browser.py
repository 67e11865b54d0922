"""What a person sees of finished runs: the MLflow UI and the comparison's page, in Chromium."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from alseg.compare import compare
from alseg.tracking.charts import experiment_id, free_port, prepared_charts, server
from tests.conftest import Outcome


def shows(browser: Any, *wanted: str, seconds: float = 240) -> str:
    """Wait until the page's text has all that is wanted; returns the text."""
    deadline = time.monotonic() + seconds
    while True:
        text: str = browser.execute_script("return document.body.innerText")
        missing = [part for part in wanted if part not in text]
        if not missing:
            return text
        assert time.monotonic() < deadline, f"the page lacks {missing}:\n{text}"
        time.sleep(0.1)


def plotted(browser: Any, seconds: float = 240) -> list[list[tuple[float, float]]]:
    """The points of each curve that plotly has drawn."""
    deadline = time.monotonic() + seconds
    while not browser.find_elements("css selector", ".js-plotly-plot .scatterlayer .trace"):
        assert time.monotonic() < deadline, "no curve was drawn"
        time.sleep(0.1)
    curves = browser.execute_script(
        "return document.querySelector('.js-plotly-plot').data.map(t => [[...t.x], [...t.y]])"
    )
    return [list(zip(x, y, strict=True)) for x, y in curves]


def test_two_strategies_are_compared_in_the_mlflow_ui_and_on_the_page(
    train: Callable[..., Outcome], browser: Any, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    store = (
        f"sqlite:///{tmp_path}/mlflow.db"  # MLflow keeps stores open by name: not a relative one
    )
    for strategy, seed in (("random", 1), ("random", 2), ("variance", 1), ("full", 1)):
        overrides = (f"strategy={strategy}", f"seed={seed}")
        run = train(*overrides, f"tracking.mlflow.uri={store}", tracking="mlflow")
        assert run.exit_code == 0, run.err
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    runs = [
        r
        for r in client.search_runs([experiment.experiment_id])
        if "mlflow.parentRunId" not in r.data.tags
    ]
    page = compare(["--tracking-uri", store, "--experiment", "smoke", "--log-to-mlflow", store])

    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    with server(store, free_port(5000)) as address:
        charts = prepared_charts(address, experiment_id(address, None))
        assert experiment_id(address, "smoke") == experiment.experiment_id
        browser.get(charts)  # no click from here on
        curves = plotted(browser)
        text = shows(browser, "random (dice/test)", "variance (dice/test)")
    assert "seed 1 (dice/test)" not in text
    for strategy in ("random", "variance"):  # a curve each: the mean over its seeds
        values: dict[int, list[float]] = {}
        for run in runs:
            if run.data.tags["strategy"] == strategy:
                for m in client.get_metric_history(run.info.run_id, "dice/test"):
                    values.setdefault(m.step, []).append(m.value)
        assert {len(v) for v in values.values()} == {2 if strategy == "random" else 1}
        assert [(step, pytest.approx(mean(v))) for step, v in values.items()] in curves

    browser.get(page.resolve().as_uri())
    shows(
        browser,
        "Learning curves",
        "1 seed in common is too few for a test",
        "Foreground efficiency",
        "Expected calibration error",
        "Top queries of variance",
    )
