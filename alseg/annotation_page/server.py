"""Serves the page to the browsers of this computer, and to nobody else.

It listens on the loopback device only. All addresses begin with a random token, so that no other
user and no other web site can reach anything; a foreign ``Host`` or ``Origin`` is refused besides.
Files of the page come from this package, those of a case by names that the request has: no path
that a browser sends is ever opened.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import socket
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Request, Response, abort, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, make_server

from alseg.annotation_page.claims import TakenError
from alseg.annotation_page.desk import Desk
from alseg.annotation_page.review_desk import ReviewDesk
from alseg.core.errors import AlsegError, ConfigError, DataError, StorageError
from alseg.oracles.label_checks import ConfirmationNeededError
from alseg.system.files import read_json, replacing
from alseg.system.own_secret import own_secret

HOST = "127.0.0.1"
N_PORTS = 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # by any port: one may be forwarded through SSH
STATIC = Path(__file__).parent / "static"
LONGEST_NAME = 80
LONGEST_COMMENT = 2000
MOST_JSON = 2**14  # bytes of a message that holds no drawing
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(desk: Desk | ReviewDesk, token: str) -> Flask:
    """The page as a WSGI application, below ``/TOKEN/``."""
    app = Flask("alseg.annotate", static_folder=None)
    app.url_map.merge_slashes = False  # no path except the one that was asked for
    base = f"/{token}"

    @app.before_request
    def guard() -> None:
        if problem := refusal(request, token):
            abort(Response(problem, HTTPStatus.FORBIDDEN, mimetype="text/plain"))

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    @app.errorhandler(AlsegError)
    def tell(error: AlsegError) -> tuple[dict[str, str], int]:
        if isinstance(error, ConfirmationNeededError):
            return {"confirm": str(error)}, HTTPStatus.CONFLICT
        taken = isinstance(error, TakenError)
        return {"problem": str(error)}, HTTPStatus.CONFLICT if taken else HTTPStatus.BAD_REQUEST

    @app.errorhandler(HTTPException)
    def tell_http(error: HTTPException) -> Any:
        if error.response is not None:
            return error.response
        return {"problem": error.description or error.name}, error.code or 500

    _add_page(app, base, "review.html" if isinstance(desk, ReviewDesk) else "index.html")
    _add_volumes(app, base, desk)
    if isinstance(desk, ReviewDesk):
        _add_review(app, base, desk)
    else:
        _add_cases(app, base, desk)
        _add_drawings(app, base, desk)
    return app


def refusal(asked: Request, token: str) -> str:
    """Why a request is not answered; empty if it is."""
    host = urlsplit(f"//{asked.host}").hostname
    if host not in LOOPBACK:
        return "this page is served to this computer only, as 127.0.0.1 or localhost"
    origin = asked.headers.get("Origin")
    if origin is not None and origin != f"http://{asked.host}":
        return "another web site may not use this page"
    if asked.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return "another web site may not use this page"
    given = asked.path.split("/")[1]
    if not secrets.compare_digest(given.encode(), token.encode()):
        return "open the address that python -m alseg.annotate has printed: it has a token"
    return ""


def _add_page(app: Flask, base: str, first: str) -> None:
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
    files = {
        path.relative_to(STATIC).as_posix(): path
        for path in STATIC.rglob("*")
        if path.suffix in types
    }

    @app.get(f"{base}/")
    def index() -> Response:
        return static(first)

    @app.get(f"{base}/static/<path:name>")
    def static(name: str) -> Response:
        path = files.get(name)
        if path is None:
            abort(HTTPStatus.NOT_FOUND)
        return Response(path.read_bytes(), mimetype=types[path.suffix])


def _add_volumes(app: Flask, base: str, desk: Desk | ReviewDesk) -> None:
    @app.get(f"{base}/api/overview")
    def overview() -> dict[str, Any]:
        return desk.overview()

    @app.get(f"{base}/api/<name>/<case_id>/image")
    def image(name: str, case_id: str) -> Response:
        channel = request.args.get("channel", "0")
        if not channel.isdecimal():
            raise DataError(f"{channel} is no number of a channel")
        return binary(desk.image(name, case_id, int(channel)))

    @app.get(f"{base}/api/<name>/<case_id>/uncertainty")
    def uncertainty(name: str, case_id: str) -> Response:
        return binary(desk.uncertainty(name, case_id))


def _add_review(app: Flask, base: str, desk: ReviewDesk) -> None:
    @app.get(f"{base}/api/<name>/<case_id>/about")
    def about(name: str, case_id: str) -> dict[str, Any]:
        return desk.about(name, case_id)

    @app.get(f"{base}/api/<name>/<case_id>/label")
    def label(name: str, case_id: str) -> Response:
        return zipped(desk.label(name, case_id))

    @app.get(f"{base}/api/<name>/<case_id>/proposal")
    def proposal(name: str, case_id: str) -> Response:
        return zipped(desk.proposal(name, case_id))

    @app.post(f"{base}/api/<name>/<case_id>/review")
    def review(name: str, case_id: str) -> dict[str, Any]:
        said = message()
        desk.review(
            name,
            case_id,
            reviewer=name_in(said, "reviewer"),
            verdict=text_in(said, "verdict"),
            comment=comment_in(said),
            checksum=text_in(said, "checksum"),
        )
        return {}


def _add_cases(app: Flask, base: str, desk: Desk) -> None:
    @app.post(f"{base}/api/<name>/next")
    def next_case(name: str) -> dict[str, Any]:
        said = message()
        return {"case": desk.next_case(name, name_in(said, "annotator"), text_in(said, "holder"))}

    @app.post(f"{base}/api/<name>/release")
    def release(name: str) -> dict[str, Any]:
        desk.give_back(name, text_in(message(), "holder"))
        return {}

    @app.post(f"{base}/api/<name>/<case_id>/open")
    def open_case(name: str, case_id: str) -> dict[str, Any]:
        said = message()
        annotator, holder = name_in(said, "annotator"), text_in(said, "holder")
        return desk.open(name, case_id, annotator, holder, take_over=said.get("take_over") is True)


def _add_drawings(app: Flask, base: str, desk: Desk) -> None:
    @app.get(f"{base}/api/<name>/<case_id>/drawing")
    def drawing(name: str, case_id: str) -> Response:
        return zipped(desk.drawing(name, case_id))

    @app.put(f"{base}/api/<name>/<case_id>/draft")
    def draft(name: str, case_id: str) -> dict[str, Any]:
        content = upload(desk, name, case_id)
        desk.save_draft(name, case_id, request.args.get("holder", ""), seconds(), content)
        return {}

    @app.post(f"{base}/api/<name>/<case_id>/submit")
    def submit(name: str, case_id: str) -> dict[str, Any]:
        content, arguments = upload(desk, name, case_id), request.args
        desk.submit(
            name,
            case_id,
            arguments.get("holder", ""),
            seconds(),
            content,
            based_on=arguments.get("based_on", ""),
            confirmed=arguments.get("confirmed") == "true",
        )
        return {}


def upload(desk: Desk, name: str, case_id: str) -> bytes:
    """The body of a request that holds a drawing; no more is read than one can have."""
    request.max_content_length = desk.most_bytes(name, case_id)
    return request.get_data(cache=False)


def seconds() -> float:
    """For how long the case has been in front, as the page says."""
    value = request.args.get("seconds", 0.0, type=float)
    if not 0 <= value < 1e6:  # a NaN is neither
        raise DataError(f"{value} is no number of seconds")
    return value


def message() -> dict[str, Any]:
    """The body of a request, as a JSON object."""
    request.max_content_length = MOST_JSON
    try:
        content = json.loads(request.get_data(cache=False))
    except (ValueError, RecursionError) as error:
        raise DataError(f"the message is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError("the message is no JSON object")
    return content


def text_in(said: dict[str, Any], name: str) -> str:
    """A text of a message."""
    value = said.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME:
        raise DataError(f"the message has no {name}")
    return value


def name_in(said: dict[str, Any], key: str) -> str:
    """A person's name: one line of any text that can be shown."""
    name = said.get(key)
    name = name.strip() if isinstance(name, str) else ""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise DataError(f"give your name, one line of up to {LONGEST_NAME} characters")
    return name


def comment_in(said: dict[str, Any]) -> str:
    """A reviewer's comment: text that can be shown, in one line or more; it may be empty."""
    comment = said.get("comment")
    if not isinstance(comment, str) or len(comment) > LONGEST_COMMENT:
        raise DataError(f"the comment must be text of up to {LONGEST_COMMENT} characters")
    lines = [" ".join(line.split()) for line in comment.splitlines()]
    if not all(line.isprintable() for line in lines):
        raise DataError("the comment holds characters that cannot be shown")
    return "\n".join(lines).strip()


def binary(content: bytes) -> Response:
    """Bytes that no browser takes for a page."""
    return Response(content, mimetype="application/octet-stream")


def zipped(content: bytes) -> Response:
    """A drawing, which the browser decompresses."""
    response = binary(content)
    response.headers["Content-Encoding"] = "gzip"
    return response


def start(desk: Desk | ReviewDesk, port: int) -> tuple[str, BaseWSGIServer]:
    """A server on the first free port from ``port`` on, and the address of the page.

    Token and port stay the same for a run, so that a page that is open finds a server that has been
    started again. They stand in a file that only its owner may read.

    Raises:
        ConfigError: if no port can be used.
        StorageError: if the file cannot be written.
    """
    path = desk.page_file
    known_port, token = _known_address(path)
    listener = _listen([*([known_port] if known_port else []), *range(port, port + N_PORTS)])
    found = listener.getsockname()[1]
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:  # which nobody else may read, as of its first byte
        Path(file.name).chmod(0o600)
        content = {"port": found, "token": token, "signature": _signature(path, token)}
        file.write(json.dumps(content).encode())
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print a line a request
    server = make_server(HOST, found, make_app(desk, token), threaded=True, fd=listener.fileno())
    listener.close()
    return f"http://{HOST}:{found}/{token}/", server


def serve(desk: Desk | ReviewDesk, port: int, announce: Any) -> None:
    """Serve until Ctrl-C.

    Args:
        desk: what the page works on.
        port: the first one to try.
        announce: called with the address.
    """
    address, server = start(desk, port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    announce(address)
    try:
        thread.join()
    finally:
        server.shutdown()
        server.server_close()


def _known_address(path: Path) -> tuple[int, str]:
    """Port and token of an earlier server of this user; 0 and a new token if there was none.

    Who gives somebody a run folder must not know the token of the page that it gets.
    """
    try:
        content = read_json(path)
        port, token, signature = (content[name] for name in ("port", "token", "signature"))
        is_own = signature and secrets.compare_digest(signature, _signature(path, token))
        if is_own and type(port) is int and 0 < port < 2**16:
            return port, token
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        pass  # another token is as good
    return 0, secrets.token_urlsafe(24)


def _signature(path: Path, token: str) -> str:
    """What only this user can have written beside a token; empty where no secret can be kept."""
    try:
        secret = own_secret("page_secret")
    except (DataError, StorageError):
        return ""
    return hmac.new(secret, f"{path.resolve()}\n{token}".encode(), hashlib.sha256).hexdigest()


def _listen(ports: list[int]) -> socket.socket:
    for port in ports:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError):
            listener.close()
            continue
        listener.listen(64)
        return listener
    raise ConfigError(f"port {ports[-N_PORTS]}: no port from there on can be used")
