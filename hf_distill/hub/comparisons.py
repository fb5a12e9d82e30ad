"""What the rows of a report say together: differences with intervals and verdicts, and the robust scores.

All of it is a function of the rows. Rows belong together where students, split and protocol are the same, but for what
sets of their size and kind get of the protocol: tiles that are shuffled, and the batches of all real images. A row of
labels that were stored apart, or of another projector, has no random images with these very labels beside it, and is
compared with nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .intervals import Difference, Sample, paired
from .scores import LRS, NOT_COMPARABLE, Score, augmentation_robust_score, label_robust_score

if TYPE_CHECKING:
    from .results import EvalRow

__all__ = [
    "GIVEN",
    "UNAUGMENTED",
    "Comparison",
    "RobustScore",
    "comparisons",
    "difference_lines",
    "robust_scores",
    "schedule",
    "score_lines",
]

UNAUGMENTED = " without augmentation"  # behind the name of a protocol, in the names of rows
# What an evaluation with labels beside the set's own writes behind the name of the protocol.
GIVEN = re.compile(r", (stored labels|label projector [0-9a-f]+) \(.*\)$")
TILES = re.compile(r", (?:crops as of )?([0-9]+x[0-9]+) tiles")  # of the images, or for real ones of those beside them
FOLLOWS = re.compile(rf", batches of \d+|{TILES.pattern}")  # in the name of a protocol that follows the set
KINDS = {"soft": "method's labels", "hard": "hard labels"}
PLACE = ("student", "protocol", "split", "images")
ALWAYS = ("random", "centroid", "neighbour")  # what a set is compared with wherever they are


@dataclass(frozen=True)
class Comparison:
    """What students reach on the distilled set less what they reach on another, with labels of one kind.

    Attributes:
        against: The name of the other set.
        labels: "soft" or "hard".
        student, protocol, split: As in the row of the distilled set.
        images: How many both have.
        difference: By the number of the seed, in [-1, 1].
    """

    against: str
    labels: str
    student: str
    protocol: str
    split: str
    images: int
    difference: Difference

    def to_json(self) -> dict[str, Any]:
        """The attributes as JSON types."""
        return {**_place(self), "against": self.against, **self.difference.to_json()}


@dataclass(frozen=True)
class RobustScore:
    """A robust score of the distilled set.

    Attributes:
        score: By the number of the seed.
        labels: "soft" or "hard": the method's own.
        student, protocol, split, images: As in the row of the distilled set.
        epochs: Passes of its students over it, where the report says.
        full_data_epochs: Passes over all real images, where the report says and the score looks at them.
    """

    score: Score
    labels: str
    student: str
    protocol: str
    split: str
    images: int
    epochs: int | None = None
    full_data_epochs: int | None = None

    @property
    def shortened(self) -> bool | None:
        """True where full data were passed fewer times than the set; None where that is not known, or of no account."""
        if self.epochs is None or self.full_data_epochs is None:
            return None
        return self.full_data_epochs < self.epochs

    def to_json(self) -> dict[str, Any]:
        """The attributes as JSON types, and whether full data were shortened."""
        epochs = {"epochs": self.epochs, "full_data_epochs": self.full_data_epochs, "shortened": self.shortened}
        return {**_place(self), **self.score.to_json(), **epochs}


def _place(of: Comparison | RobustScore) -> dict[str, Any]:
    return {name: getattr(of, name) for name in ("labels", *PLACE)}


def schedule(protocol: str) -> str:
    """The name of a protocol in a row without what follows the set in it, and without labels that were given apart."""
    return FOLLOWS.sub("", GIVEN.sub("", protocol))


def comparisons(rows: Sequence["EvalRow"]) -> list[Comparison]:
    """The distilled set beside random images, beside the best other subset, that with the highest mean here, and beside
    centroid and neighbour.

    Of rows with different numbers of seeds those are paired that both have. Rows of one report are of one seed, and
    students of a number start from the same weights; in rows that were merged from reports of several seeds, or of
    releases before, they do not, and the intervals hold still but are wider.
    """
    found = []
    for own in (row for row in rows if row.set == "distilled"):
        names = dict.fromkeys(row.set for row in rows if row.set not in ("distilled", "full data"))
        arms = {name: arm for name in names if (arm := _arm(rows, own, name, own.labels)) is not None}
        best = max((name for name in arms if name != "random"), key=lambda name: arms[name].mean, default="random")
        for name in (name for name in dict.fromkeys(("random", best, *ALWAYS)) if name in arms):
            difference = paired(own.accuracies, arms[name].accuracies)
            found.append(Comparison(name, own.labels, own.student, own.protocol, own.split, own.images, difference))
    return found


def robust_scores(rows: Sequence["EvalRow"], meta: dict[str, Any]) -> list[RobustScore]:
    """The label robust score and the augmentation robust score of every student and protocol that has their arms.

    Seeds that not all arms have are left out.

    Args:
        rows: Of a report.
        meta: Of the report, which says how long each row was trained.
    """
    found = []
    for own in _own(rows):
        hard, random = _arm(rows, own, "distilled", "hard"), _arm(rows, own, "random", own.labels)
        full = _arm(rows, own, "full data", "hard")
        place = own.labels, own.student, own.protocol, own.split, own.images
        if hard and random and full:
            one, two, three, four = _by_seed(full, hard, own, random)
            score = label_robust_score(one, two, three, four)
            found.append(RobustScore(score, *place, epochs=_epochs(hard, meta), full_data_epochs=_epochs(full, meta)))
        bare, plain = (_arm(rows, own, name, own.labels, _bare(own.protocol)) for name in ("distilled", "random"))
        if random and bare and plain:
            one, two, three, four = _by_seed(own, random, bare, plain)
            found.append(RobustScore(augmentation_robust_score(one, two, three, four), *place))
    return found


def _own(rows: Sequence["EvalRow"]) -> list["EvalRow"]:
    """The rows of the distilled set with the method's own labels, which are hard where no set has soft ones but those
    that were given apart."""
    known = [row for row in rows if not GIVEN.search(row.protocol)]
    kind = "soft" if any(row.labels == "soft" for row in known) else "hard"
    return [row for row in known if (row.set, row.labels) == ("distilled", kind)]


def _arm(rows: Sequence["EvalRow"], own: "EvalRow", name: str, labels: str, title: str = "") -> "EvalRow | None":
    """The row of a set, as large as that of `own` but for full data, with such labels, under its protocol or the one of
    a `title`: the last one, of a report that was merged, and where there is one for as many tiles that one."""
    wanted, place, full = title or own.protocol, (name, labels, own.student, own.split), name == "full data"
    fitting = [
        row
        for row in rows
        if (row.set, row.labels, row.student, row.split) == place
        and (full or row.images == own.images)
        and _tileless(row.protocol, full) == _tileless(wanted, full)
    ]
    tiles = TILES.findall(wanted)
    return next(reversed([row for row in fitting if TILES.findall(row.protocol) == tiles] or fitting), None)


def _tileless(protocol: str, full: bool) -> str:
    """The name of a protocol in a row, without what follows the set in it: tiles and, for full data, batches."""
    tileless = TILES.sub("", protocol)
    return re.sub(", batches of [0-9]+", "", tileless) if full else tileless


def _bare(protocol: str) -> str:
    """The name in rows of a protocol without its augmentation."""
    name, comma, rest = protocol.partition(",")
    return f"{name}{UNAUGMENTED}{comma}{rest}"


def _by_seed(*arms: "EvalRow") -> list[list[float]]:
    """The accuracies of each arm, of the seeds that all have."""
    count = min(row.n for row in arms)
    return [row.accuracies[:count] for row in arms]


def _epochs(row: "EvalRow", meta: dict[str, Any]) -> int | None:
    """How long students of a row were trained, where the meta of a report says."""
    about = meta.get(f"{row.protocol}, {row.student}")
    epochs = about.get("epochs") if isinstance(about, dict) else None
    known = epochs.get(f"{row.set}, {row.labels} labels") if isinstance(epochs, dict) else None
    return known if type(known) is int else None


# For people


def difference_lines(found: Sequence[Comparison]) -> tuple[list[list[str]], str]:
    """Header and cells, one line for each comparison, and a caption."""
    varying, shared = _places(found)
    table = [["distilled against", "labels", *varying, "difference", "95 % interval", "verdict", "seeds for 1 point"]]
    for each in found:
        needed = each.difference.seeds_for()
        table.append(
            [
                each.against,
                KINDS[each.labels],
                *(str(getattr(each, name)) for name in varying),
                f"{100 * each.difference.mean:+.1f} ({each.difference.n})",
                _points(each.difference, "+.1f"),
                each.difference.verdict,
                "unknown" if needed is None else f"{needed:,}",
            ]
        )
    caption = (
        "points of accuracy, mean over pairs of students that start alike (number of pairs) · paired t-interval over "
        "students: it says nothing of other test images, nor of another run of the method · none for one pair or pairs "
        "that are all equal · beside random the best other subset, by its mean here, and any of centroid and neighbour "
        "· seeds that show a difference of one point in four of five evaluations, by the spread of these pairs"
    )
    return table, " · ".join([caption, *shared])


def score_lines(found: Sequence[RobustScore]) -> tuple[list[list[str]], str]:
    """Header and cells, one line for each score, and a caption."""
    varying, shared = _places(found)
    table = [["score × 100", *varying, "mean", "95 % interval", "made of, in points", "full data"]]
    for each in found:
        values = each.score.values
        spread = "" if values.std is None else f" ± {100 * values.std:.1f}"
        epochs = "" if each.full_data_epochs is None else f"{each.full_data_epochs:,} epochs"
        table.append(
            [
                each.score.name,
                *(str(getattr(each, name)) for name in varying),
                f"{100 * values.mean:.1f}{spread} ({values.n})",
                _points(values, ".1f"),
                " · ".join(f"{name} {100 * part.mean:+.1f}" for name, part in each.score.components.items()),
                f"{epochs}, shortened: the set has {each.epochs:,}" if each.shortened else epochs,
            ]
        )
    lost = "26.9 where nothing is gained nor lost"
    meaning = {
        True: "HLR full data less distilled, hard labels · IOR distilled less random, its own labels",
        False: "augmented and unaugmented: distilled less random, its own labels",
    }
    told = [meaning[name] for name in (True, False) if any((each.score.name == LRS) is name for each in found)]
    return table, " · ".join([lost, *told, NOT_COMPARABLE, *shared])


def _places(found: Sequence[Comparison | RobustScore]) -> tuple[list[str], list[str]]:
    """The names of what differs between the places of some, and in words what does not."""
    varying = [name for name in PLACE if len({getattr(each, name) for each in found}) > 1]
    shared = {name: getattr(found[0], name) for name in PLACE if name not in varying}
    return varying, [f"{value:,} images" if name == "images" else f"{name} {value}" for name, value in shared.items()]


def _points(sample: Sample, form: str) -> str:
    """An interval in hundredths."""
    return "none" if sample.interval is None else " to ".join(format(100 * end, form) for end in sample.interval)
