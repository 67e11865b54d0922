"""``hydra/launcher=slurm``: the jobs of a sweep as a Slurm array.

submitit writes the batch script, and has Slurm start a job again that was preempted or has reached
its time limit. The queue is asked here: submitit takes the state of a job from Slurm's accounting,
which not all clusters have, and would wait for ever for a killed job where they do not.

Rejected: the launcher of hydra-submitit-launcher, which gives up the whole sweep, without its
summary, as soon as one job was killed.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn

from hydra_plugins.alseg_launchers._cluster import ClusterLauncher

log = logging.getLogger("alseg.launchers")

OURS = ("submitit_folder", "max_num_timeout", "poll_s")  # the other settings are submitit's
OF_ANY_CLUSTER = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node",
                  "tasks_per_node", "stderr_to_stdout")  # fmt: skip
UNKNOWN = "no longer known"
UNANSWERED = "not to be asked now"
# Slurm's states of a job that has ended and is not started again by itself.
ENDED = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "it was cancelled",
    "COMPLETED": "it has ended without a result",
    "DEADLINE": "it has reached its deadline",
    "FAILED": "it has failed before its result was there",
    "NODE_FAIL": "its node has failed",
    "OUT_OF_MEMORY": "it has used more memory than it had; raise hydra.launcher.mem_gb",
    "PREEMPTED": "it was preempted and not queued again",
    "TIMEOUT": "it has reached its time limit; raise hydra.launcher.timeout_min or signal_delay_s",
    UNKNOWN: "Slurm does not know it any more",
}


class SlurmLauncher(ClusterLauncher):
    """Submits the jobs as one array and waits for their results."""

    def checkpoint(self, *job: Any) -> Any:
        """What submitit has Slurm run when it starts a job again: the same, which continues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *job)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run jobs to their ends.

        Raises:
            ConfigError: if submitit or Slurm is not there, or Slurm refuses the jobs.
        """
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        jobs = self._submitted([list(overrides) for overrides in job_overrides], list(numbers))
        log.info(f"{len(jobs)} jobs are in Slurm's queue, from {jobs[0].job_id} on")
        return self._results(jobs, job_overrides, initial_job_idx)

    def _submitted(self, overrides: list[list[str]], numbers: list[int]) -> list[Any]:
        from alseg.core.errors import ConfigError

        try:
            import submitit
        except ImportError as error:
            raise ConfigError(
                "hydra/launcher=slurm needs submitit: pip install 'alseg[submitit]'"
            ) from error
        settings = {name: v for name, v in self.settings.items() if name not in OURS}
        try:
            executor = submitit.AutoExecutor(
                folder=self.settings["submitit_folder"],
                cluster="slurm",
                slurm_max_num_timeout=self.settings["max_num_timeout"],
            )
            executor.update_parameters(
                **{n if n in OF_ANY_CLUSTER else f"slurm_{n}": v for n, v in settings.items()}
            )
            return executor.map_array(self, overrides, numbers)
        except (RuntimeError, ValueError, subprocess.CalledProcessError) as error:
            raise ConfigError(f"Slurm takes no jobs: {error}") from error

    def _results(
        self, jobs: list[Any], job_overrides: Sequence[Sequence[str]], first: int
    ) -> list[JobReturn]:
        """The result of each job; ``lost`` says what that of one is which Slurm has ended."""
        values: dict[int, JobReturn] = {}
        ended_before: set[str] = set()
        while True:
            states = states_in_queue(jobs[0].job_id.split("_")[0])
            for index, job in enumerate(jobs):
                if index in values:
                    continue
                state = UNANSWERED if states is None else states.get(job.job_id, UNKNOWN)
                if job.paths.result_pickle.is_file():
                    values[index] = self._value(job, job_overrides[index], first + index)
                elif state in ENDED and job.job_id in ended_before:
                    reason = reason_of(job, state)
                    values[index] = self.lost(job_overrides[index], first + index, reason)
                elif state in ENDED:  # its result may be on the way, over the network
                    ended_before.add(job.job_id)
                else:
                    ended_before.discard(job.job_id)
            if len(values) == len(jobs):
                return [values[index] for index in range(len(jobs))]
            time.sleep(self.settings["poll_s"])

    def _value(self, job: Any, overrides: Sequence[str], number: int) -> JobReturn:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            result: JobReturn = job.results()[0]
            return result
        except (FailedJobError, UncompletedJobError) as error:
            last = str(error).strip().splitlines()[-1]
            return self.lost(overrides, number, f"Slurm's job {job.job_id} has failed: {last}")


def reason_of(job: Any, state: str) -> str:
    """Why a job has no result, in a sentence.

    Args:
        job: submitit's.
        state: Slurm's, one of ``ENDED``.
    """
    log_file = job.paths.stdout
    printed = log_file.read_text(encoding="utf-8", errors="replace") if log_file.is_file() else ""
    # Slurm says FAILED of a job whose step, and not whose batch script, was out of memory
    why = "OUT_OF_MEMORY" if state == "FAILED" and "oom-kill event" in printed else state
    return f"Slurm's job {job.job_id} is {state}: {ENDED[why]} (its log is {log_file})"


def states_in_queue(array: str) -> dict[str, str] | None:
    """Slurm's state of each job of an array that it still knows, by the job's id.

    Args:
        array: the id of the array, or of a single job.

    Returns:
        The states; None if Slurm's controller does not answer, while its jobs may well run.
    """
    asked = ["squeue", "--array", "--noheader", "--states=all", f"--job={array}"]
    answer = subprocess.run(
        [*asked, "--format=%i %T"], capture_output=True, encoding="utf-8", errors="replace"
    )
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        log.warning(f"Slurm does not answer: {answer.stderr.strip()}")
        return None
    return dict(line.split() for line in answer.stdout.splitlines() if line.strip())
