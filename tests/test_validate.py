"""``python -m alseg.validate`` through its front door, and the processes behind it."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alseg.data.findings import warning
from alseg.data.survey import Facts, intensity_oddities, oddities
from alseg.isolation import Died, map_in_processes
from tests import bad_input
from tests.bad_input import CASE, ROWS


def doubled(item: str) -> str:
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "ended":
        os._exit(7)
    return item * 2


def test_a_process_that_dies_takes_one_item_with_it() -> None:
    items = ["a", "killed", "b", "ended", "c", "d"]
    results = dict(map_in_processes(doubled, items, 2))
    assert results == {
        "a": "aa", "b": "bb", "c": "cc", "d": "dd",
        "killed": Died("was killed by SIGKILL (out of memory?)"),
        "ended": Died("ended with exit code 7"),
    }  # fmt: skip


@pytest.fixture
def validate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str, dict]]:
    from alseg.validate import main

    def call(root: Path, *overrides: str) -> tuple[int, str, str, dict]:
        monkeypatch.chdir(tmp_path)
        settings = ["data=msd", f"data.root={root}", "data.preprocess=[]", "json=report.json"]
        monkeypatch.setattr(sys, "argv", ["alseg.validate", *settings, "workers=1", *overrides])
        exit_code = 0
        try:
            main()
        except SystemExit as stop:
            exit_code = int(stop.code or 0)
        said = capfd.readouterr()
        path = tmp_path / "report.json"
        return exit_code, said.out, said.err, json.loads(path.read_text()) if path.exists() else {}

    return call


def test_each_case_is_reported_with_all_that_is_wrong(validate: Callable, tmp_path: Path) -> None:
    root = bad_input.write_blobs(tmp_path / "blobs")
    by_name = {row.name: row for row in ROWS}
    by_name["NaN in an image"].damage(root)
    odd = root / "labelsTr" / "case_00.nii.gz"
    bad_input.save(odd, np.zeros(bad_input.SHAPE, np.float32))
    shutil.copy(root / "imagesTr" / "case_00.nii.gz", root / "imagesTr" / "case_01.nii.gz")
    bad_input.save(root / "imagesTr" / "case_02.nii.gz", np.ones(bad_input.SHAPE, np.float32))
    exit_code, out, err, report = validate(root)
    assert exit_code == 2
    assert err.splitlines()[-1] == f"alseg: error: 1 of the 10 cases of {root} cannot be used"
    found = {
        case["case"]: (case["status"], {f["kind"] for f in case["findings"]})
        for case in report["cases"]
    }
    assert found.pop(CASE) == ("error", {"image"})
    assert found.pop("case_00") == ("warning", {"empty label", "label type"})
    assert found.pop("case_01") == ("warning", {"twin"})
    assert found.pop("case_02") == ("warning", {"constant"})
    assert set(map(str, found.values())) == {"('ok', set())"}
    assert report["summary"] == {"ok": 6, "warning": 3, "error": 1}
    assert "10 cases of Blobs: 6 ok, 3 with warnings, 1 with errors" in out
    (error,) = (f for case in report["cases"] if case["case"] == CASE for f in case["findings"])
    assert error["message"].endswith("holds voxels that are NaN or infinite")


def test_a_good_data_set_ends_with_0(validate: Callable, tmp_path: Path) -> None:
    root = bad_input.write_blobs(tmp_path / "blobs")
    assert validate(root)[0] == 0
    assert validate(root, "workers=0")[2].endswith(
        "workers is 0; it must be a whole number of at least 1\n"
    )
    assert validate(tmp_path / "nowhere")[0] == 2


def facts(**changes: object) -> Facts:
    usual: dict = {
        "header": (),
        "size_mm": np.full(3, 100.0),
        "spacing_mm": np.ones(3),
        "direction": np.eye(3),
        "orientation": "RAS",
        "grids": ((100, 100, 100), (100, 100, 100)),
        "quantiles": np.array([[-1000.0, 40.0, 100.0]]),
        "voxels": str(changes),
        "constant": False,
        "classes": (0, 1, 2),
        "classes_in_file": (0, 1, 2),
        "label_type": np.dtype(np.uint8),
    }
    return Facts(**usual | changes)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"classes": (0, 2), "classes_in_file": (0, 2)}, "class missing"),
        ({"classes": (0,), "classes_in_file": (0,)}, "empty label"),
        ({"classes": (0, 1)}, "class lost"),
        ({"header": (warning("unit", "metres"),)}, "unit"),
        ({"grids": ((512, 512, 90), (40, 50, 90))}, "grid"),
        ({"quantiles": np.array([[24.0, 1064.0, 1124.0]])}, "intensities"),
        ({"quantiles": np.array([[0.0, 0.9, 1.0]])}, "intensities"),
        ({"constant": True}, "constant"),
        ({"voxels": "v1"}, "twin"),
        ({"spacing_mm": np.array([1, 1, 3.1])}, "anisotropic"),
        ({"spacing_mm": np.array([1, 1, 2.1])}, "spacing"),
        ({"size_mm": np.array([100, 100, 49.0])}, "size"),
        ({"orientation": "LPS"}, "orientation"),
        ({"direction": np.array([[1, 0.1, 0], [0, 0.995, 0], [0, 0, 1]])}, "sheared"),
        ({"label_type": np.dtype(np.float64)}, "label type"),
    ],
)
def test_what_is_odd(changes: dict, kind: str) -> None:
    cases = {f"c{i}": facts(voxels=f"v{i}") for i in range(5)} | {"odd": facts(**changes)}
    found = oddities(cases, ("background", "liver", "tumour"), ("CT",))
    assert kind in [finding.kind for finding in found.pop("odd")]
    assert not any(found.values())


def test_the_real_hippocampus_is_fine(hippocampus: Path, tmp_path: Path) -> None:
    from alseg.data.cases import read_msd
    from alseg.data.preprocess import VolumeCache
    from alseg.data.survey import look_at

    cache = VolumeCache(read_msd(hippocampus), [], "", tmp_path)
    names = cache.task.classes, cache.task.channels
    seen = {case_id: look_at(cache, case_id) for case_id in list(cache.task.cases)[:8]}
    assert not any(oddities(seen, *names).values())  # type: ignore[arg-type]
