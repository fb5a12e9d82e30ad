"""`DistilledSet`: pixels, labels and learned learning rate, optimised, evaluated and saved as one object."""

import hashlib
import json
import logging
import math
import os
import re
import reprlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import CommitInfo, DatasetCardData
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from typing_extensions import Self

from ..data.preprocessing import Preprocessing
from ..hub.cards import image_grid, render_card, source_context
from ..hub.checks import NAMES, Rules, are_names, check_values, is_number, is_whole
from ..hub.files import atomic_write, check_format_version, load_json, save_json
from ..hub.folder import Home, HubFolder
from ..hub.plots import can_plot, labels_plot
from ..hub.repository import PushConflict, Repository
from ..hub.results import EvalReport
from ..networks.projector import LabelProjector
from ..networks.teachers import Teacher
from .labels import HardLabels, LabelSource, NetworkLabels, ProjectorLabels, StoredLabels, TeacherLabels
from .tables import COLUMN, FOLDER, GROUP_BYTES, PNG_MODES, Rows, pictures, png, read_rows

logger = logging.getLogger(__name__)

# 3 with projectors, 2 with pictures or networks with statistics, and else 1: a reader takes what is not newer than it.
FORMAT_VERSION = 3
RESULTS = "results.json"
GRID, PLOT = "assets/grid.png", "assets/labels.png"
PUSHES = 5  # attempts to add results where others publish at the same time
PIXELS = ("float32", "uint8")
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
LABEL_SOURCES = (HardLabels, StoredLabels, TeacherLabels, NetworkLabels, ProjectorLabels)


def _is_object(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_count(value: Any) -> bool:
    return value is None or is_whole(value, least=0)


def _are_papers(value: Any) -> bool:
    papers = value if isinstance(value, list) else [] if value is None else [value]
    return all(
        isinstance(paper, dict) and all(isinstance(paper.get(key), str) for key in ("title", "arxiv_id", "bibtex"))
        for paper in papers
    )


def _are_rates(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(is_number(rate) and rate > 0 for rate in value))


def _are_files(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(file, dict) for file in value))


# What `distill_config.json` says, beside what `Preprocessing` and `TeacherLabels` know how to read.
RULES: Rules = {
    "pixels": (" or ".join(PIXELS), lambda kind: kind in PIXELS),
    "images": ("a whole number from 1", is_whole),
    "ipc": ("a whole number from 1", is_whole),
    "class_names": (NAMES, are_names),
    "preprocessing": ("an object", lambda value: isinstance(value, dict)),
    "learned_lr": ("a number above 0, or null", lambda lr: lr is None or (is_number(lr) and lr > 0)),
    "log_lr": ("a finite number, or null", lambda value: value is None or (is_number(value) and abs(value) < 700)),
    "label_source": ("an object", lambda value: isinstance(value, dict)),
    "label_source.kind": ("hard, soft, teacher or projector", lambda kind: kind in [x.kind for x in LABEL_SOURCES]),
    "label_source.teacher": ("an object, or null", _is_object),
    "method": ("a text, or null", _is_text),
    "seed": ("a whole number, or null", lambda seed: seed is None or type(seed) is int),
    "source": ("an object, or null", _is_object),
    **{f"source.{name}": ("a text, or null", _is_text) for name in ("name", "config", "split", "revision", "homepage")},
    "source.num_images": ("a whole number, or null", _is_count),
    "source.license": (
        "a text, a list of texts, or null",
        lambda value: all(isinstance(text, str) for text in (value if isinstance(value, list) else [value or ""])),
    ),
    "student": ("an object, or null", _is_object),
    "student.name": ("a text, or null", _is_text),
    "eval_lrs": ("numbers above 0, or null", _are_rates),
    "label_loss": ("a text, or null", _is_text),
    "projector": ("an object, or null", _is_object),
    **{f"projector.{name}": ("a text, or null", _is_text) for name in ("prior", "asked_about")},
    **{f"projector.{name}": ("a whole number, or null", _is_count) for name in ("text_head_bytes", "prior_bytes")},
    "experts": ("an object, or null", _is_object),
    "experts.training": ("an object, or null", _is_object),
    "paper": ("an object with title, arxiv_id and bibtex, a list of them, or null", _are_papers),
    "hyperparameters": ("an object, or null", _is_object),
    "versions": ("an object, or null", _is_object),
    "imported_from": ("an object, or null", _is_object),
    "imported_from.files": ("a list of objects, or null", _are_files),
    "release": ("an object, or null", _is_object),
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


class DistilledSet(nn.Module, HubFolder):
    """A small set of images that trains a classifier like the whole one does, and everything that belongs to it.

    The images are floats that were optimised, or pictures: bytes that are the set themselves and are never trained.

    The folder that `save_pretrained` writes is a dataset for `datasets.load_dataset`, with the config "default" (PNG
    images) and, for floats, "tensor" (as they are). Its bulk files carry a name made of their content, and the card and
    `distill_config.json` name them: so a reader sees one artifact or the other whatever happens to a save.

    Args:
        pixel_values: (N, C, H, W) floating-point in the space of `preprocessing`, which become a parameter; or uint8
            on the CPU, which stay the very tensor that was given: it may be a memory-mapped file.
        labels: (N,) long, indices into `class_names`.
        class_names: K names.
        preprocessing: What brings real images into the same space, and these back to pixels.
        lr: Learning rate that is learned with the images; its logarithm is a parameter.
        soft_labels: (N, K) logits, kept as float16.
        teacher: The network(s) that label any image as they did these. They travel with the images, but for one that
            came from a repository, which the set then names.
        config: What `distill_config.json` says beside what is derived from the other arguments: method,
            hyperparameters, versions, source, seed, experts, student, paper.
        report: What students reach on the set.

    Raises:
        ValueError: The shapes do not fit together, or a label is no class.
    """

    repo_type = "dataset"
    config_name = "distill_config.json"
    owned = (
        "README.md",
        "distill_config.json",
        RESULTS,
        GRID,
        PLOT,
        "data/train-*.parquet",
        "tensor/train-*.parquet",
        "preprocessing-*.safetensors",
        "teacher-*.safetensors",
        *(f"teacher/*/{name}" for name in Teacher.fetched),
        *(f"projector/*/{name}" for name in LabelProjector.fetched),
    )
    fetched = tuple(pattern for pattern in owned if not pattern.startswith("assets/"))
    loader = "datasets.load_dataset"
    stored_id: str | None = None  # by which the files are named that the set was read from

    def __init__(
        self,
        pixel_values: Tensor,
        labels: Tensor,
        class_names: list[str],
        preprocessing: Preprocessing,
        *,
        lr: float | None = None,
        soft_labels: Tensor | None = None,
        teacher: TeacherLabels | NetworkLabels | None = None,
        config: dict[str, Any] | None = None,
        report: EvalReport | None = None,
    ) -> None:
        super().__init__()
        shape = (preprocessing.channels, *preprocessing.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != shape or not len(pixel_values):
            raise ValueError(f"pixel_values have shape {tuple(pixel_values.shape)}; expected (N, {str(shape)[1:]}")
        if labels.shape != pixel_values.shape[:1]:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; expected ({len(pixel_values)},)")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(f"labels go from {labels.min()} to {labels.max()}; expected 0 to {len(class_names) - 1}")
        if soft_labels is not None and soft_labels.shape != (len(labels), len(class_names)):
            raise ValueError(
                f"soft_labels have shape {tuple(soft_labels.shape)}; expected {(len(labels), len(class_names))}"
            )
        if lr is not None and not lr > 0:
            raise ValueError(f"lr is {lr}; expected a number above 0")
        if isinstance(teacher, NetworkLabels):
            teacher.check_fits(class_names, preprocessing)
        if pixel_values.dtype == torch.uint8:
            if pixel_values.device.type != "cpu" or preprocessing.channels not in PNG_MODES:
                raise ValueError(
                    f"uint8 images with {preprocessing.channels} channel(s) on {pixel_values.device}; expected 1 or 3 "
                    "channels, on the CPU"
                )
            self.pixel_values: Tensor = pixel_values.detach()
        else:
            self.pixel_values = nn.Parameter(pixel_values.detach().float().clone())
        self.log_lr = None if lr is None else nn.Parameter(torch.tensor(math.log(lr), dtype=torch.float32))
        self.register_buffer("labels", labels.detach().long().clone())
        self.register_buffer("soft_labels", None if soft_labels is None else soft_labels.detach().half().clone())
        self.labels: Tensor
        self.soft_labels: Tensor | None
        self.class_names = list(class_names)
        self.preprocessing = preprocessing
        self.teacher = teacher
        self.config = {key: value for key, value in (config or {}).items() if key not in (*DERIVED, "release")}
        self.release = (config or {}).get("release")
        self.report = report

    @property
    def lr(self) -> Tensor | None:
        """The learned learning rate, a scalar that carries gradients; None where there is none."""
        return None if self.log_lr is None else self.log_lr.exp()

    @property
    def is_bytes(self) -> bool:
        """Whether the images are pictures (uint8), and not floats that were optimised."""
        return self.pixel_values.dtype == torch.uint8

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def ipc(self) -> int:
        """Images per class; of the largest class where they differ."""
        return int(self.labels.bincount().max())

    @property
    def label_source(self) -> LabelSource:
        """The labels that the method trains with: stored soft ones, else those of the teacher, else the classes.

        Pictures are seen in parts, which a network with running statistics labels better than what is stored of each.
        """
        if self.is_bytes and isinstance(self.teacher, NetworkLabels):
            return self.teacher
        return self.stored_labels or self.teacher or HardLabels()

    @property
    def stored_labels(self) -> StoredLabels | None:
        """One vector of logits per image, where there is."""
        return None if self.soft_labels is None else StoredLabels(self.soft_labels)

    def __len__(self) -> int:
        return len(self.labels)

    def floats(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """What a network sees of some images, (n, C, H, W) float32 without gradients, on the device of the labels.

        Args:
            rows: A slice, or indices (n,).
        """
        if not self.is_bytes:
            return self.pixel_values.detach()[rows]
        return self.preprocessing(self._bytes(rows).to(self.labels.device))

    def images_uint8(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """The images as a file can hold them, (n, C, H, W) uint8 on the CPU.

        Args:
            rows: A slice, or indices (n,).
        """
        if self.is_bytes:
            return self._bytes(rows)
        return self.preprocessing.to_uint8(self.pixel_values[rows]).cpu()

    def _bytes(self, rows: slice | Tensor) -> Tensor:
        return self.pixel_values[rows if isinstance(rows, slice) else rows.cpu()]

    # Arrow

    @property
    def configs(self) -> tuple[str, ...]:
        """The configs of the dataset that the folder is."""
        return ("default",) if self.is_bytes else tuple(COLUMN)

    def _rows(self, name: str) -> Rows:
        channels, height, width = self.pixel_values.shape[1:]
        pixels = self.images_uint8 if name == "default" else lambda rows: self.floats(rows).cpu()
        return Rows(name, pixels, (channels, height, width), self.labels, self.class_names, self.soft_labels)

    def to_dataset(self, name: str = "default") -> Dataset:
        """What `load_dataset(folder, name, split="train")` gives: "default" for PNG images, "tensor" for floats.

        All of it is in memory.
        """
        if name not in self.configs:
            raise ValueError(f"there is no config {name!r}; expected one of {', '.join(self.configs)}")
        return self._rows(name).dataset()

    def _content_id(self) -> str:
        """8 hex digits of everything that the bulk files hold."""
        digest = hashlib.sha256(json.dumps([self.preprocessing.to_config(), self.class_names]).encode())
        tensors = {"pixel_values": self.pixel_values, "labels": self.labels, "soft_labels": self.soft_labels}
        for name, tensor in {**tensors, **self.preprocessing.tensors(), **self._teacher_tensors()}.items():
            if tensor is not None:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                # Part by part, for a tensor may be a file that is larger than memory.
                for part in tensor.detach().split(max(1, GROUP_BYTES // max(1, tensor[0].nbytes))):
                    digest.update(np.ascontiguousarray(part.cpu().numpy()))
        if isinstance(self.teacher, NetworkLabels):
            digest.update(json.dumps(self.teacher.to_config()).encode())
        return digest.hexdigest()[:8]

    def _teacher_tensors(self) -> dict[str, Tensor]:
        return self.teacher.tensors() if isinstance(self.teacher, TeacherLabels) else {}

    # The folder

    def _write(self, folder: Path, home: Home) -> None:
        data_id = self._content_id()
        for name in self.configs:
            (folder / FOLDER[name]).mkdir()
            self._rows(name).write(folder / FOLDER[name], data_id)
        for name, tensors in (("preprocessing", self.preprocessing.tensors()), ("teacher", self._teacher_tensors())):
            if tensors:
                (folder / f"{name}-{data_id}.safetensors").write_bytes(save(tensors))
        if isinstance(self.teacher, NetworkLabels) and not self.teacher.shared:
            self.teacher.save(folder / self.teacher.kind / data_id)
        (folder / "assets").mkdir()
        self.grid().save(folder / GRID, optimize=True)
        self._write_about(folder, home, data_id, sum(path.stat().st_size for path in (folder / "data").iterdir()))

    def _write_about(self, folder: Path, home: Home, data_id: str, png_bytes: int) -> None:
        """What is written of the bulk files that `data_id` names."""
        if self.report is not None:
            save_json(folder / RESULTS, {"data_id": data_id, **self.report.to_json()})
            if self.report.labels:
                picture = labels_plot(self.report.labels)
                if picture is not None:
                    (folder / PLOT).parent.mkdir(exist_ok=True)
                    picture.save(folder / PLOT, optimize=True)
        save_json(folder / self.config_name, {**self.config, **home.to_config(), **self._derived(data_id)})
        (folder / "README.md").write_text(self._card(home, data_id, png_bytes), encoding="utf-8")

    def _format_version(self) -> int:
        if isinstance(self.teacher, ProjectorLabels):
            return FORMAT_VERSION
        return 2 if self.is_bytes or isinstance(self.teacher, NetworkLabels) else 1

    def _derived(self, data_id: str) -> dict[str, Any]:
        label_source = {"kind": self.label_source.kind}
        if self.teacher is not None:
            label_source["teacher"] = self.teacher.to_config()
        return {
            "format_version": self._format_version(),
            "pixels": PIXELS[self.is_bytes],
            "data_id": data_id,
            "images": len(self),
            "ipc": self.ipc,
            "class_names": self.class_names,
            "preprocessing": self.preprocessing.to_config(),
            "learned_lr": None if self.log_lr is None else math.exp(self.log_lr.item()),
            "log_lr": None if self.log_lr is None else self.log_lr.item(),
            "label_source": label_source,
        }

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """As `HubFolder.from_pretrained`; a teacher that is shared is fetched when it is first used, with `token`."""
        where = {"revision": revision, "token": token, "local_files_only": local_files_only}
        distilled = super().from_pretrained(repo_id_or_path, **where)
        if isinstance(distilled.teacher, NetworkLabels):
            distilled.teacher.ask_with(token, local_files_only)
        return distilled

    @classmethod
    def _download(cls, repository: Repository) -> tuple[Path, Repository]:
        # The config tells which of two folders holds the images: a set of floats is large, and so are its pictures.
        folder = repository.snapshot([cls.config_name])
        origin = repository.at(folder.name)
        try:
            bulk = "tensor" if load_json(folder / cls.config_name).get("pixels") == "uint8" else "data"
        except ValueError:  # which reading will find again, and say
            return folder, origin
        return origin.snapshot([pattern for pattern in cls.fetched if not pattern.startswith(f"{bulk}/")]), origin

    @classmethod
    def _read(cls, folder: Path) -> "DistilledSet":
        path = folder / cls.config_name
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
            if (made_for, teacher.spec.num_classes) != (shape, len(config["class_names"])):
                raise ValueError(
                    f"{path} has a teacher for {teacher.spec.num_classes} classes and images {made_for}; expected "
                    f"{len(config['class_names'])} classes and {shape}, as of the set"
                )
        name = "default" if config["pixels"] == "uint8" else "tensor"
        columns = read_rows(folder / FOLDER[name], name, data_id, config["images"], shape, len(config["class_names"]))
        report = None
        if (folder / RESULTS).exists():
            results = load_json(folder / RESULTS)
            if results.get("data_id", data_id) == data_id:
                report = _read_report(folder / RESULTS, results)
            else:
                logger.warning("%s is about other images than those in %s; it is left out", folder / RESULTS, folder)
        try:
            distilled = cls(
                *columns[:2],
                config["class_names"],
                preprocessing,
                lr=config["learned_lr"],
                soft_labels=columns[2],
                teacher=teacher,
                config=config,
                report=report,
            )
        except ValueError as error:
            raise ValueError(f"{folder} does not hold a distilled set: {error}; save the artifact again") from error
        distilled.stored_id = data_id
        if distilled.log_lr is not None:
            distilled.log_lr.data.fill_(config["log_lr"])
        return distilled

    # For people

    def _shown(self) -> tuple[list[list[int | None]], int]:
        """The rows that a picture has room for, by class, each as long as the other (None where there is no image)."""
        per_class = min(10, self.ipc)
        classes = self.labels.unique()[: 10 * max(1, 5 // per_class)]
        rows: list[list[int | None]] = []
        for label in classes:
            of_class = torch.nonzero(self.labels == label).flatten()[:per_class].tolist()
            rows.append(of_class + [None] * (per_class - len(of_class)))
        return rows, per_class

    def grid(self) -> Image.Image:
        """A picture of the set: a row for each class, or a column where there are few images of each."""
        shown, per_class = self._shown()
        names = [self.class_names[self.labels[rows[0]]] for rows in shown]
        if per_class > 5:
            return image_grid([self._picture(row) for rows in shown for row in rows], per_class, row_labels=names)
        columns = min(len(shown), 5 if per_class == 1 and len(shown) <= 10 else 10)
        images, captions = [], []
        for first in range(0, len(shown), columns):
            band = shown[first : first + columns]
            band += [[None] * per_class] * (columns - len(band))
            images += [self._picture(rows[i]) for i in range(per_class) for rows in band]
            captions += [""] * columns * (per_class - 1)
            captions += [*names[first : first + columns], *[""] * columns][:columns]
        return image_grid(images, columns, captions=captions)

    def _picture(self, row: int | None) -> Image.Image | None:
        return None if row is None else pictures(self.images_uint8(slice(row, row + 1)))[0]

    def _card(self, home: Home, data_id: str, png_bytes: int) -> str:
        source = self.config.get("source") or {}
        about_source = source_context(source)
        papers = self.config.get("paper") or []
        papers = papers if isinstance(papers, list) else [papers]
        channels, height, width = self.pixel_values.shape[1:]
        experts = self.config.get("experts") or {}
        hyperparameters = dict(self.config.get("hyperparameters") or {})
        hyperparameters |= {f"experts.{name}": value for name, value in experts.get("training", {}).items()}
        rows, per_class = self._shown()
        shown = [f"{len(rows)} of {self.num_classes:,} classes"] if len(rows) < self.num_classes else []
        shown += [f"{per_class} of {self.ipc:,} images of each class"] if per_class < self.ipc else []
        network, labeller = None, "network(s) that give the soft labels"
        if isinstance(self.teacher, NetworkLabels):
            shared = self.teacher.reference.home
            kind = self.teacher.kind
            network = {"kind": kind, "name": self.teacher.name, "digest": self.teacher.digest, "home": shared}
            network["labels_views"] = self.label_source is self.teacher
            what = "LoRA matrices of the projector" if kind == ProjectorLabels.kind else "network"
            labeller = f"{what} that labels the images{' and their parts' if network['labels_views'] else ''}"
            labeller += f", shared with everybody who has {shared.repo_id}" if shared else ""
        caption = f"{' and '.join(shown) or 'All images'}{'' if self.is_bytes else ', rounded to 8 bits'}."
        sizes = {
            "images as PNG": png_bytes,
            "images as float32": 0 if self.is_bytes else self.pixel_values.numel() * 4,
            "class of each image, as int64": self.labels.numel() * 8,
            "soft label of each image, as float16": 0 if self.soft_labels is None else self.soft_labels.numel() * 2,
            labeller: 0 if self.teacher is None else self.teacher.num_bytes,
            **self._prior_sizes(),
            "whitening matrices": sum(tensor.nbytes for tensor in self.preprocessing.tensors().values()),
            "the source's images at this size, uncompressed": (source.get("num_images") or 0)
            * channels
            * height
            * width,
        }
        metadata = DatasetCardData(
            pretty_name=f"{about_source['source_name']} distilled, {self.ipc} per class",
            license=about_source["license"],
            extra_gated_prompt=about_source["gated_note"],
            task_categories=["image-classification"],
            tags=["dataset-distillation", *filter(None, [self.config.get("method")]), f"ipc-{self.ipc}", "hf_distill"],
            size_categories=[_size_category(len(self))],
            configs=[_config(config, f"{FOLDER[config]}/train-*-{data_id}.parquet") for config in self.configs],
        )
        return render_card(
            "distilled.md",
            metadata=metadata.to_yaml(),
            num_images=len(self),
            ipc=self.ipc,
            channels=channels,
            height=height,
            width=width,
            class_names=self.class_names,
            method=self.config.get("method"),
            papers=papers,
            student=(self.config.get("student") or {}).get("name"),
            experts={name: value for name, value in experts.items() if name != "training"},
            imported_from=self.config.get("imported_from"),
            seed=self.config.get("seed"),
            hyperparameters={name: value for name, value in hyperparameters.items() if value is not None},
            versions=self.config.get("versions") or {},
            **about_source,
            grid=GRID,
            grid_caption=caption,
            call=home.arguments(),
            call_tensor=None if self.is_bytes else home.arguments("tensor"),
            folder=None if home.on_hub else home.name,
            zca=self.preprocessing.zca is not None,
            mean=[round(value, 4) for value in self.preprocessing.mean],
            std=[round(value, 4) for value in self.preprocessing.std],
            soft_labels=self.soft_labels is not None,
            teacher=isinstance(self.teacher, TeacherLabels),
            network=network,
            projector=self.fidelity(),
            label_loss=self.config.get("label_loss"),
            learned_lr=None if self.log_lr is None else math.exp(self.log_lr.item()),
            results=None if self.report is None else self.report.markdown(),
            labels_plot=PLOT if can_plot() else None,
            labels_results=None if self.report is None else self.report.labels_markdown(),
            sizes={what: count for what, count in sizes.items() if count},
        )

    def _prior_sizes(self) -> dict[str, int]:
        """What a projector needs beside its own matrices, as far as the set knows."""
        about = self.config.get("projector") or {}
        if not isinstance(self.teacher, ProjectorLabels):
            return {}
        return {
            "its text embeddings, which CLIP's text encoder can make again": about.get("text_head_bytes", 0),
            f"CLIP's image encoder that it adapts ({about.get('prior', 'see its card')})": about.get("prior_bytes", 0),
        }

    def fidelity(self) -> str | None:
        """How well the projector imitates its teachers, in a sentence, as far as the set knows."""
        about = self.config.get("projector") or {}
        if not isinstance(self.teacher, ProjectorLabels) or not is_number(about.get("agreement")):
            return None
        kl = f" and is {about['kl']:.3g} nats away from them on average" if is_number(about.get("kl")) else ""
        return f"On views of {about.get('asked_about')} it names the class that its teachers name in " + (
            f"{100 * about['agreement']:.1f} % of the cases{kl} (Kullback-Leibler divergence)."
        )

    def label_with(self, teacher: NetworkLabels) -> None:
        """Let a network or a projector label these images from now on; of results, those with classes stay.

        Raises:
            ValueError: It is for other classes, or sees images through another preprocessing.
        """
        teacher.check_fits(self.class_names, self.preprocessing)
        known = self.teacher.reference.sha256 if isinstance(self.teacher, NetworkLabels) else None
        if self.report is not None and known != teacher.reference.sha256:
            self.report = replace(
                self.report, rows=[row for row in self.report.rows if row.labels == "hard"], labels=[]
            )
        self.teacher = teacher
        self.soft_labels = None  # which another gave
        self.config.pop("projector", None)
        if isinstance(teacher, ProjectorLabels):
            self.config["projector"] = teacher.projector.about()

    def push_results(
        self, repo_id: str, report: EvalReport, *, tag: str | None = None, token: str | bool | None = None
    ) -> CommitInfo:
        """Add the rows of `report`, which is about this set, to the results and the card of a repository that holds it.

        Rows that others publish in the same moment are kept.

        Args:
            repo_id: `owner/name`.
            report: What was measured.
            tag: A name for the version with these results.
            token: As in `from_pretrained`.

        Raises:
            ValueError: The repository holds other images than these, or as `push_to_hub`.
            OSError: As `push_to_hub`.
        """
        attempt = 0
        while True:
            attempt += 1
            latest = self.check_published(repo_id, token=token)
            latest.report = (latest.report or EvalReport()).merge(report)
            release = latest.release or {}
            released = release.get("tag") if release.get("repo_id") == repo_id else None
            home, about = Home(repo_id, tag or released, on_hub=True), ("README.md", RESULTS, PLOT, self.config_name)
            repository = latest.origin or Repository(repo_id, self.repo_type, token=token)
            pictures = [size for name, size in repository.sizes().items() if name.startswith("data/")]
            with tempfile.TemporaryDirectory(prefix="hf_distill-push-") as aside:
                latest._write_about(Path(aside), home, latest.stored_id or latest._content_id(), sum(pictures))
                files = {name: Path(aside, name) for name in about if Path(aside, name).exists()}
                message, parent = "Add the results of an evaluation", repository.revision
                try:
                    return repository.publish(files, about, tag=tag, parent=parent, message=message)
                except PushConflict:
                    if attempt == PUSHES:
                        raise

    def check_published(self, repo_id: str, *, token: str | bool | None = None) -> "DistilledSet":
        """The newest version of a repository, which holds these very images.

        Raises:
            ValueError: There is no such repository, or it holds others.
            OSError: The Hub does not answer.
        """
        latest = type(self).from_pretrained(repo_id, revision="main", token=token)
        if not self._is(latest):
            raise ValueError(
                f"{repo_id} now holds other images than those that are evaluated; evaluate its newest version"
            )
        return latest

    def reloaded(self, folder: str | Path) -> "DistilledSet":
        """What a folder holds now: these very images, and whatever results others have added.

        Raises:
            ValueError: It holds other images.
        """
        latest = type(self).from_pretrained(folder)
        if not self._is(latest):
            raise ValueError(f"{folder} holds other images than those that were evaluated; evaluate it again")
        return latest

    def _is(self, other: "DistilledSet") -> bool:
        """Whether both train students alike: the same images, labels and learning rate."""
        rates = [None if each.log_lr is None else each.log_lr.item() for each in (self, other)]
        return rates[0] == rates[1] and self._content_id() == other._content_id()

    def export_image_folder(self, directory: str | Path) -> Path:
        """Write `<directory>/train/<class>/<number>.png`, which torchvision's `ImageFolder` and `load_dataset` read.

        Classes keep their names; their numbers become those of the names in alphabetical order.

        Raises:
            ValueError: `directory` is not empty, or two class names would share a folder.
        """
        directory = Path(directory)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ValueError(f"{directory} is not empty; give a new folder, so that no other images mix with these")
        folders = [re.sub(r"[/\\\0]", "_", name).strip() or "_" for name in self.class_names]
        folders = [f"_{name}" if name.startswith(".") else name for name in folders]
        if len(set(folders)) < len(folders):
            raise ValueError(f"class names {self.class_names} do not give one folder each; rename the classes")
        for row, label in enumerate(self.labels.tolist()):
            folder = directory / "train" / folders[label]
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / f"{row:05d}.png", png(pictures(self.images_uint8(slice(row, row + 1)))[0]))
        # Without it `load_dataset` would take a class such as "test tube" for a test split.
        atomic_write(
            directory / "README.md",
            f"---\n{DatasetCardData(configs=[_config('default', 'train/**')]).to_yaml()}\n---\n",
        )
        return directory

    def export_pt(self, path: str | Path) -> Path:
        """Write one file of plain tensors that `torch.load(path, weights_only=True)` reads anywhere.

        It holds `images` (N, C, H, W), `labels` (N,), `soft_labels` (N, K) logits or None, `lr` or None, `mean` and
        `std` (C,), and `class_names`. Where the set is of floats, `images` are float32 in [0, 1] and `pixel_values` the
        same as they were optimised, beyond what a pixel can hold; where it is of pictures, `images` are uint8. With ZCA
        there is what whitens them too.
        """
        if self.is_bytes:
            images = {"images": self.pixel_values}
        else:
            pixels = self.pixel_values.detach()
            images = {"images": self.preprocessing.inverse(pixels).clamp(0, 1).cpu(), "pixel_values": pixels.cpu()}
        content = {
            **images,
            "labels": self.labels.cpu(),
            "soft_labels": None if self.soft_labels is None else self.soft_labels.cpu(),
            "lr": None if self.lr is None else self.lr.detach().cpu(),
            "mean": torch.tensor(self.preprocessing.mean),
            "std": torch.tensor(self.preprocessing.std),
            "class_names": self.class_names,
            **self.preprocessing.tensors(),
        }
        if self.preprocessing.zca is not None:
            content |= {"zca_eps": self.preprocessing.zca.eps, "zca_digest": self.preprocessing.zca.digest}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _aside(path) as aside:
            torch.save(content, aside)
        return path


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Where to write a file that is put at `path` when it is whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


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


def _read_report(path: Path, results: dict[str, Any]) -> EvalReport:
    try:
        report = EvalReport.from_json(results)
        if not isinstance(report.meta, dict):
            raise ValueError("its meta is no object")
        for row in report.rows:
            check_values("a row", vars(row), ROW)
        for row in report.labels:
            check_values("a row of labels", vars(row), LABEL_ROW)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate the set again, or delete it") from error
    return report


def _config(name: str, path: str) -> dict[str, Any]:
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
