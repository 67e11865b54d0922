"""The MLflow UI with the charts of an experiment prepared."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from alseg.core.errors import ConfigError
from alseg.system.console import has_display
from alseg.system.secrets import without_secrets
from alseg.system.stores import sqlite_file

HOST, FIRST_PORT, N_PORTS = "127.0.0.1", 5000, 100
START_SECONDS = 120.0  # the server migrates a store's schema before it answers
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
OF_STRATEGIES = "tags.strategy LIKE '%'"  # a search for the runs that are not of a single round
# What MLflow's pages keep of a view that is shared by its address: mean and band of each strategy.
VIEW_KEY = "alseg"
VIEW = {
    "searchFilter": OF_STRATEGIES,
    "runsHiddenMode": "SHOW_ALL",
    "runListHidden": True,  # the charts have the width
    "groupBy": {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "tag", "groupByData": "strategy"}],
    },
}


def show(store: str, experiment: str | None, port: int, *, open_browser: bool) -> None:
    """Serve a store's pages until Ctrl-C; say, and open, the address of an experiment's charts.

    Args:
        store: the tracking store.
        experiment: its name; None for that of the newest run.
        port: the first one to try.
        open_browser: whether to open the address, where there is a display.

    Raises:
        ConfigError: if there is no store, experiment or free port.
    """
    database = sqlite_file(store)
    if database is not None and not database.is_file():  # which MLflow would make
        raise ConfigError(f"there is no tracking store {without_secrets(store)}")
    found = free_port(port)
    if found != port:
        print(f"port {port} is in use: taking {found}")
    with server(store, found) as address:
        charts = prepared_charts(address, experiment_id(address, experiment))
        print(f"charts: {charts}\nCtrl-C ends", flush=True)
        if open_browser and has_display():
            webbrowser.open(charts)
        while True:
            time.sleep(3600)


def free_port(first: int) -> int:
    """The first port from here on that nothing listens at."""
    for port in range(first, min(first + N_PORTS, 65536)):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                listener.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ConfigError(f"--port {first}: no port from there on can be used")


@contextmanager
def server(store: str, port: int) -> Iterator[str]:
    """``mlflow ui`` on a store, once it answers; ended with the block."""
    command = [sys.executable, "-m", "mlflow", "ui"]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        command,
        env=os.environ | QUIET | {"MLFLOW_BACKEND_STORE_URI": store},  # all see the arguments
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, which ends the server's
    )
    address = f"http://{HOST}:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ConfigError(f"mlflow ui cannot serve {without_secrets(store)}")
            time.sleep(0.2)
        yield address
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 15)
        process.wait()


def answers(address: str) -> bool:
    """Whether a server is up."""
    try:
        urlopen(f"{address}/health", timeout=5).close()
    except OSError:
        return False
    return True


def experiment_id(address: str, name: str | None) -> str:
    """The id of an experiment, by its name or as that of the newest run."""
    found = ask(address, "experiments/search", {"max_results": 1000}).get("experiments", [])
    ids = {experiment["name"]: experiment["experiment_id"] for experiment in found}
    if name is not None:
        if name not in ids:
            raise ConfigError(f"there is no experiment {name!r}; there are {', '.join(ids)}")
        return str(ids[name])
    newest = {
        "experiment_ids": list(ids.values()),
        "filter": OF_STRATEGIES,
        "order_by": ["start_time DESC"],
        "max_results": 1,
    }
    runs = ask(address, "runs/search", newest).get("runs", [])
    if not runs:
        raise ConfigError("the tracking store has no runs")
    return str(runs[0]["info"]["experiment_id"])


def ask(address: str, path: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """Ask MLflow's REST interface."""
    request = Request(
        f"{address}/api/2.0/mlflow/{path}",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urlopen(request, timeout=60) as reply:
            answer: dict[str, Any] = json.load(reply)
    except HTTPError as error:
        raise ConfigError(f"the tracking store answers: {error.read().decode()}") from error
    return answer


def prepared_charts(address: str, experiment: str) -> str:
    """Where the UI shows an experiment's charts, a curve a strategy and none for single rounds."""
    tag = {"key": f"mlflow.sharedViewState.{VIEW_KEY}", "value": json.dumps(VIEW)}
    ask(address, "experiments/set-experiment-tag", {"experiment_id": experiment} | tag)
    return (
        f"{address}/#/experiments/{experiment}/runs?workflowType=machine_learning"
        f"&compareRunsMode=CHART&viewStateShareKey={VIEW_KEY}"
    )
