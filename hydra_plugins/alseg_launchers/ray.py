"""``hydra/launcher=ray``: each job of a sweep is a task on a Ray cluster.

Ray says on which node a job runs, and starts it again on another one when its node is lost; there
it continues from its run folder, which all nodes see.

Rejected: hydra-ray-launcher 1.2, whose pins (``cloudpickle==2.2.1``, an old ``boto3``) do not
install beside MLflow, and which starts a lost job from the beginning.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from hydra_plugins.alseg_launchers._cluster import ClusterLauncher

log = logging.getLogger("alseg.launchers")

# What a job takes over of the environment of the command, such as where runs are tracked.
TAKEN_OVER = ("ALSEG_", "MLFLOW_", "WANDB_")


class RayLauncher(ClusterLauncher):
    """Hands the jobs to a Ray cluster and waits for their results."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run jobs to their ends.

        Raises:
            ConfigError: if Ray is not installed, or there is no cluster at the address.
        """
        ray = self._connected()
        task = ray.remote(**self._resources())(run_on_node)
        environment = {n: v for n, v in os.environ.items() if n.startswith(TAKEN_OVER)}
        tasks = [
            task.remote(self, list(overrides), number, os.getcwd(), environment)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        log.info(f"{len(tasks)} jobs are with Ray on {len(ray.nodes())} nodes")
        values: list[JobReturn] = []
        for number, (overrides, reference) in enumerate(
            zip(job_overrides, tasks, strict=True), start=initial_job_idx
        ):
            try:
                values.append(ray.get(reference))
            except ray.exceptions.RayError as error:
                values.append(self.lost(overrides, number, reason_of(error)))
        return values

    def _connected(self) -> Any:
        from alseg.core.errors import ConfigError

        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # each line has the name of its job
        try:
            import ray
        except ImportError as error:
            raise ConfigError("hydra/launcher=ray needs Ray: pip install 'alseg[ray]'") from error
        address = self.settings["address"]
        try:
            check_answers(address)
            ray.init(
                address=address, ignore_reinit_error=True, log_to_driver=True, logging_level="ERROR"
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"there is no Ray cluster at {address} (hydra.launcher.address): start one with "
                "ray start --head, or let address=local start one for this sweep"
            ) from error
        return ray

    def _resources(self) -> dict[str, Any]:
        """The options of ``ray.remote`` for a job."""
        settings = self.settings
        memory_gb = settings["mem_gb"]
        return {
            "num_cpus": settings["cpus_per_task"],
            "num_gpus": settings["gpus_per_task"],
            "memory": None if memory_gb is None else int(memory_gb * 2**30),
            "resources": settings["resources"] or None,
            "max_retries": settings["max_retries"],
            # one process a job: the next one may be given another GPU, which torch cannot change to
            "max_calls": 1,
        }


def check_answers(address: str) -> None:
    """Check that somebody listens at an address; Ray itself tries for minutes.

    Args:
        address: HOST:PORT, with ``ray://`` before it or not; what is none, such as auto, is Ray's.

    Raises:
        OSError: if nobody does.
        ValueError: if the port is no number.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def run_on_node(
    launcher: ClusterLauncher,
    overrides: Sequence[str],
    number: int,
    folder: str,
    environment: Mapping[str, str],
) -> JobReturn:
    """Run a job, in a process of Ray's.

    Args:
        launcher: which knows the sweep.
        overrides: the job's.
        number: of the job in its sweep.
        folder: where the sweep was started, for relative paths.
        environment: variables of the command that started it.

    Returns:
        What the job's function returns, or has raised.
    """
    os.environ.update(environment)
    if Path(folder).is_dir():
        os.chdir(folder)
    return launcher(overrides, number)


def reason_of(error: Exception) -> str:
    """Why Ray has no result of a job, in a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"Ray has lost the job: {type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    )
