"""`Kept`: real images at their own shapes, which random crops are taken from.

What shrinks an image to one fixed size first has thrown away what a crop would have shown. So the images are kept as
the source has them, and decoded whenever they are asked for; or with their shorter side brought down to a limit,
decoded once into an Arrow file that is mapped. None is enlarged.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, Value
from torch import Tensor

from ..hub.files import naming
from .files import cache_folder
from .pixels import (
    DECODED,
    KEPT,
    NAMED,
    BadImages,
    CorruptImage,
    Keep,
    Levels,
    Misfit,
    Pixels,
    Plan,
    Problem,
    Sums,
    Target,
    decode_table,
    header,
    keep_table,
    levels_of,
    plan_for,
    planned_pixels,
    problem_of,
    rows_in_chunk,
)
from .ragged import Ragged

__all__ = ["Encoded", "Kept", "PixelsOnDemand", "named", "refusal", "sound_rows"]

logger = logging.getLogger(__name__)

DECODED_AT_ONCE = 64  # on demand, where images are looked at until enough was seen


@dataclass(frozen=True)
class Encoded:
    """Images as a split has them, not decoded yet. They are numbered from 0.

    Attributes:
        images: One column, in arrow format.
        rows: (N,) int64, their rows in the split, for messages.
        where: The split and the dataset, for messages.
        split: Its name, for the progress bar.
        lock: Of processes that decode into the cache one works, and the others find what it left.
        num_proc: Processes that decode into the cache, or threads that decode on demand.
        skip_corrupt: Corrupt images are left out and not refused.
    """

    images: Dataset
    rows: Tensor
    where: str
    split: str
    lock: Callable[[], AbstractContextManager[Any]]
    num_proc: int | None
    skip_corrupt: bool

    @property
    def feature(self) -> datasets.Image:
        """What decodes them."""
        (column,) = self.images.column_names
        return self.images.features[column]

    def select(self, numbers: Tensor) -> "Encoded":
        """Some of them, in that order."""
        return replace(self, images=self.images.select(numbers.numpy()), rows=self.rows[numbers])

    def framed(self, target: Target) -> tuple[Pixels, Tensor]:
        """All of them at one size, in a mapped file: decoded now, or before; and which are not corrupt, (n,) int64.

        Raises:
            ValueError: An image cannot be used; it is named by row and split, with up to nine others.
        """
        return self.mapped(self.plan(target))

    def mapped(self, plan: Plan) -> tuple[Pixels, Tensor]:
        """As `framed`, by a plan that is known."""
        with self.lock(), self._naming_rows():
            decoded = self._map(decode_table, plan, plan.rows_at_once, DECODED)
        sound = sound_rows(decoded.data, self.rows, self.where, skip=self.skip_corrupt)
        table = decoded.data
        return Pixels(table.column("pixels"), plan.shape, plan.resize, Levels.among(table), Sums(decoded)), sound

    def on_demand(self, target: Target) -> Pixels:
        """All of them at one size, each decoded whenever it is asked for; a `ValueError` as `framed`, then."""
        return PixelsOnDemand(self, self.plan(target))

    def deep(self) -> bool:
        """True where one of up to 64 of them, which are decoded for that, has more than 8 bits."""
        some = torch.linspace(0, len(self.rows) - 1, min(DECODED_AT_ONCE, len(self.rows))).long()
        return any(level is not None for level in self._each(some, partial(levels_of, self.feature)))

    def plan(self, target: Target) -> Plan:
        """The size and colour that all of them get, by the headers of up to 1,000; a `ValueError` as `framed`."""
        with self._naming_rows():
            return plan_for(self.images, self.feature, target)

    def kept(self, keep: Keep) -> "Kept":
        """All of them at their own shapes: mapped where their size has a limit, else decoded on demand.

        Raises:
            ValueError: As `framed`.
        """
        if keep.side is None:
            return _OnDemand(self, keep)
        with self.lock(), self._naming_rows():
            at_once = rows_in_chunk((keep.channels, keep.side, 2 * keep.side))
            decoded = self._map(keep_table, keep, at_once, KEPT)
        sound_rows(decoded.data, self.rows, self.where, skip=self.skip_corrupt)
        return _Mapped(decoded, keep)

    def _map(self, function: Callable[..., pa.Table], plan: Any, at_once: int, features: dict[str, Value]) -> Dataset:
        with naming(cache_folder()):
            return self.images.map(
                function,
                batched=True,
                with_indices=True,
                batch_size=at_once,
                writer_batch_size=at_once,
                remove_columns=self.images.column_names,
                features=Features(features),
                fn_kwargs={"plan": plan, "feature": self.feature},
                num_proc=self.num_proc,
                desc=f"Decoding {self.split}",
            )

    @contextmanager
    def _naming_rows(self) -> Iterator[None]:
        """Say which row of the split an image is that cannot be used."""
        try:
            yield
        except BadImages as bad:
            problems = [problem._replace(place=int(self.rows[problem.place])) for problem in bad.problems]
            raise ValueError(refusal(problems, self.where)) from bad

    def headers(self, numbers: Tensor) -> list[tuple[int, int]]:
        """Height and width of some of them, which are not decoded for that unless there is no other way."""
        return self._each(numbers, lambda value: header(value, self.feature)[0])

    def decoded(self, numbers: Tensor, plan: Keep | Plan) -> list[np.ndarray]:
        """Some of them as a plan has them: at their own shapes, (h, w, C) uint8 each, or at one, (C, H, W); a
        `ValueError` as `framed`."""
        return self._each(numbers, partial(planned_pixels, plan, self.feature))

    def _each(self, numbers: Tensor, function: Callable[[Any], Any]) -> list[Any]:
        """What `function` makes of each cell: in threads, for Pillow decodes without Python's lock."""
        places = numbers.tolist()
        cells = self.images[places].column(0).to_pylist() if places else []

        def made(cell: Any, place: int) -> Any:
            try:
                return function(cell)
            except (CorruptImage, Misfit) as error:
                return problem_of(place, error)

        with self._naming_rows(), ThreadPoolExecutor(self.num_proc) as threads:
            each = list(threads.map(made, cells, places))
            problems = [one for one in each if isinstance(one, Problem)]
            if problems:
                raise BadImages(problems)
            return each


class PixelsOnDemand(Pixels):
    """Images of 8 bits that are decoded, as `plan` says, whenever they are asked for."""

    def __init__(self, encoded: Encoded, plan: Plan) -> None:
        self.shape, self.resized, self.levels = plan.shape, plan.resize, None
        self._encoded, self.plan = encoded, plan

    def __len__(self) -> int:
        return len(self._encoded.rows)

    @property
    def at_once(self) -> int:
        return DECODED_AT_ONCE

    def take(self, rows: Tensor) -> Tensor:
        images = self._encoded.decoded(rows, self.plan)
        return torch.from_numpy(np.stack(images) if images else np.empty((0, *self.shape), np.uint8))


def sound_rows(table: pa.Table, rows: Tensor, where: str, *, skip: bool) -> Tensor:
    """The places of images without a problem, (n,) int64; corrupt ones are said in a warning.

    Args:
        table: Columns `problem` and `hint`, as of a `Problem`, or null.
        rows: (N,) int64, the row of each in the split.
        where: The split and the dataset, for messages.
        skip: Leave corrupt images out.

    Raises:
        ValueError: Some do not fit, all are corrupt, or some are and `skip` is not given; it names up to ten.
    """
    bad = np.flatnonzero(table["problem"].is_valid().to_numpy())
    if len(bad):
        found = zip(*(table[name].take(pa.array(bad)).to_pylist() for name in ("problem", "hint")), strict=True)
        problems = [Problem(int(rows[place]), *told) for place, told in zip(bad.tolist(), found, strict=True)]
        if not skip or len(bad) == len(table) or any(problem.hint for problem in problems):
            raise ValueError(refusal(problems, where))
        told = named([problem[:2] for problem in problems], where)
        logger.warning("%s of %s images are left out: %s", f"{len(bad):,}", f"{len(table):,}", told)
    return torch.from_numpy(np.setdiff1d(np.arange(len(table)), bad))


def named(problems: list[tuple[int, str]], where: str) -> str:
    """Row and reason of up to ten problems of a split, and how many more there are."""
    (row, reason), *others = problems
    told = [f"row {row} of {where}: {reason}", *(f"row {row}: {reason}" for row, reason in others[: NAMED - 1])]
    more = [f"and {len(problems) - NAMED:,} more"] if len(problems) > NAMED else []
    return "; ".join(told + more)


def refusal(problems: list[Problem], where: str) -> str:
    """What is to be said of images that cannot be used, and what to do about them, in one line."""
    hints = [*dict.fromkeys(problem.hint for problem in problems if problem.hint is not None)]
    corrupt = sum(problem.hint is None for problem in problems)
    if corrupt:
        them = "it" if corrupt == 1 else "them"
        hints.append(f"replace {them}, or leave corrupt images out with --skip_corrupt")
    return "; ".join([named([problem[:2] for problem in problems], where), *hints])


class Kept(ABC):
    """Images at their own shapes, numbered from 0.

    Attributes:
        keep: Their colour, and the limit of their size.
    """

    def __init__(self, keep: Keep) -> None:
        self.keep = keep

    @abstractmethod
    def sizes(self, numbers: Tensor) -> Tensor:
        """Height and width of images `numbers` (n,), (n, 2) int64."""

    @abstractmethod
    def take(self, numbers: Tensor) -> Ragged:
        """The images `numbers` (n,), on the CPU; a `ValueError` that names one that cannot be decoded."""


class _OnDemand(Kept):
    """Images that are decoded whenever they are asked for."""

    def __init__(self, encoded: Encoded, keep: Keep) -> None:
        super().__init__(keep)
        self.encoded = encoded

    def sizes(self, numbers: Tensor) -> Tensor:
        sizes = [self.keep.size(height, width) for height, width in self.encoded.headers(numbers)]
        return torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)

    def take(self, numbers: Tensor) -> Ragged:
        return Ragged.of(self.encoded.decoded(numbers, self.keep), self.keep.channels)


class _Mapped(Kept):
    """Images in a mapped Arrow file: what is not asked for is not read.

    Args:
        decoded: With the columns of `KEPT`.
        keep: How they were made.
    """

    def __init__(self, decoded: Dataset, keep: Keep) -> None:
        super().__init__(keep)
        table, self._sums = decoded.data, Sums(decoded)
        sides = [table.column(side).to_numpy().astype(np.int64) for side in ("height", "width")]
        self._sizes = torch.from_numpy(np.stack(sides, axis=1))
        self._bytes: list[np.ndarray] = []
        starts, chunks = [], []
        for chunk in table.column("pixels").chunks:
            _, offsets, data = chunk.buffers()
            starts.append(np.frombuffer(offsets, np.int64, len(chunk), chunk.offset * 8))
            chunks.append(np.full(len(chunk), len(self._bytes)))
            self._bytes.append(np.frombuffer(data, np.uint8))
        self._starts, self._chunks = np.concatenate(starts), np.concatenate(chunks)

    def sizes(self, numbers: Tensor) -> Tensor:
        return self._sizes[numbers]

    def take(self, numbers: Tensor) -> Ragged:
        channels, flat = self.keep.channels, []
        sizes = self._sizes[numbers].tolist()
        for number, (height, width) in zip(numbers.tolist(), sizes, strict=True):
            start = self._starts[number]
            flat.append(self._bytes[self._chunks[number]][start : start + height * width * channels])
        self._sums.check(numbers.numpy(), flat)
        return Ragged.of([each.reshape(*size, channels) for each, size in zip(flat, sizes, strict=True)], channels)
