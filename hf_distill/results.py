"""`EvalReport`: what students reach on a distilled set and on what it is compared with, as rows of numbers."""

import math
import statistics
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

SETS = ("random", "herding", "k-center", "distilled", "full data")
CONTEXT = ("student", "protocol", "split", "device")


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
    def key(self) -> tuple[str, str, int, str, str, str]:
        """What makes two rows the same measurement."""
        return (self.set, self.labels, self.images, self.student, self.protocol, self.split)

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
        return EvalReport(list(rows.values()), _merged(self.meta, other.meta))

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


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both objects, to their last entry; where both have one, that of `other`."""
    both = {key: _merged(one[key], value) for key, value in other.items() if isinstance(one.get(key), dict)
            and isinstance(value, dict)}  # fmt: skip
    return {**one, **other, **both}
