"""What a person sees of finished runs: the MLflow UI and the comparison's page, in Chromium."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from alseg.compare import compare
from tests.conftest import Outcome


@contextmanager
def mlflow_ui(folder: Path, store: str) -> Iterator[str]:
    """The address of ``mlflow ui`` on the runs below a folder, as README starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--workers", "1"]
    with (folder / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=folder,
            env=os.environ
            | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not answers(f"{address}/health"):
            said = (folder / "ui.log").read_text()
            assert server.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def answers(address: str) -> bool:
    try:
        urlopen(address).close()
    except OSError:
        return False
    return True


def shows(browser: Any, *wanted: str, seconds: float = 60) -> str:
    """Wait until the page's text has all that is wanted; returns the text."""
    deadline = time.monotonic() + seconds
    while True:
        text: str = browser.execute_script("return document.body.innerText")
        missing = [part for part in wanted if part not in text]
        if not missing:
            return text
        assert time.monotonic() < deadline, f"the page lacks {missing}:\n{text}"
        time.sleep(0.5)


def plotted(browser: Any, seconds: float = 60) -> list[list[tuple[float, float]]]:
    """The points of each curve that plotly has drawn."""
    deadline = time.monotonic() + seconds
    while not browser.find_elements("css selector", ".js-plotly-plot .scatterlayer .trace"):
        assert time.monotonic() < deadline, "no curve was drawn"
        time.sleep(0.5)
    curves = browser.execute_script(
        "return document.querySelector('.js-plotly-plot').data.map(t => [[...t.x], [...t.y]])"
    )
    return [list(zip(x, y, strict=True)) for x, y in curves]


def test_two_strategies_are_compared_in_the_mlflow_ui_and_on_the_page(
    train: Callable[..., Outcome], browser: Any, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    strategies = ("random", "variance", "full")
    store = (
        f"sqlite:///{tmp_path}/mlflow.db"  # MLflow keeps stores open by name: not a relative one
    )
    for strategy in strategies:
        run = train(f"strategy={strategy}", f"tracking.uri={store}", tracking="mlflow")
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
    with mlflow_ui(tmp_path, store) as address:
        browser.get(f"{address}/#/experiments/{experiment.experiment_id}/runs")
        shows(browser, *(f"{strategy} seed 1" for strategy in strategies))
        ids = ",".join(f'"{r.info.run_id}"' for r in runs)
        browser.get(
            f'{address}/#/metric?runs=[{ids}]&metric="dice%2Ftest"&experiments='
            f'["{experiment.experiment_id}"]&plot_metric_keys=["dice%2Ftest"]&x_axis=step&'
            "y_axis_scale=linear"
        )
        shows(browser, "dice/test", *(f"{strategy} seed 1" for strategy in strategies))
        curves = plotted(browser)
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "dice/test")
        assert [(m.step, m.value) for m in history] in curves

    browser.get(page.resolve().as_uri())
    shows(
        browser,
        "Learning curves",
        "1 seed in common is too few for a test",
        "Foreground efficiency",
        "Expected calibration error",
        "Top queries of variance",
    )
