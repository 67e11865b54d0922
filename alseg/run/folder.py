"""The files of a run folder by their names, which appear nowhere else.

A round's files are in ``round_folder``. Sweeps and pages have files of their own elsewhere.
"""

from __future__ import annotations

from pathlib import Path

CONFIG_FILE = "config.yaml"  # the resolved configuration
START_FILE = "start.json"  # where and with which overrides the run was started
STATE_FILE = "state.json"  # pool, queries and metrics: what a resumed run reads
LOCK_FILE, OWNER_FILE = ".lock", ".owner.json"  # held by the process that works on the run
LOG_FILE, PROVENANCE_FILE = "run.log", "provenance.json"
METRICS_FILE, QUERIES_FILE = "metrics.csv", "queries.csv"
CURVE_FILE = "learning_curve.png"
TRACKING_FILE = "tracking.json"  # what no other file says of what tracking stores are told
SENT_FILE = ".sent.json"  # which files the tracking store has; without it they are sent again

# in the folder of a round
STAGES_FILE = "stages.json"  # what has been finished, with the checksums of its files
TRAINING_CURVES_FILE = "training_curves.csv"
CASES_FILE, CALIBRATION_FILE = "cases.csv", "calibration.csv"  # of an evaluation
SCORES_FILE, FEATURES_FILE = "scores.csv", "features.csv"  # of a query
PICTURES_FOLDER, MAPS_FOLDER = "pictures", "maps"  # of its first volumes

ROUNDS_FOLDER = "rounds"


def round_folder(run_folder: Path, round_number: int) -> Path:
    """Where a round leaves its files."""
    return run_folder / ROUNDS_FOLDER / f"round_{round_number:02d}"
