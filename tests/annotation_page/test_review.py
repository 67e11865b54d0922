"""What a reviewer sees of a run, and what is kept of what a reviewer says."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import nibabel
import numpy as np
import pandas as pd
import pytest

from alseg.annotation_page.claims import TakenError
from alseg.annotation_page.command import review_desk_of
from alseg.annotation_page.grid import Grid, drawing_from_page
from alseg.annotation_page.review_desk import ReviewDesk
from alseg.annotation_page.server import start
from alseg.core.errors import AlsegError, DataError
from alseg.core.pool import Pool
from alseg.core.units import Unit
from alseg.data.volumes import read_header
from alseg.oracles.annotations import Annotations
from tests.annotation_page.campaign import ASKED, SHAPE, Campaign, drawn, lay_out_campaign, proposed
from tests.run_folders import blobs, run_on
from tests.smoke_runs import run_smoke

REGION = ((1, 5), (0, 3), (2, 5))
PART = Unit("case_01", REGION)


@pytest.fixture
def simulated(tmp_path: Path) -> ReviewDesk:
    """A simulation that has asked for a volume and a region; the other labels cannot be read."""
    root, _ = blobs(tmp_path / "data")
    for case_id in ("case_00", "case_02", "case_04"):
        (root / "labelsTr" / f"{case_id}.nii.gz").write_bytes(b"hidden")
    rows = [
        {"round": 0, "case_id": "case_03", "region": None, "score": None, "rank": 1},
        {"round": 1, "case_id": "case_01", "region": PART.where, "score": 0.25, "rank": 1},
    ]
    pool = Pool(("case_03", "case_01"), ("case_00", "case_02"), regions=(PART,))
    return review_desk_of(str(run_on(tmp_path / "run", root, pool, queries=rows)))


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """A campaign of whose four cases two are annotated."""
    campaign = lay_out_campaign(tmp_path)
    run_on(campaign.oracle.folder, campaign.task.root, Pool((), tuple(ASKED)))
    for number, case_id in enumerate(ASKED[:2]):
        hand_in(campaign, case_id, drawn(number))
    campaign.oracle.annotate(campaign.query)
    return campaign


def hand_in(campaign: Campaign, case_id: str, classes: np.ndarray) -> None:
    desk, holder = campaign.desk, "page of Ada"
    opened = desk.open(campaign.request, case_id, "Ada", holder, take_over=False)
    drawing, based_on = campaign.drawing(case_id, classes), opened["based_on"]
    desk.submit(campaign.request, case_id, holder, 60, drawing, based_on=based_on, confirmed=False)


def review_of(campaign: Campaign) -> ReviewDesk:
    return ReviewDesk(campaign.task, campaign.oracle.folder)


def shown(desk: ReviewDesk, content: bytes, case_id: str) -> np.ndarray:
    grid = Grid.of(read_header(desk.task.cases[case_id].images[0]))
    return drawing_from_page(content, grid)


def say(
    desk: ReviewDesk, verdict: str, unit: str, round_name: str = "round_01", **said: str
) -> None:
    checksum = desk.about(round_name, unit)["checksum"]
    said = {"reviewer": "Rita", "comment": "", "checksum": checksum} | said
    desk.review(round_name, unit, verdict=verdict, **said)


def states(units: list[dict[str, Any]]) -> dict[str, str]:
    return {unit["case"]: unit["state"] for unit in units}


def test_a_simulation_shows_its_queries_round_by_round(simulated: ReviewDesk) -> None:
    units = simulated.overview()["units"]
    assert [(u["request"], u["case"], u["order"], u["state"]) for u in units] == [
        ("initial", "case_03", 1, "to review"),
        ("round_01", PART.name, 1, "to review"),
    ]
    whole = shown(simulated, simulated.label("initial", "case_03"), "case_03")
    assert np.array_equal(whole, drawn(3))


def test_of_a_region_only_what_was_revealed_is_shown(simulated: ReviewDesk) -> None:
    inside = tuple(slice(*edges) for edges in REGION)
    expected = np.zeros(SHAPE, np.uint8)
    expected[inside] = drawn(1)[inside]
    label = shown(simulated, simulated.label("round_01", PART.name), "case_01")
    assert np.array_equal(label, expected)
    grid = Grid.of(read_header(simulated.task.cases["case_01"].images[0]))
    mark = np.zeros(SHAPE, np.uint8)
    mark[3, 1, 3] = 1  # the middle of the region
    middle = simulated.about("round_01", PART.name)["middle"]
    assert np.argwhere(grid.to_page(mark)).tolist() == [middle]


def test_no_hidden_label_is_served(simulated: ReviewDesk) -> None:
    for round_name, name in (
        ("initial", "case_00"), ("round_01", "case_02"), ("round_01", "case_01"),
        ("initial", PART.name), ("round_02", "case_03"), ("../data", "case_03"),
    ):  # fmt: skip
        for serve in (simulated.label, simulated.proposal, simulated.about, simulated.uncertainty):
            with pytest.raises(DataError, match="has not asked for"):
                serve(round_name, name)


def test_a_label_that_the_pool_does_not_have_is_hidden_though_it_was_asked_for(
    tmp_path: Path,
) -> None:
    root, _ = blobs(tmp_path / "data")
    rows = [{"round": 0, "case_id": "case_03", "score": None, "rank": 1}]
    run = run_on(tmp_path / "run", root, Pool((), ("case_03",)), queries=rows)
    desk = review_desk_of(str(run))
    assert states(desk.overview()["units"]) == {"case_03": "no label"}
    with pytest.raises(DataError, match="has no label yet"):
        desk.label("initial", "case_03")


def test_reviews_are_rows_that_stay(simulated: ReviewDesk) -> None:
    say(simulated, "returned", PART.name, comment='=1+1, "quoted"\nsecond line')
    path = simulated.run_folder / "annotations/reviews.csv"
    before = path.read_text(encoding="utf-8")
    say(simulated, "accepted", PART.name, reviewer="<b>Bo</b>")
    say(simulated, "accepted", "case_03", "initial")
    assert path.read_text(encoding="utf-8").startswith(before)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert table["verdict"].tolist() == ["returned", "accepted", "accepted"]
    assert table.loc[0, "comment"] == '=1+1, "quoted"\nsecond line'
    assert table["region"].tolist() == [PART.where, PART.where, ""]
    assert states(simulated.overview()["units"]) == {"case_03": "accepted", PART.name: "accepted"}
    said = simulated.about("round_01", PART.name)["reviews"]
    assert [(each["reviewer"], each["verdict"]) for each in said] == [
        ("Rita", "returned"),
        ("<b>Bo</b>", "accepted"),
    ]


def test_a_verdict_is_one_of_two_and_on_the_label_that_was_seen(simulated: ReviewDesk) -> None:
    with pytest.raises(AlsegError, match="verdict is 'perhaps'; allowed are accepted, returned"):
        say(simulated, "perhaps", PART.name)
    with pytest.raises(TakenError, match="has a newer label"):
        say(simulated, "accepted", PART.name, checksum="another")
    assert not (simulated.run_folder / "annotations/reviews.csv").exists()


def test_a_campaign_shows_proposals_uncertainty_and_accepted_labels(campaign: Campaign) -> None:
    desk = review_of(campaign)
    units = {unit["case"]: unit for unit in desk.overview()["units"]}
    assert states(list(units.values())) == dict(
        zip(ASKED, ["to review", "to review", "no label", "no label"], strict=True)
    )
    first = ASKED[0]
    assert np.array_equal(shown(desk, desk.proposal("round_01", first), first), proposed(1))
    assert np.array_equal(shown(desk, desk.label("round_01", first), first), drawn(0))
    assert desk.uncertainty("round_01", first)[:4] == (348).to_bytes(4, "little")
    assert desk.about("round_01", first)["annotator"] == "Ada"
    with pytest.raises(DataError, match="has no label yet"):
        desk.label("round_01", ASKED[2])


def test_a_returned_label_is_asked_for_again_and_its_versions_stay(campaign: Campaign) -> None:
    review, desk, case_id = review_of(campaign), campaign.desk, ASKED[0]
    say(review, "returned", case_id, comment="the tail is missing")
    unit = next(u for u in desk.overview()["units"] if u["case"] == case_id)
    assert (unit["state"], unit["reviewer"]) == ("returned", "Rita")
    assert unit["comment"] == "the tail is missing"
    assert desk.next_case(campaign.request, "Bo", "page of Bo") == case_id
    desk.give_back(campaign.request, "page of Bo")
    with pytest.raises(DataError, match=f"{case_id} is as it was when Rita returned it"):
        hand_in(campaign, case_id, drawn(0))
    hand_in(campaign, case_id, drawn(5))
    assert states(desk.overview()["units"])[case_id] == "submitted"
    campaign.oracle.annotate(campaign.query)
    assert states(desk.overview()["units"])[case_id] == "annotated"
    assert states(review.overview()["units"])[case_id] == "to review"
    history = Annotations(campaign.oracle.folder)
    versions = [each for each in history.history if each.case == case_id]
    found = [np.asarray(nibabel.load(history.path(each)).dataobj) for each in versions]
    assert [np.array_equal(a, b) for a, b in zip(found, (drawn(0), drawn(5)), strict=True)] == [
        True,
        True,
    ]
    said = review.about("round_01", case_id)["reviews"]
    assert [(each["verdict"], each["version"]) for each in said] == [("returned", "1")]
    say(review, "accepted", case_id)
    assert states(review.overview()["units"])[case_id] == "accepted"


def test_the_last_word_on_a_version_counts(campaign: Campaign) -> None:
    review, desk = review_of(campaign), campaign.desk
    say(review, "returned", ASKED[0])
    say(review, "accepted", ASKED[0], reviewer="Bo")
    assert states(desk.overview()["units"])[ASKED[0]] == "annotated"


def test_what_an_earlier_request_asked_for_is_asked_for_again(campaign: Campaign) -> None:
    say(review_of(campaign), "returned", ASKED[1])
    campaign.oracle.request("round_02", campaign.query[2:], {})
    desk = campaign.desk
    units = desk.overview()["units"]
    assert [(u["request"], u["case"]) for u in units] == [
        ("round_02", ASKED[2]),
        ("round_02", ASKED[3]),
        ("round_01", ASKED[1]),
    ]
    assert desk.next_case("round_02", "Bo", "page of Bo") == ASKED[2]
    assert desk.next_case("round_01", "Cleo", "page of Cleo") == ASKED[1]
    assert desk.next_case("round_01", "Dora", "page of Dora") is None  # open there, not returned
    desk.open("round_02", ASKED[3], "Cleo", "page of Cleo", take_over=False)
    assert desk.next_case("round_01", "Dora", "page of Dora") == ASKED[1]


def test_the_network_of_the_round_proposes_where_the_run_has_kept_nothing(
    shared: Path, tmp_path: Path, call_entry_point: Callable[..., tuple[int, str, str]]
) -> None:
    from alseg.predict import main

    run, scans, output = tmp_path / "run", tmp_path / "scans", tmp_path / "output"
    run_smoke(run, shared, "pool.rounds=2", "save_maps=true")
    desk = review_desk_of(str(run))
    unit = next(u for u in desk.overview()["units"] if u["request"] == "round_01")
    case_id, maps = unit["case"], run / "rounds/round_01/maps"
    assert unit["has_uncertainty"]
    kept = shown(desk, desk.proposal("round_01", case_id), case_id)
    file = nibabel.load(maps / f"{case_id}_prediction.nii.gz")
    assert np.array_equal(kept, np.asarray(file.dataobj))
    shutil.rmtree(maps)
    made = shown(desk, desk.proposal("round_01", case_id), case_id)
    assert not maps.exists()
    scans.mkdir()
    shutil.copy(desk.task.cases[case_id].images[0], scans / f"{case_id}.nii.gz")
    arguments = (str(run), f"images={scans}", f"output={output}", "round=1", "trainer=cpu")
    assert call_entry_point(main, *arguments)[0] == 0
    assert np.array_equal(made, np.asarray(nibabel.load(output / f"{case_id}.nii.gz").dataobj))
    with pytest.raises(DataError, match="the run has no network of initial"):
        desk.proposal("initial", desk.overview()["units"][0]["case"])


# ---- the server


@contextmanager
def served(desk: ReviewDesk) -> Iterator[Callable[..., tuple[int, bytes]]]:
    address, server = start(desk, 8765)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    parts = urlsplit(address)

    def ask(path: str, said: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(parts.netloc, timeout=120)
        body = None if said is None else json.dumps(said).encode()
        connection.request("GET" if body is None else "POST", f"{parts.path}{path}", body, headers)
        response = connection.getresponse()
        found = response.status, response.read()
        connection.close()
        return found

    try:
        yield ask
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_server_of_a_review_takes_reviews_and_nothing_else(campaign: Campaign) -> None:
    case = f"api/round_01/{ASKED[0]}"
    desk = review_of(campaign)
    checksum = desk.about("round_01", ASKED[0])["checksum"]
    said = {"reviewer": "Rita", "verdict": "returned", "comment": "no", "checksum": checksum}
    with served(desk) as ask:
        assert b"Who reviews?" in ask("")[1]
        for path in ("image", "uncertainty", "label", "proposal", "about"):
            assert ask(f"{case}/{path}")[0] == 200, path
        for path in ("open", "submit", "draft"):
            assert ask(f"{case}/{path}", {})[0] in (404, 405), path
        assert ask("api/round_01/next", {})[0] in (404, 405)
        assert ask(f"{case}/review", said, Origin="http://elsewhere.example")[0] == 403
        for change in (
            {"reviewer": "a\nb"}, {"reviewer": ""}, {"comment": 7}, {"comment": "x" * 2001},
            {"comment": "\x07"}, {"verdict": "maybe"}, {"checksum": ""},
        ):  # fmt: skip
            assert ask(f"{case}/review", said | change)[0] == 400, change
        assert ask(f"api/round_01/{quote('../x', safe='')}/label")[0] == 404
        assert ask(f"api/round_01/{ASKED[2]}/label")[0] == 400
        assert not desk.reviews.history
        assert ask(f"{case}/review", said)[0] == 200
    assert [each.comment for each in desk.reviews.history] == ["no"]
    assert desk.page_file.stat().st_mode & 0o777 == 0o600


def test_the_addresses_of_annotators_and_reviewers_differ(campaign: Campaign) -> None:
    one, first = start(campaign.desk, 8765)
    two, second = start(review_of(campaign), 8765)
    first.server_close()
    second.server_close()
    assert urlsplit(one).path != urlsplit(two).path
    assert urlsplit(one).port != urlsplit(two).port


def test_a_link_out_of_the_run_is_not_followed(campaign: Campaign, tmp_path: Path) -> None:
    outside = tmp_path / "outside.nii.gz"
    path = campaign.folder / "uncertainty" / f"{ASKED[0]}.nii.gz"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(DataError, match="has kept no uncertainty"):
        review_of(campaign).uncertainty("round_01", ASKED[0])
