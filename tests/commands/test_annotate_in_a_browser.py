"""A campaign in the browser, as people do it: with a mouse, in headless Chromium."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from alseg.annotation_page.server import start
from tests.annotation_page.campaign import ASKED, GRIDS, Campaign, lay_out_campaign

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


def until(condition: Callable[[], Any], what: str, seconds: float = 300.0) -> Any:
    """What the condition gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


class Page:
    """A tab with the page in it, and what a person does there."""

    def __init__(self, browser: Any, address: str, annotator: str) -> None:
        from selenium.webdriver import ActionChains

        self.browser, self.actions = browser, ActionChains
        browser.switch_to.new_window("tab")
        self.tab = browser.current_window_handle
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False},
        )
        browser.get(address)
        until(lambda: self.find("#name-dialog[open]"), "the question for a name")
        field = self.find("#name")[0]
        field.clear()
        field.send_keys(annotator)
        self.press("#name-dialog .primary")

    def find(self, selector: str) -> list[Any]:
        self.browser.switch_to.window(self.tab)
        found: list[Any] = self.browser.find_elements("css selector", selector)
        return found

    def fresh(self, act: Callable[[], Any]) -> Any:
        """What comes of an act, again if the page renews its elements meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException

        def results() -> list[Any]:
            try:
                return [act()]
            except (StaleElementReferenceException, IndexError):  # such as the list of cases
                return []

        return until(results, "elements that stay")[0]

    def press(self, selector: str) -> None:
        self.fresh(lambda: self.find(selector)[0].click())

    def text(self, selector: str) -> str:
        text: str = self.fresh(lambda: " ".join(found.text for found in self.find(selector)))
        return text

    def run(self, script: str) -> Any:
        self.browser.switch_to.window(self.tab)
        return self.browser.execute_script(script)

    def wait_for(self, case_id: str) -> None:
        until(
            lambda: self.run("return document.body.dataset.open") == case_id,
            f"{case_id}; the page says {self.text('#message')} {self.text('#cover')}",
        )

    def key(self, keys: str) -> None:
        self.find("#canvas")
        self.actions(self.browser).send_keys(keys).perform()

    def stroke(self, *points: tuple[int, int]) -> None:
        """Drag the mouse from one point to the next; they are relative to the middle."""
        canvas = self.find("#canvas")[0]
        actions = self.actions(self.browser, duration=20)
        actions.move_to_element_with_offset(canvas, *points[0]).click_and_hold()
        for (x, y), (to_x, to_y) in pairwise(points):
            actions.move_by_offset(to_x - x, to_y - y)
        actions.release().perform()

    def drawing(self) -> np.ndarray:
        """What is drawn, in the order of axes of the page."""
        dims = self.run("return [...viewer.nv.back.dims].slice(1, 4)")
        coded = self.run(
            "let t = ''; for (const v of viewer.nv.drawBitmap) t += String.fromCharCode(v);"
            "return btoa(t)"
        )
        return np.frombuffer(base64.b64decode(coded), np.uint8).reshape(dims, order="F")

    def drawn_grey_values(self) -> dict[int, set[float]]:
        """The grey values that the viewer shows at the voxels of each class."""
        found: dict[str, list[float]] = self.run(
            "const nv = viewer.nv, [, nx, ny, nz] = nv.back.dims, found = {}; let i = 0;"
            "for (let z = 0; z < nz; z++) for (let y = 0; y < ny; y++)"
            " for (let x = 0; x < nx; x++, i++) { const v = nv.drawBitmap[i];"
            " if (v) (found[v] ??= []).push(nv.back.getValue(x, y, z)); } return found"
        )
        return {int(value): set(greys) for value, greys in found.items()}

    def wait_until_saved(self) -> None:
        until(lambda: "draft saved" in self.text("#saved"), "the draft to be saved")

    def submit(self) -> None:
        self.press("#submit")
        until(lambda: self.find("#submit-dialog[open]"), "the question whether to submit")
        self.press("#submit-ok")


def errors(browser: Any) -> list[str]:
    """What the console holds against the page, such as a violated policy; no refusals."""
    log = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in log if "Failed to load resource" not in message]


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


@contextmanager
def served(campaign: Campaign) -> Iterator[str]:
    address, server = start(campaign.desk, 8765)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_two_annotators_never_get_or_overwrite_the_same_case(
    browser: Any, campaign: Campaign
) -> None:
    with served(campaign) as address:
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


def test_a_server_that_is_killed_loses_no_stroke(browser: Any, campaign: Campaign) -> None:
    with served(campaign) as address:
        page = Page(browser, address, "Ada")
        page.wait_for(ASKED[0])
    page.stroke((-200, 150), (-150, 170))
    until(lambda: "The server does not answer" in page.text("#message"), "the message")
    drawing = page.drawing()
    with served(campaign) as again:
        assert again == address
        page.wait_until_saved()
        assert page.text("#message") == ""
        draft = nibabel.load(campaign.folder / "drafts" / f"{ASKED[0]}.nii.gz")
        found = nibabel.as_closest_canonical(draft)
        assert np.array_equal(np.asarray(found.dataobj), drawing)
        page.run("location.reload()")
        page.wait_for(ASKED[0])  # the own draft comes first
        assert np.array_equal(page.drawing(), drawing)
