"""Passwords and tokens are in nothing that alseg writes, prints or hands on."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from alseg.config.composition import conf_folder
from alseg.system.secrets import kept_settings, refer_to_secrets, without_secrets
from tests.conftest import Outcome

SECRET = "s3cret"
LOGINS = (f"me:{SECRET}", SECRET, f":{SECRET}", f"me@work:{SECRET}", f"m%40e:p%2F{SECRET}!$&")
UNESCAPED = (f"me:a/{SECRET}", f"me:a?{SECRET}#", f"me:a@{SECRET}")  # as some drivers take them
SCHEMES = ("http", "https", "postgresql+psycopg2", "mysql", "mssql+pyodbc", "sqlite", "socks5")
PARAMETERS = ("password", "sslpassword_token", "token", "api_key", "X-Access-Key", "PASSWORD")
ADDRESSES = [
    *(f"{s}://{login}@host:5000/db?a=b" for s, login in product(SCHEMES, LOGINS + UNESCAPED)),
    *(f"postgresql://host/db?user=me&{name}={SECRET}&a=b" for name in PARAMETERS),
]
TEXTS = (
    "{}", "cannot reach {}: no route", '{{"uri": "{}"}}', "a={} b='{}'", "<a href='{}'>{}</a>",
    "tracking.mlflow.uri={},http://other:5000/x",
)  # fmt: skip
HARMLESS = (
    "sqlite:////home/me@work/runs/mlflow.db", "sqlite:///runs/mlflow.db", "http://host:5000/a@b",
    "http://127.0.0.1:5000: mail me@work", "file:///data/a@b:c", "mailto:me@work", "/a//b:c@d",
    "http://host/db?a=b&tokens=3", "lr=0.1 and https://docs.org/x?y=z",
)  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_shown_without_its_secret(address: str) -> None:
    for text in TEXTS:
        shown = without_secrets(text.format(address, address))
        assert SECRET not in shown
        assert "***" in shown
        assert "host" in shown
        assert without_secrets(shown) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_what_holds_no_secret_is_shown_as_it_is(text: str) -> None:
    assert without_secrets(text) == text
    assert refer_to_secrets([f"tracking.mlflow.uri={text}"]) == [f"tracking.mlflow.uri={text}"]


def value_of(override: str) -> object:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return OmegaConf.create({"x": parsed.value()}).x


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that a test's secrets go into are removed after it."""
    for name in (
        "TRACKING_MLFLOW_URI",
        "TRACKING_MLFLOW_URI_2",
        "DATA_TASK_TOKEN",
        "WEB_PROXY",
        "TRACKING_MLFLOW_SKIP_1",
    ):
        monkeypatch.setenv(f"ALSEG_SECRET_{name}", "")
        monkeypatch.delenv(f"ALSEG_SECRET_{name}")


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_typed_secret_reaches_its_setting_by_reference(address: str) -> None:
    for quote in "'\"":
        (referring,) = refer_to_secrets([f"++tracking.mlflow.uri={quote}{address}{quote}"])
        assert SECRET not in referring
        assert value_of(referring) == address
        assert refer_to_secrets([referring]) == [referring]


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(
    ("typed", "value"),
    [
        (f"data.task.token={SECRET}", SECRET),
        (f"+data.task.token='it\\'s {SECRET}'", f"it's {SECRET}"),
        (f"tracking.mlflow.uri=http://me:{SECRET}@host:5000", f"http://me:{SECRET}@host:5000"),
        (
            f"+web_proxy={{a: 'http://{SECRET}@h', b: [1, 'ftp://me:2{SECRET}@h']}}",
            {"a": f"http://{SECRET}@h", "b": [1, f"ftp://me:2{SECRET}@h"]},
        ),
    ],
)
def test_secrets_anywhere_in_a_value_are_replaced(typed: str, value: object) -> None:
    (referring,) = refer_to_secrets([typed])
    assert SECRET not in referring
    assert value_of(referring) == value


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("quote", ["", "'"])
def test_a_reference_survives_the_way_to_the_jobs_of_a_sweep(quote: str) -> None:
    address = f"http://me:{SECRET}@host:5000"
    (referring,) = refer_to_secrets([f"tracking.mlflow.uri={quote}{address}{quote}"])
    batch = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([referring]), 1)
    ((of_job,),) = batch[0]
    assert refer_to_secrets([of_job]) == [of_job]
    assert value_of(of_job) == address


@pytest.mark.usefixtures("clean_environment")
def test_a_sweep_over_stores_keeps_its_choices() -> None:
    typed = f"tracking.mlflow.uri='http://a:{SECRET}@h1','http://b:{SECRET}2@h2'"
    (parsed,) = OverridesParser.create().parse_overrides(refer_to_secrets([typed]))
    choices = OmegaConf.create([choice.text for choice in parsed.value().list])
    assert list(choices) == [f"http://a:{SECRET}@h1", f"http://b:{SECRET}2@h2"]


@pytest.mark.parametrize(
    ("typed", "value"), [("data.token=null", None), ("data.use_token=true", True), ("seed=1", 1)]
)
def test_what_is_no_secret_is_passed_on(typed: str, value: object) -> None:
    assert refer_to_secrets([typed, "--cfg", "job"]) == [typed, "--cfg", "job"]
    assert value_of(typed) == value


@pytest.mark.usefixtures("clean_environment")
def test_secrets_of_files_and_variables_are_kept_as_references(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:{SECRET}@host/db")
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        config = compose(
            "config", [f"+web_proxy='http://{SECRET}@p'", "tracking.mlflow.skip=[a,'${web_proxy}']"]
        )
    assert config.tracking.mlflow.uri == f"postgresql://me:{SECRET}@host/db"
    kept = kept_settings(config)
    assert SECRET not in str(kept)
    assert kept["web_proxy"] == "http://${oc.env:ALSEG_SECRET_WEB_PROXY}@p"
    assert kept["tracking"]["mlflow"] == {
        **kept["tracking"]["mlflow"],
        "uri": "${oc.env:MLFLOW_TRACKING_URI}",
        "skip": ["a", "http://${oc.env:ALSEG_SECRET_TRACKING_MLFLOW_SKIP_1}@p"],
    }
    assert kept["cache_dir"] == "runs/cache"
    again = OmegaConf.create(kept)
    assert isinstance(again, DictConfig)
    assert again.tracking.mlflow.uri == config.tracking.mlflow.uri
    assert again.tracking.mlflow.skip[1] == f"http://{SECRET}@p"
    assert kept_settings(again) == kept
    monkeypatch.delenv("ALSEG_SECRET_WEB_PROXY")
    assert kept_settings(again) == kept


@pytest.mark.usefixtures("clean_environment")
def test_items_of_a_secret_list_are_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_TOKEN_0", "WEB_PASSWORD_0"):
        monkeypatch.setenv(f"ALSEG_SECRET_{name}", "")  # removed after the test
    config = OmegaConf.create(
        {"data": {"token": [SECRET]}, "web": {"password": "${data.token}", "ports": ["80"]}}
    )
    kept = kept_settings(config)
    assert SECRET not in str(kept)
    assert kept["web"]["ports"] == ["80"]
    again = OmegaConf.create(kept)
    assert OmegaConf.to_container(again, resolve=True) == OmegaConf.to_container(
        config, resolve=True
    )


def holding_secret(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


class RecordingStore(BaseHTTPRequestHandler):
    """As much of MLflow's REST interface as one run needs; keeps what it is sent."""

    received: ClassVar[list[str]] = []
    logins: ClassVar[set[str]] = set()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode("latin-1")
        self.received.append(f"{self.path} {body}")
        self.logins.add(self.headers.get("Authorization", "none"))
        info = {"run_id": "7", "experiment_id": "1", "status": "RUNNING", "artifact_uri": ARTIFACTS}
        experiment = {"experiment_id": "1", "name": "x", "lifecycle_stage": "active"}
        content = json.dumps({"run": {"info": info}, "run_info": info, "experiment": experiment})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content.encode())

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Not on the terminal."""


ARTIFACTS = "mlflow-artifacts:/1/7/artifacts"


@pytest.fixture
def recording_store() -> Iterator[str]:
    """The host and port of a tracking store that keeps what it is sent."""
    RecordingStore.received.clear()
    RecordingStore.logins.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), RecordingStore) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.usefixtures("clean_environment")
def test_nothing_that_a_run_leaves_holds_a_secret(
    train: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recording_store: str,
) -> None:
    uri = f"tracking.mlflow.uri=http://me:{SECRET}@{recording_store}"
    proxy = f"+web_proxy='http://me:{SECRET}@proxy'"
    short = ("pool.rounds=1", "steps_per_round=1", "pictures=0", f"output_dir={tmp_path}/out")
    done = train(
        *short, uri, proxy, "tracking.mlflow.skip=['*.ckpt','${web_proxy}']", tracking="mlflow"
    )
    assert done.exit_code == 0, done.err
    assert SECRET not in done.out + done.err
    assert holding_secret(tmp_path) == []
    sent = "".join(RecordingStore.received)
    assert SECRET not in sent
    for part in ("log-batch", "note.content", "config.yaml", "start.json", "run.log", "FINISHED"):
        assert part in sent
    assert RecordingStore.logins == {f"Basic {b64encode(f'me:{SECRET}'.encode()).decode()}"}

    monkeypatch.delenv("ALSEG_SECRET_TRACKING_MLFLOW_URI")
    refused = train(smoke=False, resume=done.folder)
    assert refused.exit_code == 2
    assert "set the environment variable ALSEG_SECRET_TRACKING_MLFLOW_URI" in refused.err
    again = train(uri, smoke=False, resume=done.folder)
    assert again.exit_code == 0, again.err
    assert SECRET not in again.out + again.err
    assert holding_secret(tmp_path) == []


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{SECRET}@127.0.0.1:9",
        f"sqlite://me:{SECRET}@/mlflow.db",
        f"postgresql://me:{SECRET}@127.0.0.1/db",
        f"nonsense://{SECRET}@host",
    ],
)
def test_a_store_that_cannot_be_opened_is_told_without_its_password(
    train: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    failed = train(f"tracking.mlflow.uri='{uri}'", tracking="mlflow")
    assert failed.exit_code == 2
    assert "tracking.mlflow.uri" in failed.err
    assert "***@" in failed.err
    assert SECRET not in failed.out + failed.err
    assert holding_secret(tmp_path) == []
    assert os.environ["ALSEG_SECRET_TRACKING_MLFLOW_URI"] in uri
