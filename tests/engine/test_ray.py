"""A sweep on a Ray cluster of two nodes on this machine, one of which is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alseg.engine.sweeps import Job, JobRow, job_rows
from alseg.run.state import RunState
from tests.waiting import wait_for

pytest.importorskip("ray", reason="Ray is not installed: pip install 'alseg[ray]'")

JOBS = (
    "experiment=smoke", "trainer=cpu", "steps_per_round=100", "val_interval=25", "pictures=0",
    "tracking=none", "strategy=random,variance", "seed=1,2",
)  # fmt: skip


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with a core each: its head, and one that can be lost."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            cluster.add_node(**node)
            yield cluster
        finally:
            cluster.shutdown()


def start_sweep(output_dir: Path, log: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start a sweep of 2 strategies x 2 seeds, whose jobs have one thread each."""
    places = (f"output_dir={output_dir}", f"hydra.sweep.dir={output_dir}/sweep")
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "alseg.train", "-m", *JOBS, *places, *overrides],
            stdout=file, stderr=file, text=True, encoding="utf-8",
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def printed(folder: Path) -> list[str]:
    """What each job that has started has printed, its earlier attempts included."""
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*/job.log"))]


def row(job: JobRow) -> tuple[object, ...]:
    """What the tables show of a job, without how long it took."""
    return job.strategy, job.seed, job.job.status, job.rounds, job.dice, job.area


@pytest.fixture(scope="module")
def disturbed(two_nodes: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """The folder, the exit code and the output of a sweep, a node of which is lost on the way."""
    output_dir = tmp_path_factory.mktemp("ray")
    log = output_dir / "sweep.log"
    launcher = ("hydra/launcher=ray", f"hydra.launcher.address={two_nodes.address}")
    sweep = start_sweep(output_dir, log, *launcher)
    try:
        trains = lambda: sum("step " in text for text in printed(output_dir / "sweep")) == 2  # noqa: E731
        wait_for(trains, 300, log.read_text(encoding="utf-8"))
        (lost,) = two_nodes.worker_nodes
        two_nodes.remove_node(lost, allow_graceful=False)
        exit_code = sweep.wait(timeout=600)
    finally:
        sweep.kill()
    return output_dir / "sweep", exit_code, log.read_text(encoding="utf-8")


def test_the_job_of_a_lost_node_continues_on_another_one(
    disturbed: tuple[Path, int, str],
) -> None:
    folder, exit_code, output = disturbed
    assert exit_code == 0, output
    assert "4 of 4 jobs finished" in output
    assert sorted(text.count("job on 1 thread") for text in printed(folder)) == [1, 1, 1, 2]


def test_the_tables_are_those_of_an_undisturbed_sweep(
    disturbed: tuple[Path, int, str], tmp_path: Path
) -> None:
    folder, _, _ = disturbed
    assert start_sweep(tmp_path, tmp_path / "sweep.log").wait(timeout=600) == 0
    expected = tmp_path / "sweep"
    assert list(map(row, job_rows(folder).values())) == list(map(row, job_rows(expected).values()))
    for one, two in zip(sorted(folder.glob("*/job.json")), sorted(expected.glob("*/job.json")),
                        strict=True):  # fmt: skip
        assert Job.load(one.parent).status == "finished"
        a, b = RunState.load(one.parent), RunState.load(two.parent)
        assert (a.pool, a.history, a.queries) == (b.pool, b.history, b.queries)


def test_no_cluster_is_said_in_a_sentence(tmp_path: Path) -> None:
    log = tmp_path / "sweep.log"
    launcher = ("hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:1")
    assert start_sweep(tmp_path, log, *launcher).wait(timeout=300) == 2
    output = log.read_text(encoding="utf-8")
    assert "alseg: error: there is no Ray cluster at 127.0.0.1:1" in output
    assert "Traceback" not in output
