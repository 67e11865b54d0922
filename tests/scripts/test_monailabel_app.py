"""The MONAI Label app over a campaign: its logic, and the real server where there is one.

The server is the first ``monailabel`` on the PATH; docs/other_tools.md says how to get one.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests

from alseg.system.files import checksum_of
from tests.annotation_page.campaign import (
    ASKED,
    CASES,
    SHAPE,
    Campaign,
    drawn,
    lay_out_campaign,
    proposed,
)

APP = Path(__file__).parents[2] / "scripts" / "monailabel_app"
sys.path.insert(0, str(APP))
from request_folder import RequestError, RequestFolder  # noqa: E402


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return lay_out_campaign(tmp_path)


def label_file(campaign: Campaign, case_id: str, classes: np.ndarray, name: str) -> Path:
    """A label on the grid of its image, outside of the request."""
    path = campaign.task.root.parent / name
    affine = nibabel.load(campaign.task.cases[case_id].images[0]).affine
    nibabel.save(nibabel.Nifti1Image(classes.astype(np.uint8), affine), path)
    return path


def test_samples_come_in_the_order_of_the_request_until_all_is_labelled(
    campaign: Campaign,
) -> None:
    request = RequestFolder.at(campaign.oracle.folder)
    assert list(request.images) == ASKED
    assert request.folder == campaign.folder
    for case_id in ASKED:
        assert request.next_case() == case_id
        request.save_label(case_id, label_file(campaign, case_id, drawn(1), "a.nii.gz"))
    assert request.next_case() is None
    assert request.labelled() == ASKED


def test_a_sample_that_somebody_else_works_on_is_left_out(campaign: Campaign) -> None:
    request = RequestFolder.at(campaign.folder)
    assert request.next_case(held=ASKED[:2]) == ASKED[2]
    assert request.next_case(held=ASKED) is None


def test_the_proposal_is_the_one_that_the_run_has_stored(campaign: Campaign) -> None:
    path = RequestFolder.at(campaign.oracle.folder).proposal(CASES[2])
    assert path is not None
    assert np.array_equal(np.asarray(nibabel.load(path).dataobj), proposed(2))
    path.unlink()
    assert RequestFolder.at(campaign.oracle.folder).proposal(CASES[2]) is None


def test_a_saved_label_is_taken_in_and_the_next_request_is_served(campaign: Campaign) -> None:
    request = RequestFolder.at(campaign.oracle.folder)
    for number, case_id in enumerate(ASKED):
        saved = label_file(campaign, case_id, drawn(number), "tmpx1.nii.gz")
        assert checksum_of(request.save_label(case_id, saved)) == checksum_of(saved)
    answer = campaign.oracle.annotate(campaign.query)
    assert answer.pending == ()
    for number, unit in enumerate(campaign.query):
        kept = np.asarray(nibabel.load(answer.labels[unit]).dataobj)
        assert np.array_equal(kept, drawn(number))
    next_one = campaign.oracle.folder / "requests" / "round_02"
    shutil.copytree(campaign.folder, next_one, symlinks=True)
    assert RequestFolder.at(campaign.oracle.folder).folder == next_one


def test_a_label_that_the_run_has_refused_is_asked_for_until_it_is_saved_anew(
    campaign: Campaign,
) -> None:
    request = RequestFolder.at(campaign.oracle.folder)
    empty = label_file(campaign, ASKED[0], np.zeros(SHAPE), "empty.nii.gz")
    for _ in range(2):  # the second time, nothing changes in request.csv
        request.save_label(ASKED[0], empty)
        assert request.next_case() == ASKED[1]
        time.sleep(0.02)
        campaign.oracle.annotate(campaign.query)
        assert request.next_case() == ASKED[0]
        time.sleep(0.02)
    request.save_label(ASKED[0], label_file(campaign, ASKED[0], drawn(1), "a.nii.gz"))
    assert request.next_case() == ASKED[1]


def test_another_label_of_a_case_replaces_the_first_one_whatever_its_ending(
    campaign: Campaign,
) -> None:
    request = RequestFolder.at(campaign.oracle.folder)
    for ending in (".nii.gz", ".nii", ".nii.gz"):
        saved = label_file(campaign, ASKED[0], drawn(1), f"a{ending}")
        assert request.save_label(ASKED[0], saved).name == f"{ASKED[0]}{ending}"
        assert [p.name for p in request.folder.glob("labels/final/*")] == [f"{ASKED[0]}{ending}"]


def test_segments_are_known_by_their_names_not_by_their_order(campaign: Campaign) -> None:
    at = RequestFolder.at(campaign.oracle.folder)
    request = RequestFolder(at.folder, at.images, {"liver": 1, "tumour": 2, "ignored: left out": 7})
    segments = np.random.default_rng(0).integers(0, 3, SHAPE)
    saved = label_file(campaign, ASKED[1], segments, "a.nii.gz")
    path = request.save_label(ASKED[1], saved, ["ignored: left out", "liver"])
    label, image = nibabel.load(path), nibabel.load(saved)
    assert np.array_equal(np.asarray(label.dataobj), np.array([0, 7, 1])[segments])
    assert np.array_equal(label.affine, image.affine)
    for code in ("qform_code", "sform_code"):
        assert label.header[code] == image.header[code]
    path = request.save_label(ASKED[1], saved, ["liver", "tumour"])
    assert checksum_of(path) == checksum_of(saved)


def test_who_made_a_label_is_said_and_the_minutes_that_are_there_stay(campaign: Campaign) -> None:
    request = RequestFolder.at(campaign.oracle.folder)
    saved = label_file(campaign, ASKED[0], drawn(1), "a.nii.gz")
    table = campaign.folder / "labels/final/answers.csv"
    request.save_label(ASKED[0], saved)
    assert not table.exists()
    table.write_text(f"case,annotator,minutes\n{ASKED[0]},Ada,4.5\n{ASKED[1]},Ada,2\n")
    request.save_label(ASKED[0], saved, annotator="Grace, M.D.\n")
    request.save_label(ASKED[2], saved, annotator="Ada")
    campaign.oracle.annotate(campaign.query)
    history = campaign.oracle.intake.annotations.newest()
    assert (history[ASKED[0]].annotator, history[ASKED[0]].minutes) == ("Grace, M.D.", 4.5)
    assert table.read_text().splitlines()[2:] == [f"{ASKED[1]},Ada,2", f"{ASKED[2]},Ada,"]
    table.write_text("case;minutes\n")
    request.save_label(ASKED[0], saved, annotator="Ada")
    assert table.read_text() == "case;minutes\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is neither a run folder nor a request folder that is complete"),
        ("{", "cannot be read"),
        (
            '{"units": [{"case_id": "a", "images": ["../../a.nii.gz"]}], "classes": {}}',
            "not the name",
        ),
        ('{"units": [{"case_id": "../a", "images": ["a.nii.gz"]}], "classes": {}}', "not the name"),
        ('{"units": [{"case_id": "a", "images": []}], "classes": {}}', "cannot be read"),
    ],
)
def test_a_folder_that_is_no_request_is_refused(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "request.json").write_text(content)
    with pytest.raises(RequestError, match=reason):
        RequestFolder.at(tmp_path)


@pytest.mark.parametrize(
    ("case_id", "name", "segments", "reason"),
    [
        ("case_00", "a.nii.gz", [], "does not ask for a volume case_00"),
        ("../case_01", "a.nii.gz", [], "does not ask for a volume ../case_01"),
        ("case_01", "a.seg.nrrd", [], "set the file extension of MONAI Label to .nii.gz"),
        ("case_01", "a.png", [], "this one is a.png"),
        ("case_01", "a.nii.gz", ["Segment_1"], "the segment Segment_1 is no class"),
        ("case_01", "a.nii.gz", ["b2"], "a.nii.gz holds other values than its 1 segments"),
        ("case_01", "a.nrrd", ["b2"], "alseg renumbers them in NIfTI files only"),
    ],
)
def test_what_cannot_be_a_label_is_refused_in_a_sentence(
    campaign: Campaign, case_id: str, name: str, segments: list[str], reason: str
) -> None:
    at = RequestFolder.at(campaign.oracle.folder)
    request = RequestFolder(at.folder, at.images, {"blob": 1, "b2": 2})
    saved = label_file(campaign, "case_01", drawn(1, 3), "a.nii.gz")
    other = saved.with_name(name)
    if other != saved:
        saved.rename(other)
    with pytest.raises(RequestError, match=reason):
        request.save_label(case_id, other, segments)
    assert not list(campaign.folder.glob("labels/final/*"))


@contextmanager
def server(campaign: Campaign, folder: Path) -> Iterator[str]:
    """The address of the real server over a campaign."""
    command = shutil.which("monailabel")
    if command is None:
        pytest.skip("no monailabel on the PATH: it wants an environment of its own")
    app = shutil.copytree(APP, folder / "app")  # it makes folders and logs in there
    path = f"{Path(command).parent}:{os.environ['PATH']}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [command, "start_server", f"--app={app}", f"--studies={campaign.oracle.folder}",
         "--host=127.0.0.1", f"--port={port}"],
        env={**os.environ, "PATH": path, "PYTHONPATH": ""},
        cwd=folder,
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        until_it_answers(address, process, folder / "log")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            requests.get(f"{address}/info/", timeout=10)
            return
        except requests.ConnectionError:
            gave_up = process.poll() is not None or time.monotonic() > deadline
            assert not gave_up, log.read_text(encoding="utf-8")
            time.sleep(0.5)


def test_the_real_server_gives_samples_and_proposals_and_takes_labels(
    campaign: Campaign, tmp_path: Path
) -> None:
    with server(campaign, tmp_path) as address:

        def post(path: str, **data: Any) -> Any:
            return requests.post(f"{address}{path}", json=data, timeout=60).json()

        def save(case_id: str, classes: np.ndarray, **query: str) -> requests.Response:
            path = label_file(campaign, case_id, classes, "tmpx1.nii.gz")
            with path.open("rb") as file:
                return requests.put(
                    f"{address}/datastore/label", params={"image": case_id, **query},
                    files={"label": (path.name, file)}, timeout=60,
                )  # fmt: skip

        info = requests.get(f"{address}/info/", timeout=60).json()
        assert info["labels"] == ["blob"]
        assert list(info["models"]) == ["proposal"]
        assert list(info["strategies"]) == ["alseg"]
        assert info["datastore"] == {"total": 4, "completed": 0}
        first = post("/activelearning/alseg", client_id="Ada")
        assert first["id"] == ASKED[0]
        assert Path(first["path"]) == campaign.folder / f"{ASKED[0]}.nii.gz"
        assert post("/activelearning/alseg", client_id="Grace")["id"] == ASKED[1]
        assert post("/activelearning/alseg", client_id="Ada")["id"] == ASKED[0]
        proposal = campaign.folder / f"labels/original/{ASKED[0]}.nii.gz"
        for _ in range(2):  # the server deletes what it sends
            sent = requests.post(
                f"{address}/infer/proposal",
                params={"image": ASKED[0], "output": "image"},
                timeout=60,
            )
            assert sent.content == proposal.read_bytes()
        assert save(CASES[0], drawn(0)).status_code == 400
        assert "does not ask for a volume" in save(CASES[0], drawn(0)).json()["detail"]
        assert save(ASKED[0], drawn(0), tag="original").status_code == 400
        for number, case_id in enumerate(ASKED):
            assert save(case_id, drawn(number)).json() == {"image": case_id, "label": case_id}
        assert post("/activelearning/alseg", client_id="Ada") == {}
    answer = campaign.oracle.annotate(campaign.query)
    assert answer.pending == ()
    for number, unit in enumerate(campaign.query):
        kept = np.asarray(nibabel.load(answer.labels[unit]).dataobj)
        assert np.array_equal(kept, drawn(number))
