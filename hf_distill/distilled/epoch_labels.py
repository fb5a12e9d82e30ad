"""`EpochLabels`: what a teacher says of every view of every image, epoch by epoch, stored and read back.

Only logits are stored. The views are a function of (seed, epoch, row), so neither a crop nor a partner is, and whoever
trains on the labels sees the very pixels that were labelled. Labels that others made are of views that they drew, and
those are columns beside the logits. On disk they are parquet files of whole epochs, which `load_dataset` reads too,
written and read row group by row group, in threads. Of an epoch up to 256 MiB are in memory, those of the next one
beside them; what is more, as that of ImageNet-21K, is decoded into a file in the temporary folder, which is mapped. In
a Hub repository a file is fetched when it is first used.

What one image costs in one epoch (K classes): 2 K bytes in full, 4 k + 4 with the k largest logits and the mass of the
rest. Fewer epochs than the student is trained for cost a part of that: it then sees the stored ones again and again,
the same views with the same labels.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub import DatasetCardData
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import Self

from ..augmentation.recorded_views import (
    RECORDED,
    RecordedViews,
    check_count,
    is_recorded_config,
    recorded_fields,
    several,
    why_no_views,
)
from ..augmentation.views import Views
from ..config import check_at_least
from ..data.feed import Pool, upload
from ..data.precision import precision_of
from ..hub.cards import render_card, source_context, source_datasets
from ..hub.checks import (
    MOST_CLASSES,
    NAMES,
    OBJECT,
    OBJECT_OR_NULL,
    Rules,
    are_names,
    check_values,
    class_difference,
    is_hex,
    is_number,
    is_whole,
)
from ..hub.files import (
    SUMS,
    atomic_write,
    check_format_version,
    check_sum,
    load_json,
    load_sums,
    package_versions,
    reserve,
    save_json,
    sha256_of_file,
    whole_file,
)
from ..hub.folder import Home, HubFolder
from ..hub.repository import Repository
from ..networks.batches import images_at_once
from ..networks.compiling import backend_of, in_precision, say_uncompiled
from ..rng import generator
from .label_costs import label_bytes
from .labels import BatchLabels, LabelSource, MeanLabels, NetworkLabels, TeacherLabels, compiled_labels
from .tables import parquet_writer

logger = logging.getLogger(__name__)

__all__ = ["FORMAT_VERSION", "Codec", "EpochLabels", "images_sha256", "relabel", "store"]

INDEX = "labels_config.json"
FOLDER = "soft_labels"
FORMAT_VERSION = 1
AT_ONCE = 128  # images that are seen together on a CPU, by their rows: the last bits of logits depend on them
LOOK_BYTES = 4_000_000_000  # that one operation of the teacher may take and give on an accelerator
FILE_BYTES = 2**26  # of logits in a file; an epoch is never divided
FILE_VIEWS = 2**15  # labels in a file: what an interruption costs at most, and what is divided among processes
GROUP_BYTES = 2**22  # of logits in a row group: what is encoded, and decoded, at a time
BEHIND = 4  # batches of labels that may wait to be written
HELD_BYTES = 2**28  # of an epoch that is read into memory; a longer one is decoded into a file, which is mapped


@dataclass(frozen=True)
class Codec:
    """The form of stored logits: all of them as float16, or the largest of each image with the mass of the rest.

    Attributes:
        kept: k, logits of each view that are stored with their classes. The logarithm of the summed exponentials of the
            others is stored too, and they share it evenly: so the softmax of the kept ones is right, and any
            temperature can be applied. None stores all; K is the same to the bit.
    """

    kept: int | None = None

    def __post_init__(self) -> None:
        if self.kept is not None:
            check_at_least("kept", self.kept, 1)

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """The columns of `logits` (n, K) float32, on their device.

        Raises:
            ValueError: There are fewer classes than are to be kept.
        """
        if self.kept is None:
            return {"logits": logits.half()}
        if self.kept > logits.shape[1]:
            raise ValueError(f"{self.kept} logits of {logits.shape[1]} classes are to be kept; expected no more")
        values, ids = logits.topk(self.kept, dim=1)
        tail = logits.scatter(1, ids, -math.inf).logsumexp(1)
        return {"ids": ids.int(), "values": values.half(), "tail": tail}

    def decode(self, columns: dict[str, Tensor], num_classes: int) -> Tensor:
        """Logits (n, K) float32 of columns that `encode` made."""
        if self.kept is None:
            return columns["logits"].float()
        share = columns["tail"] - math.log(max(1, num_classes - self.kept))
        every = share[:, None].repeat(1, num_classes)
        return every.scatter_(1, columns["ids"].long(), columns["values"].float())

    def label_bytes(self, num_classes: int) -> int:
        """Bytes of one label, before any compression."""
        return label_bytes(num_classes, self.kept)

    def schema(self, num_classes: int, views: dict[str, pa.DataType] | None = None) -> pa.Schema:
        """Of the parquet files; `views` are further columns."""
        own = {"logits": several(pa.float16(), num_classes)}
        if self.kept is not None:
            ids, values = several(_ids_type(num_classes), self.kept), several(pa.float16(), self.kept)
            own = {"ids": ids, "values": values, "tail": pa.float32()}
        every = {"row": pa.int32(), "epoch": pa.int32(), **own, **(views or {})}
        return pa.schema(
            [pa.field(name, kind, nullable=False) for name, kind in every.items()],
            metadata={"classes": str(num_classes)},
        )


def _ids_type(num_classes: int) -> pa.DataType:
    return pa.uint16() if num_classes <= 2**16 else pa.int32()


@dataclass(frozen=True)
class StoredViews(Views):
    """The views that labels are stored for. After the last epoch that is stored comes the first again.

    Attributes:
        epochs: That are stored.
        count: Images in the set that was labelled.
    """

    epochs: int = 1
    count: int = 1

    def __call__(self, images: Any, rows: Tensor, epoch: int, count: int, background: Tensor | float = 0.0) -> Tensor:
        """As `Views`; raises a `ValueError` for a set of another size, whose rows are not those of the labels."""
        check_count(count, self.count)
        return super().__call__(images, rows, epoch % self.epochs, count, background)

    def mixing(self, rows: Tensor, epoch: int, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """As `Views`; raises a `ValueError` for a set of another size."""
        check_count(count, self.count)
        return super().mixing(rows, epoch % self.epochs, count, size)


def _is_view_config(value: Any) -> bool:
    if isinstance(value, dict) and "kind" in value:
        return is_recorded_config(value)
    try:
        views = Views.from_config(value)
    except (TypeError, ValueError, KeyError):
        return False
    scale = views.scale
    return (
        type(views.seed) is int
        and is_whole(views.pad, least=0)
        and is_whole(views.shuffle, most=2**10)
        and all(map(is_number, (views.flip, views.alpha, *scale)))
        and len(scale) == 2
        and 0 < scale[0] <= scale[1]
        and views.alpha > 0
    )


# The values of the index that are computed with; whatever else it says is kept as it is, and shown as text.
RULES: Rules = {
    "id": ("8 hex digits, by which its files are found", is_hex(8)),
    "images": ("a whole number from 1 to 2147483647", lambda count: is_whole(count, most=2**31 - 1)),
    "images_sha256": ("64 hex digits", is_hex(64)),
    "classes": (f"a whole number from 1 to {MOST_CLASSES}", lambda count: is_whole(count, most=MOST_CLASSES)),
    "class_names": (f"{NAMES}, or null", lambda names: names is None or are_names(names)),
    "epochs": ("a whole number from 1 to 1000000", lambda count: is_whole(count, most=10**6)),
    "epochs_per_file": ("a whole number from 1 to 1000000", lambda count: is_whole(count, most=10**6)),
    "kept": ("a whole number from 1, or null", lambda kept: kept is None or is_whole(kept, most=MOST_CLASSES)),
    "views": ("what to_config of Views or RecordedViews gives", _is_view_config),
    "bytes": ("a whole number from 1", is_whole),
    **dict.fromkeys(("teacher", "imported_from", "source", "release"), OBJECT_OR_NULL),
    "teacher.batch_statistics": (
        "a whole number from 2, or none",
        lambda size: size is None or is_whole(size, least=2),
    ),
    "versions": OBJECT,
}


class EpochLabels(HubFolder, LabelSource):
    """The logits of every image in every epoch, for the views that they are of.

        labels = EpochLabels.from_pretrained("outputs/labels")
        labels.check_matches(pool, class_names)
        x = labels.views(pool.images, rows, epoch, len(pool), pool.black)
        logits = labels(x, pool.labels[rows], rows, epoch)

    Example:
        >>> from hf_distill.augmentation.views import Views
        >>> from hf_distill.data.feed import Pool
        >>> from hf_distill.distilled.labels import NetworkLabels
        >>> from hf_distill.distilled.epoch_labels import relabel
        >>> spec = hd.StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": "batch"})
        >>> teacher = hd.Teacher(spec.build(0), spec, train.class_names, train.preprocessing)
        >>> pool = Pool(train, train.labels, preprocessing=train.preprocessing)
        >>> labels = relabel(NetworkLabels(teacher), pool, Views(), 2, "labels", disable_tqdm=True)
        >>> labels.num_images, labels.num_epochs
        (100, 2)

    Attributes:
        folder: Where the files are, or come to be.
        config: The content of `labels_config.json`.
        codec: How the logits are stored.
        views: What was labelled; to be called with epochs of the student, however many.
        schema: Of the files.
        num_images: N.
        num_classes: K.
        class_names: Of the logits, in their order; None where whoever stored them did not say.
        num_epochs: Epochs that are stored; the student's epoch e has the views and labels of e modulo these.
    """

    repo_type = "dataset"
    config_name = INDEX
    owned = ("README.md", SUMS, INDEX, f"{FOLDER}/epochs-*.parquet")
    fetched = (INDEX,)
    loader = "EpochLabels.from_pretrained"
    kind = "stored"

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.release = folder, config.get("release")
        self.config = {key: value for key, value in config.items() if key != "release"}
        self.num_images: int = config["images"]
        self.num_classes: int = config["classes"]
        self.class_names: list[str] | None = config.get("class_names")
        self.num_epochs: int = config["epochs"]
        self.codec = Codec(config["kept"])
        about = config["views"]
        self.schema = self.codec.schema(self.num_classes)
        self.views: StoredViews | RecordedViews
        if "kind" in about:
            self.schema = self.codec.schema(self.num_classes, recorded_fields(about["mix"]))
            self.views = RecordedViews(about["mix"], tuple(about["size"]), self.num_images, self._recall)
        else:
            self.views = StoredViews.from_config({**about, "epochs": self.num_epochs, "count": self.num_images})
        self._whole: set[str] = set()  # files whose checksums were looked at
        self._loaded: _Decoded | None = None
        self._next: tuple[int, Future[_Decoded]] | None = None  # an epoch, and what is decoded of it ahead

    @classmethod
    def _find(cls, repo_id_or_path: str | Path, where: dict[str, Any]) -> tuple[Path, Repository | None]:
        if Path(repo_id_or_path, "epoch_0").is_dir():
            raise ValueError(
                f"{repo_id_or_path} holds labels in the layout of others, epoch_<e>/batch_<b>.tar; make a folder of "
                f"this package of them first, with recipes/import.py --epoch_labels {repo_id_or_path}"
            )
        return super()._find(repo_id_or_path, where)

    @classmethod
    def _read(cls, folder: Path) -> Self:
        path = folder / INDEX
        config = load_json(path)
        check_format_version(path, config, FORMAT_VERSION)
        check_values(path, config, RULES)
        if config["kept"] is not None and config["kept"] > config["classes"]:
            raise ValueError(f"{path} keeps {config['kept']} logits of {config['classes']} classes; label again")
        names = config.get("class_names")
        if names is not None and len(names) != config["classes"]:
            raise ValueError(f"{path} has {len(names)} class_names for {config['classes']} classes; label again")
        return cls(folder, config)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files of labels."""
        return self.config["bytes"]

    def identity(self) -> dict[str, Any] | None:
        """What they were made of, and the checksums of their files."""
        return {"kind": self.kind, **self.config, "sums": self.sums} if self.sums else None

    def check_matches(self, pool: Pool, class_names: Sequence[str] | None = None) -> None:
        """Raise one `ValueError` that says what differs, unless these labels are of the images of `pool`, in order.

        Args:
            pool: All of its images are looked at.
            class_names: Of the images, one for each logit.
        """
        if class_names is not None and len(class_names) != self.num_classes:
            raise ValueError(
                f"the labels in {self.folder} are {self.num_classes} logits, and the images have {len(class_names)} "
                "classes; use labels that a teacher of these classes made"
            )
        if class_names is not None and self.class_names not in (None, [*class_names]):
            raise ValueError(
                f"whoever made the labels in {self.folder} {class_difference(self.class_names, class_names)}; label "
                "the set as it is now, or use the one that was labelled"
            )
        if len(pool) != self.num_images or images_sha256(pool) != self.config["images_sha256"]:
            raise ValueError(
                f"the labels in {self.folder} are of {self.num_images:,} other images than these {len(pool):,} (their "
                "order and preprocessing count too); label these, or use the images that were labelled"
            )

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, rows: Tensor, epoch: int | None = None) -> Tensor:
        """The stored logits (n, K) float32 of `rows` in an epoch of the student, on the device of `images`.

        Raises:
            ValueError: `epoch` is None, or its file is missing or damaged.
            OSError: The Hub does not answer.
        """
        if epoch is None:
            raise ValueError("stored labels are of the views of an epoch, and no epoch was given; say which")
        first, columns = self._epoch(epoch % self.num_epochs, images.device)
        own = {
            name: upload(column[first + upload(rows, column.device)], images.device)
            for name, column in columns.items()
            if name not in RECORDED
        }
        return self.codec.decode(own, self.num_classes)

    def _recall(self, rows: Tensor, epoch: int) -> dict[str, Tensor]:
        """The stored columns of the views of `rows` in an epoch of the student, on the CPU."""
        first, columns = self._epoch(epoch % self.num_epochs)
        places = first + rows.cpu()
        return {name: columns[name][places] for name in RECORDED if name in columns}

    # Files

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            if self.origin is None:
                raise ValueError(f"{self.folder} lacks {name}, which its {INDEX} names; label again or copy it there")
            path = self.origin.fetch(name)
        if name not in self._whole:
            check_sum(path, self.sums.get(name))
            self._whole.add(name)
        return path

    def _names(self) -> list[str]:
        return [_name(epochs, self.config["id"]) for epochs in _files(self.num_epochs, self.config["epochs_per_file"])]

    def _epoch(self, epoch: int, device: torch.device | None = None) -> tuple[int, dict[str, Tensor]]:
        """Columns that hold all of an epoch, and where it begins in them: labels on the device, views on the CPU.

        Those of a long epoch stay on the CPU, in a map. The next epoch is decoded in a thread meanwhile.
        """
        if not self._holds(epoch):
            self._loaded = None
            self._loaded = self._decoded(epoch)
            self._expect((epoch + 1) % self.num_epochs)
        loaded = self._loaded
        if device is not None and not loaded.mapped:
            for name in loaded.columns.keys() - set(RECORDED):
                loaded.columns[name] = upload(loaded.columns[name], device)
        return self._place(epoch)[1] - loaded.rows.start, loaded.columns

    def _place(self, epoch: int) -> tuple[int, int]:
        """The number of the file that holds an epoch, and the row that it begins at."""
        number, within = divmod(epoch, self.config["epochs_per_file"])
        return number, within * self.num_images

    def _holds(self, epoch: int) -> bool:
        number, start = self._place(epoch)
        loaded = self._loaded
        if loaded is None or loaded.number != number:
            return False
        return loaded.rows.start <= start and start + self.num_images <= loaded.rows.stop

    def _decoded(self, epoch: int) -> "_Decoded":
        expected, self._next = self._next, None
        if expected is not None and expected[0] == epoch:
            with suppress(OSError):  # there may have been no room for two, and now there is for one
                return expected[1].result()
        return self._read_epoch(epoch)

    def _expect(self, epoch: int) -> None:
        """Decode in a thread what will be asked for; not what is held, or must be fetched first."""
        if self._holds(epoch) or not (self.folder / self._names()[self._place(epoch)[0]]).is_file():
            return
        thread = ThreadPoolExecutor(1)
        self._next = epoch, thread.submit(self._read_epoch, epoch)
        thread.shutdown(wait=False)  # it ends when it has read

    def _read_epoch(self, epoch: int) -> "_Decoded":
        """An epoch, and what else is in the row groups that hold it; one of them is decoded after another."""
        number, start = self._place(epoch)
        path, first = self._path(self._names()[number]), _files(self.num_epochs, self.config["epochs_per_file"])[number]
        decoded: _Decoded | None = None
        for rows, place, arrays in self._row_groups(path, first, start, start + self.num_images):
            decoded = decoded or _Decoded(number, rows)
            decoded.put(place, self._checked(path, place, first, arrays))
        return decoded

    def _row_groups(
        self, path: Path, epochs: range, start: int, stop: int
    ) -> Iterator[tuple[range, int, dict[str, np.ndarray]]]:
        """The row groups of a file that hold its rows from `start` to `stop`: all their rows, then, group by group, the
        first row and the columns."""
        expected = self.schema
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                if not file.schema_arrow.equals(expected):
                    columns, asked = (
                        ", ".join(f"{field.name} {field.type}" for field in schema)
                        for schema in (file.schema_arrow, expected)
                    )
                    raise ValueError(f"its columns are {columns[:200]} and {INDEX} asks for {asked}")
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                if sum(sizes) != len(epochs) * self.num_images:
                    raise ValueError(f"it has {sum(sizes)} rows where {len(epochs)} epochs are named")
                edges = np.cumsum([0, *sizes]).tolist()
                groups = [g for g, size in enumerate(sizes) if size and edges[g] < stop and edges[g + 1] > start]
                rows = range(edges[groups[0]], edges[groups[-1] + 1])
                for group in groups:
                    table = file.read_row_group(group)
                    yield rows, edges[group], {name: _array(table.column(name)) for name in expected.names}
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is damaged or cut short ({reason}); fetch it or label again") from error

    def _checked(self, path: Path, start: int, epochs: range, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The labels and views among the columns of a file of some epochs, from its row `start` on."""
        place = np.arange(start, start + len(arrays["row"]))
        if (arrays.pop("row") != place % self.num_images).any() or (
            arrays.pop("epoch") != epochs.start + place // self.num_images
        ).any():
            raise ValueError(f"{path} has labels of other rows or epochs than its name says; fetch it or label again")
        if "ids" in arrays:
            arrays["ids"] = arrays["ids"].astype(np.int32)
            if arrays["ids"].min() < 0 or arrays["ids"].max() >= self.num_classes:
                raise ValueError(f"{path} names classes that there are not; fetch it or label again")
        for name in ("logits", "values"):
            if name in arrays and not np.isfinite(arrays[name]).all():
                raise ValueError(f"{path} has {name} that are not finite; label again with another teacher")
        if isinstance(self.views, RecordedViews):
            wrong = why_no_views(arrays, self.views.size, self.num_images)
            if wrong is not None:
                raise ValueError(f"{path} has {wrong}; fetch it or import again")
            arrays |= {name: arrays[name].astype(np.int32) for name in ("crop", "mix_box") if name in arrays}
        return arrays

    def _write(self, folder: Path, home: Home) -> None:
        (folder / FOLDER).mkdir()
        for name in self._names():
            path = self._path(name).resolve()  # a cache holds links
            try:
                # What is only to be read and uploaded may lie anywhere.
                os.symlink(path, folder / name) if home.on_hub else os.link(path, folder / name)
            except OSError:  # another file system, or one without links
                shutil.copy2(path, folder / name)
        self._write_about(folder, home)

    def _write_about(self, folder: Path, home: Home) -> None:
        source = source_context(self.config.get("source") or {})
        metadata = DatasetCardData(
            license=source["license"],
            extra_gated_prompt=source["gated_note"],
            task_categories=["image-classification"],
            tags=["dataset-distillation", "soft-labels", "hf_distill"],
            source_datasets=source_datasets(self.config.get("source") or {}),
            configs=[
                {
                    "config_name": "default",
                    "data_files": [{"split": "train", "path": f"{FOLDER}/epochs-*-{self.config['id']}.parquet"}],
                }
            ],
        )
        kept = self.codec.kept
        per_label = (
            "All are stored, as float16."
            if kept is None
            else f"The {kept:,} largest are stored, as float16, with `tail`, the logarithm of the summed exponentials "
            "of the rest."
        )
        card = render_card(
            "labels.md",
            metadata=metadata.to_yaml(),
            call=home.arguments(),
            config=self.config,
            per_label=per_label,
            **source,
        )
        atomic_write(folder / "README.md", card)
        save_json(folder / INDEX, {**self.config, **home.to_config()})


class _Decoded:
    """Consecutive rows of a file: in memory, or in a file without a name that is mapped, where they are many.

    Args:
        number: Of the file.
        rows: Which of its rows.

    Attributes:
        columns: Each (rows, ...).
        mapped: They are in a map.
    """

    def __init__(self, number: int, rows: range) -> None:
        self.number, self.rows, self.mapped = number, rows, False
        self.columns: dict[str, Tensor] = {}

    def put(self, start: int, arrays: dict[str, np.ndarray]) -> None:
        """Take the columns of some rows, of which `start` is the first."""
        if not self.columns:
            row_bytes = sum(values[0].nbytes for values in arrays.values())
            self.mapped = row_bytes * len(self.rows) > HELD_BYTES
            self.columns = {name: torch.from_numpy(self._room(values)) for name, values in arrays.items()}
        for name, values in arrays.items():
            self.columns[name].numpy()[start - self.rows.start :][: len(values)] = values

    def _room(self, values: np.ndarray) -> np.ndarray:
        shape = (len(self.rows), *values.shape[1:])
        if not self.mapped:
            return np.empty(shape, values.dtype)
        with tempfile.NamedTemporaryFile(prefix="hf_distill-labels-") as file:  # the map stays when it is removed
            reserve(Path(file.name), math.prod(shape) * values.itemsize)
            return np.memmap(file.name, values.dtype, "r+", shape=shape)


def _files(epochs: int, per_file: int) -> list[range]:
    """The epochs of each file."""
    return [range(first, min(first + per_file, epochs)) for first in range(0, epochs, per_file)]


def _name(epochs: range, identity: str) -> str:
    return f"{FOLDER}/epochs-{epochs.start:05d}-{epochs.stop - 1:05d}-{identity}.parquet"


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """The values of a column, (rows,) or (rows, width), in memory of their own."""
    lists = pa.types.is_fixed_size_list(column.type)
    parts = [(part.flatten() if lists else part).to_numpy(zero_copy_only=False) for part in column.chunks]
    return np.concatenate(parts).reshape(len(column), -1) if lists else np.concatenate(parts)


def images_sha256(pool: Pool, rows: Tensor | None = None) -> str:
    """64 hex digits of what a pool holds, or of `rows` (n,) of it: the bytes of images, in order, and preprocessing."""
    preprocessing = None if pool.preprocessing is None else pool.preprocessing.to_config()
    digest = hashlib.sha256(json.dumps([list(pool.shape), preprocessing]).encode())
    every = torch.arange(len(pool)) if rows is None else rows
    for part in every.split(AT_ONCE):  # the type is part of each part
        images = pool.pixels(part).cpu()
        digest.update(f"{images.dtype}".encode())
        digest.update(np.ascontiguousarray(images.numpy()))
    return digest.hexdigest()


def relabel(
    teacher: NetworkLabels | TeacherLabels | MeanLabels | BatchLabels,
    pool: Pool,
    views: Views,
    epochs: int,
    directory: str | Path,
    *,
    codec: Codec | None = None,
    class_names: Sequence[str] | None = None,
    source: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    disable_tqdm: bool = False,
) -> EpochLabels:
    """The labels that `teacher` gives to the views of all images of `pool` in all epochs, stored in `directory`.

    Every process must call it, with `directory` on storage that they share; files of whole epochs are spread over them.
    A file that is there is whole and is kept, so the same call goes on after an interruption. The bytes are the same
    with any number of processes, interrupted or not (on the same kind of device, with the same threads): the teacher
    always sees the same rows together. How many is part of what the labels are: 128, and on an accelerator what
    `images_at_once` says of 4 GB, up to 1,024; files that were made with another number are made again.

    Args:
        teacher: A network, or several. With `BatchLabels` the views of an epoch go through in groups that are drawn
            anew, by the seed of the views; those that are left are completed with some of the last group. It sees
            images in the launcher's mixed precision, compiled where the launcher says so; labels that another began, or
            began in another way, are not gone on with.
        pool: The whole set, in the order in which students will have it.
        views: What is seen of it.
        epochs: To store. A student that is trained for more sees them again.
        directory: Its own: other labels in it are replaced when the new ones are complete.
        codec: How logits are stored; all of them by default.
        class_names: Of the images, one for each logit. With them the labels are refused for classes in another order.
        source: `RealImages.provenance` of what the images were made of.
        accelerator: Processes, device and precision.
        disable_tqdm: No progress bar.

    Raises:
        ValueError: The folder holds something else, the teacher's logits are not finite, or it labels groups that are
            larger than the set.
        OSError: A file could not be written; those before it are whole.
    """
    accelerator, codec, directory = accelerator or Accelerator(), codec or Codec(), Path(directory)
    check_at_least("epochs", epochs, 1)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; expected a folder, or a path where one can be made")
    if (directory / "README.md").exists() and not (directory / INDEX).exists() and not (directory / FOLDER).exists():
        raise ValueError(f"{directory} has a README.md and no {INDEX}, so it holds something else; give another folder")
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "images": len(pool),
        "images_sha256": images_sha256(pool),
        "epochs": epochs,
        "kept": codec.kept,
        "views": views.to_config(),
        "teacher": _identity(teacher),
        **precision_of(accelerator),
    }
    probe = min(2, len(pool))
    if isinstance(teacher, BatchLabels):
        probe = teacher.together
        say_uncompiled(accelerator, "labels by the statistics of batches")
        if probe > len(pool):
            raise ValueError(
                f"--batch_statistics is {probe} and the set has {len(pool)} images; expected at most so many"
            )
    label = compiled_labels(teacher, accelerator, pool.device)
    if label is not teacher:
        config["compiled"] = backend_of(accelerator)  # other last bits
    with torch.no_grad():
        first = _label(teacher, pool, views, 0, torch.arange(probe), pool.black, accelerator)
    config["classes"] = first.shape[1]
    if class_names is not None:
        config["class_names"] = [*class_names]
    at_once = _at_once(teacher, pool, accelerator)
    if at_once != AT_ONCE:
        config["at_once"] = at_once

    def make(part: range, bar: tqdm) -> Iterator[dict[str, Tensor]]:
        return _label_file(label, pool, views, part, at_once, codec, accelerator, bar)

    return store(directory, config, make, source=source, accelerator=accelerator, disable_tqdm=disable_tqdm)


def store(
    directory: Path,
    config: dict[str, Any],
    make: Callable[[range, tqdm], Iterator[dict[str, Tensor]]],
    *,
    source: dict[str, Any] | None,
    accelerator: Accelerator,
    disable_tqdm: bool,
) -> EpochLabels:
    """The labels that `make` gives file by file, in `directory`; who calls it, and what is kept, as `relabel` says.

    Args:
        directory: As for `relabel`.
        config: What `labels_config.json` says of the images, the labels and all that decides them.
        make: Gives the columns of the epochs of one file, part by part, and moves the bar on by each label. Parts are
            written in a thread while the next ones are made.
        source, accelerator, disable_tqdm: As for `relabel`.
    """
    # The labels themselves say how many classes there are, and what decides them does not ask for their names.
    decides = {name: value for name, value in config.items() if name not in ("classes", "class_names")}
    config = {**config, "id": hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]}
    count, epochs = config["images"], config["epochs"]
    least = count * Codec(config["kept"]).label_bytes(config["classes"])
    config["epochs_per_file"] = max(1, min(FILE_BYTES // least, FILE_VIEWS // count, epochs))
    labels = EpochLabels(directory, config)
    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    parts = _files(epochs, config["epochs_per_file"])
    paths = {part: directory / _name(part, config["id"]) for part in parts}
    known: dict[str, str] = {}  # checksums, by the names of files
    lacking: list[range] = []
    if accelerator.is_main_process:
        known |= {Path(name).name: digest for name, digest in load_sums(directory).items()}
        known |= {path.name: sum_of.read_text() for path in paths.values() if (sum_of := _sum_of(path)).is_file()}
        lacking = [part for part, path in paths.items() if not _is_whole(path, known.get(path.name))]
    lacking = broadcast_object_list([lacking])[0]
    mine = lacking[accelerator.process_index :: accelerator.num_processes]
    with tqdm(
        total=sum(map(len, mine)) * count,
        desc="store labels",
        unit="img",
        disable=disable_tqdm or not accelerator.is_main_process,
    ) as bar:
        for part in mine:
            _write_file(paths[part], part, make(part, bar), labels.schema, count)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        config["bytes"] = sum(path.stat().st_size for path in paths.values())
        config |= {"source": source, "versions": package_versions()}
        known |= {path.name: sum_of.read_text() for path in paths.values() if (sum_of := _sum_of(path)).is_file()}
        labels = EpochLabels(directory, config)
        with labels._rewritten(directory, {f"{FOLDER}/{name}": digest for name, digest in known.items()}):
            labels._write_about(directory, Home(directory.resolve().name))
            for path in directory.glob(f"{FOLDER}/epochs-*.parquet"):
                if path not in paths.values():
                    path.unlink()
        for path in directory.glob(f"{FOLDER}/.epochs-*"):
            path.unlink()
    accelerator.wait_for_everyone()
    return EpochLabels.from_pretrained(directory)


def _sum_of(path: Path) -> Path:
    """Where the checksum of a file of labels is, until there is SHA256SUMS."""
    return path.with_name(f".{path.name}.sha256")


def _is_whole(path: Path, expected: str | None) -> bool:
    """True where a file of labels is there as it was written: with its checksum, unless version 0.1 wrote it."""
    if not path.is_file() or expected in (None, sha256_of_file(path)):
        return path.is_file()
    logger.warning("%s is damaged: its checksum is another; its labels are made again", path)
    return False


def _identity(teacher: LabelSource) -> dict[str, Any]:
    """The identity of a teacher, as JSON types."""
    if isinstance(teacher, NetworkLabels):
        about = teacher.to_config()
        return {name: about[name] for name in ("network", "sha256")}
    if isinstance(teacher, TeacherLabels):
        digest = hashlib.sha256(np.ascontiguousarray(teacher.thetas.cpu().numpy())).hexdigest()
        return {**teacher.to_config(), "sha256": digest}
    if isinstance(teacher, MeanLabels | BatchLabels):
        about = {"network": "mean", "sources": [_identity(source) for source in teacher.sources]}
        return {**about, "batch_statistics": teacher.together} if isinstance(teacher, BatchLabels) else about
    raise ValueError(f"labels of kind {teacher.kind!r} cannot label views; expected a teacher")


def _label(
    teacher: LabelSource,
    pool: Pool,
    views: Views,
    epoch: int,
    rows: Tensor,
    background: Tensor | float,
    accelerator: Accelerator,
) -> Tensor:
    """The logits (n, K) float32 that the teacher gives to the views of `rows`, which are on the CPU."""
    x = views(pool.images, rows, epoch, len(pool), background)
    if pool.device.type == "cuda":
        x = x.contiguous(memory_format=torch.channels_last)
    there = upload(rows, pool.device)
    return in_precision(teacher, accelerator)(x, pool.labels[there], there, epoch)


def _at_once(teacher: LabelSource, pool: Pool, accelerator: Accelerator) -> int:
    """How many images the teacher sees together: on an accelerator as many as fit, unless its labels depend on it.

    It was asked before, for what it does at the first time alone is no measure.
    """
    if (
        pool.device.type == "cpu"
        or isinstance(teacher, BatchLabels)
        or (isinstance(teacher, TeacherLabels) and teacher.model.sees_batches)
    ):
        return AT_ONCE
    answer = in_precision(teacher, accelerator)

    def look(images: Tensor) -> Tensor:
        rows = torch.arange(len(images), device=images.device) % len(pool)
        return answer(images, pool.labels[rows], rows, 0)

    return images_at_once(look, pool, room=LOOK_BYTES)


@torch.no_grad()
def _label_file(
    teacher: LabelSource,
    pool: Pool,
    views: Views,
    epochs: range,
    at_once: int,
    codec: Codec,
    accelerator: Accelerator,
    bar: tqdm,
) -> Iterator[dict[str, Tensor]]:
    """The columns of a file, batch by batch, on the device, for which the host waits once, at the end."""
    background, finite = pool.black, torch.ones((), dtype=torch.bool, device=pool.device)
    for epoch in epochs:
        if isinstance(teacher, BatchLabels):
            parts = [_label_groups(teacher, pool, views, epoch, codec, background, accelerator)]
        else:
            parts = (
                codec.encode(_label(teacher, pool, views, epoch, rows, background, accelerator))
                for rows in torch.arange(len(pool)).split(at_once)
            )
        for columns in parts:
            finite &= columns["logits" if codec.kept is None else "values"].isfinite().all()
            yield columns
            bar.update(len(next(iter(columns.values()))))
    if not finite:
        raise ValueError(
            f"the teacher gives logits that are not finite, or beyond 65,504, in epochs {epochs.start} to "
            f"{epochs.stop - 1}; use another teacher"
        )


def _label_groups(
    teacher: BatchLabels,
    pool: Pool,
    views: Views,
    epoch: int,
    codec: Codec,
    background: Tensor | float,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """The columns of an epoch in the order of the rows, whose views went through in groups of another order."""
    count, size = len(pool), teacher.together
    order = torch.randperm(count, generator=generator(views.seed, "groups", epoch))
    groups, left = order[: count - count % size], count % size
    if left:  # they are the end of a group as large as the others
        groups = torch.cat([groups, order[-size:]])
    encoded = [
        codec.encode(_label(teacher, pool, views, epoch, rows, background, accelerator))
        for rows in groups.split(max(1, AT_ONCE // size) * size)
    ]
    place = torch.cat([torch.arange(count - left), torch.arange(len(groups) - left, len(groups))])[order.argsort()]
    there = upload(place, pool.device)
    return {name: torch.cat([part[name] for part in encoded])[there] for name in encoded[0]}


class _RowGroups:
    """Writes the rows of a file, which come part by part, as row groups.

    Args:
        writer: Of the file.
        epochs: Of the file.
        count: Rows of an epoch.
    """

    def __init__(self, writer: pq.ParquetWriter, epochs: range, count: int) -> None:
        self.writer, self.epochs, self.count = writer, epochs, count
        self._held: list[dict[str, np.ndarray]] = []
        self._written = 0

    def add(self, columns: dict[str, Tensor]) -> None:
        """Take the next rows, and write the groups that are full."""
        self._held.append({name: values.cpu().numpy() for name, values in columns.items()})
        lists = [values for values in self._held[0].values() if values.ndim > 1]
        size = max(1, GROUP_BYTES // sum(values.shape[1] * values.itemsize for values in lists))
        if sum(map(_length, self._held)) >= size:
            self._write(size)

    def close(self) -> None:
        """Write what is left."""
        if self._held:
            self._write(sum(map(_length, self._held)))

    def _write(self, size: int) -> None:
        """Write groups of `size` rows, and hold what is left."""
        columns = {name: np.concatenate([part[name] for part in self._held]) for name in self._held[0]}
        full = _length(columns) // size * size
        for start in range(0, full, size):
            self._write_group({name: values[start : start + size] for name, values in columns.items()})
        self._held = [{name: values[full:] for name, values in columns.items()}] if full < _length(columns) else []

    def _write_group(self, columns: dict[str, np.ndarray]) -> None:
        place = np.arange(self._written, self._written + _length(columns))
        every = {"row": place % self.count, "epoch": self.epochs.start + place // self.count, **columns}
        arrays = []
        for field in self.writer.schema:
            values, kind = every[field.name], field.type
            if pa.types.is_fixed_size_list(kind):
                flat = pa.array(values.reshape(-1).astype(kind.value_type.to_pandas_dtype(), copy=False))
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
            else:
                arrays.append(pa.array(values.astype(kind.to_pandas_dtype(), copy=False)))
        self.writer.write_table(pa.Table.from_arrays(arrays, schema=self.writer.schema))
        self._written += len(place)


def _length(columns: dict[str, np.ndarray]) -> int:
    return len(next(iter(columns.values())))


def _write_file(path: Path, epochs: range, parts: Iterable[dict[str, Tensor]], schema: pa.Schema, count: int) -> None:
    """Write a file of labels whose columns come in `parts`, each in a thread while the next one is made."""
    encodings = {}
    for field in schema:
        if pa.types.is_fixed_size_list(field.type):
            encodings[f"{field.name}.list.element"] = "BYTE_STREAM_SPLIT"
        else:
            encodings[field.name] = "BYTE_STREAM_SPLIT" if pa.types.is_floating(field.type) else "DELTA_BINARY_PACKED"
    # Split into streams, the exponents of float16 shrink by half; what is left of a logit is noise.
    options = {"column_encoding": encodings, "use_dictionary": False, "compression": "zstd"}
    with whole_file(path) as aside:
        with parquet_writer(aside, schema, **options) as writer:
            groups = _RowGroups(writer, epochs, count)
            with ThreadPoolExecutor(1) as thread:
                waiting: deque[Future[None]] = deque()
                for part in parts:
                    waiting.append(thread.submit(groups.add, part))
                    if len(waiting) > BEHIND:
                        waiting.popleft().result()
                for written in waiting:
                    written.result()
            groups.close()
        atomic_write(_sum_of(path), sha256_of_file(aside))  # first: a file that lacks it is of version 0.1
