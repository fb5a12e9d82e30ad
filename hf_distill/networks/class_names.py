"""Names of a network's classes: read from a file, known of ImageNet, and matched with those of a dataset.

ImageNet's classes go by three kinds of names: WordNet's numbers (`n01440764`), all words of such a synset ("tench,
Tinca tinca") and one of them ("tench"). timm carries numbers and words; either side may use any of the three.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..hub.checks import MOST_CLASSES, are_names
from .architectures import timm_with_ours

SHOWN = 3  # names in a message
PAIRS = 20  # of names in the log
WNID = re.compile(r"n\d{8}")
SUBSETS = {"1k": "imagenet-1k", "12k": "imagenet-12k", "21k": "imagenet-21k", "22k": "imagenet-22k"}
STRANGERS = 0.01  # share of names that may be unknown where all others stand in the order of WordNet's numbers


def read_class_names(path: str | Path) -> list[str]:
    """The names in a file: one on each line, or in JSON a list of names, or an object of them by index.

    Raises:
        ValueError: The file cannot be read, is none of these, or names a class twice.
    """
    expected = 'expected a name on each line, or JSON: a list of names, or {"0": name, ...}'
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise ValueError(f"the class names in {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the class names in {path} are no UTF-8 text ({error.reason}); {expected}") from error
    except ValueError as error:  # a NUL in the path
        raise ValueError(f"the class names in {str(path)!r} cannot be read: {error}") from error
    names: Any = [line.strip() for line in text.splitlines()]
    if text.startswith(("[", "{")):
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:
            if len(names) == 1 or names[0] in ("[", "{") or names[0].endswith((",", ":")):  # else a name on each line
                raise ValueError(f"the class names in {path} are no JSON ({error}); {expected}") from error
    if isinstance(names, dict):
        names = [names.get(str(index)) for index in range(len(names))]
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)):
        raise ValueError(f"{path} holds no names of classes, or an empty one; {expected}")
    if not are_names(names):
        twice = next((name for name, times in Counter(names).items() if times > 1), None)
        if twice is None:
            raise ValueError(
                f"{path} has more than {MOST_CLASSES:,} names, or one that is no text of whole characters; {expected}"
            )
        raise ValueError(f"{path} names {twice!r} twice; expected a name of its own for each class")
    return names


def imagenet_names(description: Mapping[str, Any]) -> list[str] | None:
    """WordNet's numbers of a timm network's classes, in order, where its tag and their number are ImageNet's.

    Args:
        description: `config.json` of timm, with what is in its `pretrained_cfg`.
    """
    trained_on = re.findall(r"(?:^|_)in(1k|12k|21k|22k)(?=_|$)", str(description.get("tag") or ""))
    if not trained_on:
        return None
    timm_with_ours()
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": description.get("num_classes")}) or ""
    return ImageNetInfo(subset).label_names() if subset.startswith(SUBSETS[trained_on[-1]]) else None


def imagenet_order(labels: Sequence[str]) -> list[str] | None:
    """WordNet's numbers of ImageNet-1K's classes where `labels`, which may repeat, are their words in that order."""
    if len(labels) != 1000:
        return None
    numbers = imagenet_names({"tag": "in1k", "num_classes": 1000}) or []
    return numbers if Classes(numbers).stand_in_order(labels) else None


@cache
def _words() -> Mapping[str, str]:
    """The words of every synset that timm knows, by its number."""
    timm_with_ours()
    from timm.data import ImageNetInfo

    known = (ImageNetInfo(name).label_descriptions(as_dict=True) for name in ("imagenet-21k-goog", "imagenet-1k"))
    return {number: words for names in known for number, words in names.items()}


def _whole(name: str) -> tuple[str, ...]:
    """`name`, and of a WordNet number all words too."""
    return (name, _words()[name]) if WNID.fullmatch(name) and name in _words() else (name,)


def _pieces(name: str) -> list[str]:
    return [piece.strip() for whole in _whole(name) for piece in whole.split(",") if piece.strip()]


def _plain(text: str) -> str:
    """`text` without what names differ in by accident: case, underscores and hyphens, spaces."""
    return " ".join(re.sub(r"[_\-\s]+", " ", text).split()).casefold()


class Classes:
    """The classes of a network by all that they may be called.

    Of a class of data the nearest of four ways counts: the very name; all words of its synset; the first of them; any
    of them, whatever its case, underscores and hyphens.

    Args:
        names: Of the logits, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._own = {name: [row] for row, name in enumerate(self.names)}
        self._all, self._first, self._any = ({}, {}, {})  # type: tuple[dict[str, list[int]], ...]
        for row, name in enumerate(self.names):
            pieces = _pieces(name)
            for index, keys in (
                (self._all, _whole(name)),
                (self._first, pieces[:1] + pieces[1:2] * (len(_whole(name)) > 1)),
                (self._any, [_plain(key) for key in (*_whole(name), *pieces)]),
            ):
                for key in dict.fromkeys(keys):
                    index.setdefault(key, []).append(row)

    def rows(self, name: str) -> list[int]:
        """The logits that a class `name` of data may be: none, one, or several where the name is ambiguous."""
        return self._rows(name)[0]

    def _rows(self, name: str) -> tuple[list[int], int]:
        """The logits that a class may be, and which of the four ways told so, the nearest is 0."""
        pieces = _pieces(name)
        for way, (index, keys) in enumerate(
            (
                (self._own, [name]),
                (self._all, _whole(name)),
                (self._first, [name]),
                (self._any, [_plain(key) for key in (*_whole(name), *pieces)]),
            )
        ):
            rows = sorted({row for key in keys for row in index.get(key, ())})
            if rows:
                return rows, way
        return [], 0

    def strangers(self, names: Sequence[str]) -> list[int] | None:
        """The places of those of `names` that mean no logit, where all others are those of all logits in their order.

        None where they are not, or too many mean none. Names of which one means nothing are accepted only where one
        side has WordNet's numbers, whose order is known.
        """
        if len(names) != len(self.names):
            return None
        found = [self.rows(name) for name in names]
        strangers = [row for row, rows in enumerate(found) if row not in rows]
        placed = set(range(len(names))) - set(strangers)
        if strangers and not any(all(map(WNID.fullmatch, side)) for side in (self.names, names)):
            return None
        few = len(strangers) <= STRANGERS * len(names)
        return strangers if few and all(placed.issuperset(found[row]) for row in strangers) else None

    def stand_in_order(self, names: Sequence[str]) -> bool:
        """True where `names` are those of all logits in their order, but for a few that mean no logit beside these."""
        return self.strangers(names) is not None

    def called_otherwise(self, names: Sequence[str]) -> str:
        """The classes whose very name the network has not, or that have their place alone, as a text of pairs.

        Those are first that were told in the least near way; numbers of WordNet need no telling.

        Args:
            names: Such as `find` finds.
        """
        strangers = self.strangers(names)
        if strangers is not None:
            pairs = [(3, names[row], row) for row in strangers]
        else:
            told = ((name, *self._rows(name)) for name in names if not WNID.fullmatch(name))
            pairs = [(way, name, rows[0]) for name, rows, way in told if way]
        pairs.sort(key=lambda pair: -pair[0])
        shown = ", ".join(f"{name!r} -> {self._called([row])}" for _, name, row in pairs[:PAIRS])
        return shown + (f" and {len(pairs) - PAIRS} more" if len(pairs) > PAIRS else "")

    def find(self, names: Sequence[str]) -> list[int]:
        """The logit of each of `names`.

        Raises:
            ValueError: One is absent, ambiguous, or the class of another one too; the message, which continues the name
                of the network, says which, and what is near.
        """
        if list(names) == self.names or self.stand_in_order(names):
            return list(range(len(self.names)))
        found = {name: self.rows(name) for name in names}
        absent = [name for name, rows in found.items() if not rows]
        if absent:
            shown = ", ".join(f"{name!r}{self._near(name)}" for name in absent[:SHOWN])
            more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
            raise ValueError(
                f"has {len(self.names):,} classes, and {len(absent)} of these {len(names)} are not among them: {shown}"
                f"{more}; use a teacher of these classes, choose among them with --classes, or name its logits with "
                "--teacher_class_names"
            )
        for name, rows in found.items():
            if len(rows) > 1:
                raise ValueError(
                    f"has {len(rows)} classes that {name!r} can mean: {self._called(rows)}; call the class by a name "
                    "that is one's alone, or name the logits as the data does with --teacher_class_names"
                )
        by_row: dict[int, str] = {}
        for name, (row, *_) in found.items():
            if row in by_row:
                raise ValueError(
                    f"has one class, {self._called([row])}, for both {by_row[row]!r} and {name!r}; leave one of them "
                    "out with --classes"
                )
            by_row[row] = name
        return [found[name][0] for name in names]

    def _called(self, rows: Iterable[int]) -> str:
        return ", ".join(" = ".join(map(repr, _whole(self.names[row]))) for row in list(rows)[:SHOWN])

    def _near(self, name: str) -> str:
        near = [row for key in difflib.get_close_matches(_plain(name), self._any, n=SHOWN) for row in self._any[key]]
        return f" (near: {self._called(dict.fromkeys(near))})" if near else ""
