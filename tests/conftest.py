"""What all tests share: tiny real data sets and the commands."""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import hypothesis
import nibabel
import numpy as np
import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import Engine, event

from alseg.config.composition import conf_folder
from alseg.data.datamodule import TrainingDraws
from alseg.data.phantom import write_phantom_dataset
from alseg.engine.jobs import PRELOADED
from alseg.tracking import mlflow_access

# how long an example may take is not what is tested, and the machine may be busy
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")

HIPPOCAMPUS = Path(__file__).parents[2] / "shared" / "data" / "Task04_Hippocampus"


def pytest_collection_finish() -> None:
    # what the imports have left is no garbage: 600 000 objects, 0.4 s each time they are searched
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _conf_is_read_once() -> Iterator[None]:
    # a command reads 30 files twice, which costs a third of the time until it tells of bad input
    Plugins.instance()  # finds the source of files
    source = SourcesRegistry.instance().resolve("file")
    read = source.load_config
    parsed: dict[tuple[str, str], ConfigResult] = {}

    def load_config(self: ConfigSource, config_path: str) -> ConfigResult:
        if self.path != conf_folder():  # a test's own files change
            return read(self, config_path)
        key = (self.provider, config_path)
        if key not in parsed:
            parsed[key] = read(self, config_path)
        return copy.deepcopy(parsed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "load_config", load_config)
        # the first time, for hydra.mode, which no test sets
        patch.setattr(Hydra, "get_mode", lambda self, config_name, overrides: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_power_failure() -> Iterator[None]:
    # a smoke run writes 50 files, and would wait 0.6 s until the disk has them
    @event.listens_for(Engine, "connect")
    def do_not_wait(connection: Any, record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)  # it is open
        yield
    event.remove(Engine, "connect", do_not_wait)


@pytest.fixture(scope="session", autouse=True)
def _stores_are_copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # MLflow makes a store in hundreds of steps, which take a second
    template = tmp_path_factory.mktemp("template") / "mlflow.db"

    def make(uri: str, artifacts: str) -> SqlAlchemyStore:
        if not template.exists():
            SqlAlchemyStore(f"sqlite:///{template}", artifacts).engine.dispose()
        shutil.copyfile(template, uri.removeprefix("sqlite:///"))
        return SqlAlchemyStore(uri, artifacts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_access, "SqlAlchemyStore", make)
        yield


@pytest.fixture
def stores_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MLflow make the stores of a test, step by step."""
    monkeypatch.setattr(mlflow_access, "SqlAlchemyStore", SqlAlchemyStore)


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    # more threads than free cores make tests slower by far: OMP_NUM_THREADS=1 beside other work
    wanted = int(os.environ.get("OMP_NUM_THREADS", 2))
    torch.set_num_threads(min(wanted, 2, os.cpu_count() or 1))


@pytest.fixture(scope="session", autouse=True)
def _no_store_of_the_users() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_secret_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve CT phantoms of about 32 voxels a side, as an MSD data set."""
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms"), n_volumes=12, size=32)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs of a module keep phantoms and preprocessed volumes."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """The real MSD Task04, where it is at hand."""
    if not (HIPPOCAMPUS / "dataset.json").is_file():
        pytest.skip(f"the real data set is not at {HIPPOCAMPUS}")
    return HIPPOCAMPUS


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless", "no-sandbox", "disable-quic", "no-first-run",
        "use-gl=angle", "use-angle=swiftshader", "enable-unsafe-swiftshader",  # WebGL without a GPU
        "disable-background-networking", "disable-component-update", "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@dataclass(frozen=True)
class Outcome:
    """What a call of an entry point left."""

    exit_code: int
    out: str
    err: str
    folder: Path


@pytest.fixture
def call_entry_point(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call ``main`` as a command does, in this process: its exit code, and what it printed."""

    def call(main: Callable[[], None], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [main.__module__, *arguments])
        capfd.readouterr()
        exit_code = 0
        try:
            main()
        except SystemExit as stop:
            exit_code = stop.code if isinstance(stop.code, int) else 1
        captured = capfd.readouterr()
        return exit_code, captured.out, captured.err

    return call


@pytest.fixture
def train(
    tmp_path: Path,
    phantoms: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> Callable[..., Outcome]:
    """Call ``python -m alseg.train experiment=smoke`` in this process, in a folder of its own."""
    from alseg.train import main

    monkeypatch.chdir(tmp_path)
    calls = iter(range(1000))

    def call(
        *overrides: str,
        smoke: bool = True,
        tracking: str = "none",
        folder: Path | None = None,
        resume: Path | None = None,
    ) -> Outcome:
        folder = folder or tmp_path / f"run_{next(calls)}"
        settings = [f"hydra.run.dir='{folder}'"]
        settings += [f"resume={resume}"] if resume else ["trainer=cpu", f"tracking={tracking}"]
        if smoke:
            settings += ["experiment=smoke", f"data.task.root={phantoms}", "data.num_workers=0"]
        flags_first = sorted([*settings, *overrides], key=lambda o: not o.startswith("--"))
        return Outcome(*call_entry_point(main, *flags_first), folder)

    return call


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """How often each training has each case to draw from, in the order of the trainings."""
    found: list[Counter[str]] = []
    init = TrainingDraws.__init__

    def noted(self: TrainingDraws, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        found.append(Counter(args[2]))

    monkeypatch.setattr(TrainingDraws, "__init__", noted)
    return found


def clean_processes() -> ForkServerContext:
    """Processes without the threads of other tests, which do not pay for the imports again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def are_equal(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    """Whether two networks have the same weights, bit by bit."""
    return all(torch.equal(value, two[name]) for name, value in one.items())


def write_msd(
    root: Path,
    images: list[np.ndarray],
    labels: list[np.ndarray],
    *,
    affines: list[np.ndarray] | None = None,
    classes: tuple[str, ...] = ("background", "blob"),
    channels: tuple[str, ...] = ("MRI",),
) -> Path:
    """Write arrays [D, H, W], or images [D, H, W, channels], as an MSD data set."""
    entries = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        affine = affines[index] if affines else np.eye(4)
        name = f"case_{index:02d}.nii.gz"
        for folder, volume in (("imagesTr", image), ("labelsTr", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(volume, affine), root / folder / name)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "name": "Blobs",
        "modality": {str(i): name for i, name in enumerate(channels)},
        "labels": {str(i): name for i, name in enumerate(classes)},
        "training": entries,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root
