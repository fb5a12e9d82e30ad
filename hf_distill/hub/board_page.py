"""A board as a folder: one page without a server, a table as parquet, and a README.md that makes it a static Space.

The page is one file. Its policy lets nothing in from elsewhere, and lets nothing run but the script and the style whose
digests it names; what sets say of themselves is text on it.
"""

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup, escape
from PIL import Image

from .. import _version
from ..shipped import shipped
from .board import REGIMES, BoardRow, BoardSet, is_shown
from .cards import human_bytes, human_seconds, render_card
from .edits import with_edits
from .files import atomic_write, check_target, naming, whole_file
from .making import Work
from .markdown import HALF, UNSEEN, plain
from .repository import CARD

__all__ = [
    *("INDEX", "PAGE", "TABLE", "board_table", "check_board", "page_of", "save_board"),
    *("drawn_anew", "rendered"),
]

PAGE, TABLE = "index.html", "board.parquet"
INDEX = TABLE  # by which a folder is known to hold a board
THUMBNAIL = 640  # pixels of the longer side of a picture on the page
MOST_PIXELS = 80_000_000  # of a picture that is opened
SHARES = ("mean", "std", "interval", "components")  # of what a report found
COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("name", "set", "method", "dataset", "dataset_revision")),
        ("classes", pa.int64()),
        ("chosen_classes", pa.string()),
        ("resolution", pa.string()),
        *((name, pa.int64()) for name in ("test_images", "ipc", "images")),
        *((name, pa.string()) for name in ("labels", "regime")),
        ("label_bytes", pa.int64()),
        *((name, pa.string()) for name in ("student", "protocol", "split")),
        ("n", pa.int64()),
        *((name, pa.float64()) for name in ("mean", "std")),
        ("accuracies", pa.list_(pa.float64())),
        *((name, pa.string()) for name in ("device", "link", "revision")),
    ]
)


def check_board(folder: Path) -> None:
    """Raise a `ValueError` where no board can be saved into a folder: it is a file, or somebody else's."""
    check_target(folder, (PAGE, TABLE, CARD), INDEX)


def save_board(folder: str | Path, sets: Sequence[BoardSet], *, title: str = "Distilled sets") -> Path:
    """Write a board of some sets into a folder, in place of the one that it may hold, and give its path.

    Each file is whole or not there. What people wrote into the README.md stays in it.

    Raises:
        ValueError: The folder is a file, or holds something else.
        OSError: The files cannot be written.
    """
    folder = Path(folder)
    check_board(folder)
    table, page = board_table([row for each in sets for row in each.rows]), page_of(sets, title)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / TABLE) as aside:  # first: from here on the folder is known to be a board's
            pq.write_table(table, aside)
        atomic_write(folder / PAGE, page)
        card = render_card("board.md", title=title, sets=sets, rows=table.num_rows, columns=table.column_names)
        if (folder / CARD).exists():
            card = with_edits(card, (folder / CARD).read_text(encoding="utf-8", errors="replace"), ours=True)
        atomic_write(folder / CARD, card)
    return folder


def board_table(rows: Sequence[BoardRow]) -> pa.Table:
    """Rows as a table, with the attributes of `BoardRow` for columns, and what rows say of their cost as `cost_...`."""
    names = [each.name for each in fields(BoardRow) if each.name != "cost"]
    flat = [{**{name: _text(getattr(row, name)) for name in names}, **_costs(row)} for row in rows]
    schema = COLUMNS
    for name in sorted({name for row in rows for name in _costs(row)}):
        numbers = all(is_shown(row[name]) for row in flat if name in row)
        schema = schema.append(pa.field(name, pa.float64() if numbers else pa.string()))
    for row in flat:
        row.update({name: str(row[name]) for name in row if schema.field(name).type == pa.string() and row[name]})
    return pa.Table.from_pylist(flat, schema)


def _text(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value


def _costs(row: BoardRow) -> dict[str, float | str]:
    return {f"cost_{name}": value for name, value in row.cost.items() if name != "regime"}


# The page


def page_of(sets: Sequence[BoardSet], title: str) -> str:
    """The page as one text of HTML."""
    rows = [row for each in sets for row in each.rows]
    numbers = {each.name: number for number, each in enumerate(sets)}
    groups: dict[tuple[str, ...], list[BoardRow]] = {}
    for row in sorted(rows, key=lambda row: (row.task, REGIMES.index(row.regime), row.group[2:], -row.mean)):
        groups.setdefault(row.group, []).append(row)
    return rendered(
        "board.html",
        style=["board.css"],
        script=["board.js"],
        title=title,
        groups=list(groups.items()),
        num_rows=len(rows),
        numbers=numbers,
        sets=[_set_context(each) for each in sets],
        choices={
            name: sorted({group[place] for group in groups})
            for place, name in ((0, "dataset"), (3, "student"), (2, "protocol"))
        },
        regimes=[regime for regime in REGIMES if any(group[1] == regime for group in groups)],
        costs=[name for name in dict.fromkeys(name for row in rows for name in row.cost) if name != "regime"],
        has_flop=any(row.flop is not None for row in rows),
    )


def rendered(name: str, *, style: Sequence[str], script: Sequence[str] = (), **context: Any) -> str:
    """The page that `model_cards/<name>` makes of `context`, with what is in the files of its style and its script.

    Every value is escaped. The template knows these texts and their digests, for its policy, and the version.
    """
    folder = shipped("model_cards")
    texts = {
        kind: "".join((folder / each).read_text(encoding="utf-8") for each in files)
        for kind, files in (("style", style), ("script", script))
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
        finalize=lambda value: value if isinstance(value, (Markup, int, float)) else plain(value),
    )
    environment.filters.update(bytes=human_bytes, count="{:,}".format, short=_short, lines=_lines)
    return environment.get_template(name).render(
        **{kind: Markup(text) for kind, text in texts.items()},
        **{f"{kind}_digest": _digest(text) for kind, text in texts.items()},
        version=_version.__version__,
        **context,
    )


def _digest(text: str) -> str:
    """By which a policy names a script or a style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _lines(text: str) -> Markup:
    """A text of several lines, escaped; what is not to be seen is left out."""
    return escape(HALF.sub("\N{REPLACEMENT CHARACTER}", UNSEEN.sub("", text)))


def _short(value: Any) -> str:
    """A value for a narrow cell: numbers in four digits, from a thousand on with a prefix."""
    if not is_shown(value):
        return "" if value is None else plain(value)
    if abs(value) < 1000:
        return f"{value:.4g}"
    power = min(int(math.log10(abs(value)) // 3), 6)
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}"


def _work(work: Work | None) -> str:
    """What a part of the making took."""
    if work is None or work.seconds is None:
        return "not measured"
    return f"{human_seconds(work.seconds)}, {work.steps:,} steps, {work.device}"


def _made_for(student: Any) -> Any:
    """The name of the network that a set was made for, or of its frozen backbone with the digest of its weights."""
    known = student if isinstance(student, dict) else {}
    if isinstance(backbone := known.get("probe"), dict):
        return f"probe:{backbone.get('name')} ({backbone.get('digest')})"
    return known.get("name")


def _set_context(each: BoardSet) -> dict[str, Any]:
    """A set for the template."""
    config, first = each.config, each.rows[0]
    papers = config.get("paper") or []
    papers = [paper for paper in (papers if isinstance(papers, list) else [papers]) if isinstance(paper, dict)]
    about = {
        "method": first.method,
        "dataset": first.task,
        "images": config.get("images"),
        "images per class": config.get("ipc"),
        "made for": _made_for(config.get("student")),
        "labels": (config.get("label_source") or {}).get("kind"),
        "seed": config.get("seed"),
        "revision": each.revision,
        **{f"making, {name}": _work(work) for name, work in each.making.items()},
    }
    settings = config.get("hyperparameters") or {}
    return {
        "of": each,
        "picture": _thumbnail(each.picture),
        "papers": [paper for paper in papers if isinstance(paper.get("arxiv_id"), str) and paper.get("title")],
        "about": {name: value for name, value in about.items() if value is not None},
        "settings": {name: json.dumps(value, ensure_ascii=False) for name, value in settings.items()},
        "further": [
            (title, *_lines_of(found))
            for title, found in (("Differences", each.differences), ("Scores", each.scores))
            if found
        ],
    }


def _lines_of(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """A header and cells of what a report found, each with whether it is a number; values of single seeds stay out."""
    names = dict.fromkeys(name for each in found for name, value in each.items() if value is not None)
    names.pop("values", None)
    lines = [[(_cell(name, each.get(name)), is_shown(each.get(name))) for name in names] for each in found]
    return [f"{name} × 100" if name in SHARES else name.replace("_", " ") for name in names], lines


def _cell(name: str, value: Any) -> str:
    """A value in text: what is a share in hundredths, of what consists of several numbers their means."""
    if isinstance(value, dict):
        means = {key: inner.get("mean") if isinstance(inner, dict) else inner for key, inner in value.items()}
        return ", ".join(f"{key} {_number(mean, 'mean')}" for key, mean in means.items())
    if isinstance(value, list):
        return " to ".join(_number(inner, name) for inner in value)
    return _number(value, name)


def _number(value: Any, name: str) -> str:
    return f"{100 * value:.1f}" if name in SHARES and is_shown(value) else _short(value)


def _thumbnail(path: Path | None) -> str | None:
    """A picture as a URL that holds it, drawn anew; None where there is none that can be read."""
    picture = None if path is None else drawn_anew(path)
    if picture is None:
        return None
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def drawn_anew(path: Path) -> Image.Image | None:
    """The picture in a PNG file, whoever wrote that; None where there is none that can be read."""
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            return opened.convert("RGB") if opened.width * opened.height <= MOST_PIXELS else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
