"""What comes back from a person: checked, kept in versions, never half-read, never lost."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from alseg.active.when_to_stop import time_so_far
from alseg.core.errors import ConfigError, DataError
from alseg.core.units import IGNORED, Answer, Query, Unit, whole
from alseg.data.formats.msd import read_msd
from alseg.data.task import Task
from alseg.oracles.label_checks import ConfirmationNeededError, check_annotation, mean_dice
from alseg.oracles.person import PersonOracle
from alseg.run.requests import read_request
from alseg.system import files
from alseg.system.files import checksum_of
from tests.conftest import write_msd
from tests.oracles.unlabelled import move_labels_away

CASES = [f"case_{i:02d}" for i in range(6)]
HIDDEN = CASES[1:]  # the first one has a label in the data set
SHAPE = (6, 5, 4)


def label_of(index: int) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[1 : 3 + index % 3, 1:4, 1:3] = 1
    return label


@pytest.fixture
def campaign(tmp_path: Path) -> tuple[Task, Path]:
    """Six volumes, of which one has a label; and the folder of all right labels."""
    images = [np.random.default_rng(i).normal(size=SHAPE) for i in range(6)]
    affines = [np.diag([1.0, 1.5, 2.0, 1.0])] * 6
    root = write_msd(tmp_path / "whole", images, [label_of(i) for i in range(6)], affines=affines)
    copy, labels = move_labels_away(root, tmp_path / "campaign", HIDDEN)
    return read_msd(copy), labels


@pytest.fixture
def oracle(campaign: tuple[Task, Path], tmp_path: Path) -> PersonOracle:
    return PersonOracle(campaign[0], tmp_path / "run", settle_seconds=0)


def propose(task: Task) -> Callable[[Query, Path], None]:
    """Proposals that are right but for one voxel."""

    def write(units: Query, folder: Path) -> None:
        for unit in units:
            label = label_of(CASES.index(unit.case_id))
            label[0, 0, 0] = 1
            affine = nibabel.load(task.cases[unit.case_id].images[0]).affine
            for part in ("labels/original", "uncertainty"):
                nibabel.save(
                    nibabel.Nifti1Image(label, affine), folder / part / f"{unit.case_id}.nii.gz"
                )

    return write


def final(oracle: PersonOracle, case_id: str, request: str = "round_01") -> Path:
    return oracle.folder / "requests" / request / "labels" / "final" / f"{case_id}.nii.gz"


def hand_in(
    campaign: tuple[Task, Path], oracle: PersonOracle, *case_ids: str, request: str = "round_01"
) -> None:
    for case_id in case_ids:
        shutil.copyfile(campaign[1] / f"{case_id}.nii.gz", final(oracle, case_id, request))


def history(oracle: PersonOracle) -> list[dict[str, Any]]:
    path = oracle.folder / "annotations" / "history.csv"
    return pd.read_csv(path).to_dict("records") if path.is_file() else []


def states(oracle: PersonOracle, request: str = "round_01") -> dict[str, str]:
    table = pd.read_csv(oracle.folder / "requests" / request / "request.csv")
    return dict(zip(table["case"], table["state"], strict=True))


def save(path: Path, classes: np.ndarray, affine: np.ndarray | None = None) -> None:
    affine = np.diag([1.0, 1.5, 2.0, 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(classes, affine), path)


def test_a_request_folder_holds_what_other_programs_read(
    campaign: tuple[Task, Path], oracle: PersonOracle
) -> None:
    query = whole([CASES[3], CASES[0], CASES[1]])
    asked = oracle.request("round_01", query, {CASES[3]: 0.5}, propose(campaign[0]))
    assert asked == whole([CASES[3], CASES[1]])  # the other one has a label
    folder = oracle.folder / "requests" / "round_01"
    for case_id in (CASES[3], CASES[1]):
        image = folder / f"{case_id}.nii.gz"
        assert image.samefile(campaign[0].cases[case_id].images[0])
        for part in ("labels/original", "uncertainty"):
            proposal = nibabel.load(folder / part / image.name)
            assert np.array_equal(proposal.affine, nibabel.load(image).affine)
    assert not list((folder / "labels" / "final").iterdir())
    content = json.loads((folder / "request.json").read_text())
    assert [unit["case_id"] for unit in content["query"]] == [CASES[3], CASES[0], CASES[1]]
    first = {"order": 1, "case_id": CASES[3], "region": None, "score": 0.5}
    assert content["units"][0].items() >= first.items()
    assert content["classes"] == {"0": "background", "1": "blob"}
    said = (folder / "README.txt").read_text()
    for part in (
        "2 volumes wait for annotation; request.csv lists them",
        "open case_03.nii.gz.\n",
        "labels/original/case_03.nii.gz",
        "Save the label as labels/final/case_03.nii.gz",
        "\n  0 = background\n  1 = blob\n",
        "case,annotator,minutes",
    ):
        assert part in said
    table = pd.read_csv(folder / "request.csv")
    assert list(table.columns) == ["order", "case", "score", "state"]
    assert list(table["case"]) == [CASES[3], CASES[1]]
    worklist = pd.read_csv(folder / "worklist.csv")
    for row in worklist.to_dict("records"):
        assert (folder / row["image"]).is_file()
        assert (folder / row["mask"]).is_file()


def test_a_request_of_many_classes_is_read_as_it_was_written(
    campaign: tuple[Task, Path], tmp_path: Path
) -> None:
    task = replace(campaign[0], classes=("background", *(f"organ_{i}" for i in range(1, 13))))
    PersonOracle(task, tmp_path / "run").request("initial", whole(HIDDEN[:1]), {})
    request = read_request(tmp_path / "run", "initial")
    assert request is not None
    assert request.case_ids == HIDDEN[:1]
    said = (tmp_path / "run" / "requests" / "initial" / "README.txt").read_text()
    assert "  9 = organ_9\n  10 = organ_10\n" in said
    named = (tmp_path / "run" / "requests" / "initial" / "itksnap_labels.txt").read_text()
    lines = named.splitlines()
    assert lines[0] == '0 0 0 0 0 0 0 "background"'
    assert lines[1] == '1 255 0 0 1 1 1 "organ_1"'
    assert [line.split()[0] for line in lines] == [str(value) for value in range(13)]


def test_where_there_are_no_links_images_are_copied(
    campaign: tuple[Task, Path], oracle: PersonOracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    copy = oracle.folder / "requests" / "initial" / f"{HIDDEN[0]}.nii.gz"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 0)  # no half of a copy is left to be taken for a whole one
        with pytest.raises(Killed):
            oracle.request("initial", whole(HIDDEN[:1]), {})
    assert not copy.exists()
    oracle.request("initial", whole(HIDDEN[:1]), {})
    assert not copy.is_symlink()
    assert copy.read_bytes() == campaign[0].cases[HIDDEN[0]].images[0].read_bytes()


def test_labels_come_late_and_in_parts(campaign: tuple[Task, Path], oracle: PersonOracle) -> None:
    query = whole(CASES[:3])
    oracle.request("round_01", query, {}, propose(campaign[0]))
    answer = oracle.annotate(query)
    assert [unit.case_id for unit in answer.labels] == CASES[:1]
    assert answer.pending == whole(CASES[1:3])
    assert "2 of 2 volumes wait for annotation (case_01, case_02)." in answer.what_to_do
    assert str(oracle.folder / "requests" / "round_01") in answer.what_to_do
    hand_in(campaign, oracle, CASES[2])
    assert oracle.annotate(query).pending == whole([CASES[1]])
    assert states(oracle) == {CASES[1]: "open", CASES[2]: "annotated"}
    hand_in(campaign, oracle, CASES[1])
    answer = oracle.annotate(query)
    assert answer.pending == ()
    assert [unit.case_id for unit in answer.labels] == CASES[:3]
    for case_id in CASES[1:3]:
        kept = answer.labels[Unit(case_id)]
        assert kept.read_bytes() == (campaign[1] / f"{case_id}.nii.gz").read_bytes()
        assert kept == oracle.folder / "annotations" / case_id / "01.nii.gz"
    assert oracle.request("round_01", query, {}) == whole(CASES[1:3])  # nothing is laid out anew


def test_any_starts_with_what_has_come(campaign: tuple[Task, Path], tmp_path: Path) -> None:
    oracle = PersonOracle(campaign[0], tmp_path / "run", accept="any", settle_seconds=0)
    query = whole(CASES[:4])
    oracle.request("round_01", query, {})
    assert oracle.annotate(query).pending == whole(CASES[1:4])  # case_00 had its label before
    hand_in(campaign, oracle, CASES[2])
    answer = oracle.annotate(query)
    assert answer.pending == ()
    assert tuple(answer.labels) == whole([CASES[0], CASES[2]])


def test_what_a_round_goes_ahead_without_has_returned_to_the_pool(
    campaign: tuple[Task, Path], tmp_path: Path
) -> None:
    oracle = PersonOracle(campaign[0], tmp_path / "run", accept="any", settle_seconds=0)
    query = whole(HIDDEN[:3])
    oracle.request("round_01", query, {})
    hand_in(campaign, oracle, HIDDEN[0])
    save(final(oracle, HIDDEN[1]), np.zeros(SHAPE, np.uint8))
    oracle.labels_for_round(1, [])  # of a process that continues the round
    expected = {HIDDEN[0]: "annotated", HIDDEN[1]: "refused", HIDDEN[2]: "open"}
    assert states(oracle) == expected
    assert oracle.annotate(query).pending == ()
    oracle.labels_for_round(2, HIDDEN[:1])
    assert states(oracle) == expected | {HIDDEN[2]: "returned to the pool"}
    hand_in(campaign, oracle, HIDDEN[2])
    oracle.labels_for_round(3, HIDDEN[:1])
    assert states(oracle)[HIDDEN[2]] == "annotated"


def test_the_request_is_summed_up_of_which_something_has_come(
    campaign: tuple[Task, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, second = whole(HIDDEN[:1]), whole(HIDDEN[1:3])
    settings: dict[str, Any] = {"accept_unrequested": True, "settle_seconds": 0}
    oracle = PersonOracle(campaign[0], tmp_path / "run", **settings)
    oracle.request("initial", first, {})
    hand_in(campaign, oracle, HIDDEN[0], request="initial")
    oracle.annotate(first)
    assert "initial: 1 of 1 annotated" in caplog.text
    oracle.request("round_01", second, {})
    hand_in(campaign, oracle, HIDDEN[1], HIDDEN[3])
    caplog.clear()
    again = PersonOracle(campaign[0], tmp_path / "run", **settings)
    for query in (first, second, second):  # as a run does that is resumed in its first round
        again.annotate(query)
    said = [r.message for r in caplog.records if "annotated" in r.message]
    assert said == ["round_01: 1 of 2 annotated"]  # and not the one that was not asked for
    hand_in(campaign, oracle, HIDDEN[2])
    again.annotate(second)
    assert "round_01: 2 of 2 annotated" in caplog.text


def test_a_label_that_lay_around_belongs_to_the_request_that_asks_for_it(
    campaign: tuple[Task, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    oracle = PersonOracle(campaign[0], tmp_path / "run", accept="any", settle_seconds=0)
    oracle.request("round_02", whole(HIDDEN[:1]), {})
    hand_in(campaign, oracle, HIDDEN[0], HIDDEN[3], request="round_02")
    assert oracle.annotate(whole(HIDDEN[:1])).pending == ()
    assert "not asked for, and not used: 1 label, case_04" in caplog.text
    query = whole(HIDDEN[1:4])
    oracle.request("round_03", query, {}, propose(campaign[0]))
    # it is an answer, and nobody has had the time to annotate another
    assert oracle.annotate(query).pending == whole(HIDDEN[1:3])
    assert "accepted: case_04 (found in requests/round_02" in caplog.text
    assert states(oracle, "round_03")[HIDDEN[3]] == "annotated"
    hand_in(campaign, oracle, HIDDEN[1], request="round_03")
    answer = oracle.annotate(query)
    assert (answer.pending, tuple(answer.labels)) == ((), whole([HIDDEN[1], HIDDEN[3]]))
    assert [(r["case"], r["request"], r["folder"]) for r in history(oracle)] == [
        (HIDDEN[0], "round_02", "round_02"),
        (HIDDEN[3], "round_03", "round_02"),
        (HIDDEN[1], "round_03", "round_03"),
    ]
    assert history(oracle)[1]["proposal_dice"] < 1
    summary = pd.read_csv(oracle.folder / "annotations" / "summary.csv")
    assert dict(zip(summary["request"], summary["annotated"], strict=True)) == {
        "round_02": 1, "round_03": 2,
    }  # fmt: skip


def test_a_label_that_lay_around_counts_as_new_once_it_is_changed(
    campaign: tuple[Task, Path], tmp_path: Path
) -> None:
    oracle = PersonOracle(campaign[0], tmp_path / "run", accept="any", settle_seconds=0)
    oracle.request("initial", whole(HIDDEN[:1]), {})
    save(final(oracle, HIDDEN[2], "initial"), np.zeros(SHAPE, np.uint8))
    query = whole(HIDDEN[1:3])
    oracle.request("round_01", query, {})
    assert oracle.annotate(query).pending == query
    assert states(oracle) == {HIDDEN[1]: "open", HIDDEN[2]: "refused"}
    hand_in(campaign, oracle, HIDDEN[2], request="initial")
    assert oracle.annotate(query).pending == ()


@pytest.mark.parametrize(
    ("classes", "affine", "reason"),
    [
        (np.ones((6, 5, 3), np.uint8), None, "has shape (6, 5, 3), but its image"),
        (np.ones(SHAPE, np.uint8), np.diag([1.0, 1.5, 2.5, 1.0]), "has the spacing"),
        (np.ones(SHAPE, np.uint8), np.diag([-1.0, 1.5, 2.0, 1.0]), "another direction or origin"),
        (np.full(SHAPE, 7, np.uint8), None, "holds [7.0]; allowed are 0 to 1"),
        (np.full(SHAPE, 0.5, np.float32), None, "holds [0.5]; allowed are 0 to 1"),
        (np.zeros(SHAPE, np.uint8), None, "holds background only; if blob are really not"),
    ],
)
def test_what_cannot_be_used_is_told_and_left_where_it_is(
    oracle: PersonOracle,
    caplog: pytest.LogCaptureFixture,
    classes: np.ndarray,
    affine: np.ndarray | None,
    reason: str,
) -> None:
    query = whole(HIDDEN[:1])
    oracle.request("round_01", query, {})
    path = final(oracle, HIDDEN[0])
    save(path, classes, affine)
    before = path.read_bytes()
    for _ in range(2):
        assert oracle.annotate(query).pending == query
    (message,) = [r.message for r in caplog.records if "not accepted" in r.message]  # once
    assert reason in message
    assert str(path) in message
    assert path.read_bytes() == before
    assert states(oracle) == {HIDDEN[0]: "refused"}
    assert history(oracle) == []


def test_rounding_in_a_header_is_tolerated_told_and_put_right(
    campaign: tuple[Task, Path], oracle: PersonOracle, caplog: pytest.LogCaptureFixture
) -> None:
    query = whole(HIDDEN[:1])
    oracle.request("round_01", query, {})
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[0, 3] = 0.02
    save(final(oracle, HIDDEN[0]), label_of(1), affine)
    (kept,) = oracle.annotate(query).labels.values()
    assert "lies up to 0.02 voxels beside its image" in caplog.text
    assert np.array_equal(nibabel.load(kept).affine, np.diag([1.0, 1.5, 2.0, 1.0]))
    assert np.array_equal(np.asarray(nibabel.load(kept).dataobj), label_of(1))


def test_the_ignore_label_of_a_data_set_is_kept_when_a_header_is_put_right(
    campaign: tuple[Task, Path], tmp_path: Path
) -> None:
    oracle = PersonOracle(replace(campaign[0], ignore_value=2), tmp_path / "run", settle_seconds=0)
    query = whole(HIDDEN[:1])
    oracle.request("round_01", query, {})
    said = (oracle.folder / "requests" / "round_01" / "README.txt").read_text()
    assert said.startswith("1 volume waits for annotation;")
    assert "  2 = ignored" in said
    assert "labels/original" not in said  # nothing is proposed
    label, affine = label_of(1), np.diag([1.0, 1.5, 2.0, 1.0])
    label[5], affine[0, 3] = 2, 0.02
    save(final(oracle, HIDDEN[0]), label, affine)
    (kept,) = oracle.annotate(query).labels.values()
    assert np.array_equal(np.asarray(nibabel.load(kept).dataobj), label)


def test_an_empty_label_and_an_unchanged_proposal_want_a_confirmation(
    campaign: tuple[Task, Path], oracle: PersonOracle, caplog: pytest.LogCaptureFixture
) -> None:
    query = whole(HIDDEN[:2])
    oracle.request("round_01", query, {}, propose(campaign[0]))
    save(final(oracle, HIDDEN[0]), np.zeros(SHAPE, np.uint8))
    proposal = oracle.folder / "requests/round_01/labels/original" / f"{HIDDEN[1]}.nii.gz"
    shutil.copyfile(proposal, final(oracle, HIDDEN[1]))
    assert oracle.annotate(query).pending == query
    assert "with an empty file case_01.confirmed there" in caplog.text
    assert "is the proposed segmentation without any change" in caplog.text
    for case_id in HIDDEN[:2]:
        final(oracle, case_id).with_name(f"{case_id}.confirmed").touch()
    assert oracle.annotate(query).pending == ()
    assert [row["proposal_dice"] for row in history(oracle)] == [0.0, 1.0]


def test_files_that_are_being_copied_are_not_read(
    campaign: tuple[Task, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    oracle = PersonOracle(campaign[0], tmp_path / "run", settle_seconds=0.2)
    query = whole(HIDDEN[:1])
    oracle.request("round_01", query, {})
    whole_label = (campaign[1] / f"{HIDDEN[0]}.nii.gz").read_bytes()
    path = final(oracle, HIDDEN[0])
    path.write_bytes(whole_label[:60])
    answer_files = oracle.intake.answer_files
    assert answer_files.look().arriving == [path]
    path.write_bytes(whole_label[:80])  # is still being written
    assert answer_files.wait_and_look().arriving == []
    path.write_bytes(whole_label[:70])
    assert oracle.annotate(query).pending == query  # it stays like that: cut off
    assert "not accepted, and left where it is" in caplog.text
    path.write_bytes(whole_label)
    assert oracle.annotate(query).pending == ()


def test_what_does_not_belong_there_is_told(
    campaign: tuple[Task, Path], oracle: PersonOracle, caplog: pytest.LogCaptureFixture
) -> None:
    query = whole(HIDDEN[:2])
    oracle.request("round_01", query, {})
    folder = final(oracle, "x").parent
    (folder / "case_01.seg.nrrd").write_bytes(b"nrrd")
    (folder / "case_01.txt").write_text("a tumour")
    (folder / "case_99.nii.gz").write_bytes(b"")
    hand_in(campaign, oracle, CASES[0], HIDDEN[3])
    final(oracle, HIDDEN[0]).symlink_to(campaign[1] / f"{HIDDEN[0]}.nii.gz")
    hand_in(campaign, oracle, HIDDEN[1])
    plain = folder / f"{HIDDEN[1]}.nii"
    plain.write_bytes(gzip.decompress(final(oracle, HIDDEN[1]).read_bytes()))
    assert oracle.annotate(query).pending == query
    for messages in (
        "case_01.seg.nrrd is not read: it is a segmentation of 3D Slicer",
        "case_01.txt is not read: save labels as CASE.nii.gz, .nii or .nrrd",
        "case_99.nii.gz is of no case",
        "case_00.nii.gz is not used: the data set has a label for case_00",
        "not asked for, and not used: 1 label, case_04; oracle.accept_unrequested=true",
        "case_01.nii.gz is not read: it must be a file, and no link",
        "are of one case: delete one",
    ):
        assert messages in caplog.text
    final(oracle, HIDDEN[1]).unlink()
    assert oracle.annotate(query).pending == query[:1]  # without compression is as good
    kept = oracle.folder / "annotations" / HIDDEN[1] / "01.nii.gz"
    assert np.array_equal(np.asarray(nibabel.load(kept).dataobj), label_of(2))


def test_labels_that_were_not_asked_for_are_taken_in_if_asked(
    campaign: tuple[Task, Path], tmp_path: Path
) -> None:
    oracle = PersonOracle(campaign[0], tmp_path / "run", accept_unrequested=True, settle_seconds=0)
    query = whole(HIDDEN[:1])
    oracle.request("round_01", query, {})
    hand_in(campaign, oracle, HIDDEN[0], HIDDEN[3])
    answer = oracle.annotate(query)
    assert [unit.case_id for unit in answer.unrequested] == [HIDDEN[3]]
    assert list(answer.with_unrequested([HIDDEN[3]]).labels) == list(whole([HIDDEN[0], HIDDEN[3]]))
    assert list(answer.with_unrequested([]).labels) == list(query)


def test_a_changed_label_is_a_new_version_for_the_next_round(
    campaign: tuple[Task, Path], oracle: PersonOracle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    query = whole(HIDDEN[:1])
    oracle.request("round_01", query, {}, propose(campaign[0]))
    hand_in(campaign, oracle, HIDDEN[0])
    oracle.annotate(query)
    first = oracle.folder / "annotations" / HIDDEN[0] / "01.nii.gz"
    assert oracle.labels_for_round(2, [HIDDEN[0], CASES[0]]) == {
        HIDDEN[0]: first,
        CASES[0]: campaign[0].cases[CASES[0]].label,
    }
    before = first.read_bytes()
    save(final(oracle, HIDDEN[0]), label_of(2))
    # the round that has begun keeps what it began with, in another process as well
    again = PersonOracle(campaign[0], oracle.folder, settle_seconds=0)
    assert again.labels_for_round(2, [HIDDEN[0]]) == {HIDDEN[0]: first}
    assert "accepted: case_01 (version 2, used from the next round on" in caplog.text
    second = first.with_name("02.nii.gz")
    assert again.labels_for_round(3, [HIDDEN[0]]) == {HIDDEN[0]: second}
    assert first.read_bytes() == before
    assert [(row["case"], row["version"]) for row in history(oracle)] == [
        (HIDDEN[0], 1), (HIDDEN[0], 2),
    ]  # fmt: skip
    used = pd.read_csv(oracle.folder / "annotations" / "used.csv")
    assert used.to_dict("records") == [
        {"round": 2, "case": HIDDEN[0], "version": 1},
        {"round": 3, "case": HIDDEN[0], "version": 2},
    ]


def test_minutes_of_a_label_that_is_changed_count_once(
    campaign: tuple[Task, Path], oracle: PersonOracle
) -> None:
    query = whole(HIDDEN[:2])
    oracle.request("round_01", query, {})
    table = final(oracle, "x").with_name("answers.csv")
    table.write_text("case,annotator,minutes\ncase_01,Ada,10\ncase_02,Ada,4\n")
    hand_in(campaign, oracle, *HIDDEN[:2])
    oracle.annotate(query)
    save(final(oracle, HIDDEN[0]), label_of(2))  # with the row as it was
    labels = oracle.annotate(query).labels
    assert [row["version"] for row in history(oracle)] == [1, 1, 2]
    assert [oracle.minutes(path) for path in labels.values()] == [10, 4]
    table.write_text("case,annotator,minutes\ncase_01,Ada,10\ncase_02,Ada,5.5\n")
    save(final(oracle, HIDDEN[1]), label_of(0))
    labels = oracle.annotate(query).labels
    assert [oracle.minutes(path) for path in labels.values()] == [10, 5.5]
    summary = pd.read_csv(oracle.folder / "annotations" / "summary.csv").to_dict("records")
    assert [(row["annotated"], row["minutes"]) for row in summary] == [(2, 7.75)]
    said = time_so_far(oracle.intake.annotations.history)
    assert said == ("Annotation has taken 7.8 minutes a volume so far.",)


def test_the_same_label_twice_is_one_version_and_a_label_can_be_taken_back(
    campaign: tuple[Task, Path], oracle: PersonOracle
) -> None:
    first, second = whole(HIDDEN[:1]), whole(HIDDEN[1:2])
    oracle.request("initial", first, {})
    oracle.request("round_01", second, {})
    for request in ("initial", "round_01"):
        hand_in(campaign, oracle, HIDDEN[0], request=request)
        oracle.annotate(first)
    assert len(history(oracle)) == 1
    save(final(oracle, HIDDEN[0], "initial"), label_of(2))
    for _ in range(2):  # the file in the other folder is as it was, and does not come back
        oracle.annotate(first)
        assert [row["version"] for row in history(oracle)] == [1, 2]
    hand_in(campaign, oracle, HIDDEN[0], request="initial")
    (kept,) = oracle.annotate(first).labels.values()
    assert kept.name == "03.nii.gz"
    assert kept.read_bytes() == (campaign[1] / f"{HIDDEN[0]}.nii.gz").read_bytes()


def test_who_and_how_long_comes_from_a_spreadsheet(
    campaign: tuple[Task, Path], oracle: PersonOracle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    query = whole(HIDDEN[:3])
    oracle.request("round_01", query, {}, propose(campaign[0]))
    table = final(oracle, "x").with_name("answers.csv")
    table.write_text("﻿Case;Annotator;Minutes\ncase_01;Ada;12,5\ncase_02;Bo;\n", encoding="utf-8")
    hand_in(campaign, oracle, *HIDDEN[:3])
    oracle.annotate(query)
    rows = [(r["annotator"], r["minutes"]) for r in history(oracle)]
    assert rows[0] == ("Ada", 12.5)
    assert rows[1][0] == "Bo"
    assert np.isnan(rows[1][1])
    # minutes that are added later are not lost, and nothing that was said is replaced
    table.write_text("case,annotator,minutes\ncase_01,Eve,1\ncase_02,Bo,3\n")
    oracle.annotate(query)
    assert [(r["annotator"], r["minutes"]) for r in history(oracle)][:2] == [
        ("Ada", 12.5), ("Bo", 3.0),
    ]  # fmt: skip
    dice = [r["proposal_dice"] for r in history(oracle)]
    assert dice[0] == pytest.approx(2 * 18 / (2 * 18 + 1))  # one voxel was wrong
    assert "round_01: 3 of 3 annotated · Dice of the proposals with the labels 0.9" in caplog.text
    summary = pd.read_csv(oracle.folder / "annotations" / "summary.csv").to_dict("records")
    assert [(row["request"], row["annotated"], row["minutes"]) for row in summary] == [
        ("round_01", 3, 7.75)
    ]
    assert summary[0]["proposal_dice"] == pytest.approx(np.mean(dice))
    table.write_text("case,annotator,minutes\ncase_01,Ada,-3\n")
    oracle.annotate(query)
    assert "answers.csv is not used from line 2 on: the minutes of case_01 are -3" in caplog.text


def test_rows_of_no_case_are_told_and_file_names_are_as_good_as_cases(
    campaign: tuple[Task, Path], oracle: PersonOracle, caplog: pytest.LogCaptureFixture
) -> None:
    query = whole(HIDDEN[:2])
    oracle.request("round_01", query, {})
    table = final(oracle, "x").with_name("answers.csv")
    table.write_text(
        "case,annotator,minutes\npatient_99,Bob,3\ncase_01.nii.gz,Eve,4\n\n,,\n,Bob,2\n"
        'case_02,"Ada\nLovelace",5\ncase_03,Bob,long\ncase_04,Bob,1\n'
    )
    hand_in(campaign, oracle, *HIDDEN[:2])
    for _ in range(2):
        oracle.annotate(query)
    assert [(r["annotator"], r["minutes"]) for r in history(oracle)] == [
        ("Eve", 4.0), ("Ada Lovelace", 5.0),
    ]  # fmt: skip
    # what else is logged depends on the level that tests before this one have set
    told = [
        r.message.removeprefix(f"{table} ")
        for r in caplog.records
        if r.message.startswith(f"{table} ")
    ]
    assert told == [
        "is not used from line 9 on: the minutes of case_03 are long; they must be a number of at "
        "least 0",
        "has rows that are of no case of the data set, and are not used: patient_99 in line 2, "
        "no name in line 6; name the cases as request.csv does",
    ]


def test_a_label_saved_over_the_proposal_is_noticed(
    campaign: tuple[Task, Path], oracle: PersonOracle, caplog: pytest.LogCaptureFixture
) -> None:
    query = whole(HIDDEN[:1])
    oracle.request("round_01", query, {}, propose(campaign[0]))
    save(oracle.folder / "requests/round_01/labels/original/case_01.nii.gz", label_of(1))
    assert oracle.annotate(query).pending == query
    assert "case_01.nii.gz has changed, and is not read: answers go to labels/final" in caplog.text


def test_an_accepted_label_that_is_damaged_is_named(
    campaign: tuple[Task, Path], oracle: PersonOracle
) -> None:
    query = whole(HIDDEN[:1])
    oracle.request("round_01", query, {})
    hand_in(campaign, oracle, HIDDEN[0])
    (kept,) = oracle.annotate(query).labels.values()
    kept.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"01\.nii\.gz is damaged or missing"):
        oracle.annotate(query)


def test_another_query_of_the_same_round_gets_a_folder_of_its_own(
    campaign: tuple[Task, Path], oracle: PersonOracle
) -> None:
    oracle.request("round_01", whole(HIDDEN[:2]), {})
    oracle.request("round_01", whole(HIDDEN[2:4]), {})
    assert states(oracle, "round_01_2") == dict.fromkeys(HIDDEN[2:4], "open")
    hand_in(campaign, oracle, HIDDEN[2], request="round_01_2")
    hand_in(campaign, oracle, HIDDEN[3])  # any request folder will do
    assert oracle.annotate(whole(HIDDEN[2:4])).pending == ()


def test_waiting_says_how_far_it_is_and_continues_by_itself(
    campaign: tuple[Task, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    oracle = PersonOracle(
        campaign[0], tmp_path / "run", wait=True, poll_seconds=7, settle_seconds=0
    )
    query = whole(HIDDEN[:2])
    oracle.request("round_01", query, {})
    comes = iter(HIDDEN[:2])

    def sleep(seconds: float) -> None:
        assert seconds == 7
        hand_in(campaign, oracle, next(comes))

    monkeypatch.setattr("alseg.oracles.person.time.sleep", sleep)
    assert oracle.annotate(query).pending == ()
    messages = [record.message for record in caplog.records]
    assert [line for line in messages if line[1:] == " of 2 annotated"] == [
        "0 of 2 annotated", "1 of 2 annotated",
    ]  # fmt: skip


def test_while_it_waits_labels_of_earlier_queries_are_not_read_again_and_again(
    campaign: tuple[Task, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = PersonOracle(
        campaign[0], tmp_path / "run", wait=True, poll_seconds=7, settle_seconds=0
    )
    first, second = whole(HIDDEN[:2]), whole(HIDDEN[2:4])
    oracle.request("round_01", first, {})
    for case_id in HIDDEN[:2]:
        hand_in(campaign, oracle, case_id)
    assert oracle.annotate(first).pending == ()
    oracle.request("round_02", second, {})
    reads: list[Path] = []

    def counted(path: Path) -> str:
        reads.append(path)
        return checksum_of(path)

    for module in ("annotations", "answer_intake"):
        monkeypatch.setattr(f"alseg.oracles.{module}.checksum_of", counted)
    comes = iter([None, None, None, *HIDDEN[2:4]])

    def sleep(seconds: float) -> None:
        if case_id := next(comes):
            hand_in(campaign, oracle, case_id, request="round_02")

    monkeypatch.setattr("alseg.oracles.person.time.sleep", sleep)
    assert oracle.annotate(second).pending == ()
    earlier = [path for path in reads if any(case_id in str(path) for case_id in HIDDEN[:2])]
    kept = [path for path in earlier if "annotations" in path.parts]
    assert sorted(path.parent.name for path in kept) == HIDDEN[:2]  # once all are there
    assert not set(earlier) - set(kept)  # what was handed in has not changed


class Killed(BaseException):
    """As if the process had ended there."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Raise before the nth rename of a file to its place; returns the names of those so far."""
    renamed: list[str] = []
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if len(renamed) == number:
            raise Killed
        renamed.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", killed)
    return renamed


def test_a_kill_at_any_write_of_a_request_loses_and_doubles_nothing(
    campaign: tuple[Task, Path], tmp_path: Path
) -> None:
    query = whole(HIDDEN[:2])
    with pytest.MonkeyPatch.context() as patch:
        renamed = kill_at(patch, 99)
        PersonOracle(campaign[0], tmp_path / "whole_run").request(
            "round_01", query, {}, propose(campaign[0])
        )
    assert renamed[-1] == "request.json"
    assert len(renamed) == 5
    for number in range(len(renamed)):
        folder = tmp_path / f"run_{number}"
        oracle = PersonOracle(campaign[0], folder, settle_seconds=0)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number)
            with pytest.raises(Killed):
                oracle.request("round_01", query, {}, propose(campaign[0]))
        assert read_request(folder, "round_01") is None
        oracle = PersonOracle(campaign[0], folder, settle_seconds=0)
        assert oracle.request("round_01", query, {}, propose(campaign[0])) == query
        assert _tree(folder) == _tree(tmp_path / "whole_run")


def test_a_kill_at_any_write_of_an_import_loses_and_doubles_nothing(
    campaign: tuple[Task, Path], tmp_path: Path
) -> None:
    query = whole(HIDDEN[:2])

    def start(folder: Path) -> PersonOracle:
        oracle = PersonOracle(campaign[0], folder, settle_seconds=0)
        oracle.request("round_01", query, {}, propose(campaign[0]))
        hand_in(campaign, oracle, *HIDDEN[:2])
        return oracle

    def take_in(oracle: PersonOracle) -> Answer:
        answer = oracle.annotate(query)
        oracle.labels_for_round(2, HIDDEN[:2])
        return answer

    oracle = start(tmp_path / "whole_run")
    with pytest.MonkeyPatch.context() as patch:
        renamed = kill_at(patch, 99)
        take_in(oracle)
    a_label = ["01.nii.gz", "history.csv"]
    assert renamed == [*a_label, *a_label, "request.csv", "summary.csv", "used.csv"]
    expected = _without_time(history(oracle))
    for number in range(len(renamed)):
        folder = tmp_path / f"run_{number}"
        oracle = start(folder)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number)
            with pytest.raises(Killed):
                take_in(oracle)
        oracle = PersonOracle(campaign[0], folder, settle_seconds=0)
        answer = take_in(oracle)
        assert answer.pending == ()
        assert _without_time(history(oracle)) == expected
        assert _tree(folder) == _tree(tmp_path / "whole_run")
        for unit, path in answer.labels.items():
            assert checksum_of(path) == checksum_of(campaign[1] / f"{unit.case_id}.nii.gz")


def _tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: v for name, v in row.items() if name not in ("time", "minutes", "annotator")}
            for row in rows]  # fmt: skip


def test_damaged_tables_are_named(campaign: tuple[Task, Path], oracle: PersonOracle) -> None:
    query = whole(HIDDEN[:1])
    oracle.request("round_01", query, {})
    hand_in(campaign, oracle, HIDDEN[0])
    oracle.annotate(query)
    path = oracle.folder / "annotations" / "history.csv"
    good = path.read_text()
    path.write_text(good.replace("case_01,1,", "case_01,one,"))
    with pytest.raises(DataError, match=r"history\.csv: the row of case_01 is damaged"):
        oracle.annotate(query)
    path.write_text("something else\n")
    with pytest.raises(DataError, match=r"history\.csv has the columns \['something else'\]"):
        oracle.annotate(query)
    for minutes in ("nan", "-5", "inf", "some"):
        row = good.splitlines()[1].split(",")
        row[5] = minutes
        path.write_text("\n".join([good.splitlines()[0], ",".join(row), ""]))
        with pytest.raises(DataError, match=r"history\.csv: the row of case_01 is damaged"):
            oracle.annotate(query)
    path.write_text(good)
    oracle.labels_for_round(1, HIDDEN[:1])
    used = oracle.folder / "annotations" / "used.csv"
    for row, message in (
        ("1,case_01,9", "names version 9 of case_01, which history.csv beside it does not have"),
        ("1,case_01,x", "is damaged: a round or a version in it is no number"),
        ("one,case_01,1", "is damaged: a round or a version in it is no number"),
        ("1,case_01", "is damaged: a round or a version in it is no number"),
    ):
        used.write_text(f"round,case,version\n{row}\n")
        with pytest.raises(DataError, match=rf"used\.csv {message}"):
            oracle.labels_for_round(1, HIDDEN[:1])
    used.unlink()
    request = oracle.folder / "requests" / "round_01" / "request.json"
    request.write_text(request.read_text().replace("case_01", "case_02"))
    with pytest.raises(DataError, match=r"request\.json is damaged"):
        oracle.annotate(query)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("accept", "most", "oracle.accept is 'most'; allowed are all, any"),
        ("wait", "yes", "oracle.wait is 'yes'; it must be true or false"),
        ("accept_unrequested", 1, "oracle.accept_unrequested is 1"),
        ("annotator", 3, "oracle.annotator is 3; it must be text"),
        ("poll_seconds", -1, "oracle.poll_seconds is -1; it must be a number of at least 0"),
        ("settle_seconds", float("inf"), "oracle.settle_seconds is inf"),
    ],
)
def test_settings_out_of_range_are_named(
    campaign: tuple[Task, Path], tmp_path: Path, setting: str, value: object, message: str
) -> None:
    settings: dict[str, Any] = {setting: value}
    with pytest.raises(ConfigError, match=message):
        PersonOracle(campaign[0], tmp_path, **settings)


def test_no_person_knows_hidden_labels(oracle: PersonOracle) -> None:
    with pytest.raises(ConfigError, match="works in a simulation only"):
        oracle.peek(HIDDEN)


def test_the_check_knows_nothing_of_folders(campaign: tuple[Task, Path], tmp_path: Path) -> None:
    task, labels = campaign
    path = tmp_path / "from_a_browser.nii.gz"
    shutil.copyfile(labels / "case_01.nii.gz", path)
    checked = check_annotation(task, "case_01", path)
    assert np.array_equal(checked.classes, label_of(1))
    assert (checked.is_exact, checked.note, checked.proposal_dice) == (True, "", None)
    with pytest.raises(ConfirmationNeededError, match="without any change"):
        check_annotation(task, "case_01", path, labels / "case_01.nii.gz")
    checked = check_annotation(task, "case_01", path, labels / "case_01.nii.gz", confirmed=True)
    assert checked.proposal_dice == 1


def test_mean_dice_by_hand() -> None:
    label = np.array([0, 1, 1, 2])
    assert mean_dice(label, np.array([0, 1, 0, 3]), 4) == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert mean_dice(label, label, 4) == 1
    assert mean_dice(label * 0, label * 0, 4) is None
    assert mean_dice(np.array([0, 1, 1, IGNORED]), np.array([0, 1, 1, 1]), 4) == 1
