"""The viewer is the published one, unchanged, with its licence, and travels in the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import alseg

FOLDER = Path(alseg.__file__).parent / "annotation_page" / "static" / "niivue"


def test_the_viewer_is_what_was_published() -> None:
    content = json.loads((FOLDER / "VERSION.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((FOLDER / "niivue.js").read_bytes()).hexdigest() == content["sha256"]
    assert content["version"] == "0.69.0"
    assert "BSD 2-Clause License" in (FOLDER / "LICENSE").read_text(encoding="utf-8")
