"""Cards and pictures: what a reader of an artifact sees first. No torch, so that cards can be rendered anywhere."""

import bisect
import math
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from ..shipped import shipped
from .edits import marked
from .markdown import code, escaped, fenced, literal, plain, url

LARGEST_CELL = 128  # pixels of the longer side of an image in a picture of many
ANIMATION = "frames/animation.webp"  # in the folder of a run, beside the frames that it is made of


@dataclass(frozen=True)
class Paper:
    """The paper that a method comes from.

    Example:
        >>> paper = hd.TESLA.paper
        >>> paper.year, paper.arxiv_id
        (2023, '2211.10586')
    """

    title: str
    authors: str
    year: int
    arxiv_id: str
    bibtex: str

    @property
    def url(self) -> str:
        """The paper's page on the Hub."""
        return f"https://huggingface.co/papers/{self.arxiv_id}"


def human_bytes(count: int) -> str:
    """Bytes for people, in powers of ten: `12.3 kB`."""
    if count < 1000:
        return f"{count} B"
    power = next((power for power in (1, 2, 3) if count < 999.95 * 1000**power), 4)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def human_flop(count: int) -> str:
    """For people, in powers of 1,000: `1.23 TFLOP`."""
    size = float(count)
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} EFLOP"


def human_seconds(seconds: float) -> str:
    """For people: `1.2 s`, `3.4 min` or `5.6 h`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def text_table(table: Sequence[Sequence[str]], caption: str, to_left: Sequence[str]) -> str:
    """A header and its lines as aligned plain text, with what is said of them all below.

    Args:
        table: Cells; the first line is the header.
        caption: Wrapped at 100 characters.
        to_left: Titles of the columns that start at the left; numbers end at the right.
    """
    padded = []
    for cells in zip(*table, strict=True):
        width = max(map(len, cells))
        padded.append([cell.ljust(width) if cells[0] in to_left else cell.rjust(width) for cell in cells])
    text = ["   ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:], "", *textwrap.wrap(caption, 100)])


def markdown_table(table: Sequence[Sequence[str]], caption: str) -> str:
    """The same for a card: the first column starts at the left, the others end at the right."""
    rule = ["---"] + ["---:"] * (len(table[0]) - 1)
    lines: list[Sequence[str]] = [[escaped(cell) for cell in line] for line in table]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])) + f"\n\n{escaped(caption)}"


def render_card(template: str, **context: Any) -> str:
    """The card that `model_cards/<template>` makes of `context`; a name that the context lacks is an error.

    Every value is escaped, but for numbers and for what the template calls safe, which is Markdown already.
    """
    return marked(card_template(template).render(**context))


@cache
def card_template(name: str) -> jinja2.Template:
    """`model_cards/<name>`, compiled once in a process: a run writes its card twice."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, (Markup, int, float)) else escaped(value),
    )
    environment.filters.update(code=code, fenced=fenced, literal=literal, url=url)
    environment.filters.update(bytes=human_bytes, count="{:,}".format)
    return environment.from_string((shipped("model_cards") / name).read_text(encoding="utf-8"))


def on_hub(source: dict[str, Any]) -> bool:
    """True where the dataset that `RealImages.provenance` speaks of is a repository on the Hub, by its name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", str(source.get("name"))) is not None


def source_datasets(source: dict[str, Any]) -> list[str] | None:
    """The datasets that a dataset was made from, for the metadata of its card: repositories on the Hub, by name."""
    return [str(source["name"])] if on_hub(source) else None


def eval_results(source: dict[str, Any], accuracies: dict[str, float]) -> list[EvalResult]:
    """Accuracies in [0, 1] by split of `source`, for the `model-index` of a model card.

    They stand nowhere else: the Hub takes `.eval_results/` of tasks alone that a dataset's own `eval.yaml` names, and
    that it has registered as benchmarks (https://huggingface.co/docs/hub/eval-results).
    """
    name = str(source.get("name") or "unknown dataset")
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=name if on_hub(source) else Path(name).name,
            dataset_name=Path(name).name,
            dataset_config=source.get("config"),
            dataset_split=split,
            dataset_revision=source.get("revision"),
            metric_type="accuracy",
            metric_value=round(accuracy, 6),
        )
        for split, accuracy in accuracies.items()
    ]


def source_context(source: dict[str, Any]) -> dict[str, Any]:
    """The dataset that an artifact was made from, as a card speaks of it, by names for `render_card`.

    Args:
        source: `RealImages.provenance`; every key may be absent.

    Returns:
        source_name, source_split, source_revision, source_images and source_corrupt; license (for the metadata: the
        source's, or "other"); and as Markdown source_link, licence_note (a sentence), and gated_note (a sentence, or
        None).
    """
    name, homepage = str(source.get("name") or "unknown dataset"), source.get("homepage")
    if os.path.isabs(name) or name.startswith((".", "~")):
        name = Path(name).resolve().name  # where it lies on the author's machine is nobody's business
    link = escaped(name)
    if re.fullmatch(r"https?://[^\s<>()\[\]\"']+", str(homepage or "")):
        link = Markup(f"[{link}]({url(homepage, safe=':/?#@!$&*+,;=%~')})")
    stated = source.get("license") or []
    stated = [stated] if isinstance(stated, str) else list(stated)
    if stated and all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,40}", text) for text in stated) and "unknown" not in stated:
        license_id: str | list[str] = stated[0] if len(stated) == 1 else stated
        note = f"This artifact derives from {link} and carries its licence: {', '.join(stated)}. Its terms still hold."
        if any(re.search("(^|-)nc(-|$)", text) for text in stated):
            note += " **They forbid commercial use.**"
    else:
        license_id = "other"
        words = escaped(" ".join(stated)).strip()
        says = f" It says: “{words}”." if words not in ("", "unknown") else ""
        note = (
            f"This artifact derives from {link}, whose licence is not known here.{says} Its terms still hold: look "
            "them up before you use or share anything of this."
        )
    gated_note = (
        f"This artifact derives from {escaped(name)}, access to which is conditional. The same conditions hold here."
        if source.get("gated")
        else None
    )
    return {
        "source_name": plain(name).strip(),
        "source_link": link,
        "source_split": source.get("split"),
        "source_revision": source.get("revision"),
        "source_images": source.get("num_images"),
        "source_corrupt": source.get("num_corrupt"),
        "license": license_id,
        "licence_note": note,
        "gated_note": gated_note,
    }


def fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = bisect.bisect_right(range(len(text)), width, key=lambda count: font.getlength(text[:count] + "…")) - 1
    return text[: max(0, kept)].rstrip() + "…"


def image_grid(
    images: Sequence[Image.Image | None],
    columns: int,
    *,
    row_labels: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    cell: int = 96,
) -> Image.Image:
    """One picture of many small images of the same size, row by row.

    Args:
        images: Small ones are enlarged by a whole factor without smoothing until they are about `cell` pixels;
            those over `LARGEST_CELL` pixels are reduced to that. None leaves a place empty; the first one is an image.
        columns: Images in a row.
        row_labels: A text for each row, shown on its left.
        captions: A text for each image, shown under it; a row without any takes no room for them.
        cell: Least side of an image in the picture, in pixels.
    """
    first = images[0]
    if first is None:
        raise ValueError("the first image of a grid is None; expected an image, whose size the others share")
    side = max(first.size)
    scale = LARGEST_CELL / side if side > LARGEST_CELL else math.ceil(cell / side)
    width, height = (round(length * scale) for length in first.size)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    gap, ink, font = 4, (40, 40, 40), ImageFont.load_default(size=15)
    left = gap + min(180, math.ceil(max(font.getlength(text) for text in row_labels)) + 8) if row_labels else gap
    rows = math.ceil(len(images) / columns)
    texts = [list((captions or ())[row * columns : (row + 1) * columns]) for row in range(rows)]
    tops = [gap]
    for line in texts:
        tops.append(tops[-1] + height + gap + (22 if any(line) else 0))
    picture = Image.new("RGB", (left + columns * (width + gap), tops[-1]), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        x, y = left + column * (width + gap), tops[row]
        if image is not None:
            picture.paste(image.convert("RGB").resize((width, height), method), (x, y))
        if texts[row]:
            text = fitted(texts[row][column], font, width)
            draw.text((x + width / 2, y + height + 11), text, fill=ink, font=font, anchor="mm")
    for top, text in zip(tops, row_labels or (), strict=False):
        draw.text((left - 8, top + height / 2), fitted(text, font, left - gap - 8), fill=ink, font=font, anchor="rm")
    return picture
