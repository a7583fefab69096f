"""Hooks of MkDocs: the front page is the README, its links turned into the documentation's own."""

import re
from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the README in place of the empty front page; links to files outside the documentation become their paths."""
    if page.file.src_uri != "index.md":
        return markdown
    readme = Path(config.config_file_path).with_name("README.md").read_text(encoding="utf-8")
    inside = readme.replace("](docs/", "](")
    return re.sub(r"\[[^\]]*\]\(((?:benchmarks|CONTRIBUTING|CHANGELOG|LICENSE)[^)]*)\)", r"`\1`", inside)
