"""`DistilledSet`: pixels, labels and learned learning rate, optimised, evaluated and saved as one object."""

import hashlib
import json
import logging
import math
import os
import re
import reprlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetInfo, Features, List, Value
from datasets import Image as ImageFeature
from huggingface_hub import CommitInfo, DatasetCardData
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .cards import image_grid, render_card, source_context
from .checks import NAMES, Rules, are_names, check_values, is_number, is_whole
from .files import atomic_write, check_format_version, load_json, save_json
from .hub import Home, HubFolder
from .labels import HardLabels, LabelSource, StoredLabels, TeacherLabels
from .repository import PushConflict, Repository
from .results import EvalReport
from .transforms import Preprocessing

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
RESULTS = "results.json"
SHARD_BYTES = 500_000_000
PUSHES = 5  # attempts to add results where others publish at the same time
GROUP_BYTES = 16_000_000  # of pixels in a row group: what writing and reading hold in memory at a time
COLUMN = {"default": "image", "tensor": "pixel_values"}
FOLDER = {"default": "data", "tensor": "tensor"}
DERIVED = (
    "format_version",
    "data_id",
    "images",
    "ipc",
    "class_names",
    "preprocessing",
    "learned_lr",
    "log_lr",
    "label_source",
)
LABEL_SOURCES = (HardLabels, StoredLabels, TeacherLabels)


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


def _are_files(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(file, dict) for file in value))


# What `distill_config.json` says, beside what `Preprocessing` and `TeacherLabels` know how to read.
RULES: Rules = {
    "images": ("a whole number from 1", is_whole),
    "ipc": ("a whole number from 1", is_whole),
    "class_names": (NAMES, are_names),
    "preprocessing": ("an object", lambda value: isinstance(value, dict)),
    "learned_lr": ("a number above 0, or null", lambda lr: lr is None or (is_number(lr) and lr > 0)),
    "log_lr": ("a finite number, or null", lambda value: value is None or (is_number(value) and abs(value) < 700)),
    "label_source": ("an object", lambda value: isinstance(value, dict)),
    "label_source.kind": ("hard, soft or teacher", lambda kind: kind in [x.kind for x in LABEL_SOURCES]),
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


class DistilledSet(nn.Module, HubFolder):
    """A small set of images that trains a classifier like the whole one does, and everything that belongs to it.

    The folder that `save_pretrained` writes is a dataset for `datasets.load_dataset`, with the configs "default" (PNG
    images) and "tensor" (the exact floats). Its bulk files carry a name made of their content, and the card and
    `distill_config.json` name them: so a reader sees one artifact or the other whatever happens to a save.

    Args:
        pixel_values: (N, C, H, W) float32 in the space of `preprocessing`; a parameter.
        labels: (N,) long, indices into `class_names`.
        class_names: K names.
        preprocessing: What brings real images into the same space, and these back to pixels.
        lr: Learning rate that is learned with the images; its logarithm is a parameter.
        soft_labels: (N, K) logits, kept as float16.
        teacher: The network(s) that made the soft labels; they travel with the images and label any other image.
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
        "assets/grid.png",
        "data/train-*.parquet",
        "tensor/train-*.parquet",
        "preprocessing-*.safetensors",
        "teacher-*.safetensors",
    )
    fetched = tuple(pattern for pattern in owned if not pattern.startswith(("assets/", "data/")))
    loader = "datasets.load_dataset"

    def __init__(
        self,
        pixel_values: Tensor,
        labels: Tensor,
        class_names: list[str],
        preprocessing: Preprocessing,
        *,
        lr: float | None = None,
        soft_labels: Tensor | None = None,
        teacher: TeacherLabels | None = None,
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
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def ipc(self) -> int:
        """Images per class; of the largest class where they differ."""
        return int(self.labels.bincount().max())

    @property
    def label_source(self) -> LabelSource:
        """The labels that the method trains with: stored soft ones, else those of the teacher, else the classes."""
        if self.soft_labels is not None:
            return StoredLabels(self.soft_labels)
        return HardLabels() if self.teacher is None else self.teacher

    def __len__(self) -> int:
        return len(self.labels)

    def images_uint8(self, rows: slice = slice(None)) -> Tensor:
        """The images as a file can hold them, (N, C, H, W) uint8 on the CPU."""
        return self.preprocessing.to_uint8(self.pixel_values[rows]).cpu()

    def _pictures(self, rows: slice) -> list[Image.Image]:
        arrays = self.images_uint8(rows).permute(0, 2, 3, 1).numpy()  # (n, H, W, C)
        return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]

    # Arrow

    def _features(self, name: str) -> Features:
        shape = tuple(self.pixel_values.shape[1:])
        pixels = ImageFeature() if name == "default" else Array3D(shape=shape, dtype="float32")
        features = {COLUMN[name]: pixels, "label": ClassLabel(names=self.class_names)}
        if self.soft_labels is not None:
            features["soft_label"] = List(Value("float16"))
        return Features(features)

    def _tables(self, name: str, start: int, stop: int) -> Iterator[pa.Table]:
        """The rows from `start` to `stop` of config `name`, in parts of the size of a row group."""
        schema = self._features(name).arrow_schema
        size = max(1, GROUP_BYTES // (4 * self.pixel_values[0].numel()))
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for first in range(start, stop, size):
                rows = slice(first, min(first + size, stop))
                if name == "default":
                    encoded = list(pool.map(_png, self._pictures(rows)))
                    pixels = pa.array([{"bytes": png, "path": None} for png in encoded], schema.field(0).type)
                else:
                    storage = _nested(self.pixel_values[rows].detach().cpu().numpy())
                    pixels = pa.ExtensionArray.from_storage(schema.field(0).type, storage)
                columns = [pixels, pa.array(self.labels[rows].cpu().numpy())]
                if self.soft_labels is not None:
                    columns.append(_nested(self.soft_labels[rows].cpu().numpy()))
                yield pa.Table.from_arrays(columns, schema=schema)

    def to_dataset(self, name: str = "default") -> Dataset:
        """What `load_dataset(folder, name, split="train")` gives: "default" for PNG images, "tensor" for floats."""
        if name not in COLUMN:
            raise ValueError(f"there is no config {name!r}; expected one of {', '.join(COLUMN)}")
        table = pa.concat_tables(self._tables(name, 0, len(self)))
        return Dataset(table, info=DatasetInfo(features=self._features(name)))

    def _content_id(self) -> str:
        """8 hex digits of everything that the bulk files hold."""
        digest = hashlib.sha256(json.dumps([self.preprocessing.to_config(), self.class_names]).encode())
        tensors = {"pixel_values": self.pixel_values, "labels": self.labels, "soft_labels": self.soft_labels}
        for name, tensor in {**tensors, **self.preprocessing.tensors(), **self._teacher_tensors()}.items():
            if tensor is not None:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()))
        return digest.hexdigest()[:8]

    def _teacher_tensors(self) -> dict[str, Tensor]:
        return {} if self.teacher is None else self.teacher.tensors()

    # The folder

    def _write(self, folder: Path, home: Home) -> None:
        data_id = self._content_id()
        for name in COLUMN:
            (folder / FOLDER[name]).mkdir()
            self._write_parquet(folder / FOLDER[name], name, data_id)
        for name, tensors in (("preprocessing", self.preprocessing.tensors()), ("teacher", self._teacher_tensors())):
            if tensors:
                (folder / f"{name}-{data_id}.safetensors").write_bytes(save(tensors))
        (folder / "assets").mkdir()
        self.grid().save(folder / "assets" / "grid.png", optimize=True)
        if self.report is not None:
            save_json(folder / RESULTS, {"data_id": data_id, **self.report.to_json()})
        save_json(folder / self.config_name, {**self.config, **home.to_config(), **self._derived(data_id)})
        png_bytes = sum(path.stat().st_size for path in (folder / "data").iterdir())
        (folder / "README.md").write_text(self._card(home, data_id, png_bytes), encoding="utf-8")

    def _write_parquet(self, folder: Path, name: str, data_id: str) -> None:
        row_bytes = self.pixel_values[0].numel() * (1 if name == "default" else 4) + 2 * self.num_classes
        shards = math.ceil(len(self) * row_bytes / SHARD_BYTES)
        edges = [round(shard * len(self) / shards) for shard in range(shards + 1)]
        for shard in range(shards):
            path = folder / f"train-{shard:05d}-of-{shards:05d}-{data_id}.parquet"
            schema = self._features(name).arrow_schema
            # Neither PNG files nor optimised floats repeat themselves or get smaller.
            with pq.ParquetWriter(path, schema, use_dictionary=["label"], compression="none") as writer:
                for table in self._tables(name, edges[shard], edges[shard + 1]):
                    writer.write_table(table)

    def _derived(self, data_id: str) -> dict[str, Any]:
        label_source = {"kind": self.label_source.kind}
        if self.teacher is not None:
            label_source["teacher"] = self.teacher.to_config()
        return {
            "format_version": FORMAT_VERSION,
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
    def _read(cls, folder: Path) -> "DistilledSet":
        path = folder / cls.config_name
        config = load_json(path)
        check_format_version(path, config, FORMAT_VERSION)
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
        try:
            preprocessing = Preprocessing.from_config(config["preprocessing"], whitening)
            described = config["label_source"].get("teacher")
            teacher = None if described is None else TeacherLabels.from_config(described, networks)
        except ValueError as error:
            raise ValueError(f"{path} does not describe a distilled set ({error}); save the artifact again") from error
        shape = (preprocessing.channels, *preprocessing.image_size)
        made_for = shape if teacher is None else (teacher.spec.in_chans, *teacher.spec.img_size)
        if teacher is not None and (made_for, teacher.spec.num_classes) != (shape, len(config["class_names"])):
            raise ValueError(
                f"{path} has a teacher for {teacher.spec.num_classes} classes and images {made_for}; expected "
                f"{len(config['class_names'])} classes and {shape}, as of the set"
            )
        columns = _read_parquet(folder / "tensor", data_id, config["images"], shape, len(config["class_names"]))
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
        return None if row is None else self._pictures(slice(row, row + 1))[0]

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
        sizes = {
            "images as PNG": png_bytes,
            "images as float32": self.pixel_values.numel() * 4,
            "class of each image, as int64": self.labels.numel() * 8,
            "soft label of each image, as float16": 0 if self.soft_labels is None else self.soft_labels.numel() * 2,
            "network(s) that give the soft labels": 0 if self.teacher is None else self.teacher.num_bytes,
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
            configs=[_config(config, f"{FOLDER[config]}/train-*-{data_id}.parquet") for config in COLUMN],
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
            grid="assets/grid.png",
            grid_caption=f"{' and '.join(shown) or 'All images'}, rounded to 8 bits.",
            call=home.arguments(),
            call_tensor=home.arguments("tensor"),
            folder=None if home.on_hub else home.name,
            zca=self.preprocessing.zca is not None,
            mean=[round(value, 4) for value in self.preprocessing.mean],
            std=[round(value, 4) for value in self.preprocessing.std],
            soft_labels=self.soft_labels is not None,
            teacher=self.teacher is not None,
            learned_lr=None if self.log_lr is None else math.exp(self.log_lr.item()),
            results=None if self.report is None else self.report.markdown(),
            sizes={what: count for what, count in sizes.items() if count},
        )

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
            latest = type(self).from_pretrained(repo_id, revision="main", token=token)
            if latest.origin is None or latest._content_id() != self._content_id():
                raise ValueError(
                    f"{repo_id} now holds other images than those that were evaluated; evaluate its newest version"
                )
            latest.report = (latest.report or EvalReport()).merge(report)
            release = latest.release or {}
            released = release.get("tag") if release.get("repo_id") == repo_id else None
            home, parent = Home(repo_id, tag or released, on_hub=True), latest.origin.revision
            repository = Repository(repo_id, self.repo_type, token=token)
            try:
                return latest._publish(repository, home, tag, "Add the results of an evaluation", parent=parent)
            except PushConflict:
                if attempt == PUSHES:
                    raise

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
            atomic_write(folder / f"{row:05d}.png", _png(self._pictures(slice(row, row + 1))[0]))
        # Without it `load_dataset` would take a class such as "test tube" for a test split.
        atomic_write(
            directory / "README.md",
            f"---\n{DatasetCardData(configs=[_config('default', 'train/**')]).to_yaml()}\n---\n",
        )
        return directory

    def export_pt(self, path: str | Path) -> Path:
        """Write one file of plain tensors that `torch.load(path, weights_only=True)` reads anywhere.

        It holds `images` (N, C, H, W) float32 in [0, 1], `pixel_values` (the same as they were optimised, beyond what
        a pixel can hold), `labels` (N,), `soft_labels` (N, K) logits or None, `lr` or None, `mean` and `std` (C,),
        and `class_names`. With ZCA there is what whitens them too.
        """
        pixels = self.pixel_values.detach()
        content = {
            "images": self.preprocessing.inverse(pixels).clamp(0, 1).cpu(),
            "pixel_values": pixels.cpu(),
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
        buffer = BytesIO()
        torch.save(content, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, buffer.getbuffer())
        return Path(path)


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _nested(values: np.ndarray) -> pa.Array:
    """An Arrow list of lists over the memory of `values`, (n, ...)."""
    array = pa.array(values.reshape(-1))
    for size in values.shape[:0:-1]:
        array = pa.ListArray.from_arrays(pa.array(np.arange(0, len(array) + 1, size, dtype=np.int32)), array)
    return array


def _block(table: pa.Table, name: str, shape: tuple[int, ...], kind: pa.DataType) -> np.ndarray:
    """The column `name` as (rows, *shape); a one-line `ValueError` unless it is lists of `kind` of just that shape."""
    found = table.schema.get_field_index(name)
    expected = f"{kind} of shape {shape}" if shape else str(kind)
    if found < 0:
        raise ValueError(f"there is no column {name}; expected one with {expected}")
    parts = []
    for part in table.column(found).chunks:
        values = part.storage if isinstance(part, pa.ExtensionArray) else part
        for size in shape:
            if not pa.types.is_list(values.type) or values.null_count:
                raise ValueError(f"{name} is {reprlib.repr(str(part.type))}, or lacks values; expected {expected}")
            if len(values) and set(pc.min_max(pc.list_value_length(values)).as_py().values()) != {size}:
                raise ValueError(f"{name} has rows of other shapes; expected {expected}")
            values = values.flatten()
        if values.type != kind or values.null_count:
            raise ValueError(f"{name} is {reprlib.repr(str(part.type))}, or lacks values; expected {expected}")
        parts.append(values.to_numpy(zero_copy_only=False))
    return np.concatenate(parts).reshape(-1, *shape) if parts else np.empty((0, *shape), kind.to_pandas_dtype())


def _open_parquet(path: Path, shape: tuple[int, int, int]) -> pq.ParquetFile:
    """A shard of config "tensor"; a one-line `ValueError` unless it says that it holds images of that shape."""
    try:
        file = pq.ParquetFile(path)
        found = Features.from_arrow_schema(file.schema_arrow).get("pixel_values")
    # The schema of a file of anybody's is decoded by `datasets`, which takes it as written by itself.
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = reprlib.repr(" ".join(str(error).split()))
        raise ValueError(f"{path} is damaged ({reason}); download it or save the artifact again") from error
    if found != Array3D(shape=shape, dtype="float32"):
        raise ValueError(
            f"{path} has pixel_values {' '.join(reprlib.repr(found).split())}; expected float32 {shape}, as "
            "distill_config.json says"
        )
    return file


def _read_parquet(
    folder: Path, data_id: str, images: int, shape: tuple[int, int, int], num_classes: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pixels, labels and soft labels in the shards of config "tensor", a row group at a time.

    Raises:
        ValueError: A shard is missing or damaged, or a column has another shape, or values that are not finite.
    """
    paths = sorted(folder.glob(f"train-*-{data_id}.parquet"))
    files = [_open_parquet(path, shape) for path in paths]
    rows = sum(file.metadata.num_rows for file in files)
    if rows != images:
        raise ValueError(
            f"{folder} holds {rows} images in {len(paths)} file(s) train-*-{data_id}.parquet; expected {images}, as "
            "distill_config.json says; download it or save the artifact again"
        )
    size, needed = sum(path.stat().st_size for path in paths), 4 * math.prod(shape) * images
    # Pixels are stored as they are, so a smaller file lies about them, and no memory is taken on its word.
    if size < needed:
        raise ValueError(
            f"{folder} has {size:,} bytes in train-*-{data_id}.parquet, where {images:,} images {shape} as float32 "
            f"take {needed:,}; download it or save the artifact again"
        )
    pixels, labels, soft = np.empty((images, *shape), np.float32), np.empty(images, np.int64), None
    row = 0
    for path, file in zip(paths, files, strict=True):
        names = file.schema_arrow.names
        if soft is None and "soft_label" in names:
            soft = np.empty((images, num_classes), np.float16)
        try:
            for group in range(file.num_row_groups):
                table = file.read_row_group(
                    group, ["pixel_values", "label", *(["soft_label"] if soft is not None else [])]
                )
                rows = slice(row, row + len(table))
                row = rows.stop
                pixels[rows] = _block(table, "pixel_values", shape, pa.float32())
                labels[rows] = _block(table, "label", (), pa.int64())
                if soft is not None:
                    soft[rows] = _block(table, "soft_label", (num_classes,), pa.float16())
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is damaged ({reason}); download it or save the artifact again") from error
    for name, values in (("pixel_values", pixels), ("soft_label", soft)):
        finite = None if values is None else np.isfinite(values.reshape(images, -1)).all(1)
        if finite is not None and not finite.all():
            raise ValueError(
                f"image {int(finite.argmin())} in {folder} has {name} that are not finite; make the set again"
            )
    return torch.from_numpy(pixels), torch.from_numpy(labels), None if soft is None else torch.from_numpy(soft)


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
