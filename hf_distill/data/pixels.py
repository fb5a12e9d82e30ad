"""From encoded images to a memory-mapped column of bytes: decoded, converted and resized once.

How an image becomes (C, H, W) bytes:

- colour: what is transparent is laid on white (on black where on white nothing of the image would be left, as of white
  drawings); 16-bit gray is divided by 257 (65535 -> 255), of other colours of more than 8 bits Pillow reads the highest
  8, which is noted; palettes and CMYK become RGB, RGB becomes gray by ITU-R 601,
  as Pillow has it; EXIF orientation is applied. A range of values, where it is given, becomes 0 to 255 in place of all
  that a file can hold.
- size: the shorter side is brought to the target, antialiased bicubic, and the centre is cropped (for H ≠ W: the
  smallest size that covers). Bicubic, because it keeps most detail at the small sizes of distillation, and is what most
  pretrained networks were fed with. Sizes and offsets are rounded as torchvision's `Resize` and `CenterCrop` do. A
  `Frame` may have another filter, and a shorter side above the target, which cuts more off.
- images that are kept for random crops (`Keep`) have their own shapes: only a shorter side above a limit is brought
  down to it.
"""

import io
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.ExifTags
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Value
from datasets.utils.file_utils import xopen
from torch import Tensor

from ..config import INTERPOLATIONS

__all__ = [
    "BadImages",
    "CorruptImage",
    "Frame",
    "Keep",
    "Levels",
    "Misfit",
    "NoImages",
    "Pixels",
    "Plan",
    "Problem",
    "Sums",
    "Target",
    "decode_stream",
    "decode_table",
    "header",
    "keep_table",
    "levels_of",
    "plan_for",
    "planned_pixels",
    "problem_of",
]

DECODED = {  # columns of images that are brought to one size
    "pixels": Value("binary"),
    "sum": Value("int64"),  # CRC-32 of the pixels
    "problem": Value("string"),
    "hint": Value("string"),
    "low": Value("int64"),
    "high": Value("int64"),
    "lost": Value("bool"),
    "cut": Value("bool"),
}
STREAMED = {**DECODED, "height": Value("int32"), "width": Value("int32"), "row": Value("int64")}
KEPT = {
    "pixels": Value("large_binary"),
    "sum": Value("int64"),
    "problem": Value("string"),
    "hint": Value("string"),
    "height": Value("int32"),
    "width": Value("int32"),
}
J2K_SIZE = b"\xff\x4f\xff\x51"  # the beginning of JPEG 2000's size marker
DEEPEST = 65535  # what becomes 255 of a file of more than 8 bits
LEAST_SPAN = 8  # of 255, between the darkest and the brightest value, that something can be learned from
CUT = "lower bits were cut off"  # in the `info` of an image
HEAD_BYTES = 4096  # of a file, in which it says how many bits its colours have
GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
INSPECTED = 1000  # headers read to tell gray from colour
STREAM_INSPECTED = 64  # images held back for the same where the source is read only once
NAMED = 10  # problems in one message
LONGEST_PATH = 200  # characters of a path in a message
CHUNK_BYTES = 2**26  # of pixels written, and so later mapped, at a time
NO_RANGE = "store such images with 8 bits a channel: --value_range rescales 16-bit gray and not 16-bit colour"
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError)  # what Pillow raises
DECODER_VERSION = 4  # part of the cache key: raise it whenever the pixels change, or the columns
FILTERS = {name: PIL.Image.Resampling[name.upper()] for name in INTERPOLATIONS}  # all antialiased


class Problem(NamedTuple):
    """What is wrong with an image.

    Attributes:
        place: Of the image, in what was decoded or in the split.
        reason: Why it cannot be used.
        hint: What to do about it; None where it is not there or cannot be decoded, and `--skip_corrupt` leaves it out.
    """

    place: int
    reason: str
    hint: str | None = None


class BadImages(ValueError):
    """Images that cannot be used."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


class CorruptImage(ValueError):
    """An image that is not there, or cannot be decoded."""


class Misfit(ValueError):
    """An image that can be decoded, and not be used beside the others: why, and what to do about it."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(f"{reason}; {hint}")
        self.reason, self.hint = reason, hint


class NoImages(ValueError):
    """There is no row to decode."""


@dataclass(frozen=True)
class Frame:
    """The way of an image to its size: resized, and its centre cut out.

    Attributes:
        side: Shorter side in pixels before the centre is cut out; None where no more is cut off than the shape asks.
        interpolation: A name in `FILTERS`.
    """

    side: int | None = None
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class Target:
    """The size and colour that were asked for, before any image was seen.

    Attributes:
        size: Height and width; those of the first image if not given.
        color: rgb, gray, or auto: gray when all inspected images are.
        resize: Bring other sizes to `size`; else they are an error.
        frame: How they are brought to it.
        value_range: Values in files that become 0 and 255; all that 8 or 16 bits hold if not given.
        version: Of the decoder, so that a cache written by another one is not read.
    """

    size: tuple[int, int] | None
    color: str
    resize: bool
    frame: Frame = Frame()
    value_range: tuple[float, float] | None = None
    version: int = DECODER_VERSION

    def plan(self, first: tuple[int, int], all_gray: Iterable[bool]) -> "Plan":
        """The plan, given the size of the first image and which of the inspected ones are gray."""
        gray = self.color == "gray" or (self.color == "auto" and all(all_gray))
        reject_colour = gray and self.color == "auto"
        return Plan(self.size or first, 1 if gray else 3, self.resize, reject_colour, self.frame, self.value_range)


@dataclass(frozen=True)
class Plan:
    """The size and colour that every image gets.

    Attributes:
        size: Height and width.
        channels: 1 or 3.
        resize: Bring other sizes to `size`; else they are an error.
        reject_colour: A colour image is an error, because gray was inferred and not asked for.
        frame: How images are brought to `size`.
        value_range: As in `Target`.
        version: Of the decoder.
    """

    size: tuple[int, int]
    channels: int
    resize: bool
    reject_colour: bool
    frame: Frame = Frame()
    value_range: tuple[float, float] | None = None
    version: int = DECODER_VERSION

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.size)

    @property
    def rows_at_once(self) -> int:
        """Images in one chunk of the file."""
        return rows_in_chunk(self.shape)

    def wrong_size(self, size: tuple[int, int]) -> Misfit:
        """Why an image of this height and width cannot be used."""
        (height, width), (least, across) = size, self.size
        return Misfit(
            f"the image is {height}x{width} (height x width)",
            f"expected {least}x{across}, as the first: images of mixed sizes need --resolution",
        )

    def pixels(self, image: PIL.Image.Image) -> np.ndarray:
        """(C, H, W) uint8.

        Raises:
            Misfit: The image has another size or colour than was promised, or a mode that has no bytes.
        """
        _check_range(image, self.value_range)
        if self.reject_colour and not is_gray(image):
            hint = "give --color rgb, or --color gray to convert such images"
            raise Misfit(f"a {image.mode} image among gray ones", hint)
        image = as_bytes(image, self.channels, self.value_range)
        height, width = self.size
        if image.size != (width, height) or self.frame.side is not None:
            if not self.resize:
                raise self.wrong_size((image.height, image.width))
            image = cover(image, height, width, self.frame)
        return np.asarray(image).reshape(height, width, self.channels).transpose(2, 0, 1)


@dataclass(frozen=True)
class Keep:
    """Images that are kept at their own shapes.

    Attributes:
        channels: 1 or 3.
        side: Shorter side that larger ones are brought down to, in pixels; None keeps all as they are.
        interpolation: A name in `FILTERS`.
        value_range: As in `Target`.
        version: Of the decoder.
    """

    channels: int
    side: int | None
    interpolation: str = "bicubic"
    value_range: tuple[float, float] | None = None
    version: int = DECODER_VERSION

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image is kept at; none is enlarged."""
        short = min(height, width)
        if self.side is None or short <= self.side:
            return height, width
        return self.side * height // short, self.side * width // short

    def pixels(self, image: PIL.Image.Image) -> np.ndarray:
        """(h, w, C) uint8; a `Misfit` as `Plan.pixels`."""
        _check_range(image, self.value_range)
        image = as_bytes(image, self.channels, self.value_range)
        height, width = self.size(image.height, image.width)
        if image.size != (width, height):
            image = image.resize((width, height), FILTERS[self.interpolation])
        return np.asarray(image).reshape(height, width, self.channels)


def rows_in_chunk(shape: tuple[int, int, int]) -> int:
    """Images of `shape` in a chunk of the file."""
    return max(1, CHUNK_BYTES // int(np.prod(shape)))


def is_gray(image: PIL.Image.Image) -> bool:
    """True if the mode is gray, or a palette holds nothing but grays."""
    if image.mode in ("P", "PA"):
        levels = np.asarray(image.convert("RGBA"))[..., :3]
        return bool((levels == levels[..., :1]).all())
    return image.mode in GRAY_MODES


def as_bytes(image: PIL.Image.Image, channels: int, value_range: tuple[float, float] | None = None) -> PIL.Image.Image:
    """The image in mode L (1 channel) or RGB (3 channels), with the ends of `value_range` at 0 and 255."""
    mode = "L" if channels == 1 else "RGB"
    if is_deep(image):
        image = PIL.Image.fromarray(_rescaled(np.asarray(image), value_range or (0, DEEPEST)))
        return image if image.mode == mode else image.convert(mode)
    if image.has_transparency_data:
        image = _on_ground(image)
    for other, step in {"P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}.items():
        if image.mode == other:
            image = image.convert(step)
    image = image if image.mode == mode else image.convert(mode)
    if value_range is None:
        return image
    return image.point(_rescaled(np.arange(256), value_range).tolist() * channels)


def _check_range(image: PIL.Image.Image, value_range: tuple[float, float] | None) -> None:
    """Raise a `Misfit` for floats that are not finite, or whose range is not given; or for one of cut bits that is."""
    if image.info.get(CUT) and value_range is not None:
        raise Misfit("a colour image of more than 8 bits, of which 8 are read", NO_RANGE)
    if image.mode != "F":
        return
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise Misfit("the image has 32-bit floats that are not finite", "store it without them")
    if value_range is None:
        found = f"{values.min():.6g} to {values.max():.6g}"
        raise Misfit(
            f"the image has 32-bit floats, {found} here, whose range nothing tells",
            "give --value_range, or store such images with 8 or 16 bits",
        )


def is_deep(image: PIL.Image.Image) -> bool:
    """True if its values are of 16 or 32 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _rescaled(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """The values as bytes: 0 and 255 at the ends of the range, and beyond them."""
    low, high = value_range
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def _on_ground(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image that has transparency on white, or on black where less than `LEAST_SPAN` of it shows on white."""
    gray = image.mode in GRAY_MODES
    parts = np.asarray(image.convert("RGBA")).astype(np.uint32)
    colour, alpha = parts[..., : 1 if gray else 3], parts[..., 3:]
    ink = colour * alpha + 127
    shown = (ink + 255 * (255 - alpha)) // 255
    if np.ptp(shown) < LEAST_SPAN <= np.ptp(alpha):
        shown = ink // 255
    return PIL.Image.fromarray(shown.astype(np.uint8).squeeze(2) if gray else shown.astype(np.uint8))


class Levels(NamedTuple):
    """What files of more than 8 bits hold.

    Attributes:
        low, high: The least and greatest value; of bits that were cut off, what they can have been in 16 bits.
        lost: Bytes have fewer different ones.
        cut: Only the highest 8 bits were read.
    """

    low: int
    high: int
    lost: bool
    cut: bool

    @classmethod
    def of(cls, image: PIL.Image.Image) -> "Levels | None":
        """Those of one image; None of one of 8 bits."""
        if image.info.get(CUT):
            left = np.asarray(image.convert("RGB"))
            low, high = int(left.min()), int(left.max())
            return cls(256 * low, 256 * high + 255, low < high, True)
        if not is_deep(image):
            return None
        values = np.unique(np.asarray(image))
        lost = len(np.unique(_rescaled(values, (0, DEEPEST)))) < len(values)
        return cls(math.floor(values[0]), math.ceil(values[-1]), lost, False)

    @classmethod
    def among(cls, table: pa.Table) -> "Levels | None":
        """Those of all images of a table with the columns of `DECODED`; None if all are of 8 bits."""
        parts = pc.min(table["low"]), pc.max(table["high"]), pc.any(table["lost"]), pc.any(table["cut"])
        return cls(*(part.as_py() for part in parts)) if parts[0].is_valid else None


def cover(image: PIL.Image.Image, height: int, width: int, frame: Frame) -> PIL.Image.Image:
    """Resize to the smallest size that covers (height, width), scaled to the frame's side, and crop the centre."""
    short = min(height, width)
    side = frame.side or short
    tall, wide = side * height // short, side * width // short
    if image.width * tall >= image.height * wide:
        size = (max(wide, int(tall * image.width / image.height)), tall)
    else:
        size = (wide, max(tall, int(wide * image.height / image.width)))
    image = image.resize(size, FILTERS[frame.interpolation])
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def decode(value: dict[str, Any] | None, feature: datasets.Image) -> PIL.Image.Image:
    """The image of one cell; `CorruptImage` when there is none."""
    if value is None:
        raise CorruptImage("there is no image")
    try:
        if value["bytes"] is None and "://" in (value["path"] or ""):
            with xopen(value["path"], "rb") as file:
                value = {**value, "bytes": file.read()}
        image = feature.decode_example(value)
        if _is_cut(value):
            image.info[CUT] = True
        return image
    except UNREADABLE as error:
        raise _unreadable(value, error) from error


def _is_cut(value: dict[str, Any]) -> bool:
    """True for an encoded image with colours of more than 8 bits, which Pillow decodes to 8."""
    head = value["bytes"]
    if head is None:
        with open(value["path"], "rb") as file:
            head = file.read(HEAD_BYTES)
    if head.startswith(b"\x89PNG"):
        return bool(head[24] == 16 and head[25] != 0)  # of IHDR: bits, and a kind of colour that is not gray
    if head[4:8] == b"ftyp":  # AVIF
        place = head.find(b"av1C", 0, HEAD_BYTES)
        return place >= 0 and bool(head[place + 6] & 0x40)
    if head[4:8] == b"jP  " or head.startswith(J2K_SIZE):
        place = head.find(J2K_SIZE, 0, HEAD_BYTES)
        return head[place + 40 : place + 42] != b"\0\1" and head[place + 42] & 0x7F >= 8
    if not head.startswith((b"II", b"MM", b"P3", b"P6", b"\x01\xda")):
        return False
    with PIL.Image.open(io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"]) as image:
        args = image.tile[0].args if image.tile else None  # of a TIFF, PPM or SGI file: how its values lie there
        how = args if isinstance(args, tuple) else (args,)
        deep = image.format == "PPM" and isinstance(how[-1], int) and how[-1] > 255
        return not is_deep(image) and (deep or ";16" in str(how[0]))


def _unreadable(value: dict[str, Any], error: BaseException) -> CorruptImage:
    path = value.get("path") or ""
    where = f" ({path if len(path) <= LONGEST_PATH else path[:40] + '...'})" if path else ""
    # Of a system call that failed, not the path again.
    cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = " ".join(cause.split()).split(" <_io")[0]
    if len(path) > LONGEST_PATH and value.get("bytes") is None:
        reason += " (expected a path or encoded bytes, and this is a long text: of base64, decode it first)"
    return CorruptImage(f"the image{where} cannot be decoded: {reason}")


def levels_of(feature: datasets.Image, value: dict[str, Any] | None) -> Levels | None:
    """`Levels.of` the image of one cell; `CorruptImage` when there is none."""
    return Levels.of(decode(value, feature))


def problem_of(place: int, error: CorruptImage | Misfit) -> Problem:
    """What an image ended in, as a problem of the one at this place."""
    return Problem(place, error.reason, error.hint) if isinstance(error, Misfit) else Problem(place, str(error))


def _columns(problems: list[Problem | None]) -> dict[str, pa.Array]:
    """The columns `problem` and `hint`.

    Raises:
        BadImages: So many do not fit that the others need not be looked at.
    """
    misfits = [problem for problem in problems if problem is not None and problem.hint is not None]
    if len(misfits) >= NAMED:
        raise BadImages([problem for problem in problems if problem is not None])
    told = {"problem": [each and each.reason for each in problems], "hint": [each and each.hint for each in problems]}
    return {name: pa.array(texts, pa.string()) for name, texts in told.items()}


def decode_table(table: pa.Table, positions: list[int], *, plan: Plan, feature: datasets.Image) -> pa.Table:
    """One batch for `Dataset.map`: encoded images in; `pixels` of C·H·W bytes, `problem` and the parts of `Levels` out.

    One that cannot be used is zeros, and its problem says why.

    Raises:
        BadImages: Ten of them do not fit the others.
    """
    images = np.zeros((len(table), *plan.shape), np.uint8)
    problems: list[Problem | None] = [None] * len(table)
    levels: list[Levels | None] = [None] * len(table)
    for row, (cell, position) in enumerate(zip(table.column(0), positions, strict=True)):
        try:
            image = decode(cell.as_py(), feature)
            images[row], levels[row] = plan.pixels(image), Levels.of(image)
        except (CorruptImage, Misfit) as error:
            problems[row] = problem_of(position, error)
    offsets = np.arange(len(images) + 1, dtype=np.int32) * images[0].size
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(images)]
    pixels = pa.BinaryArray.from_buffers(pa.binary(), len(images), buffers)
    about = {name: [level and getattr(level, name) for level in levels] for name in Levels._fields}
    return pa.table({"pixels": pixels, "sum": _sums(images), **_columns(problems), **about})


def _sums(images: Iterable[np.ndarray]) -> pa.Array:
    return pa.array([zlib.crc32(np.ascontiguousarray(image).data) for image in images], pa.int64())


def planned_pixels(plan: Keep | Plan, feature: datasets.Image, value: dict[str, Any] | None) -> np.ndarray:
    """The image of one cell as `plan.pixels` has it, uint8; `CorruptImage` or `Misfit` when it cannot be used."""
    return plan.pixels(decode(value, feature))


def keep_table(table: pa.Table, positions: list[int], *, plan: Keep, feature: datasets.Image) -> pa.Table:
    """One batch for `Dataset.map`: encoded images in; `pixels` (h·w·C bytes), sides, `problem` and `hint` out.

    One that cannot be used has no pixels, and its problem says why.

    Raises:
        BadImages: Ten of them do not fit the others.
    """
    images: list[np.ndarray] = []
    problems: list[Problem | None] = [None] * len(table)
    for row, (cell, position) in enumerate(zip(table.column(0), positions, strict=True)):
        try:
            images.append(planned_pixels(plan, feature, cell.as_py()))
        except (CorruptImage, Misfit) as error:
            images.append(np.empty((0, 0, plan.channels), np.uint8))
            problems[row] = problem_of(position, error)
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    pixels = pa.array([image.tobytes() for image in images], pa.large_binary())
    columns = {"pixels": pixels, "sum": _sums(images), "height": sizes[:, 0], "width": sizes[:, 1]}
    return pa.table({**columns, **_columns(problems)})


def decode_stream(
    rows: Iterable[tuple[int, Any, dict[str, Any] | None]], feature: datasets.Image, target: Target
) -> Iterator[dict[str, Any]]:
    """Rows of the columns in `STREAMED`, and `label`, for `Dataset.from_generator`, in one pass.

    Args:
        rows: (row number, label, encoded image) of each. One that cannot be used becomes zeros, and a problem.
        feature: Decodes the images.
        target: What they become; `auto` goes by the first images, which are held back until it is known.

    Raises:
        BadImages: Ten images do not fit the first, or none could be decoded.
        NoImages: There are no rows.
    """
    decoded = (_decoded(feature, *row) for row in rows)
    head: list[tuple[int, Any, PIL.Image.Image | Problem]] = []
    good: list[PIL.Image.Image] = []
    for one in decoded:
        head.append(one)
        good += [one[2]] if isinstance(one[2], PIL.Image.Image) else []
        if len(good) == (STREAM_INSPECTED if target.color == "auto" else 1):
            break
    if not head:
        raise NoImages
    if not good:
        raise BadImages([problem for _, _, problem in head if isinstance(problem, Problem)])
    plan = target.plan((good[0].height, good[0].width), map(is_gray, good))
    height, width = plan.size
    problems: list[Problem] = []
    for row, label, image in chain(head, decoded):
        pixels, levels = None, None
        problem = image if isinstance(image, Problem) else None
        if isinstance(image, PIL.Image.Image):
            try:
                pixels, levels = plan.pixels(image).tobytes(), Levels.of(image)
            except Misfit as error:
                problem = problem_of(row, error)
        if problem is not None:
            problems.append(problem)
            if sum(each.hint is not None for each in problems) == NAMED:
                raise BadImages(problems)
        pixels = pixels or bytes(math.prod(plan.shape))
        yield {
            "label": label,
            "pixels": pixels,
            "sum": zlib.crc32(pixels),
            "problem": problem and problem.reason,
            "hint": problem and problem.hint,
            **(dict.fromkeys(Levels._fields) if levels is None else levels._asdict()),
            "height": height,
            "width": width,
            "row": row,
        }


def _decoded(
    feature: datasets.Image, row: int, label: Any, value: dict[str, Any] | None
) -> tuple[int, Any, PIL.Image.Image | Problem]:
    """A row with its image, or why there is none."""
    try:
        return row, label, decode(value, feature)
    except CorruptImage as error:
        return row, label, problem_of(row, error)


def plan_for(images: datasets.Dataset, feature: datasets.Image, target: Target) -> Plan:
    """The plan for one column of `images`, in arrow format, by the headers of up to 1,000 of them, spread over all.

    Raises:
        BadImages: Some of these do not fit the first, or none can be read.
    """
    inspected = np.unique(np.linspace(0, len(images) - 1, min(INSPECTED, len(images))).astype(int)).tolist()
    problems: list[Problem] = []

    def readable() -> Iterator[tuple[int, tuple[int, int], bool]]:
        for position in inspected:
            try:
                yield position, *header(images[position].column(0)[0].as_py(), feature)
            except CorruptImage as error:
                problems.append(problem_of(position, error))

    headers = readable()
    first = next(headers, None)
    if first is None:
        raise BadImages(problems)
    if target.resize:
        return target.plan(first[1], (gray for _, _, gray in chain([first], headers)))
    found = [first, *headers]
    plan = target.plan(first[1], (gray for _, _, gray in found))
    misfits = [problem_of(position, plan.wrong_size(size)) for position, size, _ in found if size != plan.size]
    if misfits:
        raise BadImages(sorted([*problems, *misfits]))
    return plan


def header(value: dict[str, Any] | None, feature: datasets.Image) -> tuple[tuple[int, int], bool]:
    """Height and width, and whether the image is gray, without decoding it unless there is no other way."""
    if (
        feature.mode is not None
        or value is None
        or (value["bytes"] is None and not os.path.isfile(value["path"] or ""))
    ):
        image = decode(value, feature)
        return (image.height, image.width), is_gray(image)
    try:
        with PIL.Image.open(io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"]) as image:
            turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) >= 5
            size = (image.width, image.height) if turned else (image.height, image.width)
            return size, is_gray(image)
    except UNREADABLE as error:
        raise _unreadable(value, error) from error


class Sums:
    """Checksums of images in a mapped file; each is looked at when its image is read for the first time.

    Args:
        decoded: The file, with a column "sum".
    """

    def __init__(self, decoded: datasets.Dataset) -> None:
        self._sums = decoded.data.column("sum").to_numpy()
        self._unread = np.ones(len(self._sums), bool)
        self._files = ", ".join(each["filename"] for each in decoded.cache_files)

    def check(self, numbers: np.ndarray, images: Sequence[np.ndarray] | np.ndarray) -> None:
        """Raise a `ValueError` where one of `images`, those of `numbers`, is not what was written."""
        unread = np.flatnonzero(self._unread[numbers])
        for place in unread.tolist():
            if zlib.crc32(images[place].data) != self._sums[numbers[place]]:
                raise ValueError(
                    f"the decoded image {numbers[place]} is damaged in the cache: its checksum is another; remove "
                    f"{self._files}, and all of them are decoded again"
                )
        self._unread[numbers[unread]] = False


class Pixels:
    """A column of equally long byte strings in a mapped Arrow file, read as images.

    Attributes:
        shape: (C, H, W).
        resized: Images of other sizes were brought to this one, and not refused.
        levels: What the files held, where some are of more than 8 bits.
        sums: Of the images, where they have some.
    """

    def __init__(
        self,
        column: pa.ChunkedArray,
        shape: tuple[int, int, int],
        resized: bool,
        levels: Levels | None = None,
        sums: Sums | None = None,
    ) -> None:
        self.shape, self.resized, self.levels, self.sums = shape, resized, levels, sums
        self._chunks = []
        for chunk in column.chunks:
            if len(chunk):
                _, offsets, data = chunk.buffers()
                start = int(np.frombuffer(offsets, np.int32, 1, chunk.offset * 4)[0])
                flat = np.frombuffer(data, np.uint8, len(chunk) * int(np.prod(shape)), start)
                self._chunks.append(flat.reshape(len(chunk), *shape))
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def at_once(self) -> int:
        """How many to take at a time where one goes through all of them."""
        return rows_in_chunk(self.shape)

    def take(self, rows: Tensor) -> Tensor:
        """A copy of these rows, (n, C, H, W) uint8; nothing else is read from disk. Raises as `Sums.check`."""
        places = rows.numpy()
        images = np.empty((len(places), *self.shape), np.uint8)
        home = np.searchsorted(self._starts, places, side="right") - 1
        for chunk in np.unique(home):
            here = np.flatnonzero(home == chunk)
            images[here] = self._chunks[chunk][places[here] - self._starts[chunk]]
        if self.sums is not None:
            self.sums.check(places, images)
        return torch.from_numpy(images)
