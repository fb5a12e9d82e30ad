"""The card of a distilled set, and the picture of its images that is on it."""

import math
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import DatasetCardData
from PIL import Image

from ..hub.audit import audit_markdown
from ..hub.cards import image_grid, render_card, source_context, source_datasets
from ..hub.checks import is_number
from ..hub.folder import Home
from ..hub.making import making_markdown
from ..hub.markdown import plain
from ..hub.plots import can_plot, is_grid
from .labels import NetworkLabels, ProjectorLabels, TeacherLabels
from .tables import FOLDER, pictures

if TYPE_CHECKING:
    from .distilled_set import DistilledSet

__all__ = [
    "AUDIT",
    "GRID",
    "PLOT",
    "RESULTS_PLOT",
    "config_entry",
    "fidelity",
    "grid",
    "room_in_grid",
    "set_card",
    "small_grid",
]

GRID, PLOT, RESULTS_PLOT = "assets/grid.png", "assets/labels.png", "assets/results.png"
AUDIT = "assets/audit.png"
SMALL_CELL, SMALL_WIDTH = 48, 400  # pixels of an image and of the whole, in a picture that is seen often


def set_card(distilled: "DistilledSet", home: Home, data_id: str, png_bytes: int) -> str:
    """The `README.md` of a set.

    Args:
        distilled: The set.
        home: Where it is, for the calls that load it.
        data_id: By which its files are named.
        png_bytes: Size of its images as PNG files.
    """
    config = distilled.config
    about_source = source_context(config.get("source") or {})
    own_terms = _own_terms(config.get("imported_from") or {})
    if own_terms is not None:
        about_source["license"] = "other"
    papers = config.get("paper") or []
    channels, height, width = distilled.pixel_values.shape[1:]
    experts = config.get("experts") or {}
    hyperparameters = dict(config.get("hyperparameters") or {})
    hyperparameters |= {f"experts.{name}": value for name, value in experts.get("training", {}).items()}
    costs = None if distilled.report is None else distilled.report.costs_markdown()
    return render_card(
        "distilled.md",
        metadata=_metadata(distilled, about_source, data_id).to_yaml(),
        num_images=len(distilled),
        ipc=distilled.ipc,
        channels=channels,
        height=height,
        width=width,
        class_names=distilled.class_names,
        method=config.get("method"),
        variant=config.get("variant"),
        papers=papers if isinstance(papers, list) else [papers],
        student=(config.get("student") or {}).get("name"),
        backbone=_backbone(config),
        experts={name: value for name, value in experts.items() if name != "training"},
        imported_from=config.get("imported_from"),
        own_terms=own_terms,
        changes=[_change(each) for each in config.get("changes") or []],
        seed=config.get("seed"),
        hyperparameters={name: value for name, value in hyperparameters.items() if value is not None},
        versions=config.get("versions") or {},
        **about_source,
        grid=GRID,
        grid_caption=_grid_caption(distilled),
        call=home.arguments(),
        call_tensor=None if distilled.is_bytes else home.arguments("tensor"),
        folder=None if home.on_hub else home.name,
        zca=distilled.preprocessing.zca is not None,
        mean=[round(value, 4) for value in distilled.preprocessing.mean],
        std=[round(value, 4) for value in distilled.preprocessing.std],
        soft_labels=distilled.soft_labels is not None,
        teacher=isinstance(distilled.teacher, TeacherLabels),
        network=_network(distilled),
        projector=fidelity(distilled),
        label_loss=config.get("label_loss"),
        learned_lr=None if distilled.lr is None else distilled.lr.item(),
        first_results=None if distilled.report is None else distilled.report.short_markdown(),
        results=None if distilled.report is None else distilled.report.markdown(),
        compared=None if distilled.report is None else distilled.report.compared_markdown(),
        results_plot=RESULTS_PLOT if can_plot() and distilled.report and is_grid(distilled.report.rows) else None,
        labels_plot=PLOT if can_plot() else None,
        labels_results=None if distilled.report is None else distilled.report.labels_markdown(),
        costs=costs,
        making=making_markdown(distilled.making) if costs or distilled.making else None,
        audit=audit_markdown(distilled.report.audit) if distilled.report and distilled.report.audit else None,
        audit_picture=AUDIT if distilled.report and distilled.report.audit and distilled.report.audit_picture else None,
        sizes={name: count for name, count in _sizes(distilled, png_bytes).items() if count},
    )


def _metadata(distilled: "DistilledSet", about_source: dict[str, Any], data_id: str) -> DatasetCardData:
    """The YAML block of the card, for the Hub and for `load_dataset`."""
    method = distilled.config.get("method")
    return DatasetCardData(
        pretty_name=f"{about_source['source_name']} distilled, {distilled.ipc} per class",
        license=about_source["license"],
        extra_gated_prompt=about_source["gated_note"],
        task_categories=["image-classification"],
        tags=["dataset-distillation", *([plain(method)] if method else []), f"ipc-{distilled.ipc}", "hf_distill"],
        size_categories=[_size_category(len(distilled))],
        source_datasets=source_datasets(distilled.config.get("source") or {}),
        configs=[config_entry(name, f"{FOLDER[name]}/train-*-{data_id}.parquet") for name in distilled.configs],
    )


def config_entry(name: str, path: str) -> dict[str, Any]:
    """A configuration for a card's metadata: one split, train, in the files that match `path`."""
    return {"config_name": name, "data_files": [{"split": "train", "path": path}]}


def _size_category(count: int) -> str:
    """The Hub's word for a number of rows."""
    bounds = ((10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"))
    lower = None
    for bound, name in bounds:
        if count < bound:
            return f"n<{name}" if lower is None else f"{lower}<n<{name}"
        lower = name
    return "1M<n<10M"


def _change(change: dict[str, Any]) -> str:
    """What was done to the set that another is made of, as a sentence."""
    of = " and ".join(
        f"{part.get('images')} images of {part.get('classes')} classes (data_id {part.get('data_id')}"
        + (f", {part['repo_id']} at {str(part.get('revision'))[:12]}" if part.get("repo_id") else "")
        + ")"
        for part in change.get("of") or []
    )
    classes, ipc = change.get("classes"), change.get("ipc")
    count = len(classes) if isinstance(classes, list) else "all"
    first = "all" if ipc is None else f"the first {ipc}"
    done = {
        "select": f"{first} images of each of {count} classes were taken of {of}",
        "shuffle_classes": f"the classes were put in an order that the seed {change.get('seed')} drew, of {of}",
        "concatenate": f"sets were put together: {of}",
    }.get(str(change.get("operation")), f"{change.get('operation')}, of {of}")
    dropped = change.get("dropped")
    return f"{done}; left out: {', '.join(map(str, dropped))}" if isinstance(dropped, list) else done


def _own_terms(imported_from: dict[str, Any]) -> str | None:
    """What the place that images were imported from says of their use, in words; None where it says nothing."""
    license, gated = imported_from.get("license") or [], imported_from.get("gated")
    words = ", ".join(map(str, [license] if isinstance(license, str) else license))
    said = [f"their licence is called {words}"] if words else []
    said += ["access to them is conditional"] if gated else []
    return " and ".join(said) or None


def _network(distilled: "DistilledSet") -> dict[str, Any] | None:
    """The network or projector that labels the images, for the template; None where there is none."""
    teacher = distilled.teacher
    if not isinstance(teacher, NetworkLabels):
        return None
    about = {"kind": teacher.kind, "name": teacher.name, "digest": teacher.digest, "home": teacher.reference.home}
    return {**about, "labels_views": distilled.label_source is teacher}


def _sizes(distilled: "DistilledSet", png_bytes: int) -> dict[str, int]:
    """Bytes by what takes them, in the order of the card."""
    soft, teacher = distilled.soft_labels, distilled.teacher
    source_images = (distilled.config.get("source") or {}).get("num_images") or 0
    return {
        "images as PNG": png_bytes,
        "images as float32": 0 if distilled.is_bytes else distilled.pixel_values.numel() * 4,
        "class of each image, as int64": distilled.labels.numel() * 8,
        "soft label of each image, as float16": 0 if soft is None else soft.numel() * 2,
        _labeller(distilled): 0 if teacher is None else teacher.num_bytes,
        **_prior_sizes(distilled),
        "whitening matrices": sum(tensor.nbytes for tensor in distilled.preprocessing.tensors().values()),
        "the source's images at this size, uncompressed": source_images * math.prod(distilled.pixel_values.shape[1:]),
    }


def _labeller(distilled: "DistilledSet") -> str:
    """The line of the card's sizes that is about what labels the images."""
    network = _network(distilled)
    if network is None:
        return "network(s) that give the soft labels"
    matrices = "LoRA matrices of the projector" if network["kind"] == ProjectorLabels.kind else "network"
    line = f"{matrices} that labels the images{' and their parts' if network['labels_views'] else ''}"
    return line + (f", shared with everybody who has {network['home'].repo_id}" if network["home"] else "")


def _prior_sizes(distilled: "DistilledSet") -> dict[str, int]:
    """Bytes of what a projector needs beside its own matrices, as far as the set knows."""
    about = distilled.config.get("projector") or {}
    if not isinstance(distilled.teacher, ProjectorLabels):
        return {}
    return {
        "its text embeddings, which CLIP's text encoder can make again": about.get("text_head_bytes", 0),
        f"CLIP's image encoder that it adapts ({about.get('prior', 'see its card')})": about.get("prior_bytes", 0),
    }


def fidelity(distilled: "DistilledSet") -> str | None:
    """A sentence about how well the projector imitates its teachers, as far as the set knows."""
    about = distilled.config.get("projector") or {}
    if not isinstance(distilled.teacher, ProjectorLabels) or not is_number(about.get("agreement")):
        return None
    kl = f" and is {about['kl']:.3g} nats away from them on average" if is_number(about.get("kl")) else ""
    return f"On views of {about.get('asked_about')} it names the class that its teachers name in " + (
        f"{100 * about['agreement']:.1f} % of the cases{kl} (Kullback-Leibler divergence)."
    )


# The picture


def grid(distilled: "DistilledSet") -> Image.Image:
    """A picture of the set: a row for each class, or a column where there are few images of each."""
    shown, per_class = _shown(distilled)
    names = [distilled.class_names[distilled.labels[rows[0]]] for rows in shown]
    if per_class > 5:
        every = [_picture(distilled, row) for rows in shown for row in rows]
        return image_grid(every, per_class, row_labels=names)
    columns = min(len(shown), 5 if per_class == 1 and len(shown) <= 10 else 10)
    images, captions = [], []
    for first in range(0, len(shown), columns):
        band = shown[first : first + columns]
        band += [[None] * per_class] * (columns - len(band))
        images += [_picture(distilled, rows[i]) for i in range(per_class) for rows in band]
        captions += [""] * columns * (per_class - 1)
        captions += [*names[first : first + columns], *[""] * columns][:columns]
    return image_grid(images, columns, captions=captions)


def small_grid(distilled: "DistilledSet") -> Image.Image:
    """A small picture of the first image of each of the first ten classes, without a word: for what is seen often."""
    rows = [torch.nonzero(distilled.labels == label)[0].item() for label in distilled.labels.unique()[:10]]
    picture = image_grid([_picture(distilled, int(row)) for row in rows], min(len(rows), 5), cell=SMALL_CELL)
    picture.thumbnail((SMALL_WIDTH, SMALL_WIDTH))  # of photographs
    return picture


def room_in_grid(ipc: int) -> tuple[int, int]:
    """How many classes a picture has room for, and how many images of each, of a set of `ipc` images per class."""
    per_class = min(10, ipc)
    return 10 * max(1, 5 // per_class), per_class


def _shown(distilled: "DistilledSet") -> tuple[list[list[int | None]], int]:
    """The rows that a picture has room for, by class, each as long as the other (None where there is no image)."""
    count, per_class = room_in_grid(distilled.ipc)
    classes = distilled.labels.unique()[:count]
    rows: list[list[int | None]] = []
    for label in classes:
        of_class = torch.nonzero(distilled.labels == label).flatten()[:per_class].tolist()
        rows.append(of_class + [None] * (per_class - len(of_class)))
    return rows, per_class


def _picture(distilled: "DistilledSet", row: int | None) -> Image.Image | None:
    return None if row is None else pictures(distilled.images_uint8(slice(row, row + 1)))[0]


def _grid_caption(distilled: "DistilledSet") -> str:
    """A sentence about which images the picture shows, and how exactly."""
    rows, per_class = _shown(distilled)
    parts = [f"{len(rows)} of {distilled.num_classes:,} classes"] if len(rows) < distilled.num_classes else []
    parts += [f"{per_class} of {distilled.ipc:,} images of each class"] if per_class < distilled.ipc else []
    return f"{' and '.join(parts) or 'All images'}{'' if distilled.is_bytes else ', rounded to 8 bits'}."


def _backbone(config: dict[str, Any]) -> dict[str, str | None] | None:
    """The backbone that a set was made with, as its configuration names it; None where it was made with none."""
    student = config.get("student")
    about = student.get("probe") if isinstance(student, dict) else None
    if not isinstance(about, dict) or not about.get("name"):
        return None
    return {key: str(about[key]) if about.get(key) else None for key in ("name", "revision", "digest")}
