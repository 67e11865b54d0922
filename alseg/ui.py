"""Open the charts of an experiment in the MLflow UI: ``python -m alseg.ui [STORE]``."""

from __future__ import annotations

import argparse
import signal

from alseg.config.entry_points import run_entry_point
from alseg.system.stores import default_store
from alseg.tracking.charts import FIRST_PORT, show


def main() -> None:
    """The entry point of ``python -m alseg.ui``."""
    parser = argparse.ArgumentParser(prog="python -m alseg.ui", description=__doc__)
    parser.add_argument(
        "store", nargs="?", default=default_store(), metavar="STORE",
        help="the tracking store; MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db",
    )  # fmt: skip
    parser.add_argument("--experiment", metavar="NAME", help="default: that of the newest run")
    parser.add_argument("--port", type=int, default=FIRST_PORT, help=f"default: {FIRST_PORT}")
    parser.add_argument("--no-open", action="store_true", help="do not open a browser")
    parser.add_argument("--version", action="store_true", help="print the versions and end")

    def work() -> None:
        given = parser.parse_args()
        show(given.store, given.experiment, given.port, open_browser=not given.no_open)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the server would stay
    run_entry_point(work)


if __name__ == "__main__":
    main()
