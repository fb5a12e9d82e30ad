"""`EvalReport`: what students reach on a distilled set and on what it is compared with, as rows of numbers."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .cards import human_bytes, human_flop, markdown_table, text_table
from .checks import is_whole
from .comparisons import Comparison, RobustScore, comparisons, difference_lines, robust_scores, schedule, score_lines
from .files import check_format_version

VERSION = 2  # of results.json, which results.schema.json describes; 1 had neither a version nor scores
SETS = (
    *("random", "herding", "k-center", "centroid", "neighbour", "el2n", "forgetting", "ccs", "bps"),
    *("distilled", "full data"),
)
GREEDY = SETS[1:-2]  # coresets: chosen by something, which reports say
# Where labels come from, the cheapest first, and for people. A network that labels each image once, before a training,
# gives labels that could be stored.
REGIMES = {"hard": "hard labels", "stored": "stored labels", "online": "labels asked online"}
MOST = 10**40  # of what is counted
CONTEXT = ("student", "protocol", "split", "device")


class Measured:
    """The accuracies of a row, and the numbers that they make.

    Attributes:
        accuracies: One in [0, 1] for each seed.
    """

    accuracies: list[float]

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

    def percent(self) -> str:
        """For people: `61.2 ± 3.1 (5)`, in percent with the number of seeds."""
        spread = f" ± {100 * self.std:.1f}" if self.n > 1 else ""
        return f"{100 * self.mean:.1f}{spread} ({self.n})"

    def _check_accuracies(self) -> None:
        if not self.accuracies or not all(0 <= accuracy <= 1 for accuracy in self.accuracies):
            raise ValueError(f"the accuracies of a result are {self.accuracies}; expected numbers in [0, 1]")


@dataclass(frozen=True)
class RowCost:
    """What one student of a row costs, by arithmetic: the same wherever it is trained.

    A multiply-add is two FLOP. Counted are products of matrices, convolutions and attention, forward and backward;
    images are counted each time that they are seen.

    Attributes:
        regime: Where labels come from: one of `REGIMES`.
        steps: Of the optimizer.
        images_seen: In all of them.
        teacher_images: Those of them, or of the set, that networks label.
        student_flop: Of all steps.
        teacher_flop: Of labelling.
        image_bytes: Of the pixels that are stored, uncompressed.
        label_bytes: Of the labels beside the classes; where labels are asked online, of the networks that are asked.
        over_budget: FLOP above those that all rows were to have, or below them (negative), where that was asked for.
    """

    regime: str
    steps: int
    images_seen: int
    teacher_images: int
    student_flop: int
    teacher_flop: int
    image_bytes: int
    label_bytes: int
    over_budget: int | None = None

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise ValueError(f"the regime of a result is {self.regime!r}; expected one of {', '.join(REGIMES)}")
        for name, value in vars(self).items():
            if name not in ("regime", "over_budget") and not is_whole(value, 0, MOST):
                raise ValueError(f"the {name} of a result are {value!r}; expected a whole number from 0 to {MOST:g}")
        if not (self.over_budget is None or is_whole(self.over_budget, -MOST, self.flop - 1)):
            raise ValueError(
                f"the over_budget of a result is {self.over_budget!r}; expected a whole number below its "
                f"{self.flop} FLOP, or null"
            )

    @property
    def flop(self) -> int:
        """Those of the student and of whoever labels for it."""
        return self.student_flop + self.teacher_flop


@dataclass(frozen=True)
class EvalRow(Measured):
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
        cost: What a student costs; None for rows of version 0.1, which do not say.
    """

    set: str
    labels: str
    student: str
    protocol: str
    images: int
    accuracies: list[float]
    device: str
    split: str = "test"
    cost: RowCost | None = None

    def __post_init__(self) -> None:
        if self.set not in SETS:
            raise ValueError(f"the set of a result is {self.set!r}; expected one of {', '.join(SETS)}")
        if self.labels not in ("soft", "hard"):
            raise ValueError(f"the labels of a result are {self.labels!r}; expected soft or hard")
        self._check_accuracies()

    @property
    def regime(self) -> str | None:
        """One of `REGIMES`; None for a row of version 0.1 that does not tell, where `EvalReport.regime_of` looks on."""
        if self.labels == "hard" or self.cost is not None:
            return "hard" if self.cost is None else self.cost.regime
        words = {", stored labels (": "stored", ", label projector ": "online"}
        return next((regime for word, regime in words.items() if word in self.protocol), None)

    @property
    def key(self) -> tuple[str, str, int, str, str, str]:
        """The values that make two rows the same measurement."""
        return (self.set, self.labels, self.images, self.student, self.protocol, self.split)


@dataclass(frozen=True)
class LabelRow(Measured):
    """The accuracies of students that were trained on the same images with labels from one source.

    Attributes:
        labels: What they are, for people: unlike `EvalRow.labels`, any name.
        num_bytes: What they cost beside the images and their classes.
        student: Name of the network.
        protocol: Name of the training schedule.
        images: How many images the set has.
        accuracies: One in [0, 1] for each seed.
        device: What the students were trained on.
        split: The split of the source that the accuracies are measured on.
        lr: The learning rate, where it is known.
    """

    labels: str
    num_bytes: int
    student: str
    protocol: str
    images: int
    accuracies: list[float]
    device: str
    split: str = "test"
    lr: float | None = None

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("labels of a comparison have no name; expected a text")
        if self.num_bytes < 0:
            raise ValueError(f"the labels {self.labels!r} have {self.num_bytes} bytes; expected a number from 0")
        self._check_accuracies()

    @property
    def context(self) -> tuple[int, str, str, str]:
        """The values that rows must have in common to be compared."""
        return (self.images, self.student, self.protocol, self.split)

    @property
    def key(self) -> tuple[str, int, str, str, str]:
        """The values that make two rows the same measurement."""
        return (self.labels, *self.context)


def _to_json(row: EvalRow | LabelRow) -> dict[str, Any]:
    """The row with its mean and std, for other readers; std is null for a single seed, and a cost unknown not there."""
    values = {name: value for name, value in asdict(row).items() if not (name == "cost" and value is None)}
    return {**values, "mean": row.mean, "std": row.std if row.n > 1 else None}


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in row.items() if name not in ("mean", "std")}
    return known if known.get("cost") is None else {**known, "cost": RowCost(**known["cost"])}


@dataclass
class EvalReport:
    """Accuracies of students on a distilled set, and on the sets that it is compared with.

    Example:
        >>> from hf_distill.hub.results import EvalRow
        >>> report = hd.EvalReport([EvalRow("random", "hard", "convnet_d3", "quick", 10, [0.5, 0.6], "cpu")])
        >>> report.rows[0].percent()
        '55.0 ± 7.1 (2)'

    Attributes:
        rows: One for each set, kind of labels and student.
        meta: How they were trained.
        labels: What they reach on the same images with labels of several sources.
        audit: What was found about copies and members, as JSON types; empty where nobody looked.
        audit_picture: The images beside their nearest, a PNG file; it is no part of the JSON.
    """

    rows: list[EvalRow] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    labels: list[LabelRow] = field(default_factory=list)
    audit: dict[str, Any] = field(default_factory=dict)
    audit_picture: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def differences(self) -> list[Comparison]:
        """The distilled set beside random images and the best other subset, for each student, protocol and labels."""
        return comparisons(self.rows)

    @property
    def scores(self) -> list[RobustScore]:
        """The robust scores, for each student and protocol that has the rows they are made of."""
        return robust_scores(self.rows, self.meta)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types, as `results.schema.json` beside this file describes them.

        What follows from the rows is in it for other readers, and is not read again.
        """
        return {
            "version": VERSION,
            "rows": [_to_json(row) for row in self.rows],
            "meta": self.meta,
            "labels": [_to_json(row) for row in self.labels],
            "differences": [each.to_json() for each in self.differences],
            "scores": [each.to_json() for each in self.scores],
            **({"audit": self.audit} if self.audit else {}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "EvalReport":
        """The report that `to_json` gave, of this release or one before; a `ValueError` for one of a later version."""
        try:
            check_format_version("the report", {"version": 1, **value}, VERSION, "version")
            rows = [EvalRow(**_fields(row)) for row in value["rows"]]
            labels = [LabelRow(**_fields(row)) for row in value.get("labels", [])]
            return cls(rows, value.get("meta", {}), labels, value.get("audit", {}))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the results of an evaluation ({error}); expected what EvalReport wrote") from error

    def merge(self, other: "EvalReport") -> "EvalReport":
        """Both reports; where both have a measurement, that of `other`."""
        rows = {row.key: row for row in (*self.rows, *other.rows)}
        labels = {row.key: row for row in (*self.labels, *other.labels)}
        meta, audit = _merged(self.meta, other.meta), {**self.audit, **other.audit}
        picture = other.audit_picture if other.audit else self.audit_picture
        return EvalReport(list(rows.values()), meta, list(labels.values()), audit, picture)

    def _lines(self) -> tuple[list[list[str]], str]:
        """Header and cells, one line for each set and student, and a caption of what all lines share."""
        varying, caption = _context(self.rows, CONTEXT)
        there = {self.regime_of(row) for row in self.rows}
        kinds = [regime for regime in reversed(REGIMES) if regime in there]
        titles = _titles(kinds)
        lines: dict[tuple[Any, ...], dict[str, EvalRow]] = {}
        for row in sorted(self.rows, key=lambda row: SETS.index(row.set)):
            place = (*(getattr(row, name) for name in varying), row.set)
            lines.setdefault(place, {})[self.regime_of(row)] = row
        table = [["set", "images", *varying, *(titles[kind] for kind in kinds)]]
        for place, cells in sorted(lines.items(), key=lambda line: line[0][:-1]):
            images = next(iter(cells.values())).images
            measured = [cells[kind].percent() if kind in cells else "" for kind in kinds]
            table.append([place[-1], f"{images:,}", *place[:-1], *measured])
        return table, f"{caption}{self._compared()}"

    def short_lines(self) -> tuple[list[list[str]], str]:
        """Header and cells, and a caption, of one student under one protocol: those of the first row of the set.

        There are four narrow columns at most, and of what the set is compared with random images, the best other
        subset and full data.
        """
        own = next((row for row in self.rows if row.set == "distilled"), self.rows[0])
        place = (own.student, schedule(own.protocol), own.split)
        alike = [row for row in self.rows if (row.student, schedule(row.protocol), row.split) == place]
        cells: dict[str, dict[str, EvalRow]] = {}
        for row in alike:
            if row.images == own.images or row.set == "full data":
                cells.setdefault(row.set, {}).setdefault(self.regime_of(row), row)
        kinds = [kind for kind in REGIMES if any(kind in each for each in cells.values())]
        titles = _titles(kinds)
        others = [name for name in cells if name not in ("random", "distilled", "full data")]
        best = max(others, key=lambda name: max(row.mean for row in cells[name].values()), default=None)
        table = [["trained on", *(titles[kind] for kind in kinds)]]
        for name in ("distilled", "random", best, "full data"):
            if name in cells:
                texts = [
                    cells[name][kind].percent().rpartition(" ")[0] if kind in cells[name] else "" for kind in kinds
                ]
                table.append([name, *texts])
        seeds = sorted({row.n for each in cells.values() for row in each.values()})
        count = "–".join(str(number) for number in dict.fromkeys((seeds[0], seeds[-1])))
        student = "a student" if seeds == [1] else f"{count} students"
        caption = (
            f"accuracy in %, mean ± standard deviation of {student} · {own.images:,} images · {own.student} · "
            f"protocol {place[1]} · {own.split}"
        )
        return table, caption

    def short_markdown(self) -> str:
        """The first results in a table for a narrow screen; nothing where there are none."""
        return markdown_table(*self.short_lines()) if self.rows else ""

    def regime_of(self, row: EvalRow) -> str:
        """The regime of one of the rows; of one of version 0.1 that labels of views, if its protocol looks at views."""
        about = self.meta.get(f"{row.protocol}, {row.student}")
        return row.regime or ("online" if isinstance(about, dict) and "views" in about else "stored")

    def _cost_lines(self) -> tuple[list[list[str]], str]:
        """Header and cells, one line for each row, by regime from the cheapest on, and a caption."""
        varying, caption = _context(self.rows, CONTEXT)
        budget = any(row.cost is not None and row.cost.over_budget is not None for row in self.rows)
        flop, stored = ["FLOP of training", "FLOP of labelling"], ["image bytes", "label bytes"]
        counts = ["steps", "images seen", "images labelled", *flop, *stored]
        table = [["regime", "set", *varying, "accuracy", *counts, *(["beyond the budget"] if budget else [])]]
        order = list(REGIMES)

        def place(row: EvalRow) -> tuple[Any, ...]:
            context = (getattr(row, name) for name in varying)
            return (order.index(self.regime_of(row)), *context, SETS.index(row.set))

        for row in sorted(self.rows, key=place):
            cost = row.cost
            cells = ["not measured"] + [""] * (len(counts) - 1)
            if cost is not None:
                seen = [f"{count:,}" for count in (cost.steps, cost.images_seen, cost.teacher_images)]
                work = [human_flop(cost.student_flop), human_flop(cost.teacher_flop)]
                cells = [*seen, *work, human_bytes(cost.image_bytes), human_bytes(cost.label_bytes)]
            over = None if cost is None else cost.over_budget
            share = "" if cost is None or over is None else f"{100 * over / (cost.flop - over):+.2g} %"
            context = [str(getattr(row, name)) for name in varying]
            regime = REGIMES[self.regime_of(row)]
            table.append([regime, row.set, *context, row.percent(), *cells, *([share] if budget else [])])
        return table, f"{caption} · costs of one student; a multiply-add is two FLOP, and pixels are uncompressed"

    def costs_table(self) -> str:
        """What the rows cost, by regime, as aligned plain text for a terminal."""
        to_left = ("regime", "set", *CONTEXT)
        return text_table(*self._cost_lines(), to_left=to_left) if self.rows else "no results"

    def costs_markdown(self) -> str:
        """What the rows cost, by regime, as a table for a card; nothing where none says."""
        return markdown_table(*self._cost_lines()) if any(row.cost is not None for row in self.rows) else ""

    def _compared(self) -> str:
        """The end of a caption: what each coreset, where there are some, was chosen by."""
        by: dict[str, list[str]] = {}
        for name in GREEDY:
            if any(row.set == name for row in self.rows):
                known = [_chosen_by(about, name) for about in self.meta.values() if isinstance(about, dict)]
                words = " or ".join(dict.fromkeys(word for word in known if isinstance(word, str)))
                by.setdefault(words, []).append(name)
        told = {words: " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) for words, names in by.items()}
        return "".join(f" · {names} by {words}" for words, names in told.items() if words)

    def table(self) -> str:
        """The results, and what they say together, as aligned plain text for a terminal."""
        if not self.rows:
            return "no results"
        to_left = ("set", "distilled against", "score × 100", "labels", *CONTEXT)
        return "\n\n".join(text_table(*lines, to_left=to_left) for lines in (self._lines(), *self._compared_lines()))

    def markdown(self) -> str:
        """The results as a table for a card, with everything a number needs to be compared."""
        return markdown_table(*self._lines()) if self.rows else ""

    def _compared_lines(self) -> list[tuple[list[list[str]], str]]:
        """Differences, and scores, as far as there are any."""
        differences, scores = self.differences, self.scores
        return [*([difference_lines(differences)] if differences else []), *([score_lines(scores)] if scores else [])]

    def compared_markdown(self) -> str:
        """The differences to other sets, and the robust scores, as tables for a card."""
        return "\n\n".join(markdown_table(*lines) for lines in self._compared_lines())

    def _label_lines(self) -> tuple[list[list[str]], str]:
        """Header and cells, one line for each source of labels from the dearest to the cheapest, and a caption."""
        varying, caption = _context(self.labels, ("images", *CONTEXT))
        table = [["labels", "bytes", *varying, "accuracy"]]
        for row in sorted(self.labels, key=lambda row: (*(getattr(row, name) for name in varying), -row.num_bytes)):
            cells = [str(getattr(row, name)) for name in varying]
            table.append([row.labels, human_bytes(row.num_bytes), *cells, row.percent()])
        return table, caption

    def labels_table(self) -> str:
        """The comparison of labels as aligned plain text for a terminal."""
        return text_table(*self._label_lines(), to_left=("labels", *CONTEXT)) if self.labels else "no results"

    def labels_markdown(self) -> str:
        """The comparison of labels as a table for a card."""
        return markdown_table(*self._label_lines()) if self.labels else ""


def _titles(kinds: Sequence[str]) -> dict[str, str]:
    """The titles of columns by regime: labels that are no classes are the method's, unless there are two kinds."""
    several = {*kinds} >= {"stored", "online"}
    return {kind: REGIMES[kind] if several or kind == "hard" else "method's labels" for kind in kinds}


def _context(rows: Sequence[EvalRow | LabelRow], names: Sequence[str]) -> tuple[list[str], str]:
    """The names of what differs between `rows`, and a caption of what does not."""
    varying = [name for name in names if len({getattr(row, name) for row in rows}) > 1]
    shared = {name: getattr(rows[0], name) for name in names if name not in varying}
    what = [f"{value:,} images" if name == "images" else f"{name} {value}" for name, value in shared.items()]
    return varying, " · ".join(["accuracy in %, mean ± standard deviation (number of seeds)", *what])


def _chosen_by(about: dict[str, Any], name: str) -> Any:
    """What the students' context says that a coreset was chosen by; of 0.1 one text is for both that it had."""
    chosen = about.get("coresets")
    if isinstance(chosen, dict) and name in chosen:
        return chosen[name]
    return about.get("coresets_compare") if name in ("herding", "k-center") else None


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both objects, to their last entry; where both have one, that of `other`."""
    both = {key: _merged(one[key], value) for key, value in other.items() if isinstance(one.get(key), dict)
            and isinstance(value, dict)}  # fmt: skip
    return {**one, **other, **both}
