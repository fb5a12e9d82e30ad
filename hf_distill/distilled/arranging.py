"""Sets made of sets: some images or classes of one, several put together, classes in another order.

Whatever belongs to an image follows it, and what speaks of classes is put into their new order, or left out and said
so: labels may be lost, and are never those of another class. `config["changes"]` keeps what was done, and to what sets.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from ..hub.checks import is_whole
from ..networks.teachers import Teacher
from ..rng import generator
from .labels import NetworkLabels, ProjectorLabels, TeacherLabels

if TYPE_CHECKING:
    from .distilled_set import DistilledSet

__all__ = ["changes_classes", "concatenate", "select", "shuffle_classes"]

logger = logging.getLogger(__name__)

SHOWN = 5  # names in a message
OF_A_RUN = ("shard", "changes", "projector")  # what is not true of a set that was made of others, or is said anew
TERMS = ("name", "config", "license", "gated")  # of a source, which one card can say of one source alone


def changes_classes(changes: list[dict[str, Any]] | None) -> bool:
    """True where `changes`, of a set's configuration, chose classes, put them in another order, or joined others."""
    return any(
        change.get("classes") is not None
        or any(changes_classes(each.get("changes")) for each in change.get("of") or [])
        for change in changes or []
    )


def select(distilled: "DistilledSet", ipc: int | None = None, classes: Sequence[str] | None = None) -> "DistilledSet":
    """As `DistilledSet.select`."""
    names = distilled.class_names
    if isinstance(classes, str) or (ipc is None and classes is None):
        raise ValueError(
            f"select was given ipc={ipc!r} and classes={classes!r}; expected a number, names in a list, or both"
        )
    chosen = list(names if classes is None else classes)
    unknown = [name for name in chosen if name not in names]
    if unknown or len(set(chosen)) < len(chosen) or len(chosen) < 2:
        what = (
            f"{_some(unknown)}, which it lacks"
            if unknown
            else f"{len(chosen)} names, {len(set(chosen))} of them different"
        )
        raise ValueError(f"classes has {what}; expected two or more different ones of {_some(names)}")
    places = {name: place for place, name in enumerate(names)}
    order = [places[name] for name in chosen]
    keep = torch.isin(distilled.labels, torch.tensor(order, device=distilled.labels.device))
    if ipc is not None:
        counts = distilled.labels.bincount(minlength=len(names))[order].tolist()
        if not is_whole(ipc, 1, min(counts)):
            least = min(range(len(counts)), key=counts.__getitem__)
            raise ValueError(
                f"ipc is {ipc!r}; expected 1 to {counts[least]}, the number of images of class {chosen[least]!r}"
            )
        for label in order:
            keep[(distilled.labels == label).nonzero().flatten()[ipc:]] = False
    change = {"operation": "select", "ipc": ipc, "classes": None if classes is None else order}
    return _arranged(distilled, keep.nonzero().flatten().cpu(), order, change)


def shuffle_classes(distilled: "DistilledSet", seed: int) -> "DistilledSet":
    """As `DistilledSet.shuffle_classes`."""
    if not is_whole(seed, 0):
        raise ValueError(f"seed is {seed!r}; expected a whole number from 0")
    order = torch.randperm(distilled.num_classes, generator=generator(seed, "shuffle classes")).tolist()
    change = {"operation": "shuffle_classes", "seed": seed, "classes": order}
    return _arranged(distilled, torch.arange(len(distilled)), order, change)


def _arranged(distilled: "DistilledSet", rows: Tensor, order: list[int], change: dict[str, Any]) -> "DistilledSet":
    """The images `rows` of a set, and of its classes those in `order`, which all these images belong to."""
    labels, soft = distilled.labels.cpu(), distilled.soft_labels
    place = torch.full((distilled.num_classes,), -1)
    place[order] = torch.arange(len(order))
    names, dropped = [distilled.class_names[label] for label in order], []
    teacher: TeacherLabels | NetworkLabels | None = distilled.teacher
    if order != list(range(distilled.num_classes)):
        teacher = _reordered(distilled, names)
        if teacher is None and distilled.teacher is not None:
            dropped.append("label projector")
            logger.warning(
                "the label projector is for all classes in their old order, and is left out: the images have %s labels",
                "hard" if soft is None else "their stored",
            )
    config = {name: value for name, value in distilled.config.items() if name not in OF_A_RUN}
    if "projector" in distilled.config and teacher is distilled.teacher:
        config["projector"] = distilled.config["projector"]
    told = {**change, "of": [_told(distilled)], **({"dropped": dropped} if dropped else {})}
    config["changes"] = [*(distilled.config.get("changes") or []), told]
    whole = len(rows) == len(distilled)
    arranged = type(distilled)(
        distilled.pixel_values if whole else distilled.pixel_values.detach()[rows.to(distilled.pixel_values.device)],
        place[labels[rows]],
        names,
        distilled.preprocessing,
        lr=None if distilled.lr is None else distilled.lr.item(),
        soft_labels=None if soft is None else soft.cpu()[rows][:, order],
        teacher=teacher,
        config=_for_classes(config, len(names)),
    )
    arranged.making = distilled.making  # that of the whole, which it took
    return arranged


def _reordered(distilled: "DistilledSet", names: list[str]) -> TeacherLabels | NetworkLabels | None:
    """What labels the set, for the classes `names` of it in this order; None for a projector, which is for its own.

    Raises:
        ValueError: It cannot be fetched, or its logits do not come from a layer with a row for each.
    """
    source = distilled.teacher
    if source is None or isinstance(source, ProjectorLabels):
        return None
    if isinstance(source, NetworkLabels):
        return NetworkLabels(source.teacher.narrowed(names), chunk_size=source.chunk_size)
    thetas = []
    for theta in source.thetas:
        whole = Teacher(source.model.load(theta), source.spec, distilled.class_names, distilled.preprocessing)
        thetas.append(source.model.flatten(whole.narrowed(names).model))
    spec = replace(source.spec, num_classes=len(names))
    return TeacherLabels(spec, torch.stack(thetas), chunk_size=source.chunk_size)


def concatenate(sets: Sequence["DistilledSet"]) -> "DistilledSet":
    """As `DistilledSet.concatenate`."""
    several = isinstance(sets, list | tuple)
    if not several or len(sets) < 2 or not all(isinstance(each, Module) for each in sets):
        given = ", ".join(type(each).__name__ for each in sets) if several else type(sets).__name__
        raise ValueError(f"concatenate was given {given or 'nothing'}; expected a list of two or more sets")
    first = sets[0]
    union = _is_union(sets)
    for number, other in enumerate(sets[1:], start=2):
        for what, one, two in (
            ("kind of images (pictures, or floats)", first.is_bytes, other.is_bytes),
            ("preprocessing or size", first.preprocessing.fingerprint(), other.preprocessing.fingerprint()),
            ("source or terms of use", _terms(first), _terms(other)),
        ):
            if one != two:
                raise ValueError(f"set {number} has another {what} than the first; expected sets that agree in it")
    ids = [each._content_id() for each in sets]
    if len(set(ids)) < len(ids):
        raise ValueError("a set is given twice; give each once")
    dropped, teacher, soft = [], None, None
    if union:
        dropped += ["soft labels"] * any(each.soft_labels is not None for each in sets)
        dropped += ["networks that label"] * any(each.teacher is not None for each in sets)
    else:
        teacher = _shared(sets)
        soft = None if first.soft_labels is None else torch.cat([each.soft_labels.cpu() for each in sets])
    rates = {None if each.lr is None else each.lr.item() for each in sets}
    dropped += ["learned learning rates"] * (len(rates) > 1)
    if dropped:
        reasons = "soft labels and networks know the classes of one set alone, and a set has one learning rate"
        logger.warning("left out: %s; %s", ", ".join(dropped), reasons)
    names, labels = list(first.class_names), [first.labels.cpu()]
    for each in sets[1:]:
        labels.append(each.labels.cpu() + (len(names) if union else 0))
        names += each.class_names if union else []
    told = {
        "operation": "concatenate",
        "classes": list(range(sum(each.num_classes for each in sets))) if union else None,
        "of": [{**_told(each), "changes": each.config.get("changes") or []} for each in sets],
    }
    config = {
        **_common(sets, keep_projector=teacher is not None),
        "changes": [{**told, **({"dropped": dropped} if dropped else {})}],
    }
    return type(first)(
        torch.cat([each.pixel_values.detach().cpu() for each in sets]),
        torch.cat(labels),
        names,
        first.preprocessing,
        lr=rates.pop() if len(rates) == 1 else None,
        soft_labels=soft,
        teacher=teacher,
        config=_for_classes(config, len(names)),
    )


def _is_union(sets: Sequence["DistilledSet"]) -> bool:
    """True where no two sets share a class, False where all have the same ones in one order; else a `ValueError`."""
    first = sets[0].class_names
    if all(each.class_names == first for each in sets):
        return False
    seen: set[str] = set()
    for number, each in enumerate(sets, start=1):
        shared = [name for name in each.class_names if name in seen]
        if shared:
            hint = "in another order" if set(each.class_names) == set(first) else f"and others beside {_some(shared)}"
            raise ValueError(
                f"set {number} has classes of a set before it {hint}; expected the same classes in the same order "
                "(select puts them in one), or none in common"
            )
        seen.update(each.class_names)
    return True


def _shared(sets: Sequence["DistilledSet"]) -> TeacherLabels | NetworkLabels | None:
    """What labels all sets of the same classes; a `ValueError` where their labels are of different kinds or origin."""
    identities = [None if each.teacher is None else each.teacher.identity() for each in sets]
    kinds = [each.soft_labels is None for each in sets]
    if any(each != identities[0] for each in identities) or len(set(kinds)) > 1:
        raise ValueError(
            "the sets have labels of different kinds, or of different networks; expected hard ones, or those of one "
            "teacher, for all images"
        )
    return sets[0].teacher


def _terms(distilled: "DistilledSet") -> tuple[Any, ...]:
    """What the cards of a set say of its source, and of where its images were taken from."""
    source, imported = (distilled.config.get(name) or {} for name in ("source", "imported_from"))
    return (*(source.get(name) for name in TERMS), imported.get("license"), imported.get("gated"))


def _common(sets: Sequence["DistilledSet"], *, keep_projector: bool) -> dict[str, Any]:
    """What the configurations of all sets say alike; of their sources too, and all files that any was imported from."""
    configs = [_for_classes(each.config, 0) for each in sets]
    apart = OF_A_RUN[:-1] if keep_projector else OF_A_RUN
    common = _alike([{name: value for name, value in config.items() if name not in apart} for config in configs])
    sources = [config["source"] for config in configs if config.get("source")]
    imported = [config["imported_from"] for config in configs if config.get("imported_from")]
    if sources:
        common["source"] = _alike(sources)
    if imported:
        files = [file for each in imported for file in each.get("files") or []]
        common["imported_from"] = {
            **_alike(imported),
            "files": [file for n, file in enumerate(files) if file not in files[:n]],
        }
    return common


def _alike(objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, *others = objects
    return {key: value for key, value in first.items() if all(key in other and other[key] == value for other in others)}


def _for_classes(config: dict[str, Any], count: int) -> dict[str, Any]:
    """A configuration whose student is for so many classes."""
    config, student = copy.deepcopy(config), config.get("student")
    if isinstance(student, dict) and "num_classes" in student:
        config["student"] = {**student, "num_classes": count}
    return config


def _told(distilled: "DistilledSet") -> dict[str, Any]:
    """What is kept of a set that another is made of, as JSON types."""
    origin = distilled.origin
    known = {
        "data_id": distilled.stored_id or distilled._content_id(),
        "images": len(distilled),
        "classes": distilled.num_classes,
        "method": distilled.config.get("method"),
        "repo_id": None if origin is None else origin.repo_id,
        "revision": None if origin is None else origin.revision,
    }
    return {name: value for name, value in known.items() if value is not None}


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
