"""A hook of MkDocs: the home page of the documentation is README.md, written once."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE_OF_DOCS = re.compile(r"\[([^\]]*)\]\((?!https?:|#|docs/)[^)]*\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md as index.md, with links that start from docs/.

    A link to a file outside of docs/ keeps its text only: the site does not hold the file.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = OUTSIDE_OF_DOCS.sub(r"\1", text).replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files
