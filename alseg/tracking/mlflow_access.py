"""How an MLflow store is opened: made if need be, waited for if locked, named in each error."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH as DEFAULT_ARTIFACTS
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from alseg.core.errors import NO_ROOM, AlsegError, ConfigError
from alseg.system.files import TEMPORARY, locked, name_file_in_errors
from alseg.system.secrets import without_secrets
from alseg.system.stores import sqlite_file

T = TypeVar("T")

# MLflow's own retries would hold up training for minutes; what is missing is sent later anyway.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar a file
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # with the password in it

# It prints tracebacks of what it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

LOCKED_SECONDS = 60.0  # how long another process may keep a sqlite store locked

# Otherwise the UI opens an experiment on an empty page of traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def patiently(call: Callable[[], T]) -> T:
    """Call the store again for a while, if another process has its sqlite file locked.

    sqlite waits by itself, but not where a transaction that has read comes to write: there it asks
    for the whole transaction again.
    """
    deadline = time.monotonic() + LOCKED_SECONDS
    while True:
        try:
            return call()
        except MlflowException as error:
            if "database is locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(LOCKED_SECONDS / 300)


def search_runs(client: Any, experiment: str, condition: str = "") -> Iterator[Run]:
    """The runs of an experiment, page by page.

    Args:
        client: an ``mlflow.MlflowClient``.
        experiment: the experiment's id.
        condition: in MLflow's language; empty for all runs.
    """
    token: str | None = None
    while token != "":
        page = patiently(partial(client.search_runs, [experiment], condition, page_token=token))
        yield from page
        token = page.token or ""


def experiment_id(client: Any, name: str, location: str | None) -> str:
    """The id of an experiment, which is made if it is not there.

    Raises:
        ConfigError: if it was deleted, in the MLflow UI or otherwise.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, location, EXPERIMENT_TAGS))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another job's
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"the MLflow experiment {name!r} was deleted; take another experiment_name=..., or "
            f"restore it: MLFLOW_TRACKING_URI={shlex.quote(without_secrets(client.tracking_uri))} "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


@contextmanager
def errors_named(uri: str) -> Iterator[None]:
    """Turn any error of the store into one that names the store."""
    try:
        yield
    except AlsegError:
        raise
    except Exception as error:  # each kind of store raises errors of its own
        database = sqlite_file(uri)
        if database and (getattr(error, "errno", 0) in NO_ROOM or "disk is full" in str(error)):
            with name_file_in_errors(database):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        cure = "; start that server, or record elsewhere, as with tracking=csv"
        raise ConfigError(
            f"tracking.mlflow.uri {without_secrets(uri)}: {error}"
            + (cure if uri.startswith(("http:", "https:")) else "")
        ) from error


@contextmanager
def store_lock(uri: str) -> Iterator[Path | None]:
    """Lock a sqlite store, which is made if it is not there, and give its folder.

    Other stores lock and make themselves.
    """
    database = sqlite_file(uri)
    if database is None:
        yield None
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with locked(database.with_name(database.name + ".lock")):
        if database.is_file() and database.stat().st_size == 0:
            database.unlink()  # sqlite makes one when it is asked about a store that is not there
        if not database.is_file():
            make_store(database)
        yield database.parent


def make_store(database: Path) -> None:
    """Make a sqlite store beside its place, so that a process killed meanwhile leaves none.

    MLflow builds the schema in hundreds of steps, and cannot continue from the middle of them.
    """
    for left in database.parent.glob(f"{TEMPORARY}*-{database.name}*"):
        left.unlink(missing_ok=True)  # by a process that was killed: we hold the lock
    scratch = database.with_name(f"{TEMPORARY}{secrets.token_hex(8)}-{database.name}")
    try:
        store = SqlAlchemyStore(f"sqlite:///{scratch.absolute()}", DEFAULT_ARTIFACTS)
        store.engine.dispose()  # all is in the file now
        try:
            os.link(scratch, database)
        except FileExistsError:
            pass  # another process was faster, where there are no locks
        except OSError:  # no hard links here
            os.replace(scratch, database)
    finally:
        scratch.unlink(missing_ok=True)
