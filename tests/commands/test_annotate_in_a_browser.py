"""A campaign in the browser, as people do it: with a mouse, in headless Chromium."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from alseg.annotation_page.desk import Desk
from alseg.core.units import whole
from alseg.data.formats.msd import read_msd
from alseg.data.formats.nnunet import read_nnunet
from alseg.data.task import Task
from alseg.oracles.person import PersonOracle
from tests.annotation_page.campaign import ASKED, GRIDS, Campaign, lay_out_campaign
from tests.annotation_page.in_a_browser import Page, errors, served, until
from tests.conftest import write_msd
from tests.data import nnunet_with_ignore
from tests.oracles.unlabelled import move_labels_away

SHAPE = (20, 18, 16)
SEEN = ["left-handed", "oblique", "anisotropic", "permuted, oblique, left-handed", "plain"]
RUN = (
    "data=folder",
    "data.classes=[ball,core]",
    "model=unet_tiny",
    "uncertainty=mc_dropout_2",
    "data.preprocess=[]",
    "data.patch_size=[16,16,16]",
    "data.batch_size=2",
    "data.num_workers=0",
    "data.inferer.roi_size=[16,16,16]",
    "oracle=person",
    "oracle.wait=true",
    "oracle.poll_seconds=0.2",
    "oracle.settle_seconds=0.2",
    "pool.initial=4",
    "pool.query_size=1",
    "pool.rounds=2",
    "steps_per_round=2",
    "val_interval=2",
    "pictures=0",
    "trainer=cpu",
    "tracking=none",
)


@contextmanager
def process(*arguments: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that runs beside the test; ended with the block."""
    log = (folder / f"{arguments[0]}.log").open("w", encoding="utf-8")
    running = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=log, stderr=subprocess.STDOUT, cwd=folder, encoding="utf-8",
    )  # fmt: skip
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
        running.wait(timeout=120)
        log.close()


def write_scans(folder: Path) -> Path:
    """Scans on awkward grids whose voxels all have different grey values."""
    folder.mkdir()
    for number, name in enumerate(SEEN):
        greys = np.random.default_rng(number).permutation(np.prod(SHAPE)).reshape(SHAPE)
        image = nibabel.Nifti1Image(greys.astype(np.int16), GRIDS[name])
        nibabel.save(image, folder / f"scan_{number}.nii.gz")
    return folder


def annotate_with_the_mouse(page: Page) -> None:
    """Draw, take back, switch the class, erase: in the axial plane, around the middle."""
    page.key("b1[[[")  # a pen of one voxel for the first class
    page.stroke((-60, -60), (60, -60))
    assert set(page.drawn_grey_values()) == {1}
    page.key("z")
    assert page.drawn_grey_values() == {}
    page.key("2")
    page.stroke((0, 0), (160, 90))
    page.press("[data-value='1']")
    page.press("[data-tool='fill']")
    page.stroke((-120, -120), (-60, -120), (-60, -40), (-120, -40), (-120, -115))
    n_before = len(page.drawn_grey_values()[2])
    page.key("e]")  # of three voxels
    page.stroke((160, 90), (110, 62), (60, 34))
    assert 0 < len(page.drawn_grey_values()[2]) < n_before
    page.wait_until_saved()


def check_label(
    label: Path, image: Path, drawing: np.ndarray, greys: dict[int, set[float]]
) -> None:
    """The label on disk is what the page showed: by index, and by what lies beneath it."""
    found, scan = nibabel.load(label), nibabel.load(image)
    assert np.array_equal(found.affine, scan.affine)
    assert np.array_equal(np.asarray(nibabel.as_closest_canonical(found).dataobj), drawing)
    classes, voxels = np.asarray(found.dataobj), np.asarray(scan.dataobj)
    assert {v: set(voxels[classes == v].tolist()) for v in (1, 2)} == greys


def test_a_campaign_is_annotated_in_the_browser_and_the_run_goes_on(
    browser: Any, tmp_path: Path
) -> None:
    scans, run = write_scans(tmp_path / "scans"), tmp_path / "campaign"
    settings = (*RUN, f"data.root={scans}", f"cache_dir={tmp_path}/cache", f"hydra.run.dir={run}")
    with ExitStack() as stack:
        training = stack.enter_context(process("alseg.train", *settings, folder=tmp_path))
        log = tmp_path / "alseg.train.log"
        until(lambda: (run / "requests/initial/request.json").exists(), "the first request")
        stack.enter_context(
            process("alseg.annotate", str(run), "open_browser=false", folder=tmp_path)
        )
        said = tmp_path / "alseg.annotate.log"
        until(lambda: "http" in said.read_text(encoding="utf-8"), "the address")
        address = said.read_text(encoding="utf-8").split(" at ")[1].split()[0]
        page = Page(browser, address, "Ada <i>L</i>")
        asked = pd.read_csv(run / "requests/initial/request.csv")["case"].tolist()
        page.wait_for(asked[0])
        assert page.text("#cases .case") == " ".join(asked)
        page.run("document.getElementById('view').value = '0'")
        page.run("document.getElementById('view').dispatchEvent(new Event('change'))")
        drawings = {}
        for case_id in asked:
            page.wait_for(case_id)
            annotate_with_the_mouse(page)
            drawings[case_id] = page.drawing(), page.drawn_grey_values()
            page.submit()
        labels = run / "requests/initial/labels/final"
        until(lambda: len(list(labels.glob("*.nii.gz"))) == len(asked), "the last label")
        for case_id in asked:
            check_label(
                labels / f"{case_id}.nii.gz", scans / f"{case_id}.nii.gz", *drawings[case_id]
            )
        (left,) = {f"scan_{n}" for n in range(len(SEEN))} - set(asked)
        page.wait_for(left)  # the run has trained, and asks for the next one
        assert "begins with the proposal" in page.text("#saved")
        page.submit()
        until(lambda: "without any change" in page.text("#submit-note"), "a second question")
        page.press("#submit-ok")
        until(lambda: training.poll() is not None, "the end of the run")
        assert training.returncode == 0, log.read_text(encoding="utf-8")
        until(lambda: "All is annotated" in page.text("#cover"), "the end of the work")
    history = pd.read_csv(run / "annotations/history.csv")
    assert sorted(history["case"]) == [f"scan_{n}" for n in range(len(SEEN))]
    assert set(history["annotator"]) == {"Ada <i>L</i>"}
    assert (history["minutes"] > 0).any()
    assert errors(browser) == []


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return lay_out_campaign(tmp_path)


def test_two_annotators_never_get_or_overwrite_the_same_case(
    browser: Any, campaign: Campaign
) -> None:
    with served(campaign.desk) as address:
        ada = Page(browser, address, "Ada")
        ada.wait_for(ASKED[0])
        ben = Page(browser, address, "Ben")
        ben.wait_for(ASKED[1])
        ben.press(f"[data-case='{ASKED[0]}']")
        until(lambda: f"Ada works on {ASKED[0]}" in ben.text("#message"), "the refusal")
        assert ben.run("return document.body.dataset.open") == ASKED[1]
        drawings = {}
        for page, case_id in ((ada, ASKED[0]), (ben, ASKED[1])):
            page.stroke((-200, 150), (-150, 170))
            page.wait_until_saved()
            drawings[case_id] = page.drawing()
        # one after the other: who submits first gets the next case, and browsers delay hidden tabs
        for page, next_case in ((ada, ASKED[2]), (ben, ASKED[3])):
            page.submit()
            page.wait_for(next_case)
        for case_id, drawing in drawings.items():
            found = nibabel.as_closest_canonical(campaign.label(case_id))
            assert np.array_equal(np.asarray(found.dataobj), drawing)
        rows = pd.read_csv(campaign.folder / "labels/final/answers.csv")
        assert rows[["case", "annotator"]].to_numpy().tolist() == [
            [ASKED[0], "Ada"],
            [ASKED[1], "Ben"],
        ]
        again = Page(browser, address, "Ada")  # a second page of the one who holds what is left
        until(lambda: "left are open on other pages" in again.text("#cover"), "the words")


def test_a_page_whose_case_another_one_has_taken_over_says_so_and_submits_nothing(
    browser: Any, campaign: Campaign
) -> None:
    with served(campaign.desk) as address:
        first = Page(browser, address, "Ada")
        first.wait_for(ASKED[0])
        second = Page(browser, address, "Ada")
        second.wait_for(ASKED[1])
        second.press(f"[data-case='{ASKED[0]}']")
        browser.switch_to.alert.accept()
        second.wait_for(ASKED[0])
        words = f"{ASKED[0]} has been opened on another page of yours, and continues there."
        until(lambda: first.text("#cover-text") == words, "the words")
        assert not first.find("#submit")[0].is_enabled()
        first.press("#cover-button")
        first.wait_for(ASKED[1])  # which the second one has given back
        assert first.find("#submit")[0].is_enabled()


def test_a_drawing_is_cleared_and_brought_back_and_slices_are_numbered(
    browser: Any, campaign: Campaign
) -> None:
    with served(campaign.desk) as address:
        page = Page(browser, address, "Ada")
        page.wait_for(ASKED[0])
        proposal = page.drawing()
        assert proposal.any()
        page.press("#clear")
        assert not page.drawing().any()
        page.wait_until_saved()
        draft = campaign.folder / "drafts" / f"{ASKED[0]}.nii.gz"
        assert not np.asarray(nibabel.load(draft).dataobj).any()
        page.press("#undo")
        assert np.array_equal(page.drawing(), proposal)
        assert re.fullmatch(
            r"axial \d / 5 · coronal \d / 7 · sagittal \d / 9", page.text("#slice")
        ), page.text("#slice")
        page.key("v")
        before = page.text("#slice")
        page.key("\ue013")  # the arrow up
        name, number, _, n_slices = before.split()
        assert page.text("#slice") == f"{name} {int(number) + 1} / {n_slices}"


FAST = """
const real = performance.now.bind(performance);
globalThis.ahead = 0;
performance.now = () => real() + globalThis.ahead;
setInterval(() => { globalThis.ahead += 6000; }, 400);
"""


def test_minutes_are_counted_while_somebody_is_there(browser: Any, campaign: Campaign) -> None:
    with served(campaign.desk) as address:
        page = Page(browser, address, "Ada")
        page.wait_for(ASKED[0])
        page.run(FAST)
        counted = page.text("#clock")
        until(lambda: page.text("#clock") != counted, "a running clock")
        page.run("globalThis.ahead += 10 * 60 * 1000")  # without mouse or key
        time.sleep(1.5)  # what was under way is counted
        counted = page.text("#clock")
        time.sleep(3)
        assert page.text("#clock") == counted
        page.stroke((-200, 150), (-150, 170))
        until(lambda: page.text("#clock") != counted, "a running clock")


def test_a_server_that_is_killed_loses_no_stroke(browser: Any, campaign: Campaign) -> None:
    with served(campaign.desk) as address:
        page = Page(browser, address, "Ada")
        page.wait_for(ASKED[0])
    page.stroke((-200, 150), (-150, 170))
    until(lambda: "The server does not answer" in page.text("#message"), "the message")
    drawing = page.drawing()
    with served(campaign.desk) as again:
        assert again == address
        page.wait_until_saved()
        assert page.text("#message") == ""
        draft = nibabel.load(campaign.folder / "drafts" / f"{ASKED[0]}.nii.gz")
        found = nibabel.as_closest_canonical(draft)
        assert np.array_equal(np.asarray(found.dataobj), drawing)
        page.run("location.reload()")
        page.wait_for(ASKED[0])  # the own draft comes first
        assert np.array_equal(page.drawing(), drawing)


def asked_campaign(folder: Path, task: Task, case_ids: Iterable[str]) -> Campaign:
    """Cases without a label are asked for, without proposals."""
    oracle = PersonOracle(task, folder / "run", settle_seconds=0)
    oracle.request("initial", whole(case_ids), {})
    return Campaign(task, oracle, Desk(task, oracle.folder, claim_minutes=30), "initial")


def test_a_page_on_which_nothing_was_drawn_sees_that_the_server_is_back(
    browser: Any, campaign: Campaign
) -> None:
    with served(campaign.desk) as address:
        page = Page(browser, address, "Ada")
        page.wait_for(ASKED[0])
    until(lambda: page.text("#saved") == "the server does not answer", "the words")
    with served(campaign.desk) as again:
        assert again == address
        until(lambda: page.text("#saved") == "", "the words to go")
        assert page.find("#saved.unsaved") == []


def test_a_drag_with_the_right_button_sets_the_grey_values_and_draws_nothing(
    browser: Any, campaign: Campaign
) -> None:
    with served(campaign.desk) as address:
        page = Page(browser, address, "Ada")
        page.wait_for(ASKED[0])
        page.run("document.getElementById('view').value = '0'")
        page.run("document.getElementById('view').dispatchEvent(new Event('change'))")
        window, drawing = page.run("return viewer.window()"), page.drawing()
        page.drag_right((0, 0), (60, 80))
        until(lambda: page.run("return viewer.window()") != window, "other grey values")
        low, high = page.run("return viewer.window()")
        width, middle = window[1] - window[0], sum(window) / 2
        assert high - low == pytest.approx(width * 2 ** (60 / 150), rel=1e-3)  # wider, and lower
        assert (high + low) / 2 == pytest.approx(middle - width * 80 / 150, rel=1e-3)
        shown = [page.run(f"return document.getElementById('{i}').value") for i in ("low", "high")]
        assert [float(text) for text in shown] == pytest.approx([low, high], rel=1e-3)
        assert np.array_equal(page.drawing(), drawing)
        assert "not saved" not in page.text("#saved")
        page.stroke((-60, -60), (60, -60))  # the left button draws as before
        page.wait_until_saved()
        assert page.run("return viewer.window()") == [low, high]
        assert not np.array_equal(page.drawing(), drawing)
    assert errors(browser) == []


def test_all_channels_are_shown_beneath_the_same_drawing(browser: Any, tmp_path: Path) -> None:
    images = [
        np.stack([np.full(SHAPE, 10 + i), np.arange(np.prod(SHAPE)).reshape(SHAPE)], -1)
        for i in range(3)
    ]
    root = write_msd(
        tmp_path / "data",
        [image.astype(np.int16) for image in images],
        [np.zeros(SHAPE, np.uint8)] * 3,
        affines=[GRIDS["plain"], GRIDS["oblique"], GRIDS["left-handed"]],
        channels=("T1", "<b>FLAIR</b>"),
    )
    hidden = ["case_01", "case_02"]
    copy, _ = move_labels_away(root, tmp_path / "campaign", hidden)
    campaign = asked_campaign(tmp_path, read_msd(copy), hidden)
    with served(campaign.desk) as address:
        page = Page(browser, address, "Ada")
        page.wait_for("case_01")
        assert page.run("return viewer.nv.back.img[5]") == 11
        assert page.text("#channel").split() == ["T1", "<b>FLAIR</b>"]
        page.key("b1[[[")
        page.stroke((-60, -60), (60, -60))
        drawing = page.drawing()
        assert drawing.any()
        page.run("document.getElementById('channel').value = '1'")
        page.run("document.getElementById('channel').dispatchEvent(new Event('change'))")
        until(lambda: page.run("return viewer.nv.back.img[5]") != 11, "the other channel")
        assert np.array_equal(page.drawing(), drawing)
        low, high = page.run("return viewer.window()")
        assert 0 <= low < high <= np.prod(SHAPE)
        greys = page.drawn_grey_values()[1]  # of the channel that is shown
        page.wait_until_saved()
        page.submit()
        page.wait_for("case_02")
        assert page.run("return document.getElementById('channel').value") == "0"
        assert page.run("return viewer.nv.back.img[5]") == 12
    classes = np.asarray(campaign.label("case_01").dataobj)
    assert set(images[1][classes == 1][:, 1].tolist()) == greys
    assert errors(browser) == []


def test_voxels_can_be_marked_as_not_annotated(browser: Any, tmp_path: Path) -> None:
    root = nnunet_with_ignore.write(tmp_path / "data", n_cases=1)
    (root / "labelsTr/case_000.nii.gz").unlink()
    campaign = asked_campaign(tmp_path, read_nnunet(root), ["case_000"])
    with served(campaign.desk) as address:
        page = Page(browser, address, "Ada")
        page.wait_for("case_000")
        assert "ignore (not annotated)" in page.text("#palette")
        page.key("b1")
        page.stroke((-200, -100), (-150, -100))
        page.key("3")
        page.stroke((-200, -150), (-150, -150))
        page.wait_until_saved()
        drawing = page.drawing()
        assert set(np.unique(drawing)) == {0, 1, 3}
        page.run("location.reload()")
        page.wait_for("case_000")
        assert np.array_equal(page.drawing(), drawing)
        page.submit()
        until(lambda: "All is annotated" in page.text("#cover"), "the end of the work")
        assert len(page.find("#submit:disabled, #undo:disabled")) == 2
    found = nibabel.as_closest_canonical(campaign.label("case_000"))
    assert np.array_equal(np.asarray(found.dataobj), drawing)
    answer = campaign.oracle.annotate(campaign.query)
    assert not answer.pending
    assert errors(browser) == []
