"""A run over two hosts, which are two addresses of this machine: one of them is lost."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from alseg.run.state import RunState
from tests.waiting import wait_for

SETTINGS = (
    "experiment=smoke", "tracking=none", "strategy=variance", "steps_per_round=60",
    "val_interval=10", "pictures=0",
)  # fmt: skip
ON_CPU = ("trainer=ddp", "trainer.accelerator=cpu")

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="127.0.0.3 and children in /proc need Linux"
)


@dataclass
class Hosts:
    """The torchrun of each of two hosts, and what they have printed."""

    torchruns: list[subprocess.Popen[str]]
    logs: list[Path]

    def log(self, host: int) -> str:
        return self.logs[host].read_text(encoding="utf-8")

    def worker(self, host: int) -> int:
        """The process of alseg on a host."""
        pid = self.torchruns[host].pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()[0])

    def wait_for_training(self) -> None:
        wait_for(lambda: "step " in self.log(0), 200, self.log(0))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.2", 0))
        return int(found.getsockname()[1])


@contextmanager
def two_hosts(folder: Path, *overrides: str) -> Iterator[Hosts]:
    """Start a run over two hosts; what is left of it at the end is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"host_{host}.log" for host in (0, 1)]
    port, torchruns = free_port(), []
    for host, log in enumerate(logs):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--max-restarts=0"]
        command += [f"--node-rank={host}", "--nproc-per-node=1", "--rdzv-backend=static"]
        command += ["--master-addr=127.0.0.2", f"--master-port={port}"]
        command += [f"--local-addr=127.0.0.{host + 2}", "-m", "alseg.train", *overrides]
        with log.open("w", encoding="utf-8") as file:
            torchruns.append(
                subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=file,
                    text=True,
                    encoding="utf-8",
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
            )
    try:
        yield Hosts(torchruns, logs)
    finally:
        for torchrun in torchruns:
            # workers have groups of their own, and end with their torchrun's connection
            for pid in children(torchrun.pid):
                os.kill(pid, signal.SIGKILL)
            torchrun.kill()
            torchrun.wait()


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(p) for p in path.read_text(encoding="utf-8").split()] if path.exists() else []


def state_of(folder: Path) -> RunState:
    (path,) = folder.glob("smoke/*/state.json")
    return RunState.load(path.parent)


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> RunState:
    """The state after an undisturbed run of two processes on one host."""
    folder = tmp_path_factory.mktemp("one_host")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command += ["-m", "alseg.train", *SETTINGS, *ON_CPU, f"output_dir={folder}"]
    subprocess.run(
        command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
    )  # fmt: skip
    return state_of(folder)


def test_a_process_that_dies_ends_the_others_and_the_run_resumes(
    one_host: RunState, tmp_path: Path
) -> None:
    with two_hosts(tmp_path / "lost", *SETTINGS, *ON_CPU, f"output_dir={tmp_path}") as hosts:
        hosts.wait_for_training()
        os.kill(hosts.worker(1), signal.SIGKILL)
        for torchrun in hosts.torchruns:
            assert torchrun.wait(timeout=60) != 0
        said = re.findall("alseg: error: (.*)", hosts.log(0) + hosts.log(1))
    assert len(said) == 1
    assert said[0].startswith("another process of this run has ended or is out of reach")
    resume = next(word for word in shlex.split(said[0]) if word.startswith("resume="))
    assert "[rank0]: Traceback" not in hosts.log(0)

    with two_hosts(tmp_path / "resumed", resume) as hosts:
        for torchrun in hosts.torchruns:
            assert torchrun.wait(timeout=600) == 0, hosts.log(0)
    state = state_of(tmp_path)
    assert state.pool == one_host.pool
    assert state.queries == one_host.queries
    assert state.history == one_host.history


def test_a_host_that_falls_silent_ends_the_others_within_a_minute(tmp_path: Path) -> None:
    with two_hosts(tmp_path / "silent", *SETTINGS, *ON_CPU, f"output_dir={tmp_path}") as hosts:
        hosts.wait_for_training()
        os.kill(hosts.worker(1), signal.SIGSTOP)  # closes no connection, as a lost network
        assert hosts.torchruns[0].wait(timeout=60) != 0
        said = re.findall("alseg: error: (.*)", hosts.log(0))
    assert len(said) == 1
    assert said[0].startswith("process 1 of 2 is out of reach, so this process has ended as well")
