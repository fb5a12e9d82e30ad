"""A folder of a distilled set, read and checked: anybody's folder ends here in a set's arguments, or in one line."""

import logging
import re
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..data.preprocessing import Preprocessing
from ..hub.audit import check_audit_json
from ..hub.checks import (
    COUNT_OR_NULL,
    NAMES,
    OBJECT,
    OBJECT_OR_NULL,
    TEXT_OR_NULL,
    Rules,
    are_names,
    check_values,
    is_number,
    is_whole,
)
from ..hub.files import check_format_version, load_json
from ..hub.results import VERSION, EvalReport
from .card import AUDIT
from .labels import HardLabels, NetworkLabels, ProjectorLabels, StoredLabels, TeacherLabels
from .tables import FOLDER, read_rows

__all__ = ["CONFIG", "DERIVED", "FORMAT_VERSION", "PIXELS", "RESULTS", "Stored", "read_folder"]

logger = logging.getLogger(__name__)

# 3 with projectors, 2 with pictures or networks with statistics, and else 1: a reader takes what is not newer than it.
FORMAT_VERSION = 3
CONFIG, RESULTS = "distill_config.json", "results.json"
PIXELS = ("float32", "uint8")
LARGEST_PICTURE = 2**24  # bytes
# Of the configuration: what is written from the other arguments of a set, and never taken from its own.
DERIVED = (
    "format_version",
    "pixels",
    "data_id",
    "images",
    "ipc",
    "class_names",
    "preprocessing",
    "learned_lr",
    "log_lr",
    "label_source",
)
KINDS = tuple(source.kind for source in (HardLabels, StoredLabels, TeacherLabels, NetworkLabels, ProjectorLabels))


def _are_papers(value: Any) -> bool:
    papers = value if isinstance(value, list) else [] if value is None else [value]
    return all(
        isinstance(paper, dict) and all(isinstance(paper.get(key), str) for key in ("title", "arxiv_id", "bibtex"))
        for paper in papers
    )


def _are_rates(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(is_number(rate) and rate > 0 for rate in value))


def _are_objects(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(each, dict) for each in value))


def _are_changes(value: Any) -> bool:
    """True for what may be done to sets: of each change the sets, and of each of these what was done to it before."""
    return _are_objects(value) and all(
        _are_objects(change.get("of")) and all(_are_changes(each.get("changes")) for each in change.get("of") or [])
        for change in value or []
    )


def _is_license(value: Any) -> bool:
    return all(isinstance(text, str) for text in (value if isinstance(value, list) else [value or ""]))


# The values of `distill_config.json` that are computed with, beside those that `Preprocessing`, `TeacherLabels` and
# `StudentSpec` read. Whatever else it says is kept as it is, and shown as text.
RULES: Rules = {
    "pixels": (" or ".join(PIXELS), lambda kind: kind in PIXELS),
    "images": ("a whole number from 1", is_whole),
    "ipc": ("a whole number from 1", is_whole),
    "class_names": (NAMES, are_names),
    "preprocessing": OBJECT,
    "learned_lr": ("a number above 0, or null", lambda lr: lr is None or (is_number(lr) and lr > 0)),
    "label_source": OBJECT,
    "label_source.kind": ("hard, soft, teacher or projector", lambda kind: kind in KINDS),
    **dict.fromkeys(("label_source.teacher", "student", "projector", "hyperparameters", "versions"), OBJECT_OR_NULL),
    **dict.fromkeys(("source", "experts", "experts.training", "imported_from", "release"), OBJECT_OR_NULL),
    **dict.fromkeys(
        ("method", "variant", "source.name", "source.config", "source.split", "source.revision"), TEXT_OR_NULL
    ),
    **dict.fromkeys(("source.num_images", "source.num_corrupt"), COUNT_OR_NULL),
    **dict.fromkeys(("projector.text_head_bytes", "projector.prior_bytes"), COUNT_OR_NULL),
    "seed": ("a whole number, or null", lambda seed: seed is None or type(seed) is int),
    **dict.fromkeys(("source.license", "imported_from.license"), ("a text, a list of texts, or null", _is_license)),
    "eval_lrs": ("numbers above 0, or null", _are_rates),
    "paper": ("an object with title, arxiv_id and bibtex, a list of them, or null", _are_papers),
    "changes": ("a list of objects whose `of` is one of objects, or null", _are_changes),
    "imported_from.files": ("a list of objects, or null", _are_objects),
}
ROW: Rules = {
    **{name: ("a text", lambda value: isinstance(value, str)) for name in ("student", "protocol", "device", "split")},
    "images": ("a whole number", lambda images: is_whole(images, least=0)),
}
LABEL_ROW: Rules = {
    **ROW,
    "labels": ("a text", lambda value: isinstance(value, str)),
    "num_bytes": ("a whole number", lambda count: is_whole(count, least=0)),
    "lr": ("a number above 0, or null", lambda lr: lr is None or (is_number(lr) and lr > 0)),
}


class Stored(NamedTuple):
    """A distilled set as a folder holds it.

    Attributes:
        arguments: Of `DistilledSet`.
        data_id: By which the files are named.
    """

    arguments: dict[str, Any]
    data_id: str


def read_folder(folder: Path) -> Stored:
    """The set that a folder holds.

    Raises:
        ValueError: A file is missing or damaged, or the files do not fit together; the message names it.
    """
    path = folder / CONFIG
    config = _read_config(path)
    data_id, class_names = config["data_id"], config["class_names"]
    whitening = _load_tensors(folder / f"preprocessing-{data_id}.safetensors")
    networks = _load_tensors(folder / f"teacher-{data_id}.safetensors")
    described = config["label_source"].get("teacher")
    try:
        preprocessing = Preprocessing.from_config(config["preprocessing"], whitening)
        teacher = None if described is None else _read_teacher(described, networks, folder, data_id)
    except ValueError as error:
        raise ValueError(f"{path} does not describe a distilled set ({error}); save the artifact again") from error
    shape = (preprocessing.channels, *preprocessing.image_size)
    if isinstance(teacher, TeacherLabels):
        made_for = (teacher.spec.in_chans, *teacher.spec.img_size)
        if (made_for, teacher.spec.num_classes) != (shape, len(class_names)):
            raise ValueError(
                f"{path} has a teacher for {teacher.spec.num_classes} classes and images {made_for}; expected "
                f"{len(class_names)} classes and {shape}, as of the set"
            )
    name = "default" if config["pixels"] == "uint8" else "tensor"
    rows = read_rows(folder / FOLDER[name], name, data_id, config["images"], shape, len(class_names))
    pixel_values, labels, soft_labels = rows
    arguments = {
        "pixel_values": pixel_values,
        "labels": labels,
        "class_names": class_names,
        "preprocessing": preprocessing,
        "lr": config["learned_lr"],
        "soft_labels": soft_labels,
        "teacher": teacher,
        "config": config,
        "report": _read_report(folder / RESULTS, data_id),
    }
    return Stored(arguments, data_id)


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration of a set, whose values are as `RULES` say."""
    config = load_json(path)
    check_format_version(path, config, FORMAT_VERSION)
    config.setdefault("pixels", "float32")  # which format 1 does not say
    missing = [key for key in DERIVED if key not in config]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; restore the file or save the artifact again")
    data_id = config["data_id"]
    if not (isinstance(data_id, str) and re.fullmatch("[0-9a-f]{8}", data_id)):
        raise ValueError(
            f"{path} has data_id {reprlib.repr(data_id)}; expected 8 hex digits, by which its files are found"
        )
    check_values(path, config, RULES)
    return config


def _read_teacher(
    config: dict[str, Any], tensors: dict[str, Tensor], folder: Path, data_id: str
) -> TeacherLabels | NetworkLabels:
    if "sha256" not in config:
        return TeacherLabels.from_config(config, tensors)
    kind = ProjectorLabels if config.get("kind") == ProjectorLabels.kind else NetworkLabels
    return kind.from_config(config, folder / kind.kind / data_id)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file; none where there is no file."""
    if not path.exists():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, LookupError, AttributeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}); download it or save the artifact again") from error


def _read_picture(path: Path) -> bytes | None:
    """The bytes of a picture, which nothing decodes; None where there is none, or one that nobody would look at."""
    return path.read_bytes() if path.is_file() and path.stat().st_size <= LARGEST_PICTURE else None


def _read_report(path: Path, data_id: str) -> EvalReport | None:
    """The results in a file, where they are about the images that `data_id` names."""
    if not path.exists():
        return None
    results = load_json(path)
    if results.get("data_id", data_id) != data_id:
        logger.warning("%s is about other images than those in %s; it is left out", path, path.parent)
        return None
    check_format_version(path, {"version": 1, **results}, VERSION, "version")
    try:
        report = EvalReport.from_json(results)
        if not isinstance(report.meta, dict):
            raise ValueError("its meta is no object")
        if not isinstance(report.audit, dict):
            raise ValueError("its audit is no object")
        for row in report.rows:
            check_values("a row", vars(row), ROW)
        for row in report.labels:
            check_values("a row of labels", vars(row), LABEL_ROW)
        if report.audit:
            check_audit_json("its audit", report.audit)
            report.audit_picture = _read_picture(path.parent / AUDIT)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate the set again, or delete it") from error
    return report
