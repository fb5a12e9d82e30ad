"""Which class of the source each class of somebody's images is, by its name or by its number."""

import logging
import re
from collections.abc import Sequence

from ..networks.class_names import Classes

__all__ = ["match_classes"]

logger = logging.getLogger(__name__)

NUMBERED = re.compile(r"(?:new|class)?_?(\d+)")  # new007 by SRe2L, 00007 by RDED


def match_classes(what: str, given: Sequence[str], names: Sequence[str], *, tell: bool = True) -> dict[str, str]:
    """The class of the source that each of `given` is, all by name or else all by number.

    Names are those of folders, as `DistilledSet.export_image_folder` writes them, or any that `Classes` knows for the
    same: WordNet's numbers and the words of their synsets. Numbers are places in `names`.

    Args:
        what: What they are, in the plural, such as "folders in syn_data".
        given: Different names, or numbers such as 7, 00007, new007 and class_7.
        names: All classes of the source, in its order.
        tell: Log which of the two it was.

    Raises:
        ValueError: Some are no class, or two are the same one.
    """
    best, how = _by_name(given, names), "names"
    if len(best) < len(given):
        numbers = _by_number(what, given, names)
        if len(numbers) > len(best):
            best, how = numbers, "numbers, which count the source's from 0"
    if len(best) < len(given):
        odd = [name for name in given if name not in best]
        raise ValueError(
            f"{len(odd)} of {len(given)} {what} are no class of the source ({', '.join(odd[:10])}); "
            f"expected names such as {', '.join(names[:3])}, or numbers such as 00000 or new000 up to {len(names) - 1}"
        )
    if len(set(best.values())) < len(given):
        raise ValueError(f"two {what} are the same class; expected one for each")
    if tell:
        logger.info("the %d %s are matched with the classes of the source by their %s", len(given), what, how)
    return best


def _by_name(given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Class of each of `given` that is a name of one class alone."""
    # As export_image_folder writes them.
    cleaned = {re.sub(r"[/\\\0]", "_", name).strip() or "_": name for name in names}
    cleaned |= {f"_{name}": original for name, original in cleaned.items() if name.startswith(".")}
    cleaned |= {name: name for name in names}
    found = {name: cleaned[name] for name in given if name in cleaned}
    if len(found) < len(given):
        classes = Classes(names)
        others = {name: classes.rows(name) for name in given if name not in found}
        found |= {name: names[rows[0]] for name, rows in others.items() if len(rows) == 1}
    return found


def _by_number(what: str, given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Class of each of `given` that is a number, by the place of the class in `names`."""
    found = {}
    numeric = all(name.isdecimal() for name in names)
    for number in given:
        match = NUMBERED.fullmatch(number)
        if match and int(match[1]) < len(names):
            name = names[int(match[1])]
            if numeric and int(name) != int(match[1]):
                raise ValueError(
                    f"{number} of the {what} could be class {name!r} by its place or class "
                    f"{match[1].lstrip('0') or '0'!r} by its name; rename them to the names of the classes"
                )
            found[number] = name
    return found
