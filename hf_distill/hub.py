"""Folders that are also Hub repositories: written aside and moved in place, with their card, grid and results.

The folder is the artifact; everything works on local folders, without a token or a network. This module imports no
torch, so that cards and results can be read and rendered anywhere.
"""

import importlib.metadata
import importlib.resources
import json
import logging
import math
import os
import re
import shutil
import statistics
import tempfile
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jinja2
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image, ImageDraw, ImageFont

from ._version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

SETS = ("random", "herding", "k-center", "distilled", "full data")
CONTEXT = ("student", "protocol", "split", "device")
STAGING = ".saving-"


def atomic_write(path: str | Path, data: bytes | memoryview | str) -> None:
    """Put `data` at `path` whole or not at all; text is UTF-8."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def save_json(path: str | Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all. Floats come back bit for bit."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def load_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: The file is absent, is not JSON, or holds something else than an object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; expected a complete artifact folder") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore the file or save the artifact again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def check_format_version(path: str | Path, config: dict[str, Any], known: int) -> None:
    """Raise a `ValueError` when the artifact at `path` is newer than the format this version reads."""
    version = config.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path} has format_version {version!r}; expected a number from 1 to {known}")
    if version > known:
        raise ValueError(
            f"{path} has format_version {version} and hf_distill {__version__} reads up to {known}; upgrade hf_distill"
        )


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide the numbers in an artifact."""
    names = ("torch", "torchvision", "transformers", "datasets", "accelerate", "timm")
    return {"hf_distill": __version__, **{name: importlib.metadata.version(name) for name in names}}


@contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """A folder to write aside in, inside `directory` because only there a rename cannot cross file systems."""
    aside = Path(tempfile.mkdtemp(prefix=STAGING, dir=directory))
    try:
        staged = aside / (directory.resolve().name or "artifact")
        staged.mkdir()
        yield staged
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


class HubFolder(ABC):
    """A folder on disk that is also a Hub repository.

    A subclass writes and reads its entries in `_write` and `_read`. Saving is safe against a kill at any moment when
    bulk files carry a new name whenever their content changes and the files that name them are replaced as a whole:
    new names are moved in first, then the replaced files, `config_name` last, and only then the stale ones go.

    Attributes:
        repo_type: "dataset" or "model".
        config_name: The JSON file by which a folder is known to hold this kind of artifact.
        owned: Glob patterns of what a save replaces; a match that is not written again is removed. Everything else
            in the folder stays.
    """

    repo_type: ClassVar[str]
    config_name: ClassVar[str]
    owned: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Write every entry into `folder`, which is empty and has the name of the final folder."""

    @classmethod
    @abstractmethod
    def _read(cls, folder: Path) -> "Self":
        """The artifact in `folder`, which holds `config_name`; raises a one-line `ValueError` where it is damaged."""

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the artifact into `directory` and give its path; call it on one process only.

        Everything is written aside first. When the disk is full, or the process is killed, what was there stays whole.

        Raises:
            ValueError: `directory` is a file, or holds a README.md of something else.
            OSError: The files cannot be written.
        """
        directory = Path(directory)
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"{directory} is a file; expected a folder, or a path where one can be made")
        directory.mkdir(parents=True, exist_ok=True)
        interrupted = list(directory.glob(f"{STAGING}*"))
        if (directory / "README.md").exists() and not (directory / self.config_name).exists() and not interrupted:
            raise ValueError(
                f"{directory} has a README.md and no {self.config_name}, so it holds something else; "
                "give another folder, or move that README.md away"
            )
        for leftover in interrupted:
            shutil.rmtree(leftover)
        try:
            with _staging(directory) as staged:
                self._write(staged)
                self._move(staged, directory)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"{directory} was not saved ({reason}); what it held before is whole") from error
        return directory

    def _move(self, staged: Path, directory: Path) -> None:
        names = [path.relative_to(staged) for path in staged.rglob("*") if path.is_file()]
        for name in names:
            _sync(staged / name)
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
        for name in sorted(names, key=lambda name: ((directory / name).exists(), str(name) == self.config_name, name)):
            os.replace(staged / name, directory / name)
        for pattern in self.owned:
            for path in directory.glob(pattern):
                if path.relative_to(directory) not in names:
                    path.unlink()

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "Self":
        """The artifact in a local folder, or in a Hub repository at `revision`.

        Raises:
            ValueError: There is no such folder or repository, or it does not hold a whole artifact of this kind.
        """
        folder = Path(repo_id_or_path)
        if not folder.is_dir():
            folder = cls._download(str(repo_id_or_path), revision, token, local_files_only)
        if not (folder / cls.config_name).is_file():
            raise ValueError(
                f"{repo_id_or_path} has no {cls.config_name}; expected a folder or repository that "
                f"{cls.__name__}.save_pretrained wrote"
            )
        return cls._read(folder)

    @classmethod
    def _download(cls, name: str, revision: str | None, token: str | bool | None, local_files_only: bool) -> Path:
        if os.path.exists(name):
            raise ValueError(f"{name} is a file; expected the folder that holds it, or a repository id")
        try:
            return Path(
                snapshot_download(
                    name, repo_type=cls.repo_type, revision=revision, token=token, local_files_only=local_files_only
                )
            )
        except HFValidationError as error:
            raise ValueError(
                f"{name!r} is no folder here and cannot be a repository id; expected a path that exists, or owner/name"
            ) from error
        except RevisionNotFoundError as error:
            raise ValueError(
                f"{cls.repo_type} repository {name!r} has no revision {revision!r}; see its tags"
            ) from error
        except RepositoryNotFoundError as error:
            raise ValueError(
                f"{name!r} is no folder here and no {cls.repo_type} repository on the Hub; check the spelling, "
                "or log in (hf auth login) if it is private"
            ) from error
        except LocalEntryNotFoundError as error:
            raise ValueError(
                f"{name!r} is no folder here, is not in the local cache, and the Hub was not reached; "
                "check the path, or the connection"
            ) from error
        except HfHubHTTPError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the Hub did not give {cls.repo_type} repository {name!r}: {reason}") from error


@dataclass(frozen=True)
class Paper:
    """The paper that a method comes from."""

    title: str
    authors: str
    year: int
    arxiv_id: str
    bibtex: str

    @property
    def url(self) -> str:
        """The paper's page on the Hub."""
        return f"https://huggingface.co/papers/{self.arxiv_id}"


@dataclass(frozen=True)
class EvalRow:
    """The accuracies of students that were trained on one set.

    Attributes:
        set: One of `SETS`.
        labels: "soft" for the method's labels, "hard" for class numbers.
        student: Name of the network.
        protocol: Name of the training schedule.
        images: How many images the set has.
        accuracies: One in [0, 1] for each seed.
        device: What the students were trained on.
        split: The split of the source that the accuracies are measured on.
    """

    set: str
    labels: str
    student: str
    protocol: str
    images: int
    accuracies: list[float]
    device: str
    split: str = "test"

    def __post_init__(self) -> None:
        if self.set not in SETS:
            raise ValueError(f"the set of a result is {self.set!r}; expected one of {', '.join(SETS)}")
        if self.labels not in ("soft", "hard"):
            raise ValueError(f"the labels of a result are {self.labels!r}; expected soft or hard")
        if not self.accuracies or not all(0 <= accuracy <= 1 for accuracy in self.accuracies):
            raise ValueError(f"the accuracies of a result are {self.accuracies}; expected numbers in [0, 1]")

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.accuracies)

    @property
    def mean(self) -> float:
        """Mean accuracy in [0, 1]."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation of the sample (n - 1); NaN for a single seed."""
        return statistics.stdev(self.accuracies) if self.n > 1 else math.nan

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What makes two rows the same measurement."""
        return (self.set, self.labels, self.student, self.protocol, self.split)

    def percent(self) -> str:
        """For people: `61.2 ± 3.1 (5)`, in percent with the number of seeds."""
        spread = f" ± {100 * self.std:.1f}" if self.n > 1 else ""
        return f"{100 * self.mean:.1f}{spread} ({self.n})"


@dataclass
class EvalReport:
    """What students reach on a distilled set, and on the sets that it is compared with."""

    rows: list[EvalRow] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types; mean and std are there for other readers (std is null for a single seed)."""
        rows = [{**asdict(row), "mean": row.mean, "std": row.std if row.n > 1 else None} for row in self.rows]
        return {"rows": rows, "meta": self.meta}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "EvalReport":
        """The report that `to_json` gave."""
        try:
            rows = [EvalRow(**{k: v for k, v in row.items() if k not in ("mean", "std")}) for row in value["rows"]]
            return cls(rows, value.get("meta", {}))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the results of an evaluation ({error}); expected what EvalReport wrote") from error

    def merge(self, other: "EvalReport") -> "EvalReport":
        """Both reports; where both have a measurement, that of `other`."""
        rows = {row.key: row for row in (*self.rows, *other.rows)}
        return EvalReport(list(rows.values()), {**self.meta, **other.meta})

    def _lines(self) -> tuple[list[list[str]], str]:
        """Header and cells, one line for each set and student, and a caption of what all lines share."""
        varying = [name for name in CONTEXT if len({getattr(row, name) for row in self.rows}) > 1]
        shared = [name for name in CONTEXT if name not in varying]
        kinds = [kind for kind in ("soft", "hard") if any(row.labels == kind for row in self.rows)]
        titles = {"soft": "method's labels", "hard": "hard labels"}
        lines: dict[tuple, dict[str, EvalRow]] = {}
        for row in sorted(self.rows, key=lambda row: SETS.index(row.set)):
            place = (*(getattr(row, name) for name in varying), row.set)
            lines.setdefault(place, {})[row.labels] = row
        table = [["set", "images", *varying, *(titles[kind] for kind in kinds)]]
        for place, cells in sorted(lines.items(), key=lambda line: line[0][:-1]):
            images = next(iter(cells.values())).images
            measured = [cells[kind].percent() if kind in cells else "" for kind in kinds]
            table.append([place[-1], f"{images:,}", *place[:-1], *measured])
        what = [f"{name} {getattr(self.rows[0], name)}" for name in shared] if self.rows else []
        return table, " · ".join(["accuracy in %, mean ± standard deviation (number of seeds)", *what])

    def table(self) -> str:
        """The results as aligned plain text for a terminal."""
        if not self.rows:
            return "no results"
        table, caption = self._lines()
        columns = list(zip(*table, strict=True))
        padded = []
        for cells in columns:
            width = max(map(len, cells))
            to_left = cells[0] in ("set", *CONTEXT)
            padded.append([cell.ljust(width) if to_left else cell.rjust(width) for cell in cells])
        text = ["   ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
        return "\n".join([text[0], "-" * len(text[0]), *text[1:], "", *textwrap.wrap(caption, 100)])

    def markdown(self) -> str:
        """The results as a table for a card, with everything a number needs to be compared."""
        if not self.rows:
            return ""
        table, caption = self._lines()
        rule = ["---"] + ["---:"] * (len(table[0]) - 1)
        lines = [[cell.replace("|", "\\|") for cell in line] for line in table]
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])) + f"\n\n{caption}"


def _cell(value: Any) -> str:
    """A value as one cell of a Markdown table."""
    if isinstance(value, dict):
        value = [f"{key} {item}" for key, item in value.items()]
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def human_bytes(count: int) -> str:
    """Bytes for people, in powers of ten: `12.3 kB`."""
    if count < 1000:
        return f"{count} B"
    power = next((power for power in (1, 2, 3) if count < 999.95 * 1000**power), 4)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def render_card(template: str, **context: Any) -> str:
    """The card that `model_cards/<template>` makes of `context`; a name that the context lacks is an error."""
    packaged = importlib.resources.files("hf_distill").joinpath("model_cards", template)
    # An editable install has no model_cards inside the package: they lie beside it in the checkout.
    source = packaged if packaged.is_file() else Path(__file__).resolve().parents[1] / "model_cards" / template
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(cell=_cell, bytes=human_bytes, count="{:,}".format)
    return environment.from_string(source.read_text(encoding="utf-8")).render(**context)


def source_context(source: dict[str, Any]) -> dict[str, Any]:
    """What a card says of the dataset that an artifact was made from, as names for `render_card`.

    Args:
        source: `RealImages.provenance`; every key may be absent.

    Returns:
        source_name, source_link (Markdown), source_split, source_revision and source_images; license (for the
        metadata: the source's, or "other"), licence_note (a sentence), and gated_note (a sentence, or None).
    """
    name, homepage = str(source.get("name") or "unknown dataset"), source.get("homepage")
    if os.path.isabs(name) or name.startswith((".", "~")):
        name = Path(name).resolve().name  # where it lies on the author's machine is nobody's business
    link = f"[{name}]({homepage})" if homepage else name
    stated = source.get("license") or []
    stated = [stated] if isinstance(stated, str) else list(stated)
    if stated and all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,40}", text) for text in stated) and "unknown" not in stated:
        license_id: str | list[str] = stated[0] if len(stated) == 1 else stated
        note = f"This artifact derives from {link} and carries its licence: {', '.join(stated)}. Its terms still hold."
    else:
        license_id = "other"
        said = " ".join(" ".join(stated).split())
        says = f" It says: “{said}”." if said not in ("", "unknown") else ""
        note = (
            f"This artifact derives from {link}, whose licence is not known here.{says} Its terms still hold: look "
            "them up before you use or share anything of this."
        )
    gated_note = (
        f"This artifact derives from {name}, access to which is conditional. The same conditions hold here."
        if source.get("gated")
        else None
    )
    return {
        "source_name": name,
        "source_link": link,
        "source_split": source.get("split"),
        "source_revision": source.get("revision"),
        "source_images": source.get("num_images"),
        "license": license_id,
        "licence_note": note,
        "gated_note": gated_note,
    }


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text`, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


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
            those over 128 pixels are reduced to that. None leaves a place empty; the first one is an image.
        columns: Images in a row.
        row_labels: A text for each row, shown on its left.
        captions: A text for each image, shown under it; a row without any takes no room for them.
        cell: Least side of an image in the picture, in pixels.
    """
    first = images[0]
    if first is None:
        raise ValueError("the first image of a grid is None; expected an image, whose size the others share")
    side = max(first.size)
    scale = 128 / side if side > 128 else math.ceil(cell / side)
    width, height = (round(length * scale) for length in first.size)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    gap, ink, font = 4, (40, 40, 40), ImageFont.load_default(size=15)
    left = gap + min(180, math.ceil(max(font.getlength(text) for text in row_labels)) + 8) if row_labels else gap
    rows = math.ceil(len(images) / columns)
    texts = [list((captions or ())[row * columns : (row + 1) * columns]) for row in range(rows)]
    tops = [gap]
    for row in texts:
        tops.append(tops[-1] + height + gap + (22 if any(row) else 0))
    picture = Image.new("RGB", (left + columns * (width + gap), tops[-1]), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        x, y = left + column * (width + gap), tops[row]
        if image is not None:
            picture.paste(image.convert("RGB").resize((width, height), method), (x, y))
        if texts[row]:
            text = _fit(texts[row][column], font, width)
            draw.text((x + width / 2, y + height + 11), text, fill=ink, font=font, anchor="mm")
    for top, text in zip(tops, row_labels or (), strict=False):
        draw.text((left - 8, top + height / 2), _fit(text, font, left - gap - 8), fill=ink, font=font, anchor="rm")
    return picture
