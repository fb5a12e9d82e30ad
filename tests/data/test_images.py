import base64
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from huggingface_hub import DatasetCardData, DatasetInfo, HfApi
from torchvision.transforms import functional as vision

from hf_distill.config import DataArguments
from hf_distill.data import files, pixels
from hf_distill.data.images import Outline, RealImages, _evenly
from hf_distill.data.source import folder_revision
from hf_distill.rng import generator
from hf_distill.runs.folder import describe_images
from tests.helpers import flips


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test, so that no test finds what another decoded."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "flowers").mkdir()
    return tmp_path / "flowers"


def noise(n: int, shape: tuple[int, ...] = (6, 6, 3), seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def write(folder: Path, split: str, images: list, labels: list, label=None, columns=("image", "label"), **more) -> None:
    """`split` as a parquet file: images as PNG, labels of feature `label` (without it: integers)."""
    pictures = [PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image for image in images]
    content = {columns[0]: pictures, columns[1]: labels, **{name: values for name, (values, _) in more.items()}}
    features = {columns[0]: Image(), columns[1]: label or Value("int64")}
    features |= {name: feature for name, (_, feature) in more.items()}
    dataset, path = Dataset.from_dict(content, features=Features(features)), folder / f"{split}-00000.parquet"
    if images:
        dataset.to_parquet(str(path))
    else:  # which older versions of `datasets` do not write
        pq.ParquetWriter(path, dataset.features.arrow_schema).close()


def args(folder: Path, **more) -> DataArguments:
    return DataArguments(dataset_name=str(folder), **more)


def message(problem: str, arguments: DataArguments, split: str | None = None, like: RealImages | None = None) -> str:
    """The error, which must be one line that matches `problem`."""
    with pytest.raises(ValueError, match=problem) as caught:
        RealImages.from_arguments(arguments, split, like=like)
    text = str(caught.value)
    assert "\n" not in text
    return text


def count_decoded(monkeypatch) -> list[int]:
    """A list that grows by one with each image that is decoded from now on."""
    decoded, original = [], Image.decode_example

    def decode(self, value, token_per_repo_id=None):
        decoded.append(1)
        return original(self, value, token_per_repo_id)

    monkeypatch.setattr(Image, "decode_example", decode)
    return decoded


def file(image: PIL.Image.Image, kind: str, **options) -> PIL.Image.Image:
    """The image as read back from a file of that kind, so that it is stored as such."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return PIL.Image.open(io.BytesIO(stream.getvalue()))


# Pixels


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colour * (alpha / 255) + (255 - alpha.astype(float))


def pictures_by_mode() -> dict[str, tuple[PIL.Image.Image, np.ndarray]]:
    """One image of each mode, and the (H, W, C) bytes that it must become, worked out with NumPy."""
    rng = np.random.default_rng(0)
    gray, rgb = rng.integers(0, 256, (6, 5), dtype=np.uint8), rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    alpha, deep = rng.integers(0, 256, (6, 5, 1), dtype=np.uint8), rng.integers(0, 65536, (6, 5)).astype(np.uint16)
    index, table = rng.integers(0, 7, (6, 5), dtype=np.uint8), rng.integers(0, 256, (7, 3), dtype=np.uint8)
    palette = PIL.Image.fromarray(index, "L").convert("P")
    palette.putdata(index.flatten().tolist())
    palette.putpalette(table.flatten().tolist())
    cmyk = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    ink, black = cmyk[..., :3].astype(float), cmyk[..., 3:].astype(float)
    return {
        "L": (file(PIL.Image.fromarray(gray), "png"), gray[..., None]),
        "1": (file(PIL.Image.fromarray(gray > 99), "png"), np.where(gray > 99, 255, 0)[..., None]),
        "LA": (file(PIL.Image.fromarray(np.dstack([gray, alpha])), "png"), on_white(gray[..., None], alpha)),
        "I;16": (file(PIL.Image.fromarray(deep), "png"), np.rint(deep / 65535 * 255)[..., None]),
        "I": (file(PIL.Image.fromarray(deep.astype(np.int32)), "tiff"), np.rint(deep / 65535 * 255)[..., None]),
        "RGB": (file(PIL.Image.fromarray(rgb), "png"), rgb),
        "RGBA": (file(PIL.Image.fromarray(np.dstack([rgb, alpha])), "png"), on_white(rgb, alpha)),
        "P": (file(palette, "png"), table[index]),
        "CMYK": (file(PIL.Image.fromarray(cmyk, "CMYK"), "tiff"), (255 - ink) * (255 - black) / 255),
    }


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16", "I", "RGB", "RGBA", "P", "CMYK"])
def test_every_mode_gives_the_bytes_worked_out_by_hand(folder, mode):
    image, expected = pictures_by_mode()[mode]
    assert image.mode == mode
    stream = io.BytesIO()
    image.save(stream, image.format)
    content = {"image": [{"bytes": stream.getvalue(), "path": None}] * 2, "label": [0, 1]}
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_dict(content, features=features).to_parquet(str(folder / "train.parquet"))
    for color, channels in {"auto": expected.shape[-1], "rgb": 3, "gray": 1}.items():
        real = RealImages.from_arguments(args(folder, color=color))
        assert real.shape == (channels, 6, 5)
        wanted = expected.astype(float)
        if channels == 1 and expected.shape[-1] == 3:
            wanted = (wanted @ [0.299, 0.587, 0.114])[..., None]
        got = real.uint8([0, 1])[1].permute(1, 2, 0).numpy().astype(float)
        assert np.abs(got - np.broadcast_to(wanted, got.shape)).max() <= 1


def drawings(kind: str) -> list[PIL.Image.Image]:
    """Four drawings on transparent ground, each with its own left border."""
    shapes = [np.where(np.arange(8) < 3 + row, 255, 0).astype(np.uint8) * np.ones((8, 1), np.uint8) for row in range(4)]
    if kind == "palette":
        images = [PIL.Image.fromarray(np.where(shape > 0, 1, 0).astype(np.uint8), "L").convert("P") for shape in shapes]
        for image, shape in zip(images, shapes, strict=True):
            image.putdata((shape > 0).astype(int).flatten().tolist())
            image.putpalette([0, 0, 0, 0, 0, 0])
        return [file(image, "png", transparency=0) for image in images]
    if kind == "colour key":
        return [
            file(PIL.Image.fromarray(np.where(shape, 0, 77).astype(np.uint8)), "png", transparency=77)
            for shape in shapes
        ]
    level = {"black": 0, "white": 255, "gray": 0}[kind]
    colours = [np.full_like(shape, level) for shape in shapes]
    return [
        file(PIL.Image.fromarray(np.dstack([colour] * (1 if kind == "gray" else 3) + [shape])), "png")
        for colour, shape in zip(colours, shapes, strict=True)
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["black", "white", "gray", "palette", "colour key"])
def test_a_drawing_on_transparent_ground_is_laid_on_a_ground_that_shows_it(folder, kind, streaming):
    write(folder, "train", drawings(kind), [0, 1, 0, 1])
    real = RealImages.from_arguments(args(folder, dataset_streaming=streaming))
    light, dark = (0, 255) if kind == "white" else (255, 0)
    for row in range(4):
        expected = np.where(np.arange(8) < 3 + row, dark, light)
        np.testing.assert_array_equal(real.uint8([row])[0, 0].numpy(), np.tile(expected, (8, 1)))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("low", "high", "kind", "found"),
    [
        (0, 5, np.uint8, "from 0 to 5 once they are decoded .*--value_range 0 5"),
        (200, 207, np.uint8, "from 200 to 207 once"),
        (9, 9, np.uint8, "from 9 to 9 once .* look at the files"),
        (0, 4095, np.uint16, "values from 0 to 4095 in more than 8 bits.* 16 different .*--value_range 0 4095"),
        (10000, 11023, np.uint16, "--value_range 10000 11023"),
        (-1024, 3071, np.int32, "values from -1024 to 3071 .*--value_range -1024 3071"),
        (0, 70000, np.int32, "--value_range 0 70000"),
        (0, 1, np.uint16, "--value_range 0 1"),
    ],
)
def test_images_that_decoding_leaves_nothing_of_are_refused_until_their_range_is_given(
    folder, streaming, low, high, kind, found
):
    values = np.random.default_rng(0).integers(low, high + 1, (6, 8, 8)).astype(kind)
    values[:, 0, 0], values[:, 0, 1] = low, high
    kept = "tiff" if kind == np.int32 else "png"
    write(folder, "train", [file(PIL.Image.fromarray(image), kept) for image in values], [0, 1] * 3)
    write(folder, "test", [file(PIL.Image.fromarray(image), kept) for image in values[:2, :2, :2]], [0, 1])
    how = {"dataset_streaming": streaming, "resolution": [8]}
    message(found, args(folder, **how))
    if low == high:
        return
    train, test = RealImages.train_and_test(args(folder, value_range=[low, high], **how))
    expected = np.rint((values - float(low)) / (high - low) * 255)
    np.testing.assert_array_equal(train.uint8(range(6))[:, 0].numpy(), expected)
    assert (test.value_range, int(test.resident("cpu").max())) == ((low, high), 255)
    assert describe_images(train)["value_range"] == [low, high]


def png_of_16_bits(values: np.ndarray, kind: int) -> bytes:
    """A PNG file of (H, W, C) values, of the kind of colour that its specification numbers so."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_of_16_bits(values: np.ndarray) -> bytes:
    """A TIFF file of (H, W, C) values."""
    height, width, channels = values.shape
    beyond, data = struct.pack("<" + "H" * channels, *[16] * channels), values.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: None, 259: 1, 262: 2, 273: None, 277: channels, 278: height, 279: len(data)}
    tags |= {338: 2} if channels == 4 else {}
    start = 8 + 2 + 12 * len(tags) + 4
    places = {258: (3, channels, start), 273: (4, 1, start + len(beyond))}
    entries = [
        struct.pack("<HHII", tag, *places.get(tag, (4, 1, value)))
        for tag, value in sorted(tags.items(), key=lambda each: each[0])
    ]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + beyond + data


def ppm_of_16_bits(values: np.ndarray) -> bytes:
    height, width, _ = values.shape
    return b"P6 %d %d 65535\n" % (width, height) + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("write_16", "channels", "streaming"),
    [
        (partial(png_of_16_bits, kind=2), 3, False),
        (partial(png_of_16_bits, kind=6), 4, True),
        (partial(png_of_16_bits, kind=4), 2, False),
        (tiff_of_16_bits, 3, False),
        (ppm_of_16_bits, 3, False),
    ],
)
def test_colours_of_16_bits_are_refused_where_their_highest_8_say_little(folder, streaming, write_16, channels):
    """Pillow reads these only: of 12 bits in 16 there are 16 levels left."""
    rng = np.random.default_rng(0)

    def store(high: int) -> None:
        images = rng.integers(0, high + 1, (4, 6, 6, channels))
        images[:, 0, 0], images[:, 0, 1] = 0, high
        images[..., 3:] = 65535
        if channels == 2:
            images[..., 1] = 65535
        write_cells(folder, "train", [{"bytes": write_16(image), "path": None} for image in images], [0, 1, 0, 1])

    arguments = args(folder, dataset_streaming=streaming)
    store(4095)
    message(
        "values from 0 to 4[0-9]{3} in more than 8 bits.* 1[67] different ones are left; store such images", arguments
    )
    store(65535)
    assert int(RealImages.from_arguments(arguments).resident("cpu").max()) == 255
    message(
        "row 3: a colour image of more than 8 bits, of which 8 are read; store", replace(arguments, value_range=[0, 9])
    )


def test_codecs_of_more_than_8_bits_are_known_by_their_headers():
    codestream = b"\xff\x4f\xff\x51" + bytes(36) + struct.pack(">H", 3)
    for bits, cut in ((8, False), (12, True), (16, True)):
        j2k = codestream + bytes([bits - 1, 1, 1])
        for content in (j2k, bytes(4) + b"jP  \r\n\x87\n" + bytes(60) + j2k):
            assert pixels._is_cut({"bytes": content, "path": None}) is cut
    for flags, cut in ((0x0C, False), (0x4C, True)):
        content = bytes(4) + b"ftypavif" + bytes(80) + b"av1C\x81\x00" + bytes([flags, 0])
        assert pixels._is_cut({"bytes": content, "path": None}) is cut


def test_floats_need_a_range_and_what_lies_beyond_it_is_cut_off(folder):
    values = np.linspace(-2, 3, 64, dtype=np.float32).reshape(8, 8)
    write(folder, "train", [file(PIL.Image.fromarray(values), "tiff")] * 2, [0, 1])
    message("32-bit floats, -2 to 3 here, whose range nothing tells; give --value_range", args(folder))
    real = RealImages.from_arguments(args(folder, value_range=[0, 2], keep_side="source"))
    expected = np.rint(values.clip(0, 2) / 2 * 255)
    np.testing.assert_array_equal(real.uint8([1])[0, 0].numpy(), expected)
    np.testing.assert_array_equal(real.kept([1]).pixels.numpy().reshape(8, 8), expected)
    write(folder, "train", [file(PIL.Image.fromarray(values * np.nan), "tiff")] * 2, [0, 1])
    message("that are not finite", args(folder, value_range=[0, 2]))


def test_drawings_of_two_levels_and_deep_images_of_a_whole_range_are_fine(folder):
    rng = np.random.default_rng(0)
    bits = [PIL.Image.fromarray(rng.integers(0, 2, (6, 6)).astype(bool)) for _ in range(4)]
    deep = [PIL.Image.fromarray(rng.integers(0, 60000, (6, 6)).astype(np.uint16)) for _ in range(4)]
    few = [PIL.Image.fromarray((rng.integers(0, 2, (6, 6)) * 4112).astype(np.uint16)) for _ in range(4)]
    for images in (bits, deep, few):
        write(folder, "train", images, [0, 1, 0, 1])
        assert len(RealImages.from_arguments(args(folder))) == 4


def test_a_rotated_photograph_is_turned_upright(folder):
    image = PIL.Image.fromarray(noise(1, (4, 8, 3))[0])
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6
    stream = io.BytesIO()
    image.save(stream, "png", exif=exif)
    content = {"image": [{"bytes": stream.getvalue(), "path": None}] * 2, "label": [0, 1]}
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_dict(content, features=features).to_parquet(str(folder / "train.parquet"))
    real = RealImages.from_arguments(args(folder))
    np.testing.assert_array_equal(real.uint8([0])[0].permute(1, 2, 0).numpy(), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("streaming", [False, True])
def test_mixed_sizes_are_resized_and_cropped_as_torchvision_does(folder, streaming):
    sizes = [(20, 30), (31, 20), (16, 16), (9, 40), (17, 16), (100, 33)]
    images = [PIL.Image.fromarray(noise(1, (*size, 3), seed)[0]) for seed, size in enumerate(sizes)]
    write(folder, "train", images, [0, 1, 0, 1, 0, 1])
    real = RealImages.from_arguments(args(folder, resolution=[16], dataset_streaming=streaming))
    for got, image in zip(real.uint8(range(6)), images, strict=True):
        small = vision.resize(image, 16, vision.InterpolationMode.BICUBIC)
        np.testing.assert_array_equal(got.permute(1, 2, 0).numpy(), np.asarray(vision.center_crop(small, 16)))


def test_a_target_that_is_not_square_is_covered_and_centred(folder):
    gradient = np.tile(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], (30, 1, 3))
    write(folder, "train", [gradient, gradient.transpose(1, 0, 2)], [0, 1])
    wide, tall = RealImages.from_arguments(args(folder, resolution=[20, 10])).uint8([0, 1]).float()
    assert wide.shape == (3, 20, 10)
    # 30x60 becomes 20x40, and columns 15 to 25 of it stay; 60x30 becomes 20x10, and all of it stays.
    torch.testing.assert_close(wide[0, 10], torch.linspace(0, 255, 40)[15:25], atol=2.5, rtol=0)
    torch.testing.assert_close(tall[0, :, 5], torch.linspace(0, 255, 20), atol=8, rtol=0)


def test_gray_is_inferred_only_when_every_image_is_gray(folder):
    write(folder, "train", noise(4, (6, 6)) + noise(1), [0, 1, 0, 1, 0])
    assert RealImages.from_arguments(args(folder)).shape == (3, 6, 6)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_colour_image_found_after_gray_was_inferred_is_an_error(folder, streaming, monkeypatch):
    monkeypatch.setattr(pixels, "INSPECTED", 2)
    monkeypatch.setattr(pixels, "STREAM_INSPECTED", 2)
    write(folder, "train", [*noise(3, (6, 6)), *noise(1), *noise(1, (6, 6))], [0, 1, 0, 1, 0])
    arguments = args(folder, dataset_streaming=streaming)
    message("row 3 of split 'train' of flowers: a RGB image among gray ones; give --color rgb", arguments)


# Access


def test_rows_in_any_order_equal_the_images_decoded_one_by_one(folder, monkeypatch):
    monkeypatch.setattr(pixels, "CHUNK_BYTES", 6 * 6 * 3 * 4)
    images = noise(30)
    write(folder, "train", images, [row % 3 for row in range(30)])
    real = RealImages.from_arguments(args(folder))
    expected = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    rows = torch.randperm(30, generator=generator(0, "rows")).repeat(2)
    assert torch.equal(real.uint8(rows), expected[rows])
    assert torch.equal(real.uint8([7]), expected[[7]])
    assert torch.equal(real.resident("cpu"), expected)
    assert real.uint8([]).shape == (0, 3, 6, 6)
    torch.testing.assert_close(real.images(rows), real.preprocessing(expected[rows]))
    assert real[4]["pixel_values"].shape == (3, 6, 6)
    assert int(real[4]["labels"]) == 1
    with pytest.raises(IndexError):
        real.uint8([30])


@pytest.mark.parametrize("options", [{}, {"dataset_streaming": True}, {"keep_side": "6"}])
def test_a_bit_that_flips_in_the_cache_of_decoded_images_is_refused_where_the_image_is_read(folder, cache, options):
    write(folder, "train", noise(6), [0, 1] * 3)

    def read() -> None:
        real = RealImages.from_arguments(args(folder, normalization="none", **options))
        if "keep_side" in options:
            real.kept([3])
            real.kept([4])
        real.uint8(range(6))

    read()
    kept = np.asarray(noise(6)[4]) if "keep_side" in options else np.asarray(noise(6)[4]).transpose(2, 0, 1)
    files = [path for path in cache.rglob("*.arrow") if kept.tobytes() in path.read_bytes()]
    assert files
    for path in files:
        content = bytearray(path.read_bytes())
        content[content.index(kept.tobytes()) + 20] ^= 4
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"decoded image 4 is damaged in the cache.*\.arrow, and all of them") as error:
        read()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"dataset_streaming": True}, {"keep_side": "6"}, {"normalization": "zca"}])
def test_a_cache_that_nobody_can_write_to_is_read_and_what_it_lacks_is_made_elsewhere(
    folder, small_disk, monkeypatch, options
):
    write(folder, "train", noise(6), [0, 1] * 3)
    disk = small_disk(4000)
    cache = disk / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    first = RealImages.from_arguments(args(folder, **options))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    decoded = count_decoded(monkeypatch)
    again = RealImages.from_arguments(args(folder, **options))
    assert not decoded
    assert torch.equal(again.images(range(6)), first.images(range(6)))
    write(folder, "test", noise(2, seed=1), [0, 1])
    assert len(RealImages.from_arguments(args(folder), "test", like=again)) == 2


@pytest.mark.parametrize("size", [200, 600])
def test_a_disk_that_is_too_small_for_the_cache_is_one_line_that_names_it(folder, small_disk, monkeypatch, size):
    write(folder, "train", noise(30, (64, 64, 3)), [0, 1] * 15)  # of 370 KB, and as much once decoded
    cache = small_disk(size) / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    with pytest.raises(OSError, match=rf"No space left on device: [0-9,]+ bytes are free: '{cache}'") as error:
        RealImages.from_arguments(args(folder))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the kernel does not list its maps")
@pytest.mark.parametrize("streaming", [False, True])
def test_pixels_stay_in_the_mapped_file_and_are_not_copied(folder, streaming):
    write(folder, "train", noise(20), [row % 2 for row in range(20)])
    real = RealImages.from_arguments(args(folder, dataset_streaming=streaming))
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".arrow")]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    for chunk in real._pixels._chunks:
        address = chunk.__array_interface__["data"][0]
        assert any(start <= address and address + chunk.nbytes <= stop for start, stop in ranges)


def test_only_the_chunks_that_hold_the_rows_are_touched(folder, monkeypatch):
    monkeypatch.setattr(pixels, "CHUNK_BYTES", 6 * 6 * 3 * 5)
    write(folder, "train", noise(20), [row // 10 for row in range(20)])
    real = RealImages.from_arguments(args(folder))
    assert len(real._pixels._chunks) == 4
    expected = real.uint8([1, 6, 9])
    real._pixels._chunks[2:] = [None, None]
    assert torch.equal(real.uint8([1, 6, 9]), expected)
    assert real.sample(0, 10, generator(0)).shape == (10, 3, 6, 6)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_second_load_decodes_nothing(folder, streaming, monkeypatch):
    write(folder, "train", noise(12), [row % 2 for row in range(12)])
    arguments = args(folder, dataset_streaming=streaming)
    decoded = count_decoded(monkeypatch)
    first = RealImages.from_arguments(arguments)
    assert len(decoded) == 12
    second = RealImages.from_arguments(arguments)
    assert len(decoded) == 12
    assert torch.equal(first.resident("cpu"), second.resident("cpu"))
    RealImages.from_arguments(args(folder, resolution=[3], dataset_streaming=streaming))
    assert len(decoded) == 24


def test_streaming_gives_what_loading_gives(folder):
    labels = [row % 5 for row in range(40)]
    names = ["e", "d", "c", "b", "a"]
    write(folder, "train", noise(40, (8, 6, 3)), labels, ClassLabel(names=names))
    write(folder, "test", noise(10, (8, 6, 3), 1), labels[:10], ClassLabel(names=names))
    for more in ({}, {"resolution": [4]}, {"classes": ["b", "e"]}, {"max_train_samples": 13, "max_test_samples": 7}):
        loaded = RealImages.train_and_test(args(folder, **more))
        streamed = RealImages.train_and_test(args(folder, dataset_streaming=True, **more))
        for one, other in zip(loaded, streamed, strict=True):
            assert torch.equal(one.resident("cpu"), other.resident("cpu"))
            assert torch.equal(one.labels, other.labels)
            assert one.class_names == other.class_names
            assert one.preprocessing.to_config() == other.preprocessing.to_config()
            assert one.revision == other.revision


def test_streaming_decodes_only_the_classes_that_are_kept(folder, monkeypatch):
    write(folder, "train", noise(20), [row % 5 for row in range(20)])
    decoded = count_decoded(monkeypatch)
    RealImages.from_arguments(args(folder, dataset_streaming=True, classes=["1", "4"]))
    assert len(decoded) == 8


@pytest.mark.parametrize("streaming", [False, True])
def test_a_changed_folder_is_read_again(folder, streaming):
    arguments = args(folder, dataset_streaming=streaming)
    write(folder, "train", noise(4), [0, 1, 0, 1])
    before = RealImages.from_arguments(arguments)
    write(folder, "train", noise(4, seed=1), [0, 1, 0, 1])
    after = RealImages.from_arguments(arguments)
    assert before.revision != after.revision
    np.testing.assert_array_equal(after.resident("cpu").permute(0, 2, 3, 1).numpy(), np.stack(noise(4, seed=1)))


def test_several_processes_decode_the_same_pixels(folder):
    write(folder, "train", noise(30), [row % 2 for row in range(30)])
    real = RealImages.from_arguments(args(folder, num_proc=2))
    assert torch.equal(real.resident("cpu"), torch.from_numpy(np.stack(noise(30))).permute(0, 3, 1, 2))


@pytest.mark.slow
def test_of_processes_that_start_together_one_decodes_and_all_see_the_same(folder, tmp_path):
    write(folder, "train", noise(12), [row % 2 for row in range(12)])
    script = tmp_path / "load.py"
    script.write_text(
        f"""
from datasets import Image
from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages

decoded, original = [], Image.decode_example
def decode(self, value, token_per_repo_id=None):
    decoded.append(1)
    return original(self, value, token_per_repo_id)
Image.decode_example = decode
for streaming in (False, True):
    real = RealImages.from_arguments(DataArguments(dataset_name={str(folder)!r}, dataset_streaming=streaming))
    print(len(decoded), int(real.resident("cpu").sum()))
    decoded.clear()
"""
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "shared"), "PYTHONPATH": ":".join(filter(None, sys.path))}
    environment.pop("HF_DATASETS_CACHE", None)
    together = [
        subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    printed = [process.communicate()[0].decode().splitlines() for process in together]
    total = int(np.stack(noise(12)).sum())
    for lines in zip(*printed, strict=True):
        assert sorted(lines) == [f"0 {total}", f"12 {total}"]
    assert [len(lines) for lines in printed] == [2, 2]


# Sampling


def unbalanced(folder: Path) -> list[int]:
    labels = [0] * 20 + [1] * 7 + [2] * 2 + [3] + [0] * 10
    write(folder, "train", noise(len(labels)), labels)
    return labels


def test_class_rows_are_the_rows_of_that_class(folder):
    labels = np.array(unbalanced(folder))
    real = RealImages.from_arguments(args(folder))
    for label in range(4):
        assert real.class_rows(label).tolist() == np.flatnonzero(labels == label).tolist()


def test_a_sample_has_different_images_of_its_class_and_follows_its_generator(folder):
    unbalanced(folder)
    real = RealImages.from_arguments(args(folder))
    images = real.sample(1, 7, generator(3, "draw"))
    assert len(torch.unique(images, dim=0)) == 7
    everything = {image.numpy().tobytes() for image in real.images(real.class_rows(1))}
    assert {image.numpy().tobytes() for image in images} == everything
    assert torch.equal(images, real.sample(1, 7, generator(3, "draw")))
    assert not torch.equal(images, real.sample(1, 7, generator(4, "draw")))
    with pytest.raises(ValueError, match=r"8 different images of class '1' were asked for and it has 7; .*--classes"):
        real.sample(1, 8, generator(0))


def test_a_split_is_stratified_disjoint_complete_and_seeded(folder):
    unbalanced(folder)
    real = RealImages.from_arguments(args(folder))
    rest, held_out = real.split(0.2, seed=5)
    assert torch.bincount(held_out.labels, minlength=4).tolist() == [6, 1, 1, 0]
    assert torch.bincount(rest.labels, minlength=4).tolist() == [24, 6, 1, 1]
    pieces = torch.cat([rest.resident("cpu"), held_out.resident("cpu")]).flatten(1)
    assert len(torch.unique(pieces, dim=0)) == len(real)
    again = real.split(0.2, seed=5)[1]
    assert torch.equal(again.resident("cpu"), held_out.resident("cpu"))
    assert not torch.equal(real.split(0.2, seed=6)[1].resident("cpu"), held_out.resident("cpu"))
    assert [len(part) for part in real.split(0.0, seed=5)] == [40, 0]


def test_a_subset_of_a_subset_is_a_view_in_the_given_order(folder):
    labels = unbalanced(folder)
    real = RealImages.from_arguments(args(folder))
    view = real.subset([29, 20, 5, 3]).subset(torch.tensor([2, 0]))
    assert torch.equal(view.uint8([0, 1]), real.uint8([5, 29]))
    assert view.labels.tolist() == [labels[5], labels[29]]
    assert view._pixels is real._pixels
    assert view.class_rows(3).tolist() == [1]
    assert view.num_classes == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_max_train_samples_are_drawn_evenly_and_by_seed(folder, streaming):
    unbalanced(folder)
    arguments = args(folder, max_train_samples=20, dataset_streaming=streaming)
    real = RealImages.from_arguments(arguments)
    # 2 + 1 images of the small classes are all there is; the other 17 are shared.
    assert torch.bincount(real.labels).tolist() == [10, 7, 2, 1]
    assert torch.equal(real.resident("cpu"), RealImages.from_arguments(arguments).resident("cpu"))
    assert not torch.equal(real.resident("cpu"), RealImages.from_arguments(arguments, seed=1).resident("cpu"))
    few = RealImages.from_arguments(args(folder, max_train_samples=9, dataset_streaming=streaming))
    assert torch.bincount(few.labels).tolist() == [3, 3, 2, 1]
    assert len(RealImages.from_arguments(args(folder, max_train_samples=99))) == 40


def test_max_train_samples_decodes_only_what_it_keeps(folder, monkeypatch):
    unbalanced(folder)
    decoded = count_decoded(monkeypatch)
    RealImages.from_arguments(args(folder, max_train_samples=8))
    assert len(decoded) == 8


def test_a_loader_gives_every_image_once_and_shuffles_by_seed_for_training(folder):
    unbalanced(folder)
    real = RealImages.from_arguments(args(folder))
    batches = list(real.loader(16, train=False))
    assert [len(batch["labels"]) for batch in batches] == [16, 16, 8]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), real.images(range(40)))
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), real.labels)

    def epoch(loader):
        return torch.cat([batch["pixel_values"] for batch in loader])

    loader, same, other = (real.loader(16, train=True, seed=seed) for seed in (0, 0, 1))
    first, second = epoch(loader), epoch(loader)
    assert torch.equal(first, epoch(same))
    assert torch.equal(second, epoch(same))
    assert not torch.equal(first, second)
    assert not torch.equal(first, epoch(other))
    assert torch.equal(first.sum(0), second.sum(0)) or torch.allclose(first.sum(0), second.sum(0), atol=1e-4)


# Labels and classes


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("label", "values", "names"),
    [
        (Value("int32"), [30, 4, 4, 100, 30], ["4", "30", "100"]),
        (Value("string"), ["dog", "cat", "cat", "eel", "dog"], ["cat", "dog", "eel"]),
        (Value("bool"), [True, False, False, True, True], ["False", "True"]),
        (ClassLabel(names=["z", "y", "x"]), [1, 0, 0, 2, 1], ["z", "y", "x"]),
        (Value("uint8"), [7, 3, 3, 7, 7], ["3", "7"]),
    ],
)
def test_labels_of_any_kind_become_numbers_in_the_order_of_their_names(folder, streaming, label, values, names):
    write(folder, "train", noise(5), values, label)
    real = RealImages.from_arguments(args(folder, dataset_streaming=streaming))
    assert real.class_names == names
    expected = [value if isinstance(label, ClassLabel) else names.index(str(value)) for value in values]
    assert real.labels.tolist() == expected
    assert real.labels.dtype == torch.int64


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_are_kept_in_the_given_order(folder, streaming):
    write(folder, "train", noise(8), [0, 1, 2, 3, 0, 1, 2, 3], ClassLabel(names=["a", "b", "c", "d"]))
    write(folder, "test", noise(4), [3, 2, 1, 0], ClassLabel(names=["a", "b", "c", "d"]))
    train, test = RealImages.train_and_test(args(folder, classes=["d", "b"], dataset_streaming=streaming))
    assert train.class_names == test.class_names == ["d", "b"]
    assert train.labels.tolist() == [1, 0, 1, 0]
    assert test.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(train.uint8([0, 1]).permute(0, 2, 3, 1).numpy(), np.stack(noise(8))[[1, 3]])


@pytest.mark.parametrize("streaming", [False, True])
def test_test_labels_follow_the_class_order_of_train(folder, streaming):
    write(folder, "train", noise(3), [0, 1, 2], ClassLabel(names=["a", "b", "c"]))
    other = folder.parent / "other"
    other.mkdir()
    write(other, "test", noise(4), [0, 1, 2, 2], ClassLabel(names=["c", "a", "b"]))
    train = RealImages.from_arguments(args(folder))
    test = RealImages.from_arguments(args(other, dataset_streaming=streaming), "test", like=train)
    assert test.labels.tolist() == [2, 0, 1, 1]
    assert test.class_names == train.class_names
    assert test.preprocessing is train.preprocessing
    write(other, "test", noise(2), ["c", "b"], Value("string"))
    assert RealImages.from_arguments(args(other), "test", like=train).labels.tolist() == [2, 1]
    write(other, "test", noise(2), ["c", "bb"], Value("string"))
    message("row 1 of split 'test' of other: class 'bb', which train lacks", args(other), "test", train)
    write(other, "test", noise(4), ["c", "bb", "bb", "dd"], Value("string"))
    message("row 1 of .*: class 'bb', which .*; row 2: class 'bb'; row 3: class 'dd'", args(other), "test", train)


def test_a_test_split_has_the_size_and_colour_of_train(folder):
    write(folder, "train", noise(4, (12, 8, 3)), [0, 1, 0, 1])
    write(folder, "validation", noise(4, (20, 20)), [0, 0, 0, 0])
    train, test = RealImages.train_and_test(args(folder, resolution=[5, 7]))
    assert train.shape == test.shape == (3, 5, 7)
    assert test.provenance["split"] == "validation"


def test_columns_are_found_by_what_they_hold_or_taken_as_given(folder):
    label, more = ClassLabel(names=["a", "b"]), {"id": ([5, 6, 7], Value("int64"))}
    write(folder, "train", noise(3), [0, 1, 1], label, ("photo", "kind"), **more)
    assert RealImages.from_arguments(args(folder)).labels.tolist() == [0, 1, 1]
    assert RealImages.from_arguments(args(folder, label_column_name="id")).class_names == ["5", "6", "7"]
    write(folder, "train", noise(3), [0, 1, 1], Value("int64"), ("photo", "label"), **more)
    assert RealImages.from_arguments(args(folder, image_column_name="photo")).class_names == ["0", "1"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [f"img-{row:04}" for row in range(120)],
        list(range(1000, 1120)),
        [f"A photograph of {row // 2} flowers in a garden." for row in range(120)],
        [row // 3 for row in range(120)],
    ],
    ids=["names", "numbers", "sentences", "bursts"],
)
def test_a_column_of_ids_or_sentences_is_no_label_unless_the_user_says_so(folder, streaming, values, monkeypatch):
    write(
        folder,
        "train",
        noise(120, (2, 2)),
        values,
        Value("int64" if type(values[0]) is int else "string"),
        ("image", "of"),
    )
    write(
        folder,
        "test",
        noise(2, (2, 2)),
        values[:2],
        Value("int64" if type(values[0]) is int else "string"),
        ("image", "of"),
    )
    text = message(
        "one column that could be the label, 'of', and it looks like none: .*--label_column_name of",
        args(folder, dataset_streaming=streaming),
    )
    assert len(text) < 400
    said = args(folder, label_column_name="of", dataset_streaming=streaming)
    assert RealImages.from_arguments(said).num_classes == len(set(values))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_that_has_few_values_in_train_and_others_in_test_is_asked_about(folder, streaming):
    write(folder, "train", noise(40), [row % 4 for row in range(40)], None, ("image", "patient"))
    write(folder, "test", noise(4), [4, 5, 4, 5], None, ("image", "patient"))
    assert RealImages.from_arguments(args(folder, dataset_streaming=streaming)).num_classes == 4
    with pytest.raises(ValueError, match=r"class '4', which train lacks.*--label_column_name, if not 'patient'"):
        RealImages.train_and_test(args(folder, dataset_streaming=streaming))


def test_a_class_label_is_a_label_also_with_one_image_per_class(folder):
    names = [f"n{row}" for row in range(30)]
    write(folder, "train", noise(30), list(range(30)), ClassLabel(names=names), ("image", "of"))
    assert RealImages.from_arguments(args(folder)).class_names == names


@pytest.mark.parametrize("streaming", [False, True])
def test_the_class_of_a_webdataset_is_its_label(folder, streaming):
    with tarfile.open(folder / "train.tar", "w") as archive:
        for row, image in enumerate(noise(6)):
            for kind, content in (("png", png(image)["bytes"]), ("cls", str(row % 3).encode())):
                member = tarfile.TarInfo(f"{row:03}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    real = RealImages.from_arguments(args(folder, dataset_streaming=streaming))
    assert (real.class_names, real.labels.tolist()) == (["0", "1", "2"], [0, 1, 2] * 2)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_may_be_called_anything(folder, streaming):
    write(folder, "train", noise(4), [1, 0, 1, 0], ClassLabel(names=["a", "b"]), ("pixels", "height"))
    real = RealImages.from_arguments(args(folder, dataset_streaming=streaming))
    assert real.labels.tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(real.resident("cpu").permute(0, 2, 3, 1).numpy(), np.stack(noise(4)))


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_written_without_datasets_is_read(folder, streaming):
    cells = []
    for image in noise(4):
        stream = io.BytesIO()
        PIL.Image.fromarray(image).save(stream, "png")
        cells.append({"bytes": stream.getvalue(), "path": None})
    pq.write_table(pa.table({"picture": cells, "answer": ["no", "yes", "no", "yes"]}), folder / "train.parquet")
    real = RealImages.from_arguments(args(folder, dataset_streaming=streaming))
    assert real.class_names == ["no", "yes"]
    np.testing.assert_array_equal(real.resident("cpu").permute(0, 2, 3, 1).numpy(), np.stack(noise(4)))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_image_files_by_class_is_read(folder, streaming):
    for split, per_class in (("train", 3), ("test", 1)):
        for label, name in enumerate(["cat", "dog"]):
            place = folder / split / name
            place.mkdir(parents=True)
            for row, image in enumerate(noise(per_class, (9, 7), seed=label)):
                PIL.Image.fromarray(image).save(place / f"{row}.png")
    train, test = RealImages.train_and_test(args(folder, dataset_streaming=streaming))
    assert train.class_names == ["cat", "dog"]
    assert (train.shape, len(train), len(test)) == ((1, 9, 7), 6, 2)
    for label in range(2):
        got = train.uint8(train.class_rows(label))[:, 0].numpy()
        np.testing.assert_array_equal(got, np.stack(noise(3, (9, 7), seed=label)))


def test_images_of_some_classes_are_those_that_were_drawn_with_all_of_them(folder):
    write(folder, "train", noise(30), [0] * 10 + [1] * 12 + [2] * 8)
    train, test = RealImages.train_and_test(args(folder, validation_fraction=0.25))
    rest, held_out = train.split(0.25, seed=0)
    for part in (train, test, rest, held_out):
        some = part.of_classes([train.class_names[label] for label in (2, 0)])
        assert some.class_names == [train.class_names[label] for label in (2, 0)]
        kept = [row for row, label in enumerate(part.labels.tolist()) if label != 1]
        assert some.labels.tolist() == [{2: 0, 0: 1}[label] for label in part.labels[kept].tolist()]
        assert torch.equal(some.uint8(range(len(some))), part.uint8(kept))
        assert some.rows.tolist() == part.rows[kept].tolist()
        assert [len(some.class_rows(label)) for label in range(2)] == some.outline.counts
        assert part.outline.of_classes(some.class_names) == some.outline
    for names in (["bird", "cat"], [train.class_names[0]] * 2):
        with pytest.raises(ValueError, match="expected different ones of theirs"):
            train.of_classes(names)


def test_without_a_test_split_a_fifth_of_each_class_is_held_out(folder, caplog):
    labels = [0] * 20 + [1] * 10
    write(folder, "train", noise(30), labels)
    with caplog.at_level("WARNING"):
        train, test = RealImages.train_and_test(args(folder))
    assert "flowers has no test split: a fifth of 'train' is held out" in caplog.text
    assert test.is_part_of_train
    assert torch.bincount(test.labels).tolist() == [4, 2]
    assert torch.bincount(train.labels).tolist() == [16, 8]
    both = torch.cat([train.resident("cpu"), test.resident("cpu")]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 30
    levels = train.resident("cpu").double().numpy() / 255
    np.testing.assert_allclose(train.preprocessing.mean, levels.mean((0, 2, 3)), rtol=1e-12)
    assert test.preprocessing is train.preprocessing
    again = RealImages.train_and_test(args(folder))[1]
    assert torch.equal(again.resident("cpu"), test.resident("cpu"))
    few = RealImages.train_and_test(args(folder, max_train_samples=6, max_test_samples=2))
    assert [torch.bincount(part.labels).tolist() for part in few] == [[3, 3], [1, 1]]


# Preprocessing and provenance


def test_normalisation_is_computed_given_whitening_or_none(folder):
    write(folder, "train", noise(30), [row % 2 for row in range(30)])
    levels = np.stack(noise(30)).astype(float) / 255
    computed = RealImages.from_arguments(args(folder)).preprocessing
    np.testing.assert_allclose(computed.mean, levels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(computed.std, levels.std((0, 1, 2)), rtol=1e-10)
    given = RealImages.from_arguments(args(folder, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0])).preprocessing
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    none = RealImages.from_arguments(args(folder, normalization="none"))
    np.testing.assert_allclose(none.images([0])[0].permute(1, 2, 0).numpy(), levels[0], atol=1e-6)
    whitened = RealImages.from_arguments(args(folder, normalization="zca", zca_eps=0.3))
    assert whitened.preprocessing.zca.eps == 0.3
    torch.testing.assert_close(whitened.images(range(30)).mean(0), torch.zeros(3, 6, 6), atol=1e-5, rtol=0)
    message(r"--mean has 1 number\(s\) and the images 3 channel", args(folder, mean=[0.5], std=[0.5]))


def test_a_whitening_is_fitted_once_and_read_back_bit_for_bit(folder, monkeypatch):
    write(folder, "train", noise(30), [row % 2 for row in range(30)])
    arguments = args(folder, normalization="zca")
    first = RealImages.from_arguments(arguments).preprocessing
    monkeypatch.setattr("hf_distill.data.images.fit_zca", None)
    again = RealImages.from_arguments(arguments).preprocessing
    assert again.fingerprint() == first.fingerprint()
    assert all(torch.equal(again.tensors()[name], part) for name, part in first.tensors().items())
    for other in ({"zca_eps": 0.2}, {"max_train_samples": 20}, {"resolution": [5]}):
        with pytest.raises(TypeError):
            RealImages.from_arguments(args(folder, normalization="zca", **other))


def test_provenance_names_the_folder_its_licence_and_its_content(folder):
    write(folder, "train", noise(4), [0, 1, 0, 1])
    (folder / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n# Flowers\n")
    real = RealImages.from_arguments(args(folder))
    assert real.provenance["name"] == "flowers"
    assert real.provenance["license"] == "cc-by-sa-4.0"
    assert real.provenance["num_images"] == 4
    assert real.revision == real.provenance["revision"]
    assert str(folder.parent) not in json.dumps(real.provenance)


def test_a_folder_is_another_when_its_files_are(folder):
    write(folder, "train", noise(4), [0, 1, 0, 1])
    (folder / "more").mkdir()
    (folder / "more" / "note.txt").write_text("one")
    big = folder / "more" / "large.bin"
    big.write_bytes(bytes(100_000))
    seen = []
    for change in (
        lambda: None,
        lambda: (folder / "more" / "note.txt").write_text("two"),
        lambda: (folder / "more" / "note.txt").write_text("three"),
        lambda: (folder / "more" / "note.txt").rename(folder / "more" / "other.txt"),
        lambda: big.write_bytes(bytes(99_999) + b"1"),
        lambda: (folder / ".hidden").write_text("not data"),
    ):
        change()
        seen.append(folder_revision(args(folder)))
        assert seen[-1] == folder_revision(args(folder))
    assert len(set(seen[:5])) == 5
    assert seen[5] == seen[4]


def test_a_copy_of_a_folder_is_the_same_data_whenever_it_was_made(folder, tmp_path):
    write(folder, "train", noise(4), [0, 1, 0, 1])
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "train-00000.parquet", (10**9, 10**9))
    (tmp_path / "link").symlink_to(folder)
    assert len({folder_revision(args(each)) for each in (folder, tmp_path / "copy", tmp_path / "link")}) == 1


def test_what_has_not_changed_since_is_hashed_once(folder, monkeypatch):
    for name in ("train", "test"):
        write(folder, name, noise(4), [0, 1, 0, 1])
        os.utime(folder / f"{name}-00000.parquet", (10**9, 10**9))
    hashed, original = [], files.sha256_of_file
    monkeypatch.setattr(files, "sha256_of_file", lambda path: hashed.append(path.name) or original(path))
    train, test = RealImages.train_and_test(args(folder))
    assert train.revision == test.revision
    assert sorted(hashed) == ["test-00000.parquet", "train-00000.parquet"]
    write(folder, "train", noise(4, seed=1), [0, 1, 0, 1])
    assert folder_revision(args(folder)) != train.revision
    assert hashed[2:] == ["train-00000.parquet"]


def test_a_flipped_bit_in_what_is_known_of_files_has_them_hashed_again(folder):
    write(folder, "train", noise(4), [0, 1, 0, 1])
    os.utime(folder / "train-00000.parquet", (10**9, 10**9))
    revision = folder_revision(args(folder))
    for _ in flips(files.cache_folder(), "hf_distill-hashes-*", 40):
        assert folder_revision(args(folder)) == revision


CONFIGS = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train-*.parquet\n---\n"


@pytest.mark.parametrize(("streaming", "card"), [(False, ""), (True, ""), (False, CONFIGS)])
def test_a_label_that_was_corrected_in_a_file_of_the_same_size_is_read(folder, streaming, card):
    images, labels = noise(60, (20, 20, 3)), [0, 1] * 30
    (folder / "README.md").write_text(card)
    write(folder, "train", images, labels)
    size = (folder / "train-00000.parquet").stat().st_size
    before = RealImages.from_arguments(args(folder, dataset_streaming=streaming))
    labels[30:32] = [1, 0]
    write(folder, "train", images, labels)
    assert (folder / "train-00000.parquet").stat().st_size == size
    after = RealImages.from_arguments(args(folder, dataset_streaming=streaming))
    assert after.labels.tolist() == labels != before.labels.tolist()
    assert after.revision != before.revision


# Which files are read


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("images", ["lists/photos", "photos"])
def test_the_paths_in_a_table_are_relative_to_it_or_to_nothing(folder, streaming, images, tmp_path):
    (folder / "lists").mkdir()
    place(folder, images, 6)
    column = [os.path.relpath(folder / images / f"{row}.png", folder / "lists") for row in range(5)]
    column.append(str(folder / images / "5.png"))
    lines = ["file,kind", *(f"{path},{'ab'[row % 2]}" for row, path in enumerate(column))]
    (folder / "lists" / "list.csv").write_text("\n".join(lines))
    arguments = args(folder, image_column_name="file", label_column_name="kind", dataset_streaming=streaming)
    real = RealImages.from_arguments(arguments)
    np.testing.assert_array_equal(real.resident("cpu")[:, 0].numpy(), np.stack(noise(6, (6, 6)))[..., :6])
    PIL.Image.fromarray(noise(1, (6, 6), 9)[0]).save(folder / images / "2.png")
    changed = RealImages.from_arguments(arguments)
    np.testing.assert_array_equal(changed.uint8([2])[0, 0].numpy(), noise(1, (6, 6), 9)[0])
    (tmp_path / "secret.png").write_bytes((folder / images / "0.png").read_bytes())
    (folder / "lists" / "list.csv").write_text("file,kind\n../../secret.png,a\n../../secret.png,b")
    message("row 0 of split 'train' of flowers: the image .*secret.png. cannot be decoded: No such file", arguments)


def test_a_folder_whose_name_is_a_pattern_is_named(folder):
    write(folder, "train", noise(4), [0, 1, 0, 1])
    folder.rename(folder.parent / "flowers[lr=0.1]")
    message("takes .* in a path for a pattern and finds nothing there", args(folder.parent / "flowers[lr=0.1]"))


def place(folder: Path, names: str, count: int = 2) -> None:
    """Image files in each of the folders that `names` lists."""
    for seed, name in enumerate(names.split()):
        (folder / name).mkdir(parents=True)
        for row, image in enumerate(noise(count, (6, 6), seed)):
            PIL.Image.fromarray(image).save(folder / name / f"{row}.png")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("names", "classes", "test"),
    [
        ("bus car tram train-steam train-diesel", ["bus", "car", "train-diesel", "train-steam", "tram"], False),
        ("bus car train", ["bus", "car", "train"], False),
        ("photos/test.tube photos/flask", ["flask", "test.tube"], False),
        ("eval_set val-1 dev", ["dev", "eval_set", "val-1"], False),
        ("train/bus train/train-steam test/bus test/train-steam", ["bus", "train-steam"], True),
        ("Train/bus Train/car Test/bus Test/car", ["bus", "car"], True),
        ("train/bus train/car test/bus test/car", ["bus", "car"], True),
    ],
)
def test_class_folders_are_all_read_whatever_splits_their_names_speak_of(folder, names, classes, test, streaming):
    place(folder, names, 10)
    read = RealImages.train_and_test(args(folder, dataset_streaming=streaming))
    assert read[0].class_names == classes
    of_train = len(classes) * (10 if test else 8)
    assert [len(part) for part in read] == [of_train, len(names.split()) * 10 - of_train]
    pixels = torch.cat([part.resident("cpu") for part in read]).flatten(1)
    assert len(torch.unique(pixels, dim=0)) == len(names.split()) * 10


def test_folders_of_one_name_that_become_one_class_are_said(folder, caplog):
    place(folder, "cat/one cat/two dog/one", 5)
    with caplog.at_level("WARNING", logger="hf_distill"):
        assert RealImages.train_and_test(args(folder))[0].class_names == ["one", "two"]
    assert caplog.text.count("so one is made of several: 'one' of cat/one, dog/one") == 1


def test_classes_that_differ_in_spaces_and_capitals_alone_are_said_and_blanks_are_no_label(folder, caplog):
    write(folder, "train", noise(12), ["a", "a ", "Old cat", "old  cat"] * 3, Value("string"))
    with caplog.at_level("WARNING", logger="hf_distill"):
        assert RealImages.train_and_test(args(folder))[0].num_classes == 4
    assert caplog.text.count("capitals alone: 'Old cat' and 'old  cat'; 'a' and 'a '; make one") == 1
    write(folder, "train", noise(6), ["a", "b", " ", "a", "b", ""], Value("string"))
    message("row 2 of split 'train' of flowers: label ' '; row 5: label ''; expected a text: leave", args(folder))
    assert len(RealImages.from_arguments(args(folder, classes=["a", " "]))) == 3


def test_a_linked_class_folder_is_read_and_a_circle_of_links_is_none(folder, tmp_path):
    place(tmp_path / "elsewhere", "cat dog")
    folder.mkdir(exist_ok=True)
    place(folder, "eel")
    for name in ("cat", "dog"):
        (folder / name).symlink_to(tmp_path / "elsewhere" / name)
    (folder / "eel" / "circle").symlink_to(folder)
    real = RealImages.from_arguments(args(folder))
    assert (real.class_names, len(real)) == (["cat", "dog", "eel"], 6)
    before = real.revision
    (tmp_path / "elsewhere" / "cat" / "0.png").write_bytes((folder / "eel" / "1.png").read_bytes())
    assert RealImages.from_arguments(args(folder)).revision != before


def test_files_that_no_split_has_are_said_and_one_of_two_splits_is_refused(folder, caplog):
    write(folder, "train-steam", noise(4), [0, 1, 0, 1])
    write(folder, "bus", noise(4), [2, 3, 2, 3])
    with caplog.at_level("WARNING", logger="hf_distill"):
        RealImages.train_and_test(args(folder))
    said = "flowers: 1 data files are in no split (train) and are not read, in . (1); name the files"
    assert caplog.text.count(said) == 1
    (folder / "bus-00000.parquet").rename(folder / "train-and-test.parquet")
    message("1 files are in two of the splits train, test by name, such as train-and-test.parquet", args(folder))


@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_no_class_folder_have_no_label(folder, streaming):
    place(folder, "train test")
    problem = "split 'train' of flowers(: no label; row 1: no label| has images without a label)"
    with pytest.raises(ValueError, match=problem):
        RealImages.train_and_test(args(folder, dataset_streaming=streaming))
    message(problem, args(folder, dataset_streaming=streaming))


def test_images_that_no_row_names_are_said(folder, caplog):
    place(folder, "train", 4)
    lines = ["file_name,label", *(f"{row}.png,{row % 2}" for row in range(3))]
    (folder / "train" / "metadata.csv").write_text("\n".join(lines))
    with caplog.at_level("WARNING", logger="hf_distill"):
        assert len(RealImages.from_arguments(args(folder))) == 3
    assert "split 'train' has 3 rows and 4 image files" in caplog.text
    caplog.clear()
    assert len(RealImages.from_arguments(args(folder, dataset_streaming=True))) == 3
    assert caplog.text.count("that a metadata file does not name are left out, and a stream does not count them") == 1


def test_a_metadata_file_without_rows_is_one_line(folder):
    place(folder, "train")
    (folder / "train" / "metadata.csv").write_text("file_name,label\n")
    message("flowers cannot be loaded; fix it", args(folder))


def test_a_card_that_is_no_yaml_is_one_line(folder):
    write(folder, "train", noise(4), [0, 1, 0, 1])
    (folder / "README.md").write_text("---\nconfigs: [oops\n---\n")
    message("README.md are no YAML", args(folder))


def test_a_dataset_of_code_is_one_line_and_the_code_is_not_run(folder, tmp_path):
    write(folder, "train", noise(4), [0, 1, 0, 1])
    (folder / f"{folder.name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    message("scripts are no longer supported", args(folder))
    assert not (tmp_path / "ran").exists()


def test_provenance_of_a_hub_dataset_is_its_commit_and_card(folder, monkeypatch, caplog):
    write(folder, "train", noise(4), [0, 1, 0, 1])
    build, commit = datasets.load_dataset_builder, "c0ffee" * 6 + "abcd"

    def build_as_if_from_the_hub(name, *rest, **more):
        assert name == "someone/flowers"
        builder = build(str(folder))
        builder.download_and_prepare()
        builder.download_and_prepare = lambda: None
        builder.info.download_checksums = {f"hf://datasets/{name}@{commit}/train.parquet": {}}
        return builder

    def dataset_info(self, name, revision=None):
        assert (name, revision) == ("someone/flowers", commit)
        card = DatasetCardData(license="cc-by-nc-4.0")
        return DatasetInfo(id=name, sha=commit, gated="auto", card_data=card, tags=[], siblings=[])

    monkeypatch.setattr(datasets, "load_dataset_builder", build_as_if_from_the_hub)
    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    real = RealImages.from_arguments(DataArguments(dataset_name="someone/flowers"))
    assert real.revision == commit
    assert real.provenance["license"] == "cc-by-nc-4.0"
    assert real.provenance["gated"] == "auto"
    assert real.provenance["homepage"] == "https://huggingface.co/datasets/someone/flowers"


def upload(hub, folder: Path) -> DataArguments:
    repo = f"{hub.namespace}/flowers"
    files_there = (path for path in folder.rglob("*") if path.is_file())
    hub.put("dataset", repo, {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_there})
    return DataArguments(dataset_name=repo)


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_a_hub_dataset_that_no_split_has_are_said(folder, hub, streaming, caplog):
    place(folder, "bus train-steam train-diesel")
    (folder / "train-diesel" / "1.png").write_bytes(png_of_16_bits(np.full((6, 6, 3), 4000), kind=2))
    arguments = replace(upload(hub, folder), dataset_streaming=streaming, color="rgb")
    with caplog.at_level("WARNING", logger="hf_distill"):
        real = RealImages.from_arguments(arguments)
    assert (real.class_names, len(real)) == (["train-diesel", "train-steam"], 4)
    said = "flowers: 2 data files are in no split (train) and are not read, in bus (2); name the files"
    assert caplog.text.count(said) == 1
    message("row 1 of split .*: a colour image of more than 8 bits", replace(arguments, value_range=[0, 9]))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_of_paths_on_the_hub_is_refused_in_one_line(folder, hub, streaming):
    folder.joinpath("train.csv").write_text("path,label\nimages/0.png,0\nimages/1.png,1\n")
    arguments = replace(upload(hub, folder), dataset_streaming=streaming, image_column_name="path")
    message("row 0 of split 'train' of .*images/0.png. cannot be decoded.*; row 1", arguments)


def test_without_a_dataset_the_digits_are_read():
    train, test = RealImages.train_and_test(DataArguments())
    assert (len(train), len(test), train.shape, train.num_classes) == (1437, 360, (1, 8, 8), 10)


# Bad input


def test_a_column_that_is_not_there_is_named_with_the_nearest(folder):
    write(folder, "train", noise(2), [0, 1], None, ("photo", "kind"))
    message("--image_column_name foto: flowers has no such column.*'photo'", args(folder, image_column_name="foto"))
    message("--label_column_name kinds: flowers has no such column.*'kind'", args(folder, label_column_name="kinds"))
    message("--image_column_name kind: .*expected images.*photo", args(folder, image_column_name="kind"))
    message("--label_column_name photo: .*expected one ClassLabel", args(folder, label_column_name="photo"))


def test_what_is_wrong_with_both_columns_is_said_at_once(folder):
    write(folder, "train", noise(2), [0, 1], columns=("picture", "kind"))
    text = "image_column_name pictures: .*'picture'.*; --label_column_name kid: .*'kind'"
    message(text, args(folder, image_column_name="pictures", label_column_name="kid"))


def test_columns_that_could_all_be_meant_are_listed(folder):
    two = ClassLabel(names=["a", "b"])
    write(folder, "train", noise(2), [0, 1], two, ("image", "fine"), coarse=([1, 0], two))
    message("2 columns that could be the label: fine, coarse; .*--label_column_name", args(folder))
    write(folder, "train", noise(2), [0, 1], two, mask=([PIL.Image.fromarray(image) for image in noise(2)], Image()))
    message("2 columns that could be the image: image, mask; .*--image_column_name", args(folder))
    Dataset.from_dict({"text": ["a"], "score": [0.5]}).to_parquet(str(folder / "train-00000.parquet"))
    message("flowers has no image column among text, score", args(folder))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("content", [b"not an image", b""])
def test_a_corrupt_image_is_named_by_row_and_split(folder, streaming, content):
    stream = io.BytesIO()
    PIL.Image.fromarray(noise(1, (6, 6, 3))[0]).save(stream, "png")
    good = {"bytes": stream.getvalue(), "path": None}
    bad = {"bytes": content, "path": None}
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_dict({"image": [good, good, good, bad, good], "label": [0, 1, 0, 1, 2]}, features=features).to_parquet(
        str(folder / "train-00000.parquet")
    )
    for more in ({}, {"resolution": [4]}, {"color": "rgb", "classes": ["1", "2"]}):
        arguments = args(folder, dataset_streaming=streaming, **more)
        message(
            "row 3 of split 'train' of flowers: the image cannot be decoded: .*replace it, or .*--skip_corrupt",
            arguments,
        )


def png(image: np.ndarray) -> dict:
    stream = io.BytesIO()
    PIL.Image.fromarray(image).save(stream, "png")
    return {"bytes": stream.getvalue(), "path": None}


def write_cells(folder: Path, split: str, cells: list, labels: list) -> None:
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_dict({"image": cells, "label": labels}, features).to_parquet(str(folder / f"{split}-00000.parquet"))


@pytest.mark.parametrize("streaming", [False, True])
def test_all_corrupt_images_are_named_up_to_ten_in_one_line_or_left_out_and_counted(folder, streaming):
    images, labels = noise(40), [row // 2 % 2 for row in range(40)]
    cells = [png(image) for image in images]
    torn = {**cells[5], "bytes": cells[5]["bytes"][:-60]}
    for row, bad in {0: None, 17: torn, 31: {"bytes": b"<!DOCTYPE html>", "path": None}}.items():
        cells[row] = bad
    write_cells(folder, "train", cells, labels)
    write_cells(folder, "test", [*cells[:4], {"bytes": b"", "path": None}], labels[:5])
    how = {"dataset_streaming": streaming}
    problem = (
        "row 0 of split 'train' of flowers: there is no image; row 17: the image cannot be decoded: .*; row 31: "
        ".*; replace them, or leave corrupt images out with --skip_corrupt"
    )
    message(problem, args(folder, **how))
    real, test = RealImages.train_and_test(args(folder, skip_corrupt=True, **how))
    sound = [row for row in range(40) if row not in (0, 17, 31)]
    np.testing.assert_array_equal(real.resident("cpu").permute(0, 2, 3, 1).numpy(), np.stack(images)[sound])
    assert real.labels.tolist() == np.array(labels)[sound].tolist()
    assert (real.provenance["num_images"], real.provenance["num_corrupt"]) == (40, 3)
    assert (len(test), test.provenance["num_corrupt"]) == (3, 2)
    few = RealImages.from_arguments(args(folder, skip_corrupt=True, classes=["1", "0"], max_train_samples=36, **how))
    assert len(few) + few.provenance.get("num_corrupt", 0) == 36
    cells[:12] = [{"bytes": b"", "path": None}] * 12
    write_cells(folder, "train", cells, labels)
    text = message("row 9: [^;]*; and 4 more; replace them", args(folder, **how))
    assert "row 10:" not in text
    write_cells(folder, "train", [None] * 40, labels)
    message("row 0 of split 'train' of flowers: there is no image;", args(folder, skip_corrupt=True, **how))


def test_where_corrupt_images_are_left_out_crops_and_held_out_images_are_of_the_others(folder):
    images = noise(20, (9, 7, 3))
    cells = [png(image) for image in images]
    cells[3] = cells[8] = {"bytes": b"", "path": None}
    write_cells(folder, "train", cells, [row % 2 for row in range(20)])
    sound = [image for row, image in enumerate(images) if row not in (3, 8)]
    for side in ("7", "source"):
        arguments = args(folder, skip_corrupt=True, resolution=[6], resize=8, keep_side=side)
        train, test = RealImages.train_and_test(arguments)
        assert (len(train) + len(test), train.provenance["num_corrupt"]) == (18, 2)
        assert len(train.split(0.3, seed=0)[1].resident("cpu")) == 4
        whole = RealImages.from_arguments(arguments)
        np.testing.assert_array_equal(whole.kept(range(18)).pixels.numpy(), np.concatenate(sound).reshape(-1, 3))


def test_a_class_that_is_all_corrupt_is_named(folder):
    cells = [png(image) for image in noise(4)] + [None, None]
    write_cells(folder, "train", cells, [0, 1, 0, 1, 2, 2])
    message("all images of the classes '2' in split 'train' of flowers are corrupt", args(folder, skip_corrupt=True))


def test_a_long_text_in_place_of_a_path_is_cut(folder):
    texts = [base64.b64encode(png(image)["bytes"]).decode() for image in noise(2, (40, 40, 3))]
    Dataset.from_dict({"image": texts, "label": [0, 1]}).to_parquet(str(folder / "train.parquet"))
    text = message("of base64, decode it first", args(folder, image_column_name="image"))
    assert len(text) < 700
    message("row 1: .*of base64", args(folder, image_column_name="image"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_truncated_image_file_is_named_by_row_split_and_path(folder, streaming):
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for row, image in enumerate(noise(2, (40, 40, 3))):
            PIL.Image.fromarray(image).save(folder / "train" / name / f"{row}.jpg")
    torn = folder / "train" / "dog" / "1.jpg"
    torn.write_bytes(torn.read_bytes()[:-400])
    message(
        r"row 3 of split 'train' of flowers: .*1\.jpg.* cannot be decoded", args(folder, dataset_streaming=streaming)
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_image_is_named_by_row_and_split(folder, streaming):
    write(folder, "train", [*noise(2), None], [0, 1, 0])
    message("row 2 of split 'train' of flowers: there is no image", args(folder, dataset_streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_label_outside_the_range_is_named_by_row_and_split(folder, streaming):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    images = [PIL.Image.fromarray(image) for image in noise(4)]
    for labels, row, wrong in (([0, 1, -1, 0], 2, -1), ([0, 1, 0, 5], 3, 5), ([0, 1, 2, 3], 2, "2.*row 3: label 3")):
        table = Dataset.from_dict({"image": images, "label": labels}, Features({**features, "label": Value("int64")}))
        table = table.data.table.replace_schema_metadata(features.arrow_schema.metadata)
        pq.write_table(table, folder / "train-00000.parquet")
        for classes in (None, ["a", "b"]):
            problem = f"row {row} of split 'train' of flowers: label {wrong}; expected 0 to 1"
            message(problem, args(folder, dataset_streaming=streaming, classes=classes))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_negative_or_missing_integer_label_is_named_unless_it_is_asked_for(folder, streaming):
    write(folder, "train", noise(4), [1, -1, 1, -1])
    message("row 1 of split 'train' of flowers: label -1", args(folder, dataset_streaming=streaming))
    both = RealImages.from_arguments(args(folder, dataset_streaming=streaming, classes=["-1", "1"]))
    assert both.labels.tolist() == [1, 0, 1, 0]
    write(folder, "train", noise(6), [1, 0, None, -1, None, -2])
    problem = "row 2 of split 'train' of flowers: no label; row 3: label -1; row 4: no label; row 5: label -2"
    message(problem, args(folder, dataset_streaming=streaming))
    write(folder, "train", noise(14), [1, 0, *[None] * 12])
    assert message("row 11: no label; and 2 more", args(folder, dataset_streaming=streaming)).count("row") == 11


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_split_is_an_error(folder, streaming):
    write(folder, "train", noise(2), [0, 1])
    write(folder, "test", [], [])
    arguments = args(folder, dataset_streaming=streaming)
    message("split 'test' of flowers is empty", arguments, "test", RealImages.from_arguments(arguments))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([-1, -1], "row 0 of split 'test' of flowers: label -1"),
        ([0, None], "row 1 of split 'test' of flowers: no label"),
        ([], "split 'test' of flowers is empty"),
    ],
)
@pytest.mark.parametrize("feature", [Value("int64"), ClassLabel(names=["a", "b"])])
def test_what_is_wrong_with_the_labels_of_test_is_found_before_train_is_decoded(
    folder, streaming, labels, problem, feature, monkeypatch
):
    write(folder, "train", noise(6), [0, 1] * 3, feature)
    write(folder, "test", noise(len(labels)), labels, feature)
    decoded = count_decoded(monkeypatch)
    with pytest.raises(ValueError, match=problem):
        RealImages.train_and_test(args(folder, dataset_streaming=streaming))
    assert not decoded


def test_what_is_wrong_with_sizes_and_flags_is_found_before_anything_is_decoded(folder, monkeypatch):
    write(folder, "train", noise(6), [0, 1] * 3)
    write(folder, "test", noise(2, (4, 4, 3)), [0, 1])
    decoded = count_decoded(monkeypatch)
    for problem, more in {
        "row 0 of split 'test' of flowers: the image is 4x4": {},
        r"--mean has 1 number\(s\) and the images 3": {"mean": [0.5], "std": [0.5]},
        "--resize is 5 and the crop out of it has 6x6": {"resize": 5},
    }.items():
        with pytest.raises(ValueError, match=problem):
            RealImages.train_and_test(args(folder, **more))
    write(folder, "train", [*noise(5), *noise(1, (6, 9, 3))], [0, 1] * 3)
    message("row 5 of split 'train' of flowers: the image is 6x9", args(folder))
    assert not decoded


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("test", [True, False])
def test_what_is_known_of_train_can_be_refused_before_it_is_decoded(folder, streaming, test, monkeypatch):
    write(folder, "train", noise(30), [0] * 20 + [1] * 10)
    if test:
        write(folder, "test", noise(2), [0, 1])
    decoded, seen = count_decoded(monkeypatch), []

    def refuse(outline: Outline) -> None:
        seen.append(outline)
        outline.require([5, 12], "the caller is greedy", "give more")

    problem = "^the caller is greedy and some classes lack training images: '1' has [0-9] of 12; give more$"
    arguments = args(folder, dataset_streaming=streaming, max_train_samples=20, validation_fraction=0.3)
    with pytest.raises(ValueError, match=problem):
        RealImages.train_and_test(arguments, check=refuse)
    assert len(decoded) == (30 if streaming else 0)  # and no image of test
    rest, _ = RealImages.train_and_test(arguments)[0].split(0.3, seed=0)
    assert seen == [rest.outline]


def test_a_split_that_is_not_there_is_named_with_those_that_are(folder):
    write(folder, "train", noise(2), [0, 1])
    message("split 'trian' is not in flowers, which has train.*--dataset_train_split", args(folder), "trian")
    with pytest.raises(ValueError, match="split 'dev' is not in flowers"):
        RealImages.train_and_test(args(folder, dataset_test_split="dev"))


@pytest.mark.parametrize("streaming", [False, True])
def test_mixed_sizes_need_a_resolution(folder, streaming):
    write(folder, "train", [*noise(3), *noise(1, (6, 9, 3))], [0, 1, 0, 1])
    write(folder, "test", noise(2, (4, 4, 3)), [0, 1])
    arguments = args(folder, dataset_streaming=streaming)
    problem = r"row 3 of split 'train' of flowers: the image is 6x9 .*expected 6x6.*--resolution"
    message(problem, arguments)
    write(folder, "train", noise(4), [0, 1, 0, 1])
    train = RealImages.from_arguments(arguments)
    message("row 0 of split 'test' of flowers: the image is 4x4 .*expected 6x6.*--resolution", arguments, "test", train)


@pytest.mark.parametrize("streaming", [False, True])
def test_all_images_that_do_not_fit_are_named_with_those_that_are_corrupt(folder, streaming, monkeypatch):
    monkeypatch.setattr(pixels, "CHUNK_BYTES", 6 * 6 * 3 * 4)
    monkeypatch.setattr(pixels, "INSPECTED", 1)
    monkeypatch.setattr(pixels, "STREAM_INSPECTED", 2)
    images = noise(30)
    for row in (5, 9, 21):
        images[row] = noise(1, (6, row, 3))[0]
    cells = [png(image) for image in images]
    cells[8] = None
    write_cells(folder, "train", cells, [0, 1] * 15)
    arguments = args(folder, dataset_streaming=streaming)
    text = (
        r"^row 5 of split 'train' of flowers: the image is 6x5 \(height x width\); row 8: there is no image; "
        r"row 9: the image is 6x9 .*; row 21: the image is 6x21 .*; expected 6x6, as the first: .* --resolution; "
        "replace it, or leave corrupt images out with --skip_corrupt$"
    )
    message(text, arguments)
    monkeypatch.setattr(pixels, "INSPECTED", 1000)
    message(text, arguments)
    for row in range(6, 30):
        cells[row] = png(noise(1, (4, 4, 3))[0])
    write_cells(folder, "train", cells, [0, 1] * 15)
    decoded = count_decoded(monkeypatch)
    told = message("row 14: the image is 4x4", arguments)
    assert "row 15:" not in told
    assert not decoded or len(decoded) == 15  # where nothing is read twice


def test_images_of_several_kinds_that_cannot_be_used_are_named_with_what_to_do_about_each(folder, monkeypatch):
    monkeypatch.setattr(pixels, "INSPECTED", 1)
    gray, floats = noise(1, (6, 6))[0], PIL.Image.fromarray(np.ones((6, 6), np.float32), "F")
    write(folder, "train", [gray, *noise(1), floats, *noise(1), gray], [0, 1, 0, 1, 0])
    text = message(
        "row 1 of split 'train' of flowers: a RGB image among gray ones; row 2: the image has 32-bit floats, 1 to 1 "
        "here, whose range nothing tells; row 3: a RGB image ",
        args(folder),
    )
    assert [hint in text for hint in ("; give --color rgb", "; give --value_range")] == [True, True]


def test_images_of_a_single_class_are_refused(folder):
    write(folder, "train", noise(3), [4, 4, 4])
    message("split 'train' of flowers has the one class '4'; expected at least two", args(folder))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_class_without_images_is_an_error_in_train_and_none_in_test(folder, streaming):
    label = ClassLabel(names=["a", "b", "c"])
    write(folder, "train", noise(2), [0, 2], label)
    arguments = args(folder, dataset_streaming=streaming)
    message("1 of 3 classes have no images in split 'train' of flowers: b; .*--classes", arguments)
    write(folder, "test", noise(1), [2], label)
    train, test = RealImages.train_and_test(args(folder, dataset_streaming=streaming, classes=["c", "a"]))
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 0], [0])


def test_classes_that_are_not_there_or_named_twice_are_errors(folder):
    write(folder, "train", noise(2), ["tulip", "rose"], Value("string"))
    message(
        "--classes tulipp: .*'tulip'.*expected some of its 2 classes rose, tulip",
        args(folder, classes=["rose", "tulipp"]),
    )
    message("named twice", args(folder, classes=["rose", "rose"]))


def test_the_share_of_each_class_is_the_largest_that_fits():
    random = np.random.default_rng(0)
    for _ in range(50):
        labels = torch.from_numpy(random.integers(0, 7, int(random.integers(8, 60))))
        source = SimpleNamespace(labels=labels, class_names=list("abcdefg"))
        counts = torch.bincount(labels, minlength=7)
        for limit in range(len(labels) + 2):
            rows = _evenly(source, torch.arange(len(labels)), limit, generator(0))
            assert len(rows) == min(limit, len(labels))
            got = torch.bincount(labels[rows], minlength=7)
            # A class that did not give all it has is at most one behind the class that gave most.
            assert (got[got < counts] >= got.max() - 1).all()


def test_a_million_images_are_shared_out_in_a_few_passes(monkeypatch):
    passes, clamp = [], torch.Tensor.clamp
    monkeypatch.setattr(torch.Tensor, "clamp", lambda *parts, **more: passes.append(1) or clamp(*parts, **more))
    source = SimpleNamespace(labels=torch.arange(1_001_000) % 1000, class_names=[str(k) for k in range(1000)])
    assert len(_evenly(source, torch.arange(1_001_000), 1_000_000, generator(0))) == 1_000_000
    assert len(passes) < 30


def test_fewer_images_than_classes_is_an_error(folder):
    unbalanced(folder)
    message("--max_train_samples is 3; expected at least 4", args(folder, max_train_samples=3))


def test_a_folder_that_does_not_exist_is_named_with_the_nearest(folder):
    write(folder, "train", noise(2), [0, 1])
    message("there is no such folder .*flowers", args(folder.parent / "flower"))
    message("is a file", args(folder / "train-00000.parquet"))
    (folder.parent / "empty").mkdir()
    message("cannot be loaded", args(folder.parent / "empty"))


def test_a_file_that_is_not_parquet_is_an_error(folder):
    (folder / "train.parquet").write_bytes(b"PAR1 and then nothing")
    message("cannot be loaded; .*[Pp]arquet", args(folder))


def test_without_a_network_the_error_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    problem = "--dataset_name someone/flowers: there is no such folder here, and the Hub cannot be reached"
    message(problem, DataArguments(dataset_name="someone/flowers"))
