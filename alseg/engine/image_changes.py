"""The images of a run: new ones join its pool, changed and removed ones are named."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from alseg.active.experiment import Experiment
from alseg.active.round import start_again
from alseg.core.counts import counted
from alseg.core.errors import DataError
from alseg.core.pool import Pool
from alseg.data.cache import content_of
from alseg.data.findings import listed
from alseg.data.task import Task
from alseg.run.folder import IMAGES_FILE
from alseg.run.state import RunState
from alseg.system.files import read_json, write_json

log = logging.getLogger(__name__)


def note_images(experiment: Experiment) -> None:
    """Keep in the run folder by what the images of the run are known again."""
    splits = experiment.data.splits
    cases = (*splits.training, *splits.validation, *splits.test)
    write_json(
        experiment.folder / IMAGES_FILE,
        {"images": fingerprints(experiment.data.cache.task, cases)},
    )


def fingerprints(task: Task, case_ids: Iterable[str]) -> dict[str, str]:
    """What changes with the content of each case's images, and not with their place or date.

    A hash of each file's size, beginning, end and blocks between: of all of it, up to 1 MiB.
    """
    return {
        case_id: hashlib.sha256(
            "\n".join(content_of(path) for path in task.cases[case_id].images).encode()
        ).hexdigest()[:16]
        for case_id in sorted(set(case_ids))
    }


def check_images(experiment: Experiment, state: RunState, *, force: bool) -> RunState:
    """Check that a run's images are there and unchanged; let new ones join its pool.

    Args:
        experiment: the parts, with the data set as it is now.
        state: of the run.
        force: continue with changed images; the current round starts again.

    Returns:
        The state, with new cases in the unlabelled part of its pool where the oracle can annotate
        them.

    Raises:
        DataError: naming images that are gone or changed, or cases that the split has moved.
    """
    task, splits = experiment.data.cache.task, experiment.data.splits
    known = {*state.pool.labelled, *state.pool.unlabelled}
    check_present(known, set(splits.training), task)
    kept = read_kept(experiment.folder, state)
    now = fingerprints(task, [case_id for case_id in kept if case_id in task.cases])
    changed = [case_id for case_id in now if now[case_id] != kept[case_id]]
    if changed and not force:
        raise DataError(
            f"{counted(len(changed), 'image')} of {task.root} changed after the run had started: "
            f"{listed(changed)}; put the earlier files back, or continue with these by "
            "resume_force=true"
        )
    if changed:
        log.warning(f"resumed with changed images: {listed(changed)}")
        start_again(experiment.round_folder(state.finished_rounds + 1))
    pool, new = joined(state.pool, splits.training)
    if new and not experiment.oracle.annotates_unlabelled:
        raise DataError(
            f"the run was started with other training cases than the data set has now: {len(new)} "
            f"are new ({listed(new)}); remove them, or start another run"
        )
    if new:
        log.info(
            f"{counted(len(new), 'new image joins', 'new images join')} the pool: {listed(new)}"
        )
    note_images(experiment)
    return replace(state, pool=pool)


def check_present(known: set[str], training: set[str], task: Task) -> None:
    """Check that the cases of a run's pool are there and still for training.

    Raises:
        DataError: naming those that are not.
    """
    missing = sorted(known - training)
    absent = [case_id for case_id in missing if case_id not in task.cases]
    if absent:
        raise DataError(
            f"{counted(len(absent), 'image of the run is', 'images of the run are')} no longer in "
            f"{task.root}: {listed(absent)}; put all back under the same names"
        )
    if missing:
        raise DataError(
            "the run was started with other training cases than the data set has now: "
            f"{listed(missing)} are elsewhere in the split, which other files have changed; "
            "data/splits=growing and data/splits=file keep a case where it is"
        )


def joined(pool: Pool, training: Iterable[str]) -> tuple[Pool, list[str]]:
    """The pool with the training cases that it does not hold yet as unlabelled ones, and these."""
    new = sorted(set(training) - {*pool.labelled, *pool.unlabelled})
    return replace(pool, unlabelled=tuple(sorted((*pool.unlabelled, *new)))), new


def read_kept(folder: Path, state: RunState) -> Mapping[str, str]:
    """By what the run knows its images; none, with a warning, where that is lost."""
    path = folder / IMAGES_FILE
    if not path.exists() and not state.history:  # killed before it was written
        return {}
    try:
        images = read_json(path).get("images")
        if isinstance(images, dict):
            return images
        raise DataError(f"{path} does not list images")
    except DataError as error:
        log.warning(f"{error}; whether images have changed since the run started is not known")
        return {}
