"""The Parquet shards of a distilled set: PNG images or floats, with classes and soft labels, a row group at a time."""

import json
import math
import os
import reprlib
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
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
from PIL import Image
from torch import Tensor

from .shared_pixels import shared_pictures

SHARD_BYTES = 500_000_000
GROUP_BYTES = 16_000_000  # of pixels in a row group: what writing and reading hold in memory at a time
# Bytes of a page, and how evenly: what `datasets` writes with, so that pages that did not change are sent once.
CHUNKS = {"min_chunk_size": 2**18, "max_chunk_size": 2**20, "norm_level": 0}
COLUMN = {"default": "image", "tensor": "pixel_values"}
FOLDER = {"default": "data", "tensor": "tensor"}
PNG_MODES = {1: ("L", 0), 3: ("RGB", 2)}  # by channels: Pillow's name and the colour type of a PNG file
PNG_BEGINS = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
SMALLEST_PNG = 57  # bytes: its signature and its three chunks
MOST_DEFLATED = 1032  # how many times smaller deflate makes the most regular bytes


@dataclass(frozen=True)
class Rows:
    """The images of a set with their labels, as the rows of one of its configs.

    Attributes:
        name: "default" for PNG images or "tensor" for floats.
        pixels: Gives the images of some rows, (n, C, H, W) on the CPU: uint8 for PNG images, else float32.
        shape: (C, H, W).
        labels: (N,) classes.
        class_names: K names.
        soft_labels: (N, K) logits, float16.
    """

    name: str
    pixels: Callable[[slice], Tensor]
    shape: tuple[int, int, int]
    labels: Tensor
    class_names: list[str]
    soft_labels: Tensor | None

    @property
    def features(self) -> Features:
        """The columns as `datasets` describes them."""
        pixels = ImageFeature() if self.name == "default" else Array3D(shape=self.shape, dtype="float32")
        features = {COLUMN[self.name]: pixels, "label": ClassLabel(names=self.class_names)}
        if self.soft_labels is not None:
            features["soft_label"] = List(Value("float16"))
        return Features(features)

    def tables(self, start: int, stop: int) -> Iterator[pa.Table]:
        """The rows from `start` to `stop`, in parts of the size of a row group."""
        schema, size = self.features.arrow_schema, rows_at_once(self.name, self.shape)
        with ThreadPoolExecutor(_threads()) as pool:
            for first in range(start, stop, size):
                rows = slice(first, min(first + size, stop))
                if self.name == "default":
                    encoded = pool.map(png, pictures(self.pixels(rows)))
                    pixels = pa.array([{"bytes": data, "path": None} for data in encoded], schema.field(0).type)
                else:
                    pixels = pa.ExtensionArray.from_storage(
                        schema.field(0).type, _nested(self.pixels(rows).contiguous().numpy())
                    )
                columns = [pixels, pa.array(self.labels[rows].cpu().numpy())]
                if self.soft_labels is not None:
                    columns.append(_nested(self.soft_labels[rows].cpu().numpy()))
                yield pa.Table.from_arrays(columns, schema=schema)

    def dataset(self) -> Dataset:
        """All rows, in memory."""
        table = pa.concat_tables(self.tables(0, len(self.labels)))
        return Dataset(table, info=DatasetInfo(features=self.features))

    def write(self, folder: Path, data_id: str) -> None:
        """Write the shards `train-*-<data_id>.parquet` into `folder`."""
        count = len(self.labels)
        row_bytes = math.prod(self.shape) * _value_bytes(self.name) + 2 * len(self.class_names)
        shards = math.ceil(count * row_bytes / SHARD_BYTES)
        edges = [round(shard * count / shards) for shard in range(shards + 1)]
        schema = self.features.arrow_schema
        for shard in range(shards):
            path = folder / f"train-{shard:05d}-of-{shards:05d}-{data_id}.parquet"
            # Neither PNG files nor optimised floats repeat themselves or get smaller.
            with parquet_writer(path, schema, use_dictionary=["label"], compression="none") as writer:
                for table in self.tables(edges[shard], edges[shard + 1]):
                    writer.write_table(table)


def parquet_writer(sink: Path | pa.NativeFile, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """A writer whose pages end where the content says and are listed in an index, as `datasets` writes its files.

    A storage that keeps equal pieces once then keeps those of a later version once, and a reader of few rows fetches
    the pages that hold them.

    Args:
        sink: Where to.
        schema: Of the tables.
        options: What else `pyarrow.parquet.ParquetWriter` takes.
    """
    writer = pq.ParquetWriter(sink, schema, use_content_defined_chunking=CHUNKS, write_page_index=True, **options)
    writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CHUNKS)})
    return writer


def rows_at_once(name: str, shape: tuple[int, int, int]) -> int:
    """Images in a row group of a config."""
    return max(1, GROUP_BYTES // (math.prod(shape) * _value_bytes(name)))


def _value_bytes(name: str) -> int:
    return 1 if name == "default" else 4


def _threads() -> int:
    return min(16, os.cpu_count() or 1)


def pictures(images: Tensor) -> list[Image.Image]:
    """Images (n, C, H, W) uint8, for Pillow."""
    arrays = images.permute(0, 2, 3, 1).numpy()  # (n, H, W, C)
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file of `picture`."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _nested(values: np.ndarray) -> pa.Array:
    """An Arrow list of lists over the memory of `values`, (n, ...)."""
    array = pa.array(values.reshape(-1))
    for size in values.shape[:0:-1]:
        array = pa.ListArray.from_arrays(pa.array(np.arange(0, len(array) + 1, size, dtype=np.int32)), array)
    return array


# Reading


def read_rows(
    folder: Path, name: str, data_id: str, images: int, shape: tuple[int, int, int], num_classes: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pixels, labels and soft labels in the shards of a config in `folder`, part by part.

    Pixels are (N, C, H, W): uint8 for "default" and float32 for "tensor", exactly what was written.

    Raises:
        ValueError: A shard is missing or damaged, or a column has another shape, or values that are not finite.
    """
    paths = sorted(folder.glob(f"train-*-{data_id}.parquet"))
    files = [_open(path, name, shape) for path in paths]
    stored = sum(file.metadata.num_rows for file in files)
    if stored != images:
        raise ValueError(
            f"{folder} holds {stored} images in {len(paths)} file(s) train-*-{data_id}.parquet; expected {images}, as "
            "distill_config.json says; download it or save the artifact again"
        )
    _check_size(folder, name, data_id, sum(path.stat().st_size for path in paths), images, shape)
    labels, soft = np.empty(images, np.int64), None
    if any("soft_label" in file.schema_arrow.names for file in files):
        soft = np.empty((images, num_classes), np.float16)
    column, size = COLUMN[name], rows_at_once(name, shape)

    def each(columns: list[str], take: Callable[[slice, pa.Table], None]) -> None:
        """Let some columns be taken, part by part."""
        first = 0
        for path, file in zip(paths, files, strict=True):
            stop = first + file.metadata.num_rows
            try:
                for batch in file.iter_batches(size, columns=columns):
                    table = pa.Table.from_batches([batch])
                    rows = slice(first, first + len(table))
                    take(rows, table)
                    first = rows.stop
                if first != stop:
                    raise ValueError(f"it lacks {stop - first} of its rows")
            except (pa.ArrowException, OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{path} is damaged ({reason}); download it or save the artifact again") from error

    def take_labels(rows: slice, table: pa.Table) -> None:
        labels[rows] = _block(table, "label", (), pa.int64())
        if soft is not None:
            soft[rows] = _block(table, "soft_label", (num_classes,), pa.float16())

    def decode(pixels: np.ndarray) -> None:
        with ThreadPoolExecutor(_threads()) as pool:
            each(["image.bytes"], lambda rows, table: _decode_all(pool, table, rows, pixels))

    def take_floats(rows: slice, table: pa.Table) -> None:
        pixels[rows] = _block(table, column, shape, pa.float32())

    each(["label"] if soft is None else ["label", "soft_label"], take_labels)
    if name == "default":
        pixels = shared_pictures(paths, (images, *shape), decode)
    else:
        pixels = np.empty((images, *shape), np.float32)
        each([column], take_floats)
    for values_name, values in ((column, pixels), ("soft_label", soft)):
        if values is None or values.dtype == np.uint8:
            continue
        finite = np.isfinite(values.reshape(images, -1)).all(1)
        if not finite.all():
            raise ValueError(
                f"image {int(finite.argmin())} in {folder} has {values_name} that are not finite; make the set again"
            )
    return torch.from_numpy(pixels), torch.from_numpy(labels), None if soft is None else torch.from_numpy(soft)


def _open(path: Path, name: str, shape: tuple[int, int, int]) -> pq.ParquetFile:
    """A shard of a config; a one-line `ValueError` unless it says that it holds images as that config has them."""
    try:
        file = pq.ParquetFile(path, buffer_size=2**20)
        if name == "default":
            names, kind = file.schema_arrow.names, None
            if names.count("image") == 1:
                kind = file.schema_arrow.field("image").type
        else:
            kind = Features.from_arrow_schema(file.schema_arrow).get("pixel_values")
    # The schema of a file of anybody's is decoded by `datasets`, which takes it as written by itself.
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = reprlib.repr(" ".join(str(error).split()))
        raise ValueError(f"{path} is damaged ({reason}); download it or save the artifact again") from error
    if name == "default":
        expected, words = ImageFeature().pa_type, "PNG images"
        _check_plain(path, file)
    else:
        expected, words = Array3D(shape=shape, dtype="float32"), f"float32 {shape}"
    if kind != expected:
        raise ValueError(
            f"{path} has {COLUMN[name]} {' '.join(reprlib.repr(kind).split())}; expected {words}, as "
            "distill_config.json says"
        )
    return file


def _check_plain(path: Path, file: pq.ParquetFile) -> None:
    """Raise unless the columns lie in the file as they are: then they take no more memory than the file is long."""
    for group in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(group)
        for column in map(about.column, range(about.num_columns)):
            packed = column.has_dictionary_page and column.path_in_schema != "label"
            if packed or column.compression != "UNCOMPRESSED":
                raise ValueError(
                    f"{path} has {reprlib.repr(column.path_in_schema)} compressed with {column.compression}"
                    f"{' and a dictionary' if packed else ''}; expected neither, as DistilledSet.save_pretrained writes"
                )


def _check_size(folder: Path, name: str, data_id: str, size: int, images: int, shape: tuple[int, int, int]) -> None:
    """Raise where files are too small for the pixels that they speak of, before memory is taken on their word."""
    needed = math.prod(shape) * _value_bytes(name) * images
    what = "float32"
    if name == "default":
        needed, what = max(SMALLEST_PNG * images, needed // MOST_DEFLATED), "PNG files"
    if size < needed:
        raise ValueError(
            f"{folder} has {size:,} bytes in train-*-{data_id}.parquet, where {images:,} images {shape} as {what} "
            f"take at least {needed:,}; download it or save the artifact again"
        )


def _decode_all(pool: Executor, table: pa.Table, rows: slice, pixels: np.ndarray) -> None:
    """Fill `rows` of `pixels` (N, C, H, W) with the PNG files of a table."""
    files = pc.struct_field(table.column("image"), "bytes")

    def decode(place: int) -> None:
        data = files[place].as_py()
        try:
            _decode(data, pixels[rows.start + place])
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
            raise ValueError(f"image {rows.start + place}: {' '.join(str(error).split())}") from error

    for _ in pool.map(decode, range(len(table))):
        pass


def _decode(data: bytes | None, into: np.ndarray) -> None:
    """Put the pixels of a PNG file into an array (C, H, W); it must be of that size and kind, by its first bytes."""
    channels, height, width = into.shape
    mode, colour = PNG_MODES[channels]
    if data is None or not data.startswith(PNG_BEGINS) or len(data) < SMALLEST_PNG:
        raise ValueError("not a PNG file")
    # Looked at before Pillow is: it would take memory for a picture of any size.
    header = struct.unpack(">IIBB", data[16:26])
    if header != (width, height, 8, colour):
        raise ValueError(
            f"a PNG of {header[0]}x{header[1]} pixels, {header[2]} bits and colour type {header[3]}; expected "
            f"{width}x{height}, 8 bits and {colour} ({mode})"
        )
    _check_chunks(data)
    with Image.open(BytesIO(data), formats=["PNG"]) as picture:
        values = np.asarray(picture)
    into[...] = values if channels == 1 else values.transpose(2, 0, 1)


def _check_chunks(data: bytes) -> None:
    """Raise unless every chunk of a PNG file has its checksum: Pillow does not look at those of the pixels."""
    at, kind = len(PNG_BEGINS) - 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if struct.unpack_from(">I", data, end)[0] != zlib.crc32(memoryview(data)[at + 4 : end]):
            raise ValueError(f"a PNG file with a damaged chunk {kind!r}")
        at = end + 4


def _block(table: pa.Table, name: str, shape: tuple[int, ...], kind: pa.DataType) -> np.ndarray:
    """The column `name` as (rows, *shape); a one-line `ValueError` unless it is lists of `kind` of just that shape."""
    index = table.schema.get_field_index(name)
    expected = f"{kind} of shape {shape}" if shape else str(kind)
    if index < 0:
        raise ValueError(f"there is no column {name}; expected one with {expected}")
    parts = []
    for part in table.column(index).chunks:
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
