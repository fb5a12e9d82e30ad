"""The bytes that labels cost beside the images, by formula: before anything is made, and for what others store.

N images, E epochs of a student, C classes, b bytes per logit. A view is an image in an epoch.

    full        N E C b                  the logits of every view, whose crops are a function of a seed
    FKD         N E (C b + 25)           with the crop (16), the flip (1) and the partner (8) of every view
    pruned      ρ N E (C b + 25)         FKD of the share ρ of the epochs
    MR-k        ρ N E (4 k + 10)         the k largest logits and their classes, and the crop in half precision
    top k       ρ N E (4 k + 4)          the same with seeds for crops, and the mass of the other classes
    per image   N C b                    one for each image
    projector   P b                      P parameters that compute labels from a prior that everybody has
    online      the bytes of the teacher

FKD is arXiv:2112.01528 as SRe2L (arXiv:2306.13092) stores it; pruning is that of LPLD (arXiv:2410.15919), MR-k that of
its continuation LPQLD, and the projector that of HeLlO (arXiv:2408.08201).
"""

from dataclasses import dataclass

from ..hub.cards import human_bytes, markdown_table, text_table

__all__ = ["LabelCost", "LabelCosts", "fkd", "label_bytes", "label_costs", "mr_k", "parameters", "per_image", "stored"]

VIEW_BYTES = 16 + 1 + 8  # of a view that is stored: the crop, the flip, the partner


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"the share of the labels that is kept is {share}; expected a number above 0, at most 1")
    return share


def fkd(images: int, epochs: int, classes: int, *, share: float = 1.0, logit_bytes: int = 2) -> int:
    """Bytes of FKD's labels: every view with its logits and what makes it again, of the `share` ρ that is kept."""
    return round(_share(share) * images * epochs * (classes * logit_bytes + VIEW_BYTES))


def mr_k(images: int, epochs: int, kept: int, *, share: float = 1.0) -> int:
    """Bytes of LPQLD's labels: `kept` values in float16 with their classes in int16, and ten for the view."""
    return round(_share(share) * images * epochs * (4 * kept + 10))


def label_bytes(classes: int, kept: int | None = None) -> int:
    """Bytes of one label as this library stores it: float16 logits, all or the `kept` largest.

    Those carry their classes, in two bytes up to 65,536 classes and in four beyond, and four bytes for the others.
    """
    if kept is None:
        return 2 * classes
    return kept * (2 + (2 if classes <= 2**16 else 4)) + 4


def stored(images: int, epochs: int, classes: int, kept: int | None = None) -> int:
    """Bytes of `epochs` stored epochs of labels as this library stores them, before compression."""
    return images * epochs * label_bytes(classes, kept)


def per_image(images: int, classes: int) -> int:
    """Bytes of one float16 label for each image."""
    return 2 * images * classes


def parameters(count: int, *, parameter_bytes: int = 2) -> int:
    """Bytes of the parameters of a projector."""
    return count * parameter_bytes


@dataclass(frozen=True)
class LabelCost:
    """The cost of one kind of labels.

    Attributes:
        what: For people.
        num_bytes: That travel with the images.
        share: Of the float16 logits of every view.
    """

    what: str
    num_bytes: int
    share: float


@dataclass(frozen=True)
class LabelCosts:
    """The cost of each kind of labels for one set and one schedule.

    Attributes:
        images: N.
        epochs: E, of the student.
        classes: C.
        rows: One for each kind.
    """

    images: int
    epochs: int
    classes: int
    rows: tuple[LabelCost, ...]

    def _lines(self) -> tuple[list[list[str]], str]:
        lines = [[row.what, human_bytes(row.num_bytes), _percent(row.share)] for row in self.rows]
        caption = (
            f"{self.images:,} images, {self.epochs:,} epochs, {self.classes:,} classes; by formula, before "
            "compression; share of the float16 logits of every view"
        )
        return [["labels", "bytes", "share"], *lines], caption

    def table(self) -> str:
        """The costs as aligned plain text for a terminal."""
        return text_table(*self._lines(), to_left=("labels",))

    def markdown(self) -> str:
        """The costs as a table for a card."""
        return markdown_table(*self._lines())


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share == 0 or share >= 1e-6 else f"{100 * share:.1e} %"


def label_costs(
    images: int,
    epochs: int,
    classes: int,
    *,
    share: float | None = None,
    kept: int | None = None,
    projector_params: int | None = None,
    parameter_bytes: int = 2,
    text_head_bytes: int = 0,
    prior_bytes: int = 0,
    teacher_bytes: int | None = None,
) -> LabelCosts:
    """The cost of each kind of labels for a set of `images` that students see for `epochs`.

    Args:
        images: N.
        epochs: E.
        classes: C.
        share: ρ, of the epochs that pruned labels keep; without it there are no rows of them.
        kept: k, of the classes that are kept; without it there are no rows of them.
        projector_params: P; without it there are no rows of a projector.
        parameter_bytes: Of a parameter of the projector.
        text_head_bytes: Of the cache of its text embeddings, which the prior can make again.
        prior_bytes: Of the network that it adapts, which is shared by all projectors.
        teacher_bytes: Of a teacher that labels while students train.

    Raises:
        ValueError: A count is not positive, ρ is no share or k is more than C.
    """
    for name, value in (("images", images), ("epochs", epochs), ("classes", classes)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected a whole number from 1")
    if kept is not None and not 1 <= kept <= classes:
        raise ValueError(f"{kept} logits of {classes} classes are to be kept; expected 1 to {classes}")
    full = stored(images, epochs, classes)
    costs = {
        "every view, logits and seeds": full,
        "every view, as FKD stores it": fkd(images, epochs, classes),
    }
    part = "" if share is None else f", {_percent(_share(share))} of the epochs"
    if share is not None:
        costs[f"FKD{part}"] = fkd(images, epochs, classes, share=share)
        costs[f"logits and seeds{part}"] = round(share * full)
    if kept is not None:
        costs[f"MR-{kept}{part}"] = mr_k(images, epochs, kept, share=share or 1.0)
        costs[f"the {kept:,} largest and seeds{part}"] = round((share or 1.0) * stored(images, epochs, classes, kept))
    costs["one per image"] = per_image(images, classes)
    if projector_params is not None:
        costs["projector"] = parameters(projector_params, parameter_bytes=parameter_bytes)
        if text_head_bytes:
            costs["projector with its text head"] = costs["projector"] + text_head_bytes
        if prior_bytes:
            costs["projector with all that is shared"] = costs["projector"] + text_head_bytes + prior_bytes
    if teacher_bytes is not None:
        costs["teacher, online"] = teacher_bytes
    costs["classes"] = 0
    rows = tuple(LabelCost(what, count, count / full) for what, count in costs.items())
    return LabelCosts(images, epochs, classes, rows)
