"""Claims, drafts and submissions, as several annotators make them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alseg.annotation_page import claims
from alseg.annotation_page.claims import TakenError
from alseg.annotation_page.grid import drawing_from_page
from alseg.core.errors import DataError
from alseg.oracles.label_checks import ConfirmationNeededError
from tests.annotation_page.campaign import ASKED, Campaign, drawn, lay_out_campaign, proposed

FIRST = ASKED[0]


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return lay_out_campaign(tmp_path)


def take(campaign: Campaign, who: str, case_id: str = FIRST, page: str = "") -> str:
    """Open a case; returns the checksum of the label that it begins with."""
    holder = page or f"page of {who}"
    opened = campaign.desk.open(campaign.request, case_id, who, holder, take_over=False)
    based_on: str = opened["based_on"]
    return based_on


def submit(
    campaign: Campaign,
    who: str,
    case_id: str = FIRST,
    *,
    seed: int = 7,
    classes: np.ndarray | None = None,
    based_on: str = "",
    confirmed: bool = False,
    seconds: float = 90.0,
) -> None:
    drawing = campaign.drawing(case_id, drawn(seed) if classes is None else classes)
    campaign.desk.submit(
        campaign.request, case_id, f"page of {who}", seconds, drawing,
        based_on=based_on, confirmed=confirmed,
    )  # fmt: skip


def unit(campaign: Campaign, case_id: str = FIRST) -> dict[str, object]:
    return next(u for u in campaign.desk.overview()["units"] if u["case"] == case_id)


@pytest.mark.parametrize("case_id", ASKED)
def test_the_label_file_holds_what_was_drawn_on_the_grid_of_the_image(
    case_id: str, campaign: Campaign
) -> None:
    take(campaign, "Ada", case_id)
    submit(campaign, "Ada", case_id)
    label, header = campaign.label(case_id), campaign.grid(case_id)
    assert np.array_equal(np.asarray(label.dataobj), drawn(7))
    assert np.allclose(label.affine, header.affine, atol=1e-6)
    assert unit(campaign, case_id)["state"] == "submitted"
    campaign.oracle.annotate(campaign.query)  # the run takes it in
    assert unit(campaign, case_id)["state"] == "annotated"
    history = pd.read_csv(campaign.oracle.folder / "annotations/history.csv")
    assert history[["case", "annotator", "minutes"]].to_numpy().tolist() == [[case_id, "Ada", 1.5]]


def test_a_drawing_begins_with_the_proposal_then_the_draft_then_the_label(
    campaign: Campaign,
) -> None:
    def begins() -> np.ndarray:
        content = campaign.desk.drawing(campaign.request, FIRST)
        return drawing_from_page(content, campaign.grid(FIRST))

    assert np.array_equal(begins(), proposed(1))
    take(campaign, "Ada")
    campaign.desk.save_draft(
        campaign.request, FIRST, "page of Ada", 1, campaign.drawing(FIRST, drawn(1))
    )
    assert np.array_equal(begins(), drawn(1))
    assert unit(campaign)["has_draft"]
    submit(campaign, "Ada", seed=2)
    assert np.array_equal(begins(), drawn(2))
    assert not unit(campaign)["has_draft"]


def test_annotators_get_different_cases_in_the_order_of_the_request(campaign: Campaign) -> None:
    names = ["Ada", "Ben", "Cleo", "Dora"]
    desk, request = campaign.desk, campaign.request
    assert [desk.next_case(request, who, f"page of {who}") for who in names] == ASKED
    assert desk.next_case(request, "Emil", "page of Emil") is None
    with pytest.raises(TakenError, match=f"Ada works on {ASKED[0]}, at least until"):
        take(campaign, "Emil", ASKED[0])
    desk.give_back(request, "page of Cleo")
    assert desk.next_case(request, "Emil", "page of Emil") == ASKED[2]


def test_a_page_gives_back_a_case_when_it_opens_another_one(campaign: Campaign) -> None:
    take(campaign, "Ada", ASKED[0])
    take(campaign, "Ada", ASKED[1])
    assert [u["claimed"] for u in campaign.desk.overview()["units"]] == [False, True, False, False]


def test_who_comes_back_gets_the_own_draft_first_and_that_of_others_last(
    campaign: Campaign,
) -> None:
    desk, request = campaign.desk, campaign.request
    take(campaign, "Ada", ASKED[2])
    drawing = campaign.drawing(ASKED[2], drawn(3))
    desk.save_draft(request, ASKED[2], "page of Ada", 30, drawing)
    desk.give_back(request, "page of Ada")
    got = [desk.next_case(request, "Ben", f"page {number}") for number in range(4)]
    assert got == [ASKED[0], ASKED[1], ASKED[3], ASKED[2]]
    desk.give_back(request, "page 3")
    assert desk.next_case(request, "Ben", "another page") == ASKED[2]  # now a draft of Ben's
    desk.give_back(request, "another page")
    opened = desk.open(request, ASKED[2], "Ada", "a new page", take_over=False)
    assert opened["begins_with"] == "draft"
    assert opened["seconds"] == 30


def test_a_claim_ends_and_the_case_goes_to_the_next_one(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(campaign, "Ada")
    later = time.time() + 31 * 60
    monkeypatch.setattr(claims.time, "time", lambda: later)
    assert campaign.desk.next_case(campaign.request, "Ben", "page of Ben") == FIRST
    with pytest.raises(TakenError, match=f"{FIRST} is no longer yours: Ben has opened it"):
        submit(campaign, "Ada")
    assert not list((campaign.folder / "labels/final").iterdir())


def test_a_claim_that_nobody_else_wanted_goes_on(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(campaign, "Ada")
    later = time.time() + 31 * 60
    monkeypatch.setattr(claims.time, "time", lambda: later)
    submit(campaign, "Ada")
    assert np.array_equal(np.asarray(campaign.label(FIRST).dataobj), drawn(7))


def test_a_second_tab_of_the_same_person_takes_over_only_if_told(campaign: Campaign) -> None:
    desk, request = campaign.desk, campaign.request
    take(campaign, "Ada", page="tab 1")
    desk.save_draft(request, FIRST, "tab 1", 1, campaign.drawing(FIRST, drawn(5)))
    with pytest.raises(TakenError, match="is open on another page of yours"):
        take(campaign, "Ada", page="tab 2")
    with pytest.raises(TakenError, match="Ada works on"):
        desk.open(request, FIRST, "Ben", "page of Ben", take_over=True)
    opened = desk.open(request, FIRST, "Ada", "tab 2", take_over=True)
    assert opened["begins_with"] == "draft"
    with pytest.raises(TakenError, match="is no longer yours"):
        desk.save_draft(request, FIRST, "tab 1", 1, campaign.drawing(FIRST, drawn(6)))
    content = desk.drawing(request, FIRST)
    assert np.array_equal(drawing_from_page(content, campaign.grid(FIRST)), drawn(5))


def test_a_label_that_came_meanwhile_is_never_overwritten(campaign: Campaign) -> None:
    based_on = take(campaign, "Ada")
    by_hand = campaign.folder / "labels/final" / f"{FIRST}.nii.gz"
    by_hand.write_bytes(b"saved with another program")
    with pytest.raises(TakenError, match="has been handed in by somebody else meanwhile"):
        submit(campaign, "Ada", based_on=based_on)
    assert by_hand.read_bytes() == b"saved with another program"
    assert unit(campaign)["has_draft"]  # nothing that was drawn is lost


def test_a_label_is_corrected_by_who_has_seen_it(campaign: Campaign) -> None:
    take(campaign, "Ada")
    submit(campaign, "Ada", seed=1)
    campaign.oracle.annotate(campaign.query)
    based_on = take(campaign, "Ben")
    submit(campaign, "Ben", seed=2, based_on=based_on, seconds=30)
    campaign.oracle.annotate(campaign.query)
    history = pd.read_csv(campaign.oracle.folder / "annotations/history.csv")
    assert history["annotator"].tolist() == ["Ada", "Ben"]
    assert history["version"].tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["empty", "unchanged"])
def test_what_looks_like_a_mistake_is_confirmed(kind: str, campaign: Campaign) -> None:
    classes = np.zeros_like(drawn(0)) if kind == "empty" else proposed(1)
    take(campaign, "Ada")
    told = "background only" if kind == "empty" else "without any change"
    with pytest.raises(ConfirmationNeededError, match=f"^{FIRST} .*{told}"):
        submit(campaign, "Ada", classes=classes)
    assert not list((campaign.folder / "labels/final").iterdir())
    submit(campaign, "Ada", classes=classes, confirmed=True)
    answer = campaign.oracle.annotate(campaign.query)
    assert [u.case_id for u in answer.labels] == [FIRST]


def test_values_that_are_no_classes_are_refused(campaign: Campaign) -> None:
    take(campaign, "Ada")
    with pytest.raises(DataError, match=r"holds \[2.0\]; allowed are 0 to 1"):
        submit(campaign, "Ada", classes=drawn(1, 3))
    assert not list((campaign.folder / "labels/final").iterdir())


def test_a_refused_case_is_offered_until_it_is_handed_in_again(campaign: Campaign) -> None:
    desk, request = campaign.desk, campaign.request
    (campaign.folder / f"labels/final/{FIRST}.nii.gz").write_bytes(b"no label")
    campaign.oracle.annotate(campaign.query)  # the run looks
    assert unit(campaign)["state"] == "refused"
    assert desk.next_case(request, "Ada", "page of Ada") == FIRST
    submit(campaign, "Ada", based_on=take(campaign, "Ada"))
    assert unit(campaign)["state"] == "submitted"  # before the run looks again
    assert desk.next_case(request, "Ben", "page of Ben") == ASKED[1]
    campaign.oracle.annotate(campaign.query)
    assert unit(campaign)["state"] == "annotated"


def test_answers_of_others_stay_in_the_table(campaign: Campaign) -> None:
    table = campaign.folder / "labels/final/answers.csv"
    table.write_text(
        f"\ufeffCase;Annotator;Minutes\n{ASKED[1]};Ben;2,5\n{FIRST};Eve;9\n", encoding="utf-8"
    )
    take(campaign, 'Ada "the first", <b>')
    submit(campaign, 'Ada "the first", <b>')
    rows = pd.read_csv(table, dtype=str)
    assert rows.to_numpy().tolist() == [
        [ASKED[1], "Ben", "2,5"],
        [FIRST, 'Ada "the first", <b>', "1.50"],
    ]


def test_a_table_that_cannot_be_read_is_left_as_it_is(campaign: Campaign) -> None:
    table = campaign.folder / "labels/final/answers.csv"
    table.write_text("somebody's notes\n", encoding="utf-8")
    take(campaign, "Ada")
    with pytest.raises(DataError, match=r"answers\.csv cannot be read, mend it or move it away"):
        submit(campaign, "Ada")
    assert table.read_text(encoding="utf-8") == "somebody's notes\n"


@pytest.mark.parametrize("name", ["..", "../case_00", "case_00", "", "/etc/passwd", "case_01\0"])
def test_names_that_are_not_asked_for_lead_nowhere(name: str, campaign: Campaign) -> None:
    with pytest.raises(DataError, match="does not ask for"):
        campaign.desk.place(campaign.request, name)
    with pytest.raises(DataError, match="has no request"):
        campaign.desk.place(name, FIRST)


def test_links_out_of_the_request_are_not_read(campaign: Campaign, tmp_path: Path) -> None:
    outside = tmp_path / "outside.nii.gz"
    outside.write_bytes((campaign.folder / "uncertainty" / f"{FIRST}.nii.gz").read_bytes())
    for part in ("uncertainty", "drafts"):
        link = campaign.folder / part / f"{FIRST}.nii.gz"
        link.unlink(missing_ok=True)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside)
    with pytest.raises(DataError, match="has no uncertainty of"):
        campaign.desk.uncertainty(campaign.request, FIRST)
    with pytest.raises(DataError, match="has no draft of"):
        campaign.desk.drawing(campaign.request, FIRST)
