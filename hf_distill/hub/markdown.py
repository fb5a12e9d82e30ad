"""Text from outside on a card: shown as it is, and never the markup that it could be.

`render_card` puts every value through `escaped`, but for what a template says is Markdown already (`| safe`). Four
filters are for places where such an escape means nothing: `code`, `fenced`, `literal` (of Python) and `url`.
"""

import json
import re
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

__all__ = ["code", "escaped", "fenced", "literal", "plain", "url"]

# Controls, what turns the order of the letters behind it, halves of pairs that no file can hold.
UNSEEN = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
HALF = re.compile("[\ud800-\udfff]")
# A backslash before $ or ( would be that of a formula on the Hub's pages.
SPECIAL = re.compile(r"[`*\[\]|~\\$<]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
ENTITY = {"\\": "&#92;", "$": "&#36;", "<": "&lt;", "&": "&amp;"}
# What begins a block where it is the first of a line, and what ends a heading.
BLOCK = re.compile(r"^\s*(?=>|#{1,6}(?:\s|$)|[-+](?:\s|$)|[-=]+\s*$)|^\s*\d+(?=[.)](?:\s|$))|\s(?=#+\s*$)")


def plain(value: Any) -> str:
    """A value as one line of text."""
    if isinstance(value, dict):
        value = [f"{key} {item}" for key, item in value.items()]
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return HALF.sub("\N{REPLACEMENT CHARACTER}", UNSEEN.sub("", re.sub(r"\s+", " ", text)))


def escaped(value: Any) -> Markup:
    """A value as Markdown that shows it: in a paragraph, a heading, a link's text or the cell of a table."""
    text = SPECIAL.sub(lambda found: ENTITY.get(found[0], f"\\{found[0]}"), plain(value))
    return Markup(BLOCK.sub(lambda found: f"{found[0]}\\", text))


def code(value: Any, in_table: bool = False) -> Markup:
    """A value as a span of code; in the cell of a table a bar is escaped there too."""
    text = plain(value).strip()
    if in_table:
        text = text.replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{fence}{space}{text}{space}{fence}" if text else "")


def url(value: Any, safe: str = "/") -> Markup:
    """A value as a part of where a link leads; what is not `safe` there, and no letter or digit, becomes %xx."""
    return Markup(quote(plain(value).strip(), safe=safe))


def literal(text: str) -> Markup:
    """A text as a literal of Python, on one line."""
    # JSON's is one, but for halves of pairs: a path of bytes that are no text has them.
    return Markup(json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace").decode())


def fenced(text: str, language: str) -> Markup:
    """A text of several lines as a block of code."""
    lines = "\n".join(HALF.sub("\N{REPLACEMENT CHARACTER}", UNSEEN.sub("", line)) for line in text.strip().splitlines())
    # The marks of a card's parts are looked for in code too.
    lines = lines.replace("<!--", "<! --")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return Markup(f"{fence}{language}\n{lines}\n{fence}")
