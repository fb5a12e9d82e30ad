"""What many sets reached, read for one board: folders here and repositories on the Hub, by their small files. No torch.

Accuracies of different datasets, regimes of labels, protocols or students are not comparable, so each row carries all
of these, and a board ranks inside of a group that shares them (`BoardRow.group`).
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from .cards import ANIMATION
from .checks import NAMES, OBJECT_OR_NULL, TEXT_OR_NULL, Rules, are_names, check_values, is_number, is_whole
from .comparisons import GIVEN, schedule
from .files import check_format_version, load_json
from .making import MAKING, Making, read_making
from .markdown import plain, url
from .repository import Repository
from .results import REGIMES as KNOWN
from .results import VERSION, EvalReport, EvalRow, LabelRow

__all__ = ["REGIMES", "BoardRow", "BoardSet", "LabelPoint", "is_shown", "read_sets", "regime_of"]

logger = logging.getLogger(__name__)

RESULTS, CONFIG, CARD, PICTURE = "results.json", "distill_config.json", "README.md", "assets/grid.png"
MOST = 1e300  # of anything that is shown as a number
SHOWN = 60  # characters of the names of classes
LONGEST_CARD = 100_000  # characters of a card that a board shows
HARD, STORED, ONLINE = KNOWN.values()
UNKNOWN = "labels of unknown origin"
REGIMES = (HARD, STORED, ONLINE, UNKNOWN)

TEXT = ("a text", lambda value: isinstance(value, str))
ROW: Rules = {
    **dict.fromkeys(("student", "protocol", "device"), TEXT),
    "images": ("a whole number", lambda images: is_whole(images, least=0)),
    "cost": OBJECT_OR_NULL,
}
LABEL_ROW: Rules = {**ROW, "num_bytes": ROW["images"]}
ABOUT: Rules = {
    **dict.fromkeys(("source", "source.arguments", "preprocessing", "label_source", "release"), OBJECT_OR_NULL),
    **dict.fromkeys(("label_source.teacher", "hyperparameters"), OBJECT_OR_NULL),
    **dict.fromkeys(("method", "source.name", "source.revision", "label_source.kind"), TEXT_OR_NULL),
    **dict.fromkeys(("release.repo_id", "release.tag"), TEXT_OR_NULL),
    **dict.fromkeys(("images", "ipc"), ("a whole number from 1, or null", lambda n: n is None or is_whole(n))),
    "class_names": (f"{NAMES}, or null", lambda names: names is None or are_names(names)),
    "preprocessing.image_size": (
        "two whole numbers, or null",
        lambda size: size is None or (isinstance(size, list) and len(size) == 2 and all(map(is_whole, size))),
    ),
}


@dataclass(frozen=True)
class BoardRow:
    """A measurement as the table of a board holds it.

    Attributes:
        name: Of the set, one on this board.
        set: What students were trained on: "distilled", or what it is compared with.
        method: That made the set.
        dataset: That it was made from.
        dataset_revision: Of it.
        classes: How many it has.
        chosen_classes: Which, of a set that has not all of its dataset: their names, or the first of many and a digest.
        resolution: Of the images, such as "32x32".
        test_images: How many it was tested on, where these are not all.
        ipc: Images per class.
        images: That students were trained on.
        labels: "soft" or "hard".
        regime: One of `REGIMES`.
        label_bytes: That labels cost beside the images and their classes.
        student: Name of the network.
        protocol: Name of the training schedule.
        split: That the accuracies are measured on.
        n: Number of seeds.
        mean: In [0, 1].
        std: Of the sample (n - 1); None for a single seed.
        accuracies: One in [0, 1] for each seed.
        device: That the students were trained on.
        link: To the repository of the set.
        revision: Commit or tag of that.
        cost: What the row says of its cost, by name.
    """

    name: str
    set: str
    method: str | None
    dataset: str
    dataset_revision: str | None
    classes: int | None
    chosen_classes: str | None
    resolution: str | None
    test_images: int | None
    ipc: int | None
    images: int
    labels: str
    regime: str
    label_bytes: int | None
    student: str
    protocol: str
    split: str
    n: int
    mean: float
    std: float | None
    accuracies: list[float]
    device: str
    link: str | None
    revision: str | None
    cost: dict[str, float | str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """What students learn, in words: all that decides it but the split."""
        which = f" {self.chosen_classes}" if self.chosen_classes else ""
        parts = [f"{self.classes:,} classes{which}"] if self.classes else []
        parts += [self.resolution.replace("x", "×")] if self.resolution else []
        parts += [f"{self.test_images:,} test images"] if self.test_images else []
        return f"{self.dataset} ({', '.join(parts)})" if parts else self.dataset

    @property
    def schedule(self) -> str:
        """The protocol without what follows the set in it, and what `label_name` says."""
        return schedule(self.protocol)

    @property
    def label_name(self) -> str:
        """The labels in words."""
        given = GIVEN.search(self.protocol)
        if given is not None:
            return given[0].removeprefix(", ")
        return {HARD: "classes", STORED: "one per image", ONLINE: "of every view"}.get(self.regime, "the method's")

    @property
    def flop(self) -> float | None:
        """Of a student and of who labels for it, where the row says both."""
        parts = [self.cost.get(name) for name in ("student_flop", "teacher_flop")]
        known = [part for part in parts if isinstance(part, int | float)]
        return sum(known) if len(known) == len(parts) else None

    @property
    def group(self) -> tuple[str, str, str, str, str]:
        """What rows have in common that can be ranked: task, regime, schedule, student and split."""
        return (self.task, self.regime, self.schedule, self.student, self.split)


@dataclass(frozen=True)
class LabelPoint:
    """One source of labels among several that were compared at the same images.

    Attributes:
        row: The measurement.
        task: As of a `BoardRow`.
    """

    row: LabelRow
    task: str

    @property
    def schedule(self) -> str:
        """As of a `BoardRow`."""
        return schedule(self.row.protocol)


@dataclass(frozen=True)
class BoardSet:
    """A set on a board.

    Attributes:
        name: One on this board.
        report: As `results.json` has it.
        rows: What students reached on it, and on what it is compared with.
        labels: The comparison of labels at its images.
        differences: Between it and what it is compared with, as its report has them: each an object of JSON.
        scores: Of its report, likewise.
        config: Its `distill_config.json`, empty where there is none.
        making: What it took to make it, empty where that was not measured.
        card: Its card, as text; empty where there is none.
        picture: The file of its picture.
        animation: The file that shows how it formed, where its run kept frames; of folders alone.
        link: To its repository.
        revision: Commit or tag of that.
    """

    name: str
    report: EvalReport
    rows: list[BoardRow]
    labels: list[LabelPoint]
    differences: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    config: dict[str, Any]
    making: Making
    card: str
    picture: Path | None
    animation: Path | None
    link: str | None
    revision: str | None


def read_sets(places: Sequence[str | Path], *, token: str | bool | None = None) -> list[BoardSet]:
    """The sets at some places that have results, in that order, each once.

    What has no results, or damaged ones, is said in a line of the log and left out.

    Args:
        places: Folders of a set, folders that contain such, and repositories as `owner/name` or
            `owner/name@revision`, of which only the small files are fetched.
        token: Instead of that of the environment (`HF_TOKEN`) or of `hf auth login`; False for none.

    Raises:
        ValueError: There is no such folder or repository, or no set with results is left.
        OSError: The Hub does not answer.
    """
    found: dict[Path, str | None] = {}  # the repository, where it is one
    for place in places:
        for folder, repo_id in _folders(str(place), token):
            found.setdefault(folder.resolve(), repo_id)
    names = _names(list(found.items()))
    sets = []
    for (folder, repo_id), name in zip(found.items(), names, strict=True):
        try:
            sets.append(_read_set(folder, repo_id, name))
        except ValueError as error:
            logger.warning("left out: %s", error)
    if not sets:
        raise ValueError(
            f"no set with results in {', '.join(map(str, places))}; expected folders or repositories of sets that "
            "were evaluated (hf-distill evaluate --distilled_dataset NAME)"
        )
    return sets


def _folders(place: str, token: str | bool | None) -> list[tuple[Path, str | None]]:
    """Each folder of a set at a place, with its repository where it is the cached copy of one."""
    if os.path.exists(place):
        found: list[tuple[Path, str | None]] = [(folder, None) for folder in _search(Path(place))]
        if not found:
            logger.warning("left out: %s has no %s, nor has a folder in it", place, RESULTS)
        return found
    repo_id, _, revision = place.partition("@")
    repository = Repository(repo_id, "dataset", revision or None, token)
    folder = repository.snapshot([RESULTS, CONFIG, CARD, PICTURE, MAKING])
    if not (folder / RESULTS).is_file():
        logger.warning("left out: %s has no %s", repository, RESULTS)
        return []
    return [(folder, repo_id)]


def _search(top: Path) -> Iterator[Path]:
    """The folders under `top`, itself too, that hold results, but for those inside of a set."""
    for folder, inner, files in os.walk(top):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if RESULTS in files:
            inner.clear()
            yield Path(folder)


def _names(found: Sequence[tuple[Path, str | None]]) -> list[str]:
    """A name for each of some folders: its repository, or the last parts of its path that no other ends with."""
    parts = [(repo_id,) if repo_id else folder.parts for folder, repo_id in found]
    names = []
    for own in parts:
        others = [other for other in parts if other is not own]
        length = next((n for n in range(1, len(own)) if own[-n:] not in [other[-n:] for other in others]), len(own))
        names.append("/".join(own[-length:]))
    again = Counter(names)  # of revisions of one repository
    return [
        f"{name}@{folder.name[:8]}" if again[name] > 1 else name for name, (folder, _) in zip(names, found, strict=True)
    ]


def _read_set(folder: Path, repo_id: str | None, name: str) -> BoardSet:
    """The set in a folder, which has results.

    Raises:
        ValueError: A file is damaged, or newer than this version reads; the message names it.
    """
    config = load_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    check_values(folder / CONFIG, config, ABOUT)
    report, value = _read_results(folder / RESULTS, config.get("data_id"))
    link, revision = _link(folder, repo_id, config)
    about = {**_about(config), "name": name, "link": link, "revision": revision}
    costs = [row.get("cost") or {} for row in value.get("rows", [])]
    rows = [_row(row, cost, report, config, about) for row, cost in zip(report.rows, costs, strict=True)]
    if not rows:
        raise ValueError(f"{folder / RESULTS} has no rows; evaluate the set")
    return BoardSet(
        name=name,
        report=report,
        rows=rows,
        labels=[LabelPoint(row, rows[0].task) for row in report.labels],
        differences=_objects(value.get("differences")),
        scores=_objects(value.get("scores")),
        config=config,
        making=read_making(folder / MAKING),
        card=_card(folder / CARD),
        picture=folder / PICTURE if (folder / PICTURE).is_file() else None,
        animation=folder / ANIMATION if (folder / ANIMATION).is_file() else None,
        link=link,
        revision=revision,
    )


def _read_results(path: Path, data_id: Any) -> tuple[EvalReport, dict[str, Any]]:
    """The report in a file of any version up to `VERSION`, and all that the file says."""
    value = load_json(path)
    check_format_version(path, {"version": 1, **value}, VERSION, "version")
    if data_id is not None and value.get("data_id", data_id) != data_id:
        raise ValueError(f"{path} is of other images than {CONFIG} beside it; evaluate the set again")
    rows, labels = (value.get(key, []) for key in ("rows", "labels"))
    if not all(isinstance(part, list) and all(isinstance(row, dict) for row in part) for part in (rows, labels)):
        raise ValueError(f"{path} has rows that are no objects; expected what an evaluation wrote")
    for rules, several in ((ROW, rows), (LABEL_ROW, labels)):
        for row in several:
            check_values(f"a row of {path}", row, {**rules, **({"split": TEXT} if "split" in row else {})})
    try:
        report = EvalReport.from_json({**value, "rows": _known(rows, EvalRow), "labels": _known(labels, LabelRow)})
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(report.meta, dict):
        raise ValueError(f"{path} is damaged: its meta is no object")
    return report, value


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _known(rows: list[dict[str, Any]], kind: type[EvalRow] | type[LabelRow]) -> list[dict[str, Any]]:
    """Rows without what later versions say beside."""
    names = {field.name for field in dataclasses.fields(kind)}
    return [{name: value for name, value in row.items() if name in names} for row in rows]


def _about(config: dict[str, Any]) -> dict[str, Any]:
    """What all rows of a set share, from its configuration."""
    source, names = config.get("source") or {}, config.get("class_names")
    dataset = plain(source.get("name") or "unknown dataset").strip()
    if os.path.isabs(dataset) or dataset.startswith((".", "~")):
        dataset = Path(dataset).resolve().name  # where it lies on somebody's machine is nobody's business
    size = (config.get("preprocessing") or {}).get("image_size")
    tested = (source.get("arguments") or {}).get("max_test_samples")
    return {
        "method": config.get("method"),
        "dataset": dataset,
        "dataset_revision": source.get("revision"),
        "classes": None if names is None else len(names),
        "chosen_classes": None if names is None else _chosen(names, config),
        "resolution": None if size is None else "x".join(map(str, size)),
        "test_images": tested if is_whole(tested) else None,
    }


def _chosen(names: list[str], config: dict[str, Any]) -> str | None:
    """Which classes a set has, in words, whatever their order; None where it has all of its dataset."""
    arguments = (config.get("source") or {}).get("arguments") or {}
    if not arguments.get("classes") and len(names) >= max(_counts(config.get("changes")), default=0):
        return None
    text, every = plain(" · ".join(sorted(names))), json.dumps(sorted(names))
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN].rsplit(' · ', 1)[0]} … [{hashlib.sha256(every.encode()).hexdigest()[:6]}]"


def _counts(changes: Any) -> Iterator[int]:
    """How many classes the sets had that a set was made of, and those that these were made of."""
    for change in _objects(changes):
        for each in _objects(change.get("of")):
            if is_whole(each.get("classes")):
                yield each["classes"]
            yield from _counts(each.get("changes"))


def _row(
    row: EvalRow, cost: dict[str, Any], report: EvalReport, config: dict[str, Any], about: dict[str, Any]
) -> BoardRow:
    kind = (config.get("label_source") or {}).get("kind")
    regime = KNOWN.get(str(cost.get("regime")), regime_of(row, kind, report.meta))
    as_made = row.set != "full data" and row.images == config.get("images")
    return BoardRow(
        **about,
        set=row.set,
        ipc=config.get("ipc") if as_made else None,
        images=row.images,
        labels=row.labels,
        regime=regime,
        label_bytes=_label_bytes(row, regime, cost, config),
        student=row.student,
        protocol=row.protocol,
        split=row.split,
        n=row.n,
        mean=row.mean,
        std=None if math.isnan(row.std) else row.std,
        accuracies=[float(accuracy) for accuracy in row.accuracies],
        device=row.device,
        cost={
            plain(key): value if isinstance(value, str) else float(value)
            for key, value in cost.items()
            if isinstance(value, str) or is_shown(value)
        },
    )


def regime_of(row: EvalRow, kind: str | None, meta: dict[str, Any]) -> str:
    """The one of `REGIMES` that a row is of which does not say it: numbers of different ones are no contest.

    Args:
        row: Of a report.
        kind: Of the labels that the set comes with: "hard", "soft", "teacher" or "projector"; None if nothing says.
        meta: Of the report. A protocol of views has `views` there, and asks a network about each; another asks it once
            about each image, which is a label that can be stored.
    """
    given = GIVEN.search(row.protocol)
    if row.labels == "hard":
        return HARD
    if given is not None:
        return STORED if given[1] == "stored labels" else ONLINE
    if kind in ("teacher", "projector"):
        about = meta.get(f"{row.protocol}, {row.student}")
        return ONLINE if not isinstance(about, dict) or "views" in about else STORED
    return STORED if kind == "soft" else UNKNOWN


def _label_bytes(row: EvalRow, regime: str, cost: dict[str, Any], config: dict[str, Any]) -> int | None:
    """What the labels of a row cost: as it says, else by what its set is known to need."""
    said = cost.get("label_bytes")
    if is_whole(said, least=0):
        return said
    if regime == HARD:
        return 0
    if GIVEN.search(row.protocol):
        return None
    if regime == STORED:
        names = config.get("class_names")
        return None if names is None else 2 * row.images * len(names)  # float16 logits, one per image
    asked = ((config.get("label_source") or {}).get("teacher") or {}).get("num_bytes")
    return asked if regime == ONLINE and is_whole(asked) else None


def is_shown(value: Any) -> bool:
    """True where a value of a JSON file is a number that a board can compute with."""
    return is_number(value) and abs(value) < MOST


def _link(folder: Path, repo_id: str | None, config: dict[str, Any]) -> tuple[str | None, str | None]:
    """The page of a set on the Hub, and its revision there; where it was published from here, that of its release."""
    revision: str | None = folder.name
    if repo_id is None:
        release = config.get("release") or {}
        repo_id, revision = release.get("repo_id"), release.get("tag")
    if repo_id is None or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        return None, None
    page = f"{constants.ENDPOINT}/datasets/{url(repo_id)}"
    return (f"{page}/tree/{url(revision, safe='')}" if revision else page), revision


def _card(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(LONGEST_CARD)
