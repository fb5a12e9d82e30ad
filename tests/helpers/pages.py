"""What stands on the pages of docs/."""

import re
from pathlib import Path

from tests.helpers import ROOT

DOCS = ROOT / "docs"


def python_of(page: Path) -> list[str]:
    """The Python blocks of a page, each on the lines that it has there."""
    text = page.read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return ["\n" * text[: block.start(1)].count("\n") + block[1] for block in blocks]


def rows_of(text: str) -> list[list[str]]:
    """The cells of all rows of the tables in a text, those of headings and the lines under them among them."""
    rows = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def section_of(page: Path, heading: str) -> str:
    """What stands under a heading of the second level, as far as the next."""
    return page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
