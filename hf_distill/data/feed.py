"""`Pool`: labelled images for a device, and the one way in which they reach it.

Preprocessed floats of all images stay on the device where they fit and are worth it, else the pixels do; else the
rows of a batch are gathered on the host and sent, those that are expected next meanwhile. One rule says what fits, by
the memory that is free.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from .ahead import ReadAhead
from .images import RealImages
from .preprocessing import Preprocessing
from .ragged import Ragged
from .upload import upload

__all__ = ["TEST_BATCH", "Keep", "Pool", "upload"]

Keep = Literal["floats", "pixels", "nothing"]

HOST_BYTES = 2**33
FLOATS_PART, PIXELS_PART = 4, 2  # of the free memory, floats may take one in four parts and pixels one in two
FILLED_AT_ONCE, FILLED_BYTES = 4096, 2**30  # images, and bytes of floats, that are preprocessed together to be kept
# The most images that are looked at together where nothing is learned. Not by the device: the last bits of labels that
# are stored depend on it.
TEST_BATCH = 1024


def free_memory(device: torch.device) -> int:
    """Bytes that are free on `device`: what a GPU tells, with what PyTorch has set aside there and does not use, and
    for a host 8 GiB, whatever it has.

    Whitening rounds one product of many images in another way than many of few, so a choice between floats and pixels
    that went by what else is running on a host would change bits from run to run.
    """
    if device.type != "cuda":
        return HOST_BYTES
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def at_once(device: torch.device, on_host: int, part: int) -> int:
    """How much goes together on `device`: one in `part` bytes of the memory that a GPU has, else `on_host`.

    Whatever of it is free: the number decides how sums are rounded, so it is one for every run on such a device.
    """
    return torch.cuda.get_device_properties(device).total_memory // part if device.type == "cuda" else on_host


def processors(device: torch.device) -> int:
    """The parts of `device` that work side by side: a GPU's multiprocessors; a host is one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class Pool:
    """Labelled images, as a network sees them, on a device.

    Images are numbered from 0. Row numbers lie on the CPU, or on `rows_device`.

    Attributes:
        source: The images that were given.
        labels: (R,) on the device.
        preprocessing: From pixels to what a network sees, on the device; None where images are taken as they are.
        shape: (C, H, W).
        device: Where everything comes out.
        rows_device: The device where all images are kept there; else the CPU, on which rows are gathered.
    """

    def __init__(
        self,
        images: Tensor | RealImages,
        labels: Tensor,
        *,
        preprocessing: Preprocessing | None = None,
        device: torch.device | str = "cpu",
        keep: Keep = "pixels",
        free: int | None = None,
    ) -> None:
        """Keep on the device what fits of `images`.

        Args:
            images: (R, C, H, W) pixels, or what a network sees of them, float32; or real images.
            labels: (R,) classes.
            preprocessing: From pixels to what a network sees; None takes `images` as they are.
            device: Where batches come out.
            keep: "floats", which preprocesses everything once, for whoever goes through it many times: they are kept
                if they take at most a quarter of the free memory, else pixels are. "pixels", at most half of it, else
                nothing. "nothing" for whoever takes few images, or each of them once.
            free: Bytes of free memory; the device is asked if not given.
        """
        self.device = torch.device(device)
        self.labels = upload(labels, self.device)
        self.preprocessing = None if preprocessing is None else preprocessing.to(self.device)
        self.shape: tuple[int, int, int] = tuple(images.shape[-3:])
        self.source: Tensor | RealImages = images.detach() if isinstance(images, Tensor) else images
        self._rows: Tensor | None = None  # numbers of the images in `source`, ascending; None for all
        self._keep(keep, free)

    def _keep(self, keep: Keep, free: int | None) -> None:
        self._floats: Tensor | None = None
        self._pixels: Tensor | None = None
        free = free_memory(self.device) if free is None else free
        source, values = self.source, len(self.source) * self.values
        self._read = ReadAhead(source.__getitem__ if isinstance(source, Tensor) else source.uint8)
        self._read_kept = None if isinstance(source, Tensor) or source.keep_side is None else ReadAhead(source.kept)
        if keep == "floats" and self.preprocessing is not None and 4 * values * FLOATS_PART <= free:
            self._floats = torch.empty((len(source), *self.shape), device=self.device)
            size = max(1, min(FILLED_AT_ONCE, FILLED_BYTES // (4 * self.values)))
            for places in torch.arange(len(source)).split(size):
                self._floats[places[0] : places[-1] + 1] = self._seen(self._gathered(places))
        elif isinstance(source, Tensor):
            if source.device.type == self.device.type or (keep != "nothing" and source.nbytes * PIXELS_PART <= free):
                self._pixels = upload(source, self.device)
        elif keep != "nothing" and values * PIXELS_PART <= free:
            self._pixels = source.resident(self.device)
        elif keep != "nothing":
            self.source = source.mapped()
            self._read = ReadAhead(self.source.uint8)
        gathered = (self._floats is None and self._pixels is None) or self._rows is not None
        self.rows_device = torch.device("cpu") if gathered else self.device

    @property
    def keeps(self) -> str:
        """What is kept: "floats" are normalised many at a time, and "pixels" as they are asked for, which may differ in
        last bits where they are whitened."""
        return "pixels" if self._floats is None else "floats"

    @property
    def values(self) -> int:
        """Values of one image."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The images `rows`, of any shape, as a network sees them, and their labels.

        Returns:
            A new tensor (*rows.shape, C, H, W) as of `images`, and (*rows.shape) int64, both on the device.
        """
        rows = upload(rows, self.rows_device)
        return self.images(rows.flatten()).unflatten(0, rows.shape), self.labels[upload(rows, self.device)]

    def images(self, rows: Tensor) -> Tensor:
        """The images `rows` (n,) as a network sees them: a new tensor (n, C, H, W), float32 after preprocessing."""
        if self._floats is not None:
            return self._floats[upload(self._places(rows), self.device)]
        return self._seen(self.pixels(rows))

    def pixels(self, rows: Tensor) -> Tensor:
        """The images `rows` (n,) before any preprocessing: a new tensor (n, C, H, W) of the source's dtype."""
        places = self._places(rows)
        return self._gathered(places) if self._pixels is None else self._pixels[upload(places, self.device)]

    def kept(self, rows: Tensor) -> Ragged | None:
        """The images `rows` (n,), on the CPU, at their own shapes, on the device; None where none are kept."""
        return None if self._read_kept is None else self._read_kept(self._places(rows)).to(self.device)

    @property
    def reads_pixels(self) -> bool:
        """Pixels are read from disk whenever they are asked for."""
        return self._floats is None and self._pixels is None and not isinstance(self.source, Tensor)

    def expect(self, rows: Tensor, *, kept: bool = False) -> None:
        """Read images in a thread that will be asked for soon, as these very rows; nothing where they are in memory.

        Args:
            rows: Of any shape, on the CPU.
            kept: They will be asked for at their own shapes, if any are kept.
        """
        read = self._read_kept if kept else None
        if read is None and self.reads_pixels:
            read = self._read
        if read is not None:
            read.expect(self._places(rows.flatten()))

    def each(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Parts of the rows (n,), one after another, with the images of each, (n, C, H, W); the next is read meanwhile.

        Args:
            parts: On the CPU.
        """
        for number, rows in enumerate(parts):
            for following in parts[number + 1 : number + 2]:
                self.expect(following)
            yield rows, self.images(rows)

    def _places(self, rows: Tensor) -> Tensor:
        """The places of `rows` in what is kept, or else in the source."""
        if self._rows is None:
            return rows
        places = torch.searchsorted(self._rows, rows).clamp(max=len(self._rows) - 1)
        if not torch.equal(self._rows[places], rows):
            raise ValueError(
                f"rows {rows.tolist()[:5]} of a pool that holds {len(self._rows)} of its {len(self)} images, and not "
                "all of these; ask the whole pool for them"
            )
        return places

    def _gathered(self, places: Tensor) -> Tensor:
        return upload(self._read(places), self.device)

    def _seen(self, pixels: Tensor) -> Tensor:
        return pixels if self.preprocessing is None else self.preprocessing(pixels)

    def holding(self, rows: Tensor, free: int | None = None) -> "Pool":
        """The same images under the same numbers, of which only `rows` may be asked for and are kept on the device.

        Where all images are kept already, that is this pool itself. Each of `rows` is gathered once.

        Args:
            rows: Of any shape, on the CPU.
            free: As for the pool.
        """
        if self._floats is not None or self._pixels is not None:
            return self
        part, rows = copy.copy(self), rows.unique()
        places = self._places(rows)
        part.source = self.source[places] if isinstance(self.source, Tensor) else self.source.subset(places)
        part._rows = rows
        part._keep("pixels", free)
        return part

    @property
    def black(self) -> Tensor | float:
        """A black pixel as a network sees it, (C, 1, 1) on the device; 0 where nothing tells."""
        if self.preprocessing is None or self.preprocessing.zca is not None:
            return 0.0
        return self.preprocessing(torch.zeros(1, *self.shape, device=self.device))[0, :, :1, :1]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Everything in order, at most `size` at a time: rows (n,) on the CPU, and images (n, C, H, W)."""
        return self.each(torch.arange(len(self)).split(size))
