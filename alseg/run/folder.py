"""The files of a run folder by their names, which appear nowhere else.

A round's files are in ``round_folder``. Sweeps and pages have files of their own elsewhere.
"""

from __future__ import annotations

from pathlib import Path

CONFIG_FILE = "config.yaml"  # the resolved configuration
PLAN_FILE = "plan.yaml"  # the settings that were auto, with a reason each
START_FILE = "start.json"  # where the run was started, with which overrides since
IMAGES_FILE = "images.json"  # by what the images are known again
STATE_FILE = "state.json"  # pool, queries and metrics: what a resumed run reads
LOCK_FILE, OWNER_FILE = ".lock", ".owner.json"  # held by the process that works on the run
LOG_FILE, PROVENANCE_FILE = "run.log", "provenance.json"
METRICS_FILE, QUERIES_FILE = "metrics.csv", "queries.csv"
CURVE_FILE = "learning_curve.png"
TRACKING_FILE = "tracking.json"  # what no other file says of what tracking stores get
SENT_FILE = ".sent.json"  # which files the tracking store has; without it they are sent again
STOPPING_FILE = "when_to_stop.txt"  # what the last round says about continuing
TASK_FILE = "task.json"  # channels and classes: what using the network needs of the data set

# in the folder of a round
STAGES_FILE = "stages.json"  # what has been finished, with the checksums of its files
TRAINING_CURVES_FILE = "training_curves.csv"
CASES_FILE, CALIBRATION_FILE = "cases.csv", "calibration.csv"  # of an evaluation
SCORES_FILE, FEATURES_FILE = "scores.csv", "features.csv"  # of a query
PICTURES_FOLDER, MAPS_FOLDER = "pictures", "maps"  # of its first volumes

# what a person is asked for: a folder for the initial pool, one for each round's query
REQUESTS_FOLDER, INITIAL_REQUEST = "requests", "initial"
REQUEST_FILE, REQUEST_TABLE, WORKLIST_FILE = "request.json", "request.csv", "worklist.csv"
REQUEST_README = "README.txt"  # what to do, for whoever annotates
CLASS_NAMES_FILE = "itksnap_labels.txt"  # the classes, as ITK-SNAP reads them
PROPOSALS_FOLDER, ANSWERS_FOLDER = "labels/original", "labels/final"  # as MONAI Label has them
UNCERTAINTY_FOLDER = "uncertainty"
ANSWERS_FILE = "answers.csv"  # beside the answers: who made them, in how many minutes

# what people do in the browser: in a request folder, and the address beside all of them
DRAFTS_FOLDER = "drafts"  # what is being drawn, not yet handed in
CLAIMS_FILE, CLAIMS_LOCK = "claims.json", ".claims.lock"  # who works on which case
PAGE_FILE = ".page.json"  # port and token of the page's address

# what has been accepted of a person's answers
ANNOTATIONS_FOLDER = "annotations"
HISTORY_FILE, USED_FILE = "history.csv", "used.csv"  # all versions; those that a round works with
SUMMARY_FILE = "summary.csv"  # a row a request
REVIEWS_FILE = "reviews.csv"  # what reviewers say of labels, those of a simulation as well
REVIEW_PAGE_FILE = ".review_page.json"  # port and token of the review's address
ANNOTATIONS_LOCK = ".annotations.lock"

ROUNDS_FOLDER = "rounds"


def round_folder(run_folder: Path, round_number: int) -> Path:
    """Where a round leaves its files."""
    return run_folder / ROUNDS_FOLDER / f"round_{round_number:02d}"


def request_folder(run_folder: Path, name: str) -> Path:
    """Where a person finds what to annotate; names are ``initial``, ``round_01``, ..."""
    return run_folder / REQUESTS_FOLDER / name


def request_of_round(round_number: int) -> str:
    """The name of the request for the query of a round."""
    return f"round_{round_number:02d}"
