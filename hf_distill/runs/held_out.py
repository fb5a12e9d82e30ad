"""Real images that nothing learns from: how many, and what for, is said in the log."""

import logging
from collections.abc import Sequence

import torch

from ..data.images import RealImages

logger = logging.getLogger(__name__)


def say_held_out(rest: RealImages, held_out: RealImages | None, purposes: Sequence[str]) -> None:
    """Log how many training images are held out, and what for; a warning where they serve no purpose.

    Args:
        rest: What is learned from.
        held_out: The other images of the same classes, if there are any.
        purposes: In words that follow "to", such as "choose the step that is kept".
    """
    if held_out is None or not len(held_out):
        return
    total = len(rest) + len(held_out)
    text = f"{len(held_out):,} of {total:,} training images ({100 * len(held_out) / total:.1f} %) are held out"
    counts = torch.bincount(held_out.labels, minlength=rest.num_classes)
    if lacking := int((counts == 0).sum()):
        text += f", none of them of {lacking:,} classes that have too few"
    if purposes:
        logger.info("%s (--validation_fraction), to %s: nothing learns from them", text, " and to ".join(purposes))
    else:
        logger.warning("%s, and this run chooses nothing by them; --validation_fraction 0 learns from all images", text)


def say_learned_from(what: str, count: int, rest: RealImages, held_out: RealImages | None) -> None:
    """Log where a network learned from fewer images than this run has for it; a warning where from more.

    Args:
        what: The network, such as "the experts".
        count: How many images it learned from.
        rest: What this run learns from.
        held_out: The images that it chooses by, if there are any.
    """
    if count < len(rest):
        logger.info("%s learned from %s images, and this run has %s", what, f"{count:,}", f"{len(rest):,}")
    elif count > len(rest) and held_out is not None and len(held_out):
        logger.warning(
            "%s learned from %s images, and this run holds some out of %s: those that are chosen by may be among them; "
            "expected the --validation_fraction of its training",
            *(what, f"{count:,}", f"{len(rest) + len(held_out):,}"),
        )
