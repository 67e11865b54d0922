"""``python -m alseg.validate`` from the command line, and the processes behind it."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alseg.data.findings import warning
from alseg.data.oddities import intensity_oddities, oddities
from alseg.data.survey import Facts, LabelFacts
from alseg.system.isolation import Died, map_in_processes
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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call_entry_point: Callable[..., tuple[int, str, str]],
) -> Callable[..., tuple[int, str, str, dict]]:
    from alseg.validate import main

    def call(root: Path, *overrides: str) -> tuple[int, str, str, dict]:
        monkeypatch.chdir(tmp_path)
        settings = ["data=msd", f"data.root={root}", "data.preprocess=[]", "json=report.json"]
        exit_code, out, err = call_entry_point(main, *settings, "workers=1", *overrides)
        path = tmp_path / "report.json"
        return exit_code, out, err, json.loads(path.read_text()) if path.exists() else {}

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


def test_what_concerns_the_whole_data_set_is_reported(validate: Callable, tmp_path: Path) -> None:
    root = bad_input.write_blobs(tmp_path / "blobs")
    bad_input.edit(numTraining=12, labels={"0": "background", "1": "blob", "2": "clot"})(root)
    shutil.copy(root / "imagesTr" / "case_00.nii.gz", root / "imagesTr" / "left_over.nii.gz")
    order = "data.preprocess=[{_target_:monai.transforms.Spacing,pixdim:[1,1,2]}]"
    exit_code, out, _, report = validate(root, order)
    assert exit_code == 0
    found = {finding["kind"]: finding["message"] for finding in report["data_set"]}
    assert found == {
        "numTraining": "dataset.json says numTraining 12, but 'training' lists 10 cases",
        "not used": "imagesTr holds 1 file that 'training' does not name; not used: "
        "left_over.nii.gz",
        "axes": "data.preprocess resamples to 1 x 1 x 2 mm before it re-orients, so that these "
        "edges follow the axes of each file; put Orientation first",
        "class never seen": "no label holds clot",
    }
    assert "warning: data set: dataset.json says numTraining 12" in out


def test_an_offset_of_one_case_is_told(validate: Callable, tmp_path: Path) -> None:
    """A CT of ten is stored from 0 to 4095, the others from -1024 to 3071."""
    root = bad_input.write_blobs(tmp_path / "blobs")
    for index, path in enumerate(sorted((root / "imagesTr").iterdir())):
        volume = np.asarray(nibabel.load(path).dataobj)
        bad_input.save(path, (300 * volume + 1024 * (index == 3)).astype(np.int16))
    report = validate(root)[3]
    odd = {case["case"]: case["findings"] for case in report["cases"] if case["findings"]}
    (finding,) = odd.pop("case_03")
    assert not odd
    assert finding["kind"] == "intensities"
    assert "shifted by about 10" in finding["message"]


@settings(derandomize=True, deadline=None)
@given(
    spread=st.floats(50, 2000),
    noise=st.floats(0, 0.08),
    shift=st.sampled_from([-1024.0, 1024.0, 3000.0]),
    n_odd=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_shifted_intensities_are_found_and_only_these(
    spread: float, noise: float, shift: float, n_odd: int, seed: int
) -> None:
    """Up to four of ten, wherever the shift is large against the spread."""
    rng = np.random.default_rng(seed)
    ends = np.array([-1000.0, -1000.0 + spread / 2, -1000.0 + spread])
    cases = {f"c{i}": (ends + noise * spread * rng.uniform(-1, 1, 3))[None] for i in range(10)}
    odd = {f"c{i}" for i in range(n_odd)}
    for case_id in odd:
        cases[case_id] = cases[case_id] + shift
    found = intensity_oddities(cases, ("CT",))
    assert set(found) <= odd
    if abs(shift) > spread:
        assert set(found) == odd


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
        "label": label_facts(voxels=str(changes)),
    }
    return Facts(**usual | changes)


def label_facts(**changes: object) -> LabelFacts:
    usual: dict = {
        "classes": (0, 1, 2),
        "classes_in_file": (0, 1, 2),
        "voxels": str(changes),
        "dtype": np.dtype(np.uint8),
    }
    return LabelFacts(**usual | changes)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"label": label_facts(classes=(0, 2), classes_in_file=(0, 2))}, "class missing"),
        ({"label": label_facts(classes=(0,), classes_in_file=(0,))}, "empty label"),
        ({"label": label_facts(classes=(0, 1))}, "class lost"),
        ({"header": (warning("unit", "metres"),)}, "unit"),
        ({"grids": ((512, 512, 90), (40, 50, 90))}, "grid"),
        ({"quantiles": np.array([[24.0, 1064.0, 1124.0]])}, "intensities"),
        ({"quantiles": np.array([[0.0, 0.9, 1.0]])}, "intensities"),
        ({"constant": True}, "constant"),
        ({"voxels": "v1"}, "twin"),
        ({"label": label_facts(voxels=str({"voxels": "v1"}))}, "twin label"),
        ({"spacing_mm": np.array([1, 1, 3.1])}, "anisotropic"),
        ({"spacing_mm": np.array([1, 1, 2.1])}, "spacing"),
        ({"size_mm": np.array([100, 100, 49.0])}, "size"),
        ({"orientation": "LPS"}, "orientation"),
        ({"direction": np.array([[1, 0.1, 0], [0, 0.995, 0], [0, 0, 1]])}, "sheared"),
        ({"label": label_facts(dtype=np.dtype(np.float64))}, "label type"),
    ],
)
def test_what_is_odd(changes: dict, kind: str) -> None:
    cases = {f"c{i}": facts(voxels=f"v{i}") for i in range(5)} | {"odd": facts(**changes)}
    found = oddities(cases, ("background", "liver", "tumour"), ("CT",))
    assert kind in [finding.kind for finding in found.pop("odd")]
    assert not any(found.values())


def test_a_case_without_a_label_is_judged_by_its_image() -> None:
    cases = {f"c{i}": facts(voxels=f"v{i}") for i in range(5)}
    cases |= {"bare": facts(label=None), "odd": facts(label=None, constant=True)}
    found = oddities(cases, ("background", "liver", "tumour"), ("CT",))
    assert [finding.kind for finding in found.pop("odd")] == ["constant"]
    assert not any(found.values())


def test_cases_without_a_label_are_counted(
    phantoms: Path, tmp_path: Path, validate: Callable[..., tuple]
) -> None:
    root = shutil.copytree(phantoms, tmp_path / "data")
    content = json.loads((root / "dataset.json").read_text())
    bare = [entry["image"] for entry in content["training"][4:]]
    content |= {"training": content["training"][:4], "test": bare}
    (root / "dataset.json").write_text(json.dumps(content))
    exit_code, out, _, report = validate(root)
    assert exit_code == 0
    assert "8 cases without a label, left out of the simulation: phantom_004, " in out
    assert len(report["cases"]) == 12
    (root / "imagesTr" / Path(bare[0]).name).write_bytes(b"no NIfTI")
    exit_code, out, _, report = validate(root)
    assert exit_code == 2
    assert report["summary"]["error"] == 1


def test_the_real_hippocampus_is_fine(hippocampus: Path, tmp_path: Path) -> None:
    from alseg.data.cache import VolumeCache
    from alseg.data.formats.msd import read_msd
    from alseg.data.survey import look_at

    cache = VolumeCache(read_msd(hippocampus), [], "", tmp_path)
    names = cache.task.classes, cache.task.channels
    seen = {case_id: look_at(cache, case_id) for case_id in list(cache.task.cases)[:8]}
    assert not any(oddities(seen, *names).values())  # type: ignore[arg-type]
