"""What an audit found, in words and tables, for a terminal and for a card. No torch."""

from typing import Any

from .cards import markdown_table, text_table
from .checks import OBJECT, Rules, check_values, is_number, is_share, is_whole

__all__ = ["audit_markdown", "audit_text", "check_audit_json"]

KINDS = {
    "image": "as it is, shifted or mirrored",
    "crop": "cut out and enlarged",
    "tiles": "as a tile of several",
    "features": "by the teacher's features",
}
SETS = {"distilled": "distilled", "random": "random subset"}
LIMITS = (
    "Finding nothing is no proof of privacy, and none is claimed. Not looked for: images that were rotated, mixed, "
    "recoloured or drawn again; pieces of less than two sevenths of a side; what stored labels or a teacher tell; what "
    "stronger attacks would. Training images that are nearly alike hide copies of each other."
)


def _list_of(fits: Any) -> Any:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_list(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(is_number, value))


def _is_kind(value: Any) -> bool:
    known = value if isinstance(value, dict) else {}
    distances = known.get("distances")
    return (
        all(is_whole(known.get(name), least=0) for name in ("images", "pieces", "of_pieces"))
        and isinstance(distances, dict)
        and all(_is_list(distances.get(whose), 4) for whose in ("distilled", "held out"))
    )


def _is_attack(value: Any) -> bool:
    known = value if isinstance(value, dict) else {}
    measured = known.get("auc") is None or all(is_share(known.get(name)) for name in ("auc", "low", "high"))
    counts = all(is_whole(known.get(name), least=0) for name in ("images", "held_out"))
    return measured and counts and known.get("set") in SETS and isinstance(known.get("held_in"), str)


def _is_spread(value: Any) -> bool:
    known = value if isinstance(value, dict) else {}
    pairs = all(_is_list(known.get(name), 2) for name in ("coverage", "vendi"))
    return pairs and known.get("set") in SETS and is_whole(known.get("images")) and is_whole(known.get("draws"))


RULES: Rules = {
    "copies": OBJECT,
    "copies.images": ("a whole number", is_whole),
    "copies.copies": ("a list of rows", _list_of(lambda row: is_whole(row, least=0))),
    "copies.p_value": ("a number in [0, 1]", is_share),
    "copies.level": ("a number in [0, 1]", is_share),
    "copies.compared_with": ("a whole number", is_whole),
    "copies.held_out": ("a whole number", is_whole),
    "copies.any_of_train": ("true, false or null", lambda value: value is None or isinstance(value, bool)),
    "copies.kinds": (
        "what was found, by kind",
        lambda kinds: isinstance(kinds, dict) and set(kinds) <= set(KINDS) and all(map(_is_kind, kinds.values())),
    ),
    "membership.student": ("a text", lambda value: isinstance(value, str)),
    "membership.protocol": ("a text", lambda value: isinstance(value, str)),
    "membership.students": ("a whole number", is_whole),
    "membership.rows": ("a list of attacks", _list_of(_is_attack)),
    "spread.compared_by": ("a text", lambda value: isinstance(value, str)),
    "spread.held_out": ("a whole number", is_whole),
    "spread.rows": ("a list of sets", _list_of(_is_spread)),
}


def check_audit_json(where: str, audit: Any) -> None:
    """Raise a one-line `ValueError` unless `audit` is what the audit of a set wrote."""
    check_values(where, audit, RULES)


def audit_text(audit: dict[str, Any]) -> str:
    """What was found as plain text for a terminal."""
    parts = [_verdict(audit["copies"])]
    parts += [text_table(*lines, to_left=("looked for", "students of", "set", "held in")) for lines in _tables(audit)]
    return "\n\n".join([*parts, LIMITS])


def audit_markdown(audit: dict[str, Any]) -> str:
    """What was found, for a card, without its picture."""
    copies, members, spread = (markdown_table(*lines) for lines in _tables(audit))
    return "\n\n".join([f"**{_verdict(audit['copies'])}**", copies, members, spread, LIMITS])


def _verdict(copies: dict[str, Any]) -> str:
    count, images = len(copies["copies"]), copies["images"]
    beside = f"than held-out real images make plausible (level {copies['level']:g} for the whole set)"
    if not count:
        return f"Found no copy: none of the {images:,} images is nearer to a training image {beside}."
    are = "image is a copy" if count == 1 else "images are copies"
    return f"Found copies: {count:,} of {images:,} {are}, nearer to training images {beside}."


def _tables(audit: dict[str, Any]) -> tuple[tuple[list[list[str]], str], ...]:
    """Header, cells and caption of the three tables."""
    return _copies(audit["copies"]), _members(audit["membership"]), _spread(audit["spread"])


def _copies(copies: dict[str, Any]) -> tuple[list[list[str]], str]:
    table = [["looked for", "images found", "pieces found", "distance", "of held-out images"]]
    for name, found in copies["kinds"].items():
        mine, others = ([f"{value:.2f}" for value in found["distances"][whose]] for whose in ("distilled", "held out"))
        pieces = f"{found['pieces']:,} of {found['of_pieces']:,}"
        table.append([KINDS[name], f"{found['images']:,}", pieces, " / ".join(mine), " / ".join(others)])
    unseen = "that the set was not made from"
    if copies.get("any_of_train"):
        unseen = "of test: of which images of train the set was made is not known, so that all were searched"
    caption = (
        f"distance to the nearest of {copies['compared_with']:,} training images, from 0 (alike up to brightness and "
        "contrast) to 2: the smallest, and what 5, 25 and 50 % of the images are below · a copy is one that is nearer, "
        f"beside its next neighbours, than {copies['held_out']:,} real images {unseen} · where "
        f"there is none, at most {100 * copies['level']:g} % of sets raise an alarm"
    )
    return table, caption


def _members(membership: dict[str, Any]) -> tuple[list[list[str]], str]:
    table = [["students of", "held in", "images", "held out", "AUC", "95 % interval"]]
    for row in membership["rows"]:
        known = row["auc"] is not None
        told = [f"{row['auc']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"] if known else ["", ""]
        table.append([SETS[row["set"]], row["held_in"], f"{row['images']:,}", f"{row['held_out']:,}", *told])
    caption = (
        "membership test: the chance that students are more confident of an image that was held in than of one that "
        "was held out, beside students that saw neither; 0.5 tells nothing · the interval is over images · "
        f"{membership['students']} students {membership['student']} of each · protocol {membership['protocol']} · a "
        "random subset of training images as large, at most half of each class, stands beside"
    )
    return table, caption


def _spread(spread: dict[str, Any]) -> tuple[list[list[str]], str]:
    table = [["set", "images", "coverage", "different images"]]
    for row in spread["rows"]:
        table.append([SETS[row["set"]], f"{row['images']:,}", *(_pair(row, name) for name in ("coverage", "vendi"))])
    draws = max((row["draws"] for row in spread["rows"]), default=0)
    caption = (
        f"coverage: the share of {spread['held_out']:,} held-out images that have one of the set nearer than their "
        "fifth neighbour among themselves · different images: how many the set is worth (Vendi score) · by "
        f"{spread['compared_by']} · random subsets: mean ± standard deviation of {draws} draws"
    )
    return table, caption


def _pair(row: dict[str, Any], name: str) -> str:
    mean, deviation = row[name]
    digits = 3 if name == "coverage" else 1
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if row["draws"] > 1 else "")
