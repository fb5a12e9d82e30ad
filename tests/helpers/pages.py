"""What stands on the pages of docs/."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

from tests.helpers import ROOT

DOCS = ROOT / "docs"


def python_of(page: Path) -> list[str]:
    """The Python blocks of a page, each on the lines that it has there, but those behind `<!-- not run: why -->`."""
    text = page.read_text(encoding="utf-8")
    blocks = re.finditer(r"^(<!-- not run: .*-->\n)?```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return ["\n" * text[: block.start(2)].count("\n") + block[2] for block in blocks if not block[1]]


def rows_of(text: str) -> list[list[str]]:
    """The cells of all rows of the tables in a text, those of headings and the lines under them among them."""
    rows = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def section_of(page: Path, heading: str) -> str:
    """What stands under a heading of the second level, as far as the next."""
    return page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def measured_in(files: list[Path]) -> set[str]:
    """Means and deviations of all students in files of results, as pages write them."""
    found, parts = set(), [json.loads(file.read_text(encoding="utf-8")) for file in files]
    while parts:
        part = parts.pop()
        parts.extend(part.values() if isinstance(part, dict) else part if isinstance(part, list) else [])
        if isinstance(part, dict) and len(accuracies := part.get("accuracies") or []) > 1:
            found.add(f"{100 * mean(accuracies):.1f} ± {100 * stdev(accuracies):.1f}")
    return found
