"""The wheel carries conf/ and works outside the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from alseg.config.composition import conf_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # --no-isolation: with the installed hatchling, not one fetched for the purpose
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("alseg-*.whl")
    return path


def test_the_wheel_carries_every_file_of_conf(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = Path(conf_folder())
    files = [path.relative_to(conf) for path in conf.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert "alseg/conf/strategy/selector/power.yaml" in names  # groups within groups, too
    assert {f"alseg/conf/{path.as_posix()}" for path in files} <= names
    assert not [name for name in names if name.startswith(("tests/", "runs/"))]


def test_the_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True)
    job = [sys.executable, "-m", "alseg.train", "experiment=tutorial_liver", "data.root=/x"]
    shown = subprocess.run(
        [*job, "--cfg", "job", "--resolve"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert f"file: {target}/alseg/conf/splits/task03_liver.json" in shown
