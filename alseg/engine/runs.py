"""Starts or resumes a run in a folder.

``alseg.config.build`` makes the experiment of the configuration, and ``alseg.active.round_loop``
runs it.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import Timeout
from omegaconf import DictConfig, OmegaConf

from alseg.active.experiment import Experiment
from alseg.active.initial_state import initial_state
from alseg.active.reopening import check_members, check_rounds, reopened
from alseg.active.reports import print_summary
from alseg.active.round import start_again
from alseg.active.round_loop import end_of_rounds, prepare, run_rounds
from alseg.config.build import build
from alseg.config.command_line import override, override_to_paste, with_later
from alseg.config.composition import composed, known_settings, overrides_of
from alseg.config.earlier_versions import check_moved, moved, of_an_earlier_version
from alseg.config.messages import as_alseg_errors, print_error
from alseg.config.planned import planned, same_plan
from alseg.config.settings import (
    add_to_start,
    config_hash,
    differences,
    flat,
    known_overrides,
    load_config,
    result_settings,
    save_config,
    save_start,
    started_in,
)
from alseg.config.trust import check_targets, untrusted
from alseg.core.area_under_curve import area_under_budget_curve
from alseg.core.counts import counted
from alseg.core.earlier_settings import with_as_before
from alseg.core.errors import (
    ConfigError,
    DataError,
    DiskFullError,
    NotAnnotatedYetError,
    ProcessLostError,
    check_names,
    check_text,
    nearest,
)
from alseg.core.units import PLURALS, VOLUME
from alseg.engine.image_changes import check_images, note_images
from alseg.engine.jobs import is_job
from alseg.engine.trained_run import note_task
from alseg.run.folder import (
    CONFIG_FILE,
    IMAGES_FILE,
    LOCK_FILE,
    LOG_FILE,
    OWNER_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    START_FILE,
)
from alseg.run.lock import locked_run, owner_is_dead, write_owner
from alseg.run.provenance import recorded
from alseg.run.state import RunState
from alseg.system.distributed import from_first, rank, wait_for_all
from alseg.system.files import locked
from alseg.system.interruption import Interrupted, interruption
from alseg.system.peers import is_loss_of_contact, watched_peers

log = logging.getLogger(__name__)


@as_alseg_errors()
def train(config: DictConfig, folder: Path, overrides: Sequence[str] | None = None) -> float:
    """Run the experiment that a composed configuration describes.

    Args:
        config: the composed configuration; with ``resume``, the run in that folder continues.
        folder: the run folder of a new run.
        overrides: what the configuration was composed of: what a resumption changes, and what a
            later one builds on; None for what ``composed`` was given.

    Returns:
        The area under the budget curve of the *validation* Dice, for hyper-parameter sweepers: test
        data must not steer a search.

    Raises:
        AlsegError: with one clear sentence, if the data or the settings cannot be used.
    """
    # torchrun's processes start within the same second, or not: they take the first one's folder
    folder = from_first(folder)
    if overrides is None:
        overrides = overrides_of(config)
    if not config.resume:
        with interruptible(folder):
            return start_run(config, folder, overrides)
    check_text("resume", config.resume)
    check_names("trusted_packages", config.trusted_packages)
    folder = Path(config.resume).absolute()
    if overrides is None:
        raise ConfigError(
            f"the run in {folder} is resumed by a configuration that is not as composed([...]) "
            "made it, so what it changes cannot be told; give all of it as overrides: "
            "composed(['resume=RUN_FOLDER', 'pool.rounds=8', 'resume_force=true'])"
        )
    if not folder.is_dir():
        raise DataError(f"there is nothing to resume in {folder}: it is not a folder")
    with locked_run(folder), started_in(folder), interruptible(folder), recorded(folder):
        return resume_run(
            folder,
            overrides,
            known=list(map(str, config)),
            force=config.resume_force,
            trusted=list(config.trusted_packages),
        )


def claim(folder: Path) -> Path:
    """Claim a folder for a new run; another one with a number behind its name if it is taken.

    Two runs that start within a second have the same name: who makes the lock file has the folder,
    or who comes first after its process died before the run had started. A folder with a run that
    nobody works on is left to the caller, who does not start a second one.

    Returns:
        The folder, which exists.
    """
    candidate, number = folder, 1
    while True:
        candidate.mkdir(parents=True, exist_ok=True)
        try:
            (candidate / LOCK_FILE).touch(exist_ok=False)
        except FileExistsError:
            if is_started(candidate):
                if not is_locked(candidate):
                    return candidate
            elif takes_over(candidate):
                break
            number += 1
            candidate = folder.with_name(f"{folder.name}_{number}")
        else:
            write_owner(candidate)
            break
    if candidate != folder:
        log.warning(f"{folder} belongs to another run: this one goes to {candidate}")
    return candidate


def takes_over(folder: Path) -> bool:
    """Take a claim over from a process of this machine that died; false if it has not."""
    if not owner_is_dead(folder):
        return False
    try:
        with locked(folder / LOCK_FILE, blocking=False):
            dead = owner_is_dead(folder)  # still: another one may have been faster
            if dead:
                write_owner(folder)
            return dead
    except Timeout:
        return False


def is_locked(folder: Path) -> bool:
    """Whether a process works on the run in a folder."""
    try:
        with locked(folder / LOCK_FILE, blocking=False):
            return False
    except Timeout:
        return True


def is_started(folder: Path) -> bool:
    """Whether a run has been started in a folder, by this process or an earlier one."""
    return RunState.is_in(folder) or (folder / CONFIG_FILE).is_file()


def release_claim(folder: Path) -> None:
    """Remove the claim to a folder in which no run has started."""
    if {path.name for path in folder.glob("*")} <= {LOCK_FILE, OWNER_FILE}:
        for name in (OWNER_FILE, LOCK_FILE):
            (folder / name).unlink(missing_ok=True)


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """End at a signal, or when another process is gone, saying which folder is to be resumed."""

    def end(gone: str) -> None:
        # from a thread, for the main one waits for the others and may do so for a day
        if os.environ.get("LOCAL_RANK") == "0":
            print_error(ProcessLostError(without_peer(f"{gone} is out of reach", folder)))
        os._exit(2)

    with interruption.handled(), watched_peers(end):
        try:
            yield
        except RuntimeError as error:
            if not is_loss_of_contact(error):
                raise
            gone = "another process of this run has ended or is out of reach"
            raise ProcessLostError(without_peer(gone, folder)) from None
        except (Interrupted, KeyboardInterrupt) as stop:
            number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
            raise Interrupted(number, to_resume(folder)) from None
        except NotAnnotatedYetError as wait:
            wait.resume = to_resume(folder)
            raise


def without_peer(gone: str, folder: Path) -> str:
    """What a process says that ends because another one is gone."""
    resume = to_resume(folder)
    advice = f"; continue with {resume} under torchrun, as before" if resume else ""
    return f"{gone}, so this process has ended as well{advice}"


def to_resume(folder: Path) -> str:
    """The arguments that resume the run in a folder; empty if there is nothing to resume yet."""
    if not (folder / CONFIG_FILE).is_file():
        return ""
    own = untrusted(OmegaConf.to_container(load_config(folder)))
    named = shlex.quote(override("trusted_packages", own)) if own else ""
    return f"{override_to_paste('resume', folder)} {named}".rstrip()


def start_run(config: DictConfig, folder: Path, overrides: Sequence[str] | None) -> float:
    """Run the experiment in a new folder; ``overrides`` are None if they are not known."""
    if RunState.is_in(folder):
        resume = override_to_paste("resume", folder)
        raise ConfigError(f"{folder} holds a run already; continue it with {resume}")
    check_settings_are_read(config)
    wait_for_all()  # all have looked at the folder before the first one writes to it
    with locked_run(folder), recorded(folder):
        try:
            # Before the first long work: whenever this process is killed, the run can be resumed.
            save_start(folder, overrides)
            config = planned(config, folder)
            save_config(config, folder)
            experiment = build(config, folder)
            note_images(experiment)
            check_single(experiment)
            state = initial_state(experiment)
            prepare(experiment, state)
        except Exception as error:
            # settings or data are bad: there is nothing to resume
            files = (
                CONFIG_FILE, START_FILE, PLAN_FILE, IMAGES_FILE, LOCK_FILE, LOG_FILE,
                PROVENANCE_FILE,
            )  # fmt: skip
            if rank() == 0 and not isinstance(error, (DiskFullError, NotAnnotatedYetError)):
                for name in files:
                    (folder / name).unlink(missing_ok=True)
            raise
        return finish(experiment, state)


def check_single(experiment: Experiment) -> None:
    """Check that no job of a sweep asks a person for labels.

    Raises:
        ConfigError: if it does.
    """
    if is_job() and experiment.oracle.annotates_unlabelled:
        raise ConfigError(
            "oracle=person is for a single run, which is resumed when the labels are there; start "
            "it without -m"
        )


def check_settings_are_read(config: DictConfig) -> None:
    """Check that somebody reads each setting that the command has added with ``+``.

    Raises:
        ConfigError: naming a setting that is not alseg's and that no other one refers to, or that
            has moved.
    """
    if now := moved(flat(OmegaConf.to_container(config))):
        raise ConfigError(now)
    text = OmegaConf.to_yaml(config)
    known = known_settings()
    for name in map(str, config):
        if name not in known and f"${{{name}" not in text:
            raise ConfigError(
                f"there is no setting {name}, so +{name}=... would change nothing; "
                f"{nearest(name, known)}allowed are {', '.join(known)}"
            )


def resume_run(
    folder: Path,
    overrides: Sequence[str],
    *,
    known: Sequence[str],
    force: bool,
    trusted: Sequence[str],
) -> float:
    """Go on with the run in a folder, which this process holds, from its configuration and state.

    Args:
        folder: the run folder.
        overrides: of the command that resumes it.
        known: the settings and groups of this version of alseg.
        force: accept settings that the run was not started with; its current round starts again.
        trusted: packages that the run's settings may name besides those of ``alseg.config.trust``.

    Raises:
        ConfigError: naming the settings that are not those of the run, or a function that is not to
            be trusted.
    """
    state = None
    if RunState.is_in(folder) or not (folder / CONFIG_FILE).exists():
        state = RunState.load(folder)
    saved = load_config(folder)
    check_version(saved, folder, known)
    added = given_to_the_run(overrides)
    config = with_overrides(saved, folder, added)
    check_targets(
        OmegaConf.to_container(config, resolve=True), source=folder / CONFIG_FILE, named=trusted
    )
    changes = differences(*(with_as_before(result_settings(each)) for each in (saved, config)))
    if state is not None:
        check_unit(saved, config)
        check_evaluation(state, changes)
    if state is not None and state.config_hash != config_hash(saved):
        changes.append(f"{folder / CONFIG_FILE} was changed after the run had started")
    if changes and not force:
        raise ConfigError(
            f"the run in {folder} cannot continue with other settings: {'; '.join(changes)}; "
            "resume_force=true keeps its finished rounds and starts the current one again with them"
        )
    experiment = build(config, folder)
    check_single(experiment)
    if state is None:
        accept(config, folder, added)  # before somebody is waited for, maybe for long
        state = initial_state(experiment)
    state = check_images(experiment, state, force=force)
    check_classes(state, experiment.data.cache.task.foreground)
    if changes:
        check_rounds(experiment, state, saved.pool.rounds)
    begun, state = state.finished_rounds + 1, reopened(experiment, state)
    if changes:
        check_members(experiment, state)
        log.warning(f"resumed with other settings: {'; '.join(changes)}")
        start_again(experiment.round_folder(begun))
    state = replace(state, config_hash=config_hash(config))
    accept(config, folder, added)
    if RunState.is_in(folder):
        state.save(folder)  # with the settings, so that both agree whenever this process ends
    prepare(experiment, state)
    return finish(experiment, state)


def check_unit(saved: DictConfig, config: DictConfig) -> None:
    """Check that a run goes on to count what it has counted so far.

    Raises:
        ConfigError: if it would count something else.
    """
    before, now = (each.pool.get("unit", VOLUME) for each in (saved, config))
    if now != before and now in PLURALS:
        raise ConfigError(
            f"pool.unit: {before} -> {now}: what is annotated has been counted in "
            f"{PLURALS[before]}; start another run for pool.unit={now}"
        )


def check_evaluation(state: RunState, changes: Sequence[str]) -> None:
    """Check that a run goes on to evaluate its rounds as it has so far.

    Args:
        state: of the run.
        changes: of its settings, as ``differences`` names them.

    Raises:
        ConfigError: if rounds are finished and the next ones would be evaluated in another way.
    """
    changes = [change for change in changes if change.startswith("evaluation.")]
    if state.history and changes:
        raise ConfigError(
            f"{'; '.join(changes)}: the Dice of {counted(state.finished_rounds, 'round')} that "
            "the run has finished would not be comparable with the next; start another run for it"
        )


def accept(config: DictConfig, folder: Path, added: Sequence[str]) -> None:
    """Make a run's settings those that it is resumed with; the next resume builds on them."""
    wait_for_all()  # all have read what they were
    if added:
        add_to_start(folder, added)
    save_config(config, folder)


def check_version(saved: DictConfig, folder: Path, known: Sequence[str]) -> None:
    """Check that a run has all settings and groups of this version of alseg, where they are now.

    What it has beside them may be the user's own; parts refuse settings that they do not know.

    Raises:
        ConfigError: naming what the run does not have, or has elsewhere.
    """
    source = folder / CONFIG_FILE
    check_moved(flat(OmegaConf.to_container(saved)), source)
    if missing := [name for name in known if name not in saved]:
        raise of_an_earlier_version(source, f"it lacks {', '.join(missing)}")


def given_to_the_run(overrides: Sequence[str]) -> list[str]:
    """The overrides of a command that resumes a run that are settings of the run."""
    of_this_command = ("resume=", "resume_force=", "trusted_packages=")
    return [o for o in overrides if not o.startswith(of_this_command)]


def with_overrides(saved: DictConfig, folder: Path, added: Sequence[str]) -> DictConfig:
    """A run's settings, with overrides added to those that it was started and resumed with.

    Args:
        saved: the run's configuration.
        folder: the run folder.
        added: those of the command that resumes it.

    Raises:
        ConfigError: if what it was started with is not known.
    """
    if not added:
        return saved
    before = [o for o in known_overrides(folder) if not o.startswith("sweep.")]
    config = composed(with_later(before, added))
    if not any(o.startswith("tracking") for o in added):
        config.tracking = saved.tracking  # where the run is, whatever the environment says by now
    return planned(config, folder, kept=same_plan(config, saved))


def check_classes(state: RunState, foreground: Sequence[str]) -> None:
    """Check that a run's classes are those of its data set.

    Raises:
        DataError: naming the classes of both.
    """
    for row in state.history[-1:]:
        before = state.measure.classes(row)
        if before != tuple(foreground):
            raise DataError(
                f"the run was started with the classes {', '.join(before)}, and the data set has "
                f"{', '.join(foreground)} now"
            )


def finish(experiment: Experiment, state: RunState) -> float:
    """Run the rounds that are left; returns the area under the validation Dice's curve."""
    note_task(experiment.folder, experiment.data.cache.task)
    if end_of_rounds(experiment.plan, state) is not None:
        log.info(f"the run had finished its {state.finished_rounds} rounds before")
    state = run_rounds(experiment, state)
    if rank() == 0 and not is_job():  # a sweep sums up its jobs itself
        print_summary(experiment, state)
    return area_under_budget_curve(*state.learning_curve("val_dice"))
