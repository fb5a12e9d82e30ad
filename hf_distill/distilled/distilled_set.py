"""`DistilledSet`: pixels, labels and learned learning rate, optimised, evaluated and saved as one object."""

import copy
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import CommitInfo
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from typing_extensions import Self

from ..data.files import PATTERN
from ..data.preprocessing import Preprocessing
from ..hub.files import SUMS, folder_aside, load_json, naming, save_json, save_sums, sha256_of_file
from ..hub.folder import Home, HubFolder
from ..hub.making import MAKING
from ..hub.plots import can_plot, is_grid, labels_plot, results_plot
from ..hub.repository import PushConflict, Repository
from ..hub.results import EvalReport
from ..networks.projector import LabelProjector
from ..networks.teachers import Teacher
from .arranging import concatenate, select, shuffle_classes
from .card import AUDIT, GRID, PLOT, RESULTS_PLOT, fidelity, grid, set_card
from .export import export_image_folder, export_pt
from .labels import HardLabels, LabelSource, NetworkLabels, ProjectorLabels, StoredLabels, TeacherLabels
from .reading import CONFIG, DERIVED, FORMAT_VERSION, PIXELS, RESULTS, read_folder
from .tables import COLUMN, FOLDER, GROUP_BYTES, PNG_MODES, Rows

logger = logging.getLogger(__name__)

PUSHES = 5  # attempts to add results where others publish at the same time


class DistilledSet(nn.Module, HubFolder):
    """A small set of images that trains a classifier like the whole one does, and everything that belongs to it.

    The images are floats that were optimised, or pictures: bytes that are the set themselves and are never trained.

    The folder that `save_pretrained` writes is a dataset for `datasets.load_dataset`, with the config "default" (PNG
    images) and, for floats, "tensor" (as they are). Its bulk files carry a name made of their content, and the card and
    `distill_config.json` name them: so a reader sees one artifact or the other whatever happens to a save.

    Example:
        >>> import torch
        >>> from hf_distill import DistilledSet, Preprocessing
        >>> preprocessing = Preprocessing(3, (8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> pixel_values, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 0, 1, 1])
        >>> distilled = DistilledSet(pixel_values, labels, ["cat", "dog"], preprocessing, lr=0.01)
        >>> distilled
        DistilledSet(4 images 3x8x8, 2 per class, 2 classes, hard labels)
        >>> distilled.to_dataset().features["label"].names
        ['cat', 'dog']
        >>> distilled.images_uint8().shape
        torch.Size([4, 3, 8, 8])

    Args:
        pixel_values: (N, C, H, W) floating-point in the space of `preprocessing`, which become a parameter; or uint8
            on the CPU, which stay the very tensor that was given: it may be a memory-mapped file.
        labels: (N,) long, indices into `class_names`.
        class_names: K names.
        preprocessing: What brings real images into the same space, and these back to pixels.
        lr: Learning rate that is learned with the images, a scalar parameter.
        soft_labels: (N, K) logits, kept as float16. A method that learns them puts a parameter (float32) in their
            place; what is trained on and stored is float16 all the same.
        teacher: The network(s) that label any image as they did these. They travel with the images, but for one that
            came from a repository, which the set then names.
        config: What `distill_config.json` says beside what is derived from the other arguments: method,
            hyperparameters, versions, source, seed, experts, student, paper. An evaluation takes from it whom the set
            was made for (`student`, as `StudentSpec.to_dict` gives it), `dsa_strategy`, `eval_lrs`, and of the
            hyperparameters `eval_protocol`, `eval_baselines` and `eval_full_data`, unless it is told otherwise.
        report: What students reach on the set.

    Raises:
        ValueError: The shapes do not fit together, or a label is no class.
    """

    repo_type = "dataset"
    config_name = CONFIG
    owned = (
        "README.md",
        SUMS,
        MAKING,
        CONFIG,
        RESULTS,
        GRID,
        PLOT,
        AUDIT,
        RESULTS_PLOT,
        "data/train-*.parquet",
        "tensor/train-*.parquet",
        "preprocessing-*.safetensors",
        "teacher-*.safetensors",
        *(f"teacher/*/{name}" for name in Teacher.fetched),
        *(f"projector/*/{name}" for name in LabelProjector.fetched),
    )
    fetched = tuple(pattern for pattern in owned if pattern == AUDIT or not pattern.startswith("assets/"))
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
        rate = None if lr is None else torch.tensor(lr, dtype=torch.float32)
        if rate is not None and not 0 < rate.item() < math.inf:
            raise ValueError(f"lr is {lr}; expected a number above 0 that float32 can hold")
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
        self.lr = None if rate is None else nn.Parameter(rate)
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
    def is_bytes(self) -> bool:
        """True where the images are pictures (uint8), and not floats that were optimised."""
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

    @property
    def stored_logits(self) -> Tensor | None:
        """The soft labels (N, K) as a file holds them, float16; where a method learns them they are so no longer."""
        return None if self.stored_labels is None else self.stored_labels.logits

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.pixel_values.shape[1:]))
        parts = [f"{len(self):,} images {size}", f"{self.ipc:,} per class", f"{self.num_classes:,} classes"]
        parts += [self.config["method"]] if self.config.get("method") else []
        return f"{type(self).__name__}({', '.join(parts)}, {self.label_source.kind} labels)"

    def with_pixels(self, pixel_values: Tensor) -> "DistilledSet":
        """The same set with other values of its images, (N, C, H, W) floats that are not copied."""
        other = copy.copy(self)
        other._parameters = {**self._parameters, "pixel_values": nn.Parameter(pixel_values.detach())}
        other._buffers = dict(self._buffers)
        return other

    def select(self, ipc: int | None = None, classes: Sequence[str] | None = None) -> "DistilledSet":
        """The set of the first `ipc` images of each class, or of some classes, in the order of their names here.

        Labels become places among `classes`, soft ones logits of these alone. A teacher is narrowed to them; a label
        projector, which cannot be, is left out, and a warning says so. Results stay with the whole.

        Raises:
            ValueError: A class is not there or has fewer images, or a teacher cannot be narrowed.
        """
        return select(self, ipc, classes)

    def shuffle_classes(self, seed: int) -> "DistilledSet":
        """The same images with the classes in an order drawn by `seed`: names, labels, soft ones and a teacher follow.

        For whoever learns class by class, tasks are slices of that order, and together again the whole:

            shuffled = distilled.shuffle_classes(seed=0)
            tasks = [shuffled.select(classes=shuffled.class_names[at : at + 2]) for at in range(0, 10, 2)]
            seen = DistilledSet.concatenate(tasks[:3])  # the classes 0 to 5 of `shuffled`

        Real images have the same labels after `train.of_classes(shuffled.class_names)`, which leaves what was held out
        of `train` before as it was.

        Raises:
            ValueError: As `select`.
        """
        return shuffle_classes(self, seed)

    @staticmethod
    def concatenate(sets: Sequence["DistilledSet"]) -> "DistilledSet":
        """Several sets as one: more images of the same classes, or sets of different classes one behind the other.

        What the sets disagree in is left out of the configuration. Of different classes, soft labels and networks are
        left out too, for they know those of one set alone, and learned learning rates that differ; a warning says so.

        Raises:
            ValueError: Images, preprocessing or source differ; some classes are in two sets and others are not; or the
                same classes have labels of different kinds or networks.
        """
        return concatenate(sets)

    def floats(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Some images as a network sees them, (n, C, H, W) float32 without gradients, on the device of the labels.

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
        return Rows(name, pixels, (channels, height, width), self.labels, self.class_names, self.stored_logits)

    def to_dataset(self, name: str = "default") -> Dataset:
        """The dataset that `load_dataset(folder, name, split="train")` gives, all in memory.

        Args:
            name: "default" for PNG images, "tensor" for floats.
        """
        if name not in self.configs:
            raise ValueError(f"there is no config {name!r}; expected one of {', '.join(self.configs)}")
        return self._rows(name).dataset()

    def _content_id(self) -> str:
        """8 hex digits of everything that the bulk files hold."""
        digest = hashlib.sha256(json.dumps([self.preprocessing.to_config(), self.class_names]).encode())
        tensors = {"pixel_values": self.pixel_values, "labels": self.labels, "soft_labels": self.stored_logits}
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

    def save_pretrained(self, directory: str | Path) -> Path:
        """As every artifact; it warns where `load_dataset` could not read the folder."""
        folder = super().save_pretrained(directory)
        if any(character in str(folder.resolve()) for character in PATTERN):
            logger.warning("load_dataset takes %s in a path for a pattern: to read %s, rename it", PATTERN, folder)
        return folder

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

    def _replaced(self) -> tuple[str, ...]:
        # Where nothing can draw it again, the picture of what there still is to be seen stays as it is.
        kept = [] if can_plot() else self._pictures()
        return tuple(pattern for pattern in self.owned if pattern not in kept)

    def _pictures(self) -> list[str]:
        """The pictures that the results have."""
        report = self.report or EvalReport()
        return [PLOT] * bool(report.labels) + [RESULTS_PLOT] * is_grid(report.rows)

    def _write_about(self, folder: Path, home: Home, data_id: str, png_bytes: int) -> None:
        """Write everything but the bulk files, which `data_id` names."""
        if self.report is not None:
            save_json(folder / RESULTS, {"data_id": data_id, **self.report.to_json()})
            for name in self._pictures():
                picture = labels_plot(self.report.labels) if name == PLOT else results_plot(self.report.rows)
                if picture is not None:
                    (folder / name).parent.mkdir(exist_ok=True)
                    picture.save(folder / name, optimize=True)
            if self.report.audit and self.report.audit_picture is not None:
                (folder / AUDIT).parent.mkdir(exist_ok=True)
                (folder / AUDIT).write_bytes(self.report.audit_picture)
        save_json(folder / self.config_name, {**self.config, **home.to_config(), **self._derived(data_id)})
        (folder / "README.md").write_text(set_card(self, home, data_id, png_bytes), encoding="utf-8")

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
            "learned_lr": None if self.lr is None else self.lr.item(),
            "log_lr": None if self.lr is None else math.log(self.lr.item()),  # which readers of 0.1 take it from
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
        origin = repository.pinned(folder)
        try:
            bulk = "tensor" if load_json(folder / cls.config_name).get("pixels") == "uint8" else "data"
        except ValueError:  # which reading will find again, and say
            return folder, origin
        needed = [pattern for pattern in cls.fetched if not pattern.startswith(f"{bulk}/")]
        return origin.snapshot(needed), origin

    @classmethod
    def _read(cls, folder: Path) -> "DistilledSet":
        stored = read_folder(folder)
        try:
            distilled = cls(**stored.arguments)
        except ValueError as error:
            raise ValueError(f"{folder} does not hold a distilled set: {error}; save the artifact again") from error
        distilled.stored_id = stored.data_id
        return distilled

    # For people

    def grid(self) -> Image.Image:
        """A picture of the set: a row for each class, or a column where there are few images of each."""
        return grid(self)

    def fidelity(self) -> str | None:
        """A sentence about how well the projector imitates its teachers, as far as the set knows."""
        return fidelity(self)

    def label_with(self, teacher: NetworkLabels) -> None:
        """Let a network or a projector label these images from now on; of results, those with classes stay.

        Raises:
            ValueError: It is for other classes, or sees images through another preprocessing.
        """
        teacher.check_fits(self.class_names, self.preprocessing)
        known = self.teacher.reference.sha256 if isinstance(self.teacher, NetworkLabels) else None
        if self.report is not None and known != teacher.reference.sha256:
            self.report = replace(
                self.report,
                rows=[row for row in self.report.rows if row.labels == "hard"],
                labels=[],
                audit={},
                audit_picture=None,
            )
        self.teacher = teacher
        self.soft_labels = None  # which another gave
        self.config.pop("projector", None)
        self.making = {name: work for name, work in self.making.items() if name != "projector"}
        if isinstance(teacher, ProjectorLabels):
            self.config["projector"] = teacher.projector.about()
            made = {"projector": teacher.projector.making.get("training")}
            self.making = {"distillation": None, **self.making, **made}

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
            home = Home(repo_id, tag or released, on_hub=True)
            about = ("README.md", SUMS, RESULTS, PLOT, RESULTS_PLOT, AUDIT, self.config_name)
            repository = latest.origin or Repository(repo_id, self.repo_type, token=token)
            pictures = [size for name, size in repository.sizes().items() if name.startswith("data/")]
            with folder_aside("hf_distill-push-") as aside:
                with naming(aside):
                    data_id = latest.stored_id or latest._content_id()
                    latest._write_about(aside, home, data_id, sum(pictures))
                if latest.sums:
                    rewritten = [name for name in (RESULTS, self.config_name) if (aside / name).exists()]
                    changed = {name: sha256_of_file(aside / name) for name in rewritten}
                    save_sums(aside, {**latest.sums, **changed})
                files = {name: aside / name for name in about if (aside / name).exists()}
                message, parent = "Add the results of an evaluation", repository.revision
                try:
                    replaced = [name for name in about if name in latest._replaced()]
                    return repository.publish(files, replaced, self.index(), tag=tag, parent=parent, message=message)
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

    def keep_results(self, folder: str | Path) -> None:
        """Take over the results that `folder` holds, where it holds this very set; so saving there loses none."""
        if (Path(folder) / self.config_name).is_file():
            there = type(self).from_pretrained(folder)
            if there.report is not None and self._is(there):
                self.report = there.report.merge(self.report or EvalReport())

    def reloaded(self, folder: str | Path) -> "DistilledSet":
        """The set that a folder holds now: these very images, and whatever results others have added.

        Raises:
            ValueError: It holds other images.
        """
        latest = type(self).from_pretrained(folder)
        if not self._is(latest):
            raise ValueError(f"{folder} holds other images than those that were evaluated; evaluate it again")
        return latest

    def _is(self, other: "DistilledSet") -> bool:
        """True where both train students alike: the same images, labels and learning rate."""
        rates = [None if each.lr is None else each.lr.item() for each in (self, other)]
        return rates[0] == rates[1] and self._content_id() == other._content_id()

    def export_image_folder(self, directory: str | Path) -> Path:
        """Write `<directory>/train/<class>/<number>.png`, which torchvision's `ImageFolder` and `load_dataset` read.

        Classes keep their names; their numbers become those of the names in alphabetical order.

        Raises:
            ValueError: `directory` is not empty, or two class names would share a folder.
        """
        return export_image_folder(self, directory)

    def export_pt(self, path: str | Path) -> Path:
        """Write one file of plain tensors that `torch.load(path, weights_only=True)` reads anywhere.

        It holds `images` (N, C, H, W), `labels` (N,), `soft_labels` (N, K) logits or None, `lr` or None, `mean` and
        `std` (C,), and `class_names`. Where the set is of floats, `images` are float32 in [0, 1] and `pixel_values` the
        same as they were optimised, beyond what a pixel can hold; where it is of pictures, `images` are uint8. With ZCA
        there is what whitens them too.
        """
        return export_pt(self, path)
