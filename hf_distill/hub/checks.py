"""Rules for the JSON files of others: each value is checked by a rule before anything is done on its word."""

import math
import re
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MOST_CLASSES = 1_000_000

Rules = dict[str, tuple[str, Callable[[Any], bool]]]


def check_values(where: str | Path, values: Any, rules: Rules) -> None:
    """Raise a one-line `ValueError` for the first value in a JSON object that is not as its rule says.

    Args:
        where: The file that the object comes from.
        values: The object.
        rules: By name ("results.loss" for one inside another), what is expected and whether a value is that; a value
            that is absent is None.
    """
    for name, (expected, fits) in rules.items():
        value = values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not fits(value):
            raise ValueError(f"{where} has {name} {reprlib.repr(value)}; expected {expected}")


def is_whole(value: Any, least: int = 1, most: int = 2**53) -> bool:
    """True where a value of a JSON file is a whole number in a range."""
    return type(value) is int and least <= value <= most


def is_number(value: Any) -> bool:
    """True where a value of a JSON file is a finite number."""
    return type(value) in (int, float) and abs(value) < math.inf


def is_share(value: Any) -> bool:
    """True where a value of a JSON file is a number in [0, 1]."""
    return is_number(value) and 0 <= value <= 1


def is_hex(digits: int) -> Callable[[Any], bool]:
    """A rule: whether a value of a JSON file is so many lower-case hex digits."""
    return lambda value: isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def is_commit_of_repository(value: Any) -> bool:
    """True where a value of a JSON file is an object with `repo_id`, as owner/name, and `revision`, a commit."""
    if not isinstance(value, dict):
        return False
    repo_id = value.get("repo_id")
    named = isinstance(repo_id, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96}", repo_id) is not None
    return named and is_hex(40)(value.get("revision"))


def class_difference(mine: Sequence[str], given: Sequence[str]) -> str:
    """The first difference between two lists of class names that differ: what has `mine` is the subject."""
    if len(given) != len(mine):
        return f"has {len(mine)} classes, and there are {len(given)}"
    first = next(index for index, (one, other) in enumerate(zip(mine, given, strict=True)) if one != other)
    return f"calls class {first} {mine[first]!r}, and here it is {given[first]!r}"


def _are_texts(value: Any) -> bool:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_CLASSES:
        return False
    # A lone half of a surrogate pair is valid JSON, and no file can hold it.
    return all(isinstance(text, str) and not re.search("[\ud800-\udfff]", text) for text in value)


def are_names(value: Any) -> bool:
    """True where a value of a JSON file can be the names of classes."""
    return _are_texts(value) and len(set(value)) == len(value)


def are_words(value: Any) -> bool:
    """True where it can be what classes are called in sentences; of ImageNet's, CLIP calls two sunglasses."""
    return _are_texts(value) and all(text.strip() for text in value)


NAMES = f"1 to {MOST_CLASSES:,} different texts"
WORDS = f"1 to {MOST_CLASSES:,} texts, none of them empty"
OBJECT = ("an object", lambda value: isinstance(value, dict))
OBJECT_OR_NULL = ("an object, or null", lambda value: value is None or isinstance(value, dict))
TEXT_OR_NULL = ("a text, or null", lambda value: value is None or isinstance(value, str))
COUNT_OR_NULL = ("a whole number, or null", lambda value: value is None or is_whole(value, least=0))
