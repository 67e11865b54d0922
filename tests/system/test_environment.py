"""What a machine lacks, and what other programs left on it: works, or is reported with its cure."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities import rank_zero_only

from alseg.config.composition import OF_TORCHRUN
from alseg.core.errors import ConfigError, StorageError
from alseg.data.datamodule import WholeVolumes
from alseg.data.watched import WatchedDataset, dead_worker_error
from alseg.run.lock import locked_run
from alseg.system.files import NO_LOCKS, locked
from alseg.system.isolation import n_usable_cores
from alseg.training.trainers import make_trainer
from tests.conftest import write_msd

SLURM = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "1"}
LAUNCHERS = {
    "a task of a Slurm farm": SLURM | {
        "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "2",
        "SLURM_LOCALID": "2",
    },
    "salloc without tasks a node": SLURM | {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"},
    "one Slurm task": SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    "ranks": {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "NODE_RANK": "1"},
    "a master": {"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1", "LOCAL_RANK": "1"},
    "LSF": {"LSB_JOBID": "1", "JSM_NAMESPACE_SIZE": "4", "JSM_NAMESPACE_RANK": "2",
            "JSM_NAMESPACE_LOCAL_RANK": "2", "LSB_DJOB_RANKFILE": "/nowhere"},
    "Open MPI": {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "PMI_RANK": "2"},
}  # fmt: skip


class Line(pl.LightningModule):
    """The smallest module that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.log("loss", loss := self.layer(batch).mean())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Recorder(DummyLogger):
    """Keeps the steps of which metrics came through Lightning's guards."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.append(step)


@pytest.mark.parametrize(("launcher", "strategy"), list(product(LAUNCHERS, ["auto", "ddp"])))
def test_other_launchers_do_not_steer_a_run_of_one_process(
    launcher: str, strategy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    # what Lightning reads from these variables when it is imported
    monkeypatch.setattr(rank_zero_only, "rank", 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another program")
    recorder = Recorder()
    trainer = make_trainer(
        accelerator="cpu", devices=1, strategy=strategy, logger=recorder, log_every_n_steps=1,
        max_steps=2, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank) == (1, 0, 0)
    trainer.fit(Line(), torch.utils.data.DataLoader(torch.rand(4, 2)))
    assert trainer.global_step == 2
    assert recorder.steps == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["hpc_ckpt_1.ckpt"]


NUMBERS = sorted({
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_PORT",
    *(name for variables in LAUNCHERS.values() for name in variables),
})  # fmt: skip


@pytest.mark.parametrize("garbage", ["abc", ""])
def test_garbage_in_variables_of_launchers_is_ignored_by_a_run_of_one_process(
    garbage: str, tmp_path: Path
) -> None:
    done = run_command(
        tmp_path, "alseg.train", "experiment=smoke", "trainer=cpu", "tracking=none", "pictures=0",
        "steps_per_round=1", "pool.rounds=1", **dict.fromkeys(NUMBERS, garbage),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", OF_TORCHRUN)
def test_garbage_in_a_variable_of_torchrun_is_told(name: str, tmp_path: Path) -> None:
    variables = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "1", name: "abc"}
    done = run_command(tmp_path, "alseg.train", "experiment=smoke", "trainer=ddp", **variables)
    assert done.returncode == 2
    assert f"alseg: error: the environment variable {name} is 'abc'" in done.stderr
    assert "Traceback" not in done.stderr


SHORTAGES = {
    "too small": RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"
    ),
    "read-only": RuntimeError(
        "unable to open shared memory object </torch_1_2> in read-write mode: Read-only file system"
    ),
    "too small, by signal": RuntimeError(
        "DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that"
        " dataloader's workers are out of shared memory."
    ),
}


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_too_little_shared_memory_is_told_with_its_cure(shortage: str) -> None:
    error = dead_worker_error(SHORTAGES[shortage], [])
    assert isinstance(error, StorageError)
    assert "data.num_workers=0" in str(error)
    assert "--shm-size" in str(error)


def test_locks_of_processes_that_cannot_be_made_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing.synchronize

    def refuse(*arguments: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", refuse)
    with pytest.raises(FileNotFoundError) as raised:
        multiprocessing.Queue()
    assert isinstance(dead_worker_error(raised.value, []), StorageError)
    assert dead_worker_error(FileNotFoundError(errno.ENOENT, "x", "image.nii"), []) is None


def test_a_run_without_loader_processes_needs_no_shared_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to open shared memory object")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    cases = WholeVolumes(cache=None, case_ids=[], labels={})  # type: ignore[arg-type]
    assert WatchedDataset(cases, 0).readings() == []


@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_told_and_used(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with locked_run(tmp_path), locked(tmp_path / "other.lock"):
        assert (tmp_path / ".owner.json").is_file()
    with locked_run(tmp_path):  # nothing is left that would keep a later process out
        pass
    if number != errno.ENOSYS:  # for which filelock has files of its own
        assert f"the file system of {tmp_path} has no locks" in caplog.text


def test_a_lock_that_is_held_is_no_missing_lock(tmp_path: Path) -> None:
    with (
        locked_run(tmp_path),
        pytest.raises(ConfigError, match="is in use by process"),
        locked_run(tmp_path),
    ):
        pass


# A sitecustomize.py: what other machines lack.
ABSENT = """
import fcntl, os, pwd
del os.sched_getaffinity  # as on macOS
def flock(descriptor, operation): raise OSError(37, "No locks available")
fcntl.flock = flock
def unknown(user): raise KeyError(f"getpwuid(): uid not found: {user}")
pwd.getpwuid = unknown  # as for docker run --user 12345
for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME"): os.environ.pop(name, None)
"""


def test_a_data_set_is_checked_on_a_machine_that_lacks_much(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(8, 9, 10))
    label = np.zeros((8, 9, 10), np.uint8)
    label[2:5, 3:6, 4:7] = 1
    root = write_msd(tmp_path / "Größe_日", [image] * 10, [label] * 10)
    (tmp_path / "sitecustomize.py").write_text(ABSENT)
    done = run_command(
        tmp_path, "alseg.validate", "data=msd", f"data.root='{root}'", "data.spacing_mm=[1,1,1]",
        "json=report.json", f"output_dir={tmp_path}",
        PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
        PYTHONIOENCODING="ascii", LC_ALL="C",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 cases" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["root"] == str(root)


UTF_8 = "Größe".encode()
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.parametrize(("locale", "typed"), list(product(LOCALES, [UTF_8, b"Gr\xf6\xdfe"])))
def test_a_name_in_any_encoding_is_understood_or_told(
    locale: str, typed: bytes, tmp_path: Path
) -> None:
    done = run_command(
        tmp_path, "alseg.train", "--cfg", "job", "experiment=smoke",
        f"experiment_name='{os.fsdecode(typed)}'", **LOCALES[locale],
    )  # fmt: skip
    understood = typed == UTF_8 and locale != "C"
    assert done.returncode == (0 if understood else 2)
    assert "Traceback" not in done.stderr
    if not understood:
        assert "the encoding of this locale; set LC_ALL" in done.stderr


def test_each_core_counts_where_a_process_may_use_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5}, raising=False)
    assert n_usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert n_usable_cores() == os.cpu_count()


def run_command(
    folder: Path, module: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run an entry point in a process of its own, with further environment variables."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
    )
