"""The table of a prediction: what is worth a look, and what survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alseg.core.errors import DataError
from alseg.engine.prediction_table import PredictionTable

CLASSES = ("liver", "tumour")


def filled(path: Path, rows: list[dict[str, Any]]) -> PredictionTable:
    table = PredictionTable(path, CLASSES)
    for number, row in enumerate(rows):
        values = {"status": "done", "uncertainty": 0.1 + 0.001 * number, "checksum": "00000012"}
        sizes = {"voxels_liver": 100, "voxels_tumour": 10} | row
        ml = {f"ml_{name}": sizes[f"voxels_{name}"] / 100 for name in CLASSES}
        table.note(f"case_{number:02d}", **values | ml | sizes)
    return table


def reasons(table: PredictionTable) -> dict[str, str]:
    found = table.table().set_index("case")["look"]
    return {case_id: why for case_id, why in found.items() if why}


def test_cases_without_foreground_or_without_a_class_that_most_have_are_worth_a_look(
    tmp_path: Path,
) -> None:
    nothing = {"voxels_liver": 0, "voxels_tumour": 0}
    rows = [{}, {}, {}, nothing, {"voxels_tumour": 0}]
    assert reasons(filled(tmp_path / "a.csv", rows)) == {
        "case_03": "nothing found",
        "case_04": "no tumour",
    }
    rare = [{"voxels_tumour": 0}] * 4 + [{}]  # most have none: that says nothing
    assert reasons(filled(tmp_path / "b.csv", rare)) == {}


def test_outliers_are_worth_a_look_once_there_are_enough_cases(tmp_path: Path) -> None:
    usual = [{"voxels_liver": 100 + number} for number in range(8)]
    odd = [{"voxels_liver": 500}, {"voxels_liver": 20}, {"uncertainty": 0.9}]
    assert reasons(filled(tmp_path / "a.csv", usual + odd)) == {
        "case_08": "much liver",
        "case_09": "little liver",
        "case_10": "uncertain",
    }
    assert reasons(filled(tmp_path / "b.csv", usual[:4] + odd)) == {}


def test_ranks_are_by_uncertainty_and_refused_cases_have_none(tmp_path: Path) -> None:
    table = filled(tmp_path / "a.csv", [{}, {"uncertainty": 0.5}, {}])
    table.note("broken", status="refused", message="it is broken, see above")
    found = table.table().set_index("case")
    assert found["rank"].dropna().to_dict() == {"case_00": 3, "case_01": 1, "case_02": 2}
    assert found["look"]["broken"] == ""


def test_a_table_is_read_again_as_it_was(tmp_path: Path) -> None:
    table = filled(tmp_path / "a.csv", [{}, {"voxels_tumour": 0}])
    table.note("007", status="refused", message='a "quoted", odd name\tand NA', checksum="")
    table.note("NA", status="writing")
    table.save()
    again = PredictionTable(tmp_path / "a.csv", CLASSES)
    assert again.rows["case_00"]["checksum"] == "00000012"
    assert again.rows["007"]["message"] == 'a "quoted", odd name\tand NA'
    before = (tmp_path / "a.csv").read_text()
    again.note("NA", status="writing")
    assert (tmp_path / "a.csv").read_text() == before


def test_a_row_is_appended_and_one_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    table = filled(path, [{}])
    for number in range(3):
        before = path.read_bytes()
        table.note(f"new_{number}", status="writing")
        table.note(f"new_{number}", status="refused", message='it is "broken", see above')
        assert path.read_bytes().startswith(before)
    kept, text = set(table.rows), path.read_bytes()
    last = text.splitlines(keepends=True)[-1]
    for n_lost in range(1, len(last)):
        path.write_bytes(text[:-n_lost])
        again = PredictionTable(path, CLASSES)
        assert set(again.rows) == kept
        # its last row but one says that the last case was being written
        assert again.rows["new_2"]["status"] == ("refused" if n_lost == 1 else "writing")
        again.note("after", status="refused")
        assert set(PredictionTable(path, CLASSES).rows) == {*kept, "after"}
    table.save()
    assert path.read_text().count("\n") == 1 + len(kept)


@pytest.mark.parametrize("content", [b"", b"case\n1\n", b"\xff\xfe\x00", b'"', b"a,b\n1,2,3,4\n"])
def test_what_is_no_such_table_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match="give another output"):
        PredictionTable(path, CLASSES)
    assert path.read_bytes() == content


def test_a_table_of_other_classes_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "a.csv", [{}])
    with pytest.raises(DataError, match="not a table of these classes"):
        PredictionTable(tmp_path / "a.csv", ("spleen",))
