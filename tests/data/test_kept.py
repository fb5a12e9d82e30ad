"""What is cut off an image, and what is kept of it: frames of test images, and images at their own shapes."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from torchvision import transforms
from torchvision.transforms import functional as vision

from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.runs.folder import describe_images
from tests.helpers.photographs import SHAPES, cache_in, photograph, photographs, store

FILTERS = {"bicubic": vision.InterpolationMode.BICUBIC, "bilinear": vision.InterpolationMode.BILINEAR}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    cache_in(tmp_path / "cache", monkeypatch)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "photographs"


def args(folder: Path, **more) -> DataArguments:
    return DataArguments(dataset_name=str(folder), **more)


def framed(image: PIL.Image.Image, side: int, crop: int, interpolation: str = "bicubic") -> np.ndarray:
    """What torchvision makes of an image, (C, H, W)."""
    steps = [transforms.Resize(side, FILTERS[interpolation]), transforms.CenterCrop(crop)]
    return np.asarray(transforms.Compose(steps)(image)).reshape(crop, crop, -1).transpose(2, 0, 1)


def check(real: RealImages, images: list[PIL.Image.Image], *frame) -> None:
    for found, image in zip(real.uint8(range(len(real))).numpy(), images, strict=True):
        np.testing.assert_array_equal(found, framed(image, *frame))


def count_decoded(monkeypatch) -> list[int]:
    """A list that grows by one with each image that is decoded from now on."""
    decoded, original = [], Image.decode_example

    def decode(self, value, token_per_repo_id=None):
        decoded.append(1)
        return original(self, value, token_per_repo_id)

    monkeypatch.setattr(Image, "decode_example", decode)
    return decoded


# Frames


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("interpolation", [None, "bilinear"])
def test_test_images_are_resized_and_cut_as_torchvision_does_and_train_keeps_what_fits(
    folder, interpolation, streaming
):
    train, test = photographs(6), photographs(12)[6:]
    store(folder, "train", train)
    store(folder, "test", test)
    how = {"resolution": [20], "resize": 24, "interpolation": interpolation, "dataset_streaming": streaming}
    real, shown = RealImages.train_and_test(args(folder, **how))
    check(real, train, 20, 20, interpolation or "bicubic")
    check(shown, test, 24, 20, interpolation or "bicubic")


@pytest.mark.parametrize("gray", [False, True])
def test_of_224_pixels_out_of_256_every_byte_is_torchvisions(folder, gray):
    images = [photograph(300, 401, 0, gray), photograph(500, 333, 1, gray)]
    store(folder, "train", images)
    store(folder, "test", images)
    _, shown = RealImages.train_and_test(args(folder, resolution=[224], resize=256, interpolation="bilinear"))
    assert shown.shape == (1 if gray else 3, 224, 224)
    check(shown, images, 256, 224, "bilinear")


def test_images_of_the_crops_own_size_are_framed_too(folder):
    images = photographs(4, shapes=[(16, 16)])
    store(folder, "train", images)
    store(folder, "test", images)
    train, test = RealImages.train_and_test(args(folder, resize=20))
    check(train, images, 16, 16)
    check(test, images, 20, 16)


def test_a_frame_of_an_oblong_crop_is_centred_and_keeps_the_shape_of_things(folder):
    gradient = np.tile(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], (30, 1, 3))
    store(folder, "train", [PIL.Image.fromarray(gradient)] * 2)
    store(folder, "test", [PIL.Image.fromarray(gradient)] * 2)
    _, test = RealImages.train_and_test(args(folder, resolution=[20, 10], resize=15))
    # 30x60 covers 30x15 as it is, and rows 5 to 25 and columns 25 to 35 of it stay.
    assert np.abs(test.uint8([0])[0, 0, 10].float().numpy() - gradient[0, 25:35, 0]).max() <= 1


def test_what_is_held_out_of_train_is_framed_as_test_is(folder):
    images = photographs(20)
    store(folder, "train", images)
    whole, test = RealImages.train_and_test(args(folder, resolution=[20], resize=24))
    assert (len(whole), len(test)) == (16, 4)  # a fifth of train
    plain, tested = RealImages.train_and_test(args(folder, resolution=[20]))
    assert torch.equal(whole.resident("cpu"), plain.resident("cpu"))
    assert not torch.equal(test.resident("cpu"), tested.resident("cpu"))
    rest, held_out = whole.split(0.25, seed=0)
    same, cut = plain.split(0.25, seed=0)
    assert torch.equal(rest.resident("cpu"), same.resident("cpu"))
    assert held_out.labels.tolist() == cut.labels.tolist()
    for part, other in ((test, tested), (held_out, cut)):
        wanted = [framed(images[row], 24, 20) for row in other._positions.tolist()]
        np.testing.assert_array_equal(part.uint8(range(len(part))).numpy(), np.stack(wanted))


GIVEN = {"resolution": [20], "mean": [0.5] * 3, "std": [0.2] * 3}


def test_what_is_decoded_on_demand_is_framed_alike_and_an_image_that_cannot_be_is_named_when_it_is_asked_for(
    folder, monkeypatch
):
    images = photographs(60)
    store(folder, "train", images)
    store(folder, "test", images[:2])
    monkeypatch.setattr("hf_distill.data.kept.DECODED_AT_ONCE", 3)
    decoded = count_decoded(monkeypatch)
    train, _ = RealImages.train_and_test(args(folder, **GIVEN, resize=24), on_demand=True)
    assert len(decoded) < 20
    assert (train.shape, train.resized, len(train), len(train.uint8([]))) == ((3, 20, 20), True, 60, 0)
    check(train.subset(range(0, 60, 19)), images[::19], 20, 20)
    rest, held_out = train.split(0.1, seed=0)
    left = set(range(60)) - set(rest._positions.tolist())
    check(held_out, [images[row] for row in sorted(left)], 24, 20)

    table = Dataset.from_parquet(str(folder / "train-00000.parquet")).cast_column("image", Image(decode=False))
    content = table.to_list()
    content[17]["image"]["bytes"] = content[17]["image"]["bytes"][:60]
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_list(content, features=features).to_parquet(str(folder / "train-00000.parquet"))
    train, _ = RealImages.train_and_test(args(folder, **GIVEN), on_demand=True)
    assert len(train.uint8([16, 18])) == 2
    with pytest.raises(ValueError, match=r"^row 17 of .*cannot be decoded"):
        train.uint8([16, 17])


def test_of_more_than_8_bits_all_images_are_looked_at_first(folder):
    images = [PIL.Image.fromarray((np.asarray(image) * 16).astype(np.uint16)) for image in photographs(9, gray=True)]
    for split in ("train", "test"):
        store(folder, split, images)
    with pytest.raises(ValueError, match="in more than 8 bits"):
        RealImages.train_and_test(args(folder, resolution=[20], mean=[0.5], std=[0.2]), on_demand=True)


def test_what_is_held_out_of_a_stream_stays_as_it_is_and_says_so(folder, caplog):
    store(folder, "train", photographs(8))
    store(folder, "test", photographs(2))
    train, _ = RealImages.train_and_test(args(folder, resolution=[20], resize=24, dataset_streaming=True))
    with caplog.at_level(logging.WARNING):
        _, held_out = train.split(0.25, seed=0)
    assert "held out of a stream" in caplog.text
    assert held_out.shape == (3, 20, 20)


def test_a_dataset_in_hand_is_framed_alike(folder):
    images = photographs(6)
    features = Features({"image": Image(), "label": Value("int64")})
    data = Dataset.from_dict({"image": images, "label": [0, 1] * 3}, features=features)
    train = RealImages.from_dataset(data, resolution=20, resize=24, interpolation="bilinear", keep_side=30)
    test = RealImages.from_dataset(data, like=train)
    check(train, images, 20, 20, "bilinear")
    check(test, images, 24, 20, "bilinear")
    assert (train.keep_side, test.keep_side) == ("30", None)
    with pytest.raises(ValueError, match=r"^resize=24 and like= say the same in two ways"):
        RealImages.from_dataset(data, like=train, resize=24)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"resolution": [224], "resize": 223}, "--resize is 223 and the crop out of it has 224x224 pixels"),
        ({"resolution": [32, 64], "resize": 31}, "--resize is 31 and the crop out of it has 32x64 pixels"),
        ({"resolution": [32, 64], "resize": 321}, "--resize is 321 and .* 32x64 pixels; expected 32 to 320"),
        ({"resolution": [32, 64], "keep_side": "31"}, "--keep_side is 31 and crops are brought to 32x64 pixels"),
        ({"resize": 0}, "--resize is 0; expected at least 1"),
        ({"interpolation": "lanczos"}, "--interpolation is 'lanczos'; expected one of bicubic, bilinear"),
        ({"keep_side": "0"}, "--keep_side is '0'; expected a number of pixels, such as 384, or source"),
        ({"keep_side": "-3"}, "--keep_side is '-3'"),
        ({"keep_side": "all"}, "--keep_side is 'all'"),
        ({"keep_side": "384", "dataset_streaming": True}, "--keep_side 384 looks at the images again"),
    ],
)
def test_frames_that_cannot_be_are_one_line(flags, problem):
    with pytest.raises(ValueError, match=rf"^{problem}[^\n]*$"):
        DataArguments(**flags)


def test_a_resize_below_images_whose_size_nobody_gave_is_one_line(folder):
    store(folder, "train", photographs(4, shapes=[(16, 16)]))
    with pytest.raises(ValueError, match=r"^--resize is 15 and the crop out of it has 16x16 pixels[^\n]*$"):
        RealImages.from_arguments(args(folder, resize=15))
    with pytest.raises(ValueError, match="--keep_side is 8 and crops are brought to"):
        RealImages.from_arguments(args(folder, keep_side="8"))
    with pytest.raises(ValueError, match=r"^keep_side is 3\.5; expected a name or a number$"):
        RealImages.from_hub(folder, keep_side=3.5)


# Images at their own shapes


def kept(real: RealImages, rows: list[int]) -> list[np.ndarray]:
    """(h, w, C) each."""
    ragged, found, start = real.kept(rows), [], 0
    assert torch.equal(ragged.sizes, real.kept_sizes(rows))
    for height, width in ragged.sizes.tolist():
        found.append(ragged.pixels[start : start + height * width].reshape(height, width, -1).numpy())
        start += height * width
    assert start == len(ragged.pixels)
    return found


def by_pillow(image: PIL.Image.Image, side: str) -> np.ndarray:
    """The image, brought down to a shorter side by torchvision where it is larger."""
    if side != "source" and min(image.size) > int(side):
        image = vision.resize(image, int(side), vision.InterpolationMode.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, -1)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("side", ["source", "30", "1000"])
def test_images_are_kept_as_they_are_or_brought_down_and_never_enlarged(folder, side, gray, monkeypatch):
    monkeypatch.setattr("hf_distill.data.pixels.CHUNK_BYTES", 30 * 60 * 4 * 3)  # several chunks
    images = photographs(12, gray)
    store(folder, "train", images)
    real = RealImages.from_arguments(args(folder, resolution=[16], keep_side=side))
    assert real.keep_side == side
    rows = [7, 0, 3, 3, 11, 4]
    for found, row in zip(kept(real, rows), rows, strict=True):
        np.testing.assert_array_equal(found, by_pillow(images[row], side))
    assert kept(real, []) == []
    assert real.kept_sizes([4]).tolist() == [list(SHAPES[4])]  # smaller than any limit


@pytest.mark.parametrize("side", ["source", "30"])
def test_rows_of_subsets_splits_and_samples_are_those_of_the_kept_images(folder, side):
    images = photographs(30)
    store(folder, "train", images, classes=3)
    drawn = args(folder, resolution=[16], keep_side=side, max_train_samples=24, classes=["2", "0"])
    whole = RealImages.from_arguments(drawn)
    rest, held_out = whole.split(0.2, seed=1)
    part = rest.subset(rest.class_rows(1)).subset([2, 0])
    assert held_out.keep_side == rest.keep_side == side
    for real in (whole, rest, part):
        for row, image in enumerate(kept(real, list(range(len(real))))):
            (match,) = [number for number, given in enumerate(images) if np.array_equal(image, by_pillow(given, side))]
            assert real.class_names[int(real.labels[row])] == str(match % 3)


def test_the_limit_names_the_cache_and_the_source_has_none(folder, monkeypatch):
    store(folder, "train", photographs(6))
    decoded = count_decoded(monkeypatch)

    def decodes(count: int, **more) -> RealImages:
        decoded.clear()
        real = RealImages.from_arguments(args(folder, resolution=[16], **more))
        assert len(decoded) == count
        return real

    decodes(6)
    first = decodes(6, keep_side="30")
    again = decodes(0, keep_side="30")
    assert torch.equal(first.kept(range(6)).pixels, again.kept(range(6)).pixels)
    assert not decoded  # they are mapped
    decodes(6, keep_side="31")
    decodes(0, keep_side="30")
    decodes(12, keep_side="30", interpolation="bilinear")
    source = decodes(0, keep_side="source")
    source.kept_sizes(range(6))
    assert not decoded  # headers tell
    source.kept([2, 5])
    assert len(decoded) == 2
    described = [describe_images(real) for real in (first, source, decodes(0))]
    assert [about.get("keep_side") for about in described] == ["30", "source", None]
    # What is held out decides what is kept, so its frame is a part of a run; one of before has none.
    assert "resize" not in described[0]
    assert describe_images(decodes(0, resize=20))["resize"] == 20


def test_images_without_a_kept_shape_say_how_to_keep_them(folder):
    store(folder, "train", photographs(4))
    real = RealImages.from_arguments(args(folder, resolution=[16]))
    assert real.keep_side is None
    with pytest.raises(ValueError, match=r"^no images are kept at their own shapes; read them with --keep_side"):
        real.kept([0])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the kernel does not list its maps")
def test_kept_pixels_stay_in_the_mapped_file(folder):
    store(folder, "train", photographs(6))
    real = RealImages.from_arguments(args(folder, resolution=[16], keep_side="30"))
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".arrow")]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    for chunk in real._kept._bytes:
        address = chunk.__array_interface__["data"][0]
        assert any(start <= address and address + chunk.nbytes <= stop for start, stop in ranges)


@pytest.mark.parametrize("side", ["source", "30"])
def test_an_image_that_cannot_be_decoded_is_named_when_it_is_met(folder, side):
    # A source that changes once it was read: the small images are in the cache, and the file is gone.
    files = folder / "train"
    for row, image in enumerate(photographs(4)):
        (files / str(row % 2)).mkdir(parents=True, exist_ok=True)
        image.save(files / str(row % 2) / f"{row}.png")
    real = RealImages.from_arguments(args(folder, resolution=[16], keep_side=side))
    (files / "1" / "3.png").write_bytes(b"")
    if side == "30":
        assert len(real.kept([0, 3])) == 2
        return
    assert len(real.kept([0, 1])) == 2
    for ask in (real.kept, real.kept_sizes):
        with pytest.raises(ValueError, match=r"^row 3 of split 'train' of photographs: the image .*3\.png\) cannot be"):
            ask([0, 3])


@pytest.mark.slow
def test_processes_that_keep_together_see_the_same_and_one_of_them_decodes(folder, tmp_path):
    store(folder, "train", photographs(12))
    script = tmp_path / "load.py"
    script.write_text(
        f"""
from datasets import Image
from hf_distill.config import DataArguments
from hf_distill.data import kept
from hf_distill.data.images import RealImages

decoded, original = [], Image.decode_example
def decode(self, value, token_per_repo_id=None):
    decoded.append(1)
    return original(self, value, token_per_repo_id)
Image.decode_example = decode
how = dict(dataset_name={str(folder)!r}, resolution=[16], keep_side="30")
print(len(decoded), int(RealImages.from_arguments(DataArguments(**how)).kept(range(12)).pixels.sum()), len(decoded))
"""
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "shared"), "PYTHONPATH": ":".join(filter(None, sys.path))}
    environment.pop("HF_DATASETS_CACHE", None)
    together = [
        subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    printed = [process.communicate()[0].decode().split() for process in together]
    total = str(int(sum(by_pillow(image, "30").astype(np.int64).sum() for image in photographs(12))))
    assert [words[:2] for words in printed] == [["0", total]] * 2
    assert sum(int(words[2]) for words in printed) == 24  # each image once for either cache, whoever does it


def test_several_processes_keep_what_one_keeps(folder):
    store(folder, "train", photographs(8))
    one = RealImages.from_arguments(args(folder, resolution=[16], keep_side="30")).kept(range(8))
    datasets.disable_caching()
    try:
        two = RealImages.from_arguments(args(folder, resolution=[16], keep_side="30", num_proc=2)).kept(range(8))
    finally:
        datasets.enable_caching()
    assert torch.equal(one.pixels, two.pixels)
    assert torch.equal(one.sizes, two.sizes)
