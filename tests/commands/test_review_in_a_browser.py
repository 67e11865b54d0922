"""A review in the browser, as people do it: with mouse and keys, in headless Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from alseg.annotation_page.command import review_desk_of
from alseg.annotation_page.grid import Grid
from alseg.annotation_page.review_desk import ReviewDesk
from alseg.core.pool import Pool
from alseg.core.units import Unit
from alseg.data.volumes import read_header
from tests.annotation_page.campaign import ASKED, SHAPE, Campaign, drawn, lay_out_campaign, proposed
from tests.annotation_page.in_a_browser import Page, errors, served, until
from tests.run_folders import blobs, run_on

REGION = ((1, 5), (0, 3), (2, 5))
PART = Unit("case_01", REGION)


def on_page(desk: ReviewDesk, case_id: str, classes: np.ndarray) -> np.ndarray:
    return Grid.of(read_header(desk.task.cases[case_id].images[0])).to_page(classes)


def test_a_simulation_is_reviewed_round_by_round(browser: Any, tmp_path: Path) -> None:
    root, _ = blobs(tmp_path / "data")
    rows = [
        {"round": 0, "case_id": "case_03", "region": None, "score": None, "rank": 1},
        {"round": 1, "case_id": "case_01", "region": PART.where, "score": 0.25, "rank": 1},
    ]
    pool = Pool(("case_03", "case_01"), ("case_00", "case_02"), regions=(PART,))
    desk = review_desk_of(str(run_on(tmp_path / "run", root, pool, queries=rows)))
    with served(desk) as address:
        page = Page(browser, address, "Rita <i>R</i>")
        page.wait_for("initial case_03")
        assert page.text("#cases .round") == "initial round 1"
        assert np.array_equal(page.drawing(), on_page(desk, "case_03", drawn(3)))
        page.stroke((-60, -60), (60, -60))  # nothing is drawn on
        assert np.array_equal(page.drawing(), on_page(desk, "case_03", drawn(3)))
        page.key("a")
        page.wait_for(f"round_01 {PART.name}")
        inside = tuple(slice(*edges) for edges in REGION)
        expected = np.zeros(SHAPE, np.uint8)
        expected[inside] = drawn(1)[inside]
        assert np.array_equal(page.drawing(), on_page(desk, "case_01", expected))
        page.find("#comment")[0].send_keys("ar: <b>too small</b>")
        page.press("[data-verdict='returned']")
        until(lambda: "have been reviewed" in page.text("#cover"), "the end of the review")
        assert page.text("#progress-text") == "2 of 2 reviewed"
        page.press(f"[data-case='{PART.name}']")
        page.wait_for(f"round_01 {PART.name}")
        assert "returned by Rita <i>R</i>" in page.text("#said")
        assert "ar: <b>too small</b>" in page.text("#said")
    rows = pd.read_csv(tmp_path / "run/annotations/reviews.csv", keep_default_na=False)
    assert rows[["case", "verdict", "comment"]].to_numpy().tolist() == [
        ["case_03", "accepted", ""],
        ["case_01", "returned", "ar: <b>too small</b>"],
    ]
    assert errors(browser) == []


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return lay_out_campaign(tmp_path)


def test_a_returned_label_comes_back_to_the_annotator_with_the_comment(
    browser: Any, campaign: Campaign
) -> None:
    desk, first = ReviewDesk(campaign.task, campaign.oracle.folder), ASKED[0]
    with served(campaign.desk) as address, served(desk) as of_review:
        ada = Page(browser, address, "Ada")
        ada.wait_for(first)
        ada.stroke((-200, 150), (-150, 170))
        ada.wait_until_saved()
        before = ada.drawing()
        ada.submit()
        ada.wait_for(ASKED[1])
        campaign.oracle.annotate(campaign.query)  # the run takes it in
        rita = Page(browser, of_review, "Rita")
        rita.wait_for(f"round_01 {first}")
        assert np.array_equal(rita.drawing(), before)
        rita.key("p")
        until(
            lambda: np.array_equal(rita.drawing(), on_page(desk, first, proposed(1))),
            "the proposal",
        )
        rita.key("l")
        until(lambda: np.array_equal(rita.drawing(), before), "the label")
        rita.find("#comment")[0].send_keys("the tail is missing")
        rita.press("[data-verdict='returned']")
        until(lambda: "have been reviewed" in rita.text("#cover"), "the end of the review")
        words = "returned by Rita: the tail is missing"
        until(lambda: words in ada.text("#cases"), "the returned case")
        ada.press(f"[data-case='{first}']")
        ada.wait_for(first)
        assert words in ada.text("#message")
        assert np.array_equal(ada.drawing(), before)
        ada.stroke((-200, -150), (-150, -170))
        ada.wait_until_saved()
        after = ada.drawing()
        assert not np.array_equal(after, before)
        ada.submit()
        ada.wait_for(ASKED[1])
        campaign.oracle.annotate(campaign.query)
        rita.press("#cover-button")
        rita.wait_for(f"round_01 {first}")
        assert np.array_equal(rita.drawing(), after)
        assert "version 2" in rita.text("#about")
        rita.key("a")
        until(lambda: f"{first}: accepted" in rita.text("#saved"), "the verdict")
    assert [each.verdict for each in desk.reviews.history] == ["returned", "accepted"]
    assert errors(browser) == []
