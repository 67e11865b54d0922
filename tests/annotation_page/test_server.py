"""The page is for who has its address, on this computer; what it takes is bounded and checked."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from werkzeug.serving import BaseWSGIServer

from alseg.annotation_page.server import start
from tests.annotation_page.campaign import ASKED, Campaign, drawn, lay_out_campaign

FIRST = ASKED[0]
REQUEST = "round_01"


@dataclass
class Site:
    """A server, and how to ask it."""

    campaign: Campaign
    address: str
    server: BaseWSGIServer = field(repr=False)

    @property
    def token(self) -> str:
        return urlsplit(self.address).path.strip("/")

    def ask(
        self,
        path: str,
        said: Any = None,
        method: str = "",
        *,
        headers: dict[str, str] | None = None,
        raw: bool = False,
    ) -> tuple[int, bytes, dict[str, str]]:
        """Ask for a path below the token, or for one as it is."""
        parts = urlsplit(self.address)
        connection = http.client.HTTPConnection(parts.netloc, timeout=120)
        body = said if isinstance(said, bytes) or said is None else json.dumps(said).encode()
        method = method or ("GET" if body is None else "POST")
        target = path if raw else f"{parts.path}{path}"
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        found = response.status, response.read(), dict(response.getheaders())
        connection.close()
        return found

    def problem(self, *args: Any, **more: Any) -> str:
        status, content, _ = self.ask(*args, **more)
        assert status >= 400, content
        found: str = json.loads(content)["problem"]
        return found

    def open(self, who: str = "Ada", case_id: str = FIRST) -> str:
        said = {"annotator": who, "holder": f"page of {who}"}
        status, content, _ = self.ask(f"api/{REQUEST}/{case_id}/open", said)
        assert status == 200, content
        return f"api/{REQUEST}/{case_id}/submit?holder=page+of+{who}&seconds=6&based_on="


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    campaign = lay_out_campaign(tmp_path)
    address, server = start(campaign.desk, 8765)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Site(campaign, address, server)
    server.shutdown()
    thread.join()
    server.server_close()


def test_without_the_token_nothing_is_answered(site: Site) -> None:
    for path in ("/", "/api/overview", "/static/page.js", "/wrong/api/overview", "//", "/%C3%A9"):
        status, content, _ = site.ask(path, raw=True)
        assert status == 403, path
        assert content == (
            b"open the address that python -m alseg.annotate has printed: it has a token"
        )
    assert site.ask("")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8765"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:8765"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_sites_are_refused_even_with_the_token(headers: dict[str, str], site: Site) -> None:
    status, content, _ = site.ask("api/overview", headers=headers)
    assert status == 403
    assert b"overview" not in content
    said = {"annotator": "Eve", "holder": "page of Eve"}
    assert site.ask(f"api/{REQUEST}/next", said, headers=headers)[0] == 403
    assert not any(u["claimed"] for u in site.campaign.desk.overview()["units"])


def test_a_forwarded_port_is_not_another_site(site: Site) -> None:
    headers = {"Host": "localhost:4000", "Origin": "http://localhost:4000"}
    assert site.ask("api/overview", headers=headers)[0] == 200


def test_it_listens_on_the_loopback_device_only(site: Site) -> None:
    assert site.server.socket.getsockname()[0] == "127.0.0.1"


def test_all_answers_forbid_what_the_page_does_not_need(site: Site) -> None:
    for path in ("", "api/overview", "static/page.js", "static/none.js", "api/none"):
        headers = site.ask(path)[2]
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers


def test_the_page_loads_nothing_from_elsewhere(site: Site) -> None:
    html = site.ask("")[1].decode()
    for reference in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert reference == "data:," or site.ask(reference)[0] == 200, reference
    assert "<script>" not in html
    assert not re.search(r"\son\w+=|\sstyle=", html)


@pytest.mark.parametrize(
    "path",
    [
        "static/../server.py",
        "static/%2e%2e/server.py",
        "static/..%2fserver.py",
        "static//etc/passwd",
        "static/niivue/LICENSE/../../../server.py",
        f"api/{REQUEST}/..%2f..%2f..%2fconfig.yaml/image",
        f"api/..%2f{REQUEST}/{FIRST}/image",
        f"api/{REQUEST}/case_00/image",
        f"api/{REQUEST}/{FIRST}%00/image",
    ],
)
def test_no_path_leads_out_of_the_request(path: str, site: Site) -> None:
    status, content, _ = site.ask(path)
    assert status in (400, 404)
    assert b"import" not in content


def test_an_upload_is_bounded_before_it_is_read(site: Site) -> None:
    submit = site.open()
    too_long = bytes(200_000)
    draft = submit.replace("/submit", "/draft")
    for path, method in ((submit, "POST"), (draft, "PUT"), (f"api/{REQUEST}/next", "POST")):
        assert site.ask(path, too_long, method)[0] == 413, path
    declared = {"Content-Length": str(10**12)}
    assert site.ask(submit, b"", "POST", headers=declared)[0] == 413
    assert site.problem(submit, gzip.compress(bytes(2**19))).startswith("the drawing does not have")
    assert not list((site.campaign.folder / "labels/final").iterdir())


def test_a_drawing_is_handed_in(site: Site) -> None:
    submit = site.open()
    content = site.campaign.drawing(FIRST, drawn(3))
    assert site.ask(submit, content)[0] == 200
    assert np.array_equal(np.asarray(site.campaign.label(FIRST).dataobj), drawn(3))
    overview = json.loads(site.ask("api/overview")[1])
    assert [u["state"] for u in overview["units"]] == ["submitted", "open", "open", "open"]
    assert overview["units"][0]["annotator"] == "Ada"


def test_of_many_submissions_for_one_case_one_is_kept_and_the_others_are_told(site: Site) -> None:
    site.open("Ada")
    paths = [f"api/{REQUEST}/{FIRST}/submit?holder=page+of+Ada&seconds=1&based_on="] * 6
    answers: list[tuple[int, bytes]] = []

    def submit(path: str, seed: int) -> None:
        content = site.campaign.drawing(FIRST, drawn(seed))
        answers.append(site.ask(path, content)[:2])

    threads = [threading.Thread(target=submit, args=(p, n)) for n, p in enumerate(paths)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in answers) == [200, 409, 409, 409, 409, 409]
    label = np.asarray(site.campaign.label(FIRST).dataobj)
    assert any(np.array_equal(label, drawn(seed)) for seed in range(6))


def test_what_is_to_be_confirmed_is_asked_for(site: Site) -> None:
    submit = site.open()
    content = site.campaign.drawing(FIRST, np.zeros_like(drawn(0)))
    status, answer, _ = site.ask(submit, content)
    assert status == 409
    assert "holds background only" in json.loads(answer)["confirm"]
    assert site.ask(f"{submit}&confirmed=true", content)[0] == 200
    assert (site.campaign.folder / f"labels/final/{FIRST}.confirmed").is_file()


@pytest.mark.parametrize("name", ["", "  ", "a" * 81, "two\nlines", "nul\0", "\u2028", 5, None])
def test_a_name_is_one_line_of_text(name: object, site: Site) -> None:
    said = {"annotator": name, "holder": "a page"}
    assert site.problem(f"api/{REQUEST}/next", said).startswith("give your name, one line of up")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 9999, b"\xff", b'{"annotator": "Ada"}'])
def test_a_message_that_is_none_is_told(body: bytes, site: Site) -> None:
    assert site.problem(f"api/{REQUEST}/next", body, "POST").startswith("the message ")


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e9"])
def test_time_is_a_number_that_can_be(seconds: str, site: Site) -> None:
    submit = site.open().replace("seconds=6", f"seconds={seconds}")
    content = site.campaign.drawing(FIRST, drawn(3))
    assert "is no number of seconds" in site.problem(submit, content)


def test_the_address_stays_for_a_server_that_is_started_again(tmp_path: Path) -> None:
    campaign = lay_out_campaign(tmp_path)
    address, server = start(campaign.desk, 8765)
    server.server_close()
    again, server = start(campaign.desk, 8765)
    third, another = start(campaign.desk, 8765)  # while the second one is there
    server.server_close()
    another.server_close()
    assert again == address
    assert urlsplit(third).path == urlsplit(address).path
    assert urlsplit(third).port != urlsplit(address).port
    path = campaign.oracle.folder / "requests/.page.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_who_hands_on_a_run_folder_does_not_know_the_token_of_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = lay_out_campaign(tmp_path)
    path = campaign.oracle.folder / "requests/.page.json"

    def started() -> str:
        address, server = start(campaign.desk, 8765)
        server.server_close()
        return address

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))
    theirs = started()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "ours"))
    ours = started()
    assert urlsplit(ours).path != urlsplit(theirs).path
    token = "A" * 40
    for content in ({"port": 1, "token": token}, {"port": True, "token": token, "signature": ""}):
        path.write_text(json.dumps(content))
        assert token not in started()
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/nowhere")  # no secret can be kept
    assert urlsplit(started()).path != urlsplit(started()).path


def test_two_runs_have_different_tokens(tmp_path: Path) -> None:
    tokens = set()
    for name in ("one", "two"):
        address, server = start(lay_out_campaign(tmp_path / name).desk, 8765)
        server.server_close()
        tokens.add(urlsplit(address).path)
    assert len(tokens) == 2
    assert all(len(token) >= 32 for token in tokens)
