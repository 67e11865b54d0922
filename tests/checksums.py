"""Damaged files that have a right checksum, so that what reads them meets the damage."""

from __future__ import annotations

import json
from pathlib import Path

from alseg.system.files import write_json


def write_signed(path: Path, text: str) -> None:
    """Write a text; if it is a JSON object, then with a checksum that agrees with it."""
    path.write_text(text, encoding="utf-8")
    try:
        content = json.loads(text)
    except ValueError:
        return
    if isinstance(content, dict):
        content.pop("sha256", None)
        write_json(path, content)
