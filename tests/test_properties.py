"""What holds for any input, with inputs that hypothesis makes up: parsing, views, and tables that come back."""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_distill.augmentation.crops import (
    CROP_DRAWS,
    CropParams,
    apply_mix,
    crop_resize,
    draw_crops,
    draw_cutmix,
    uniform,
)
from hf_distill.augmentation.recorded_views import RecordedViews
from hf_distill.augmentation.views import CROP, MIX, Views
from hf_distill.config import DataArguments, LoopConfig, parse_args
from hf_distill.distilled import tables
from hf_distill.distilled.epoch_labels import Codec
from hf_distill.distilled.tables import Rows, read_rows
from hf_distill.rng import generator

# The same inputs each time: a failure here is one everywhere, and the suite's time is known.
same = settings(max_examples=50, derandomize=True, deadline=None, database=None)


# --- flags -----------------------------------------------------------------------------------------------------------

# What YAML 1.1 takes for numbers, dates, times, switches and nothing: text that a class may have for a name.
TYPED = st.one_of(
    st.from_regex(r"[-+]?[0-9]{1,6}", fullmatch=True),
    st.from_regex(r"0[xob][0-9a-f]{1,4}", fullmatch=True),
    st.from_regex(r"[0-9]{1,3}\.[0-9]{0,3}(e[-+]?[0-9]{1,2})?", fullmatch=True),
    st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-9]{2}:[0-9]{2})?", fullmatch=True),
    st.from_regex(r"[0-9]{1,2}(:[0-5][0-9]){1,2}", fullmatch=True),
    st.from_regex(r"[0-9]{1,3}(_[0-9]{3}){1,2}", fullmatch=True),
    st.sampled_from(["yes", "No", "ON", "off", "y", "true", "FALSE", ".inf", "-.INF", ".nan", "=", "1.10", "<"]),
)
WORDS = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12).filter(str.strip)


def read(text: str, *classes: type) -> tuple:
    with TemporaryDirectory() as folder:
        path = Path(folder, "preset.yaml")
        path.write_text(text, encoding="utf-8")
        return parse_args(*classes, args=["--config", str(path)])


@same
@given(st.lists(TYPED.filter(lambda name: not name.startswith("-")), min_size=2, max_size=5))
def test_names_are_what_stands_in_the_file_whatever_yaml_takes_them_for(names):
    for text in (f"classes: [{', '.join(names)}]", "classes:\n" + "".join(f"- {name}\n" for name in names)):
        (data,) = read(text, DataArguments)
        assert data.classes == names


@same
@given(st.lists(WORDS.filter(lambda name: not name.startswith("-")), min_size=2, max_size=5), st.booleans())
def test_quoted_names_are_any_text(names, ascii_only):
    (data,) = read(yaml.safe_dump({"classes": names}, allow_unicode=not ascii_only), DataArguments)
    assert data.classes == names


@st.composite
def loop_configs(draw) -> LoopConfig:
    whole, some = st.integers(1, 10**6), st.none() | st.integers(1, 99)
    return LoopConfig(
        ipc=draw(whole),
        seed=draw(st.integers(0, 2**40)),
        overwrite_output_dir=draw(st.booleans()),
        eval_baselines=draw(
            st.lists(st.sampled_from(["random", "herding", "k-center", "bps"]), min_size=1, max_size=3)
        ),
        eval_full_data=draw(st.booleans()),
        eval_protocol=draw(st.sampled_from(["mtt", "quick"])),
        init=draw(st.sampled_from(["real", "noise"])),
        max_steps=draw(st.integers(0, 10**9)),
        save_total_limit=draw(some),
        cpu_threads=draw(some),
        select=draw(st.sampled_from(["best", "last"])),
    )


@st.composite
def data_arguments(draw) -> DataArguments:
    positive = st.floats(1e-6, 1e6, allow_nan=False)
    low = draw(st.floats(-1e6, 1e6))
    channels = draw(st.integers(1, 3))
    given_mean = draw(st.booleans())
    return DataArguments(
        dataset_name=draw(st.none() | st.from_regex(r"[a-z]{1,5}(/[a-z0-9]{1,9})?", fullmatch=True)),
        dataset_train_split=draw(WORDS),
        label_column_name=draw(st.none() | TYPED | WORDS),
        resolution=draw(st.none() | st.lists(st.integers(1, 999), min_size=1, max_size=2)),
        value_range=draw(st.none() | positive.map(lambda span: [low, low + 1 + span])),
        classes=draw(st.none() | st.lists(TYPED.filter(lambda name: not name.startswith("-")), min_size=2, max_size=4)),
        mean=draw(st.lists(st.floats(0, 1), min_size=channels, max_size=channels)) if given_mean else None,
        std=draw(st.lists(positive, min_size=channels, max_size=channels)) if given_mean else None,
        validation_fraction=draw(st.floats(0, 0.999)),
        zca_eps=draw(st.floats(0, 10)),
        skip_corrupt=draw(st.booleans()),
        num_proc=draw(st.none() | st.integers(1, 64)),
    )


@same
@given(data_arguments(), loop_configs())
def test_settings_come_back_from_yaml_and_from_the_words_of_a_command_line(data, config):
    values = {**asdict(data), **asdict(config)}
    assert read(yaml.safe_dump(values), DataArguments, LoopConfig) == (data, config)
    config.save_total_limit = config.save_total_limit or 1
    words = []
    for name, value in {**values, **asdict(config)}.items():
        if value is None or value == []:  # which no words say, and both are the default
            continue
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    assert parse_args(DataArguments, LoopConfig, args=words) == (data, config)


# --- views -----------------------------------------------------------------------------------------------------------


@st.composite
def views(draw) -> Views:
    return Views(
        seed=draw(st.integers(0, 2**32)),
        crop=draw(st.sampled_from(["resized", "padded", "none"])),
        scale=draw(st.sampled_from([(0.08, 1.0), (0.5, 0.5), (0.01, 0.1), (1.0, 1.0)])),
        pad=draw(st.integers(0, 3)),
        flip=draw(st.sampled_from([0.0, 0.5, 1.0])),
        mix=draw(st.sampled_from(["cutmix", "mixup", "none"])),
        alpha=draw(st.sampled_from([0.2, 0.8, 1.0, 3.0])),
        shuffle=draw(st.integers(1, 2)),
    )


SIZES = st.tuples(st.integers(4, 11), st.integers(4, 11))


@same
@given(views(), SIZES, st.integers(1, 9), st.integers(0, 999), st.data())
def test_a_view_is_the_same_in_any_order_batch_and_description(views, size, count, epoch, data):
    images = torch.rand(count, 2, *size, generator=generator(count))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=12)))
    whole = views(images.__getitem__, torch.arange(count), epoch, count)
    again = Views.from_config(json.loads(json.dumps(views.to_config())))
    assert torch.equal(again(images.__getitem__, rows, epoch, count), whole[rows])
    partners, shares = views.mixing(torch.arange(count), epoch, count, size)
    assert sorted(partners.tolist()) == list(range(count))  # each image is somebody's partner, once
    assert ((shares >= 0) & (shares <= 1)).all()


@same
@given(
    st.integers(0, 2**32), SIZES, st.integers(1, 7), st.integers(0, 999), st.sampled_from(["cutmix", "mixup", "none"])
)
def test_recorded_views_show_what_the_drawn_ones_showed(seed, size, count, epoch, mix):
    """The boxes of `Views`, written down as integers and played back, are the same pixels."""
    drawn = Views(seed=seed, mix=mix)
    images, rows = torch.rand(count, 3, *size, generator=generator(seed)), torch.arange(count)
    crops = draw_crops(uniform(seed, (epoch, CROP), rows, CROP_DRAWS), size, drawn.scale, flip=drawn.flip)
    known = {"crop": crops.boxes.to(torch.uint16), "flip": crops.flip.to(torch.uint8)}
    if mix != "none":
        partners, weights = drawn.mixing(rows, epoch, count, size)
        known["partner"] = partners.int()
        boxes = draw_cutmix(uniform(seed, (epoch, MIX), rows, 3), size, drawn.alpha).values
        known |= {"mix_box": boxes.to(torch.uint16)} if mix == "cutmix" else {"mix_weight": weights}

    def recall(some: Tensor, _: int) -> dict[str, Tensor]:
        return {name: torch.from_numpy(column.numpy()[some.numpy()]) for name, column in known.items()}

    recorded = RecordedViews(mix, size, count, recall)
    for some in (rows, rows.flip(0), rows[:1]):
        assert torch.equal(
            recorded(images.__getitem__, some, epoch, count), drawn(images.__getitem__, some, epoch, count)
        )
        for one, other in zip(
            recorded.mixing(some, epoch, count, size), drawn.mixing(some, epoch, count, size), strict=True
        ):
            assert torch.equal(one, other)


@same
@given(SIZES, st.integers(1, 12), st.integers(0, 2**32), st.floats(0.01, 1), st.floats(0.2, 1))
def test_boxes_lie_in_the_image_and_the_share_of_a_mix_is_counted_in_its_pixels(size, count, seed, least, ratio):
    ids = torch.arange(count)
    boxes = draw_crops(uniform(seed, (0,), ids, CROP_DRAWS), size, (least, 1.0), (ratio, 1 / ratio)).boxes
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(size)).all()
    mix = draw_cutmix(uniform(seed, (1,), ids, 3), size)
    ones, zeros = torch.ones(count, 1, *size), torch.zeros(count, 1, *size)
    assert torch.allclose(apply_mix(ones, zeros, mix).mean((1, 2, 3)), mix.own_share(size), atol=1e-6)


@same
@given(SIZES, SIZES, st.booleans(), st.data())
def test_a_crop_is_a_cut_resized_on_its_own(size, result, flip, data):
    height, width = size
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    tall, wide = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    images = torch.rand(2, 3, *size, generator=generator(top, left), dtype=torch.float64)
    params = CropParams(torch.tensor([[top, left, tall, wide]] * 2), torch.tensor([flip] * 2))
    cut = images[:, :, top : top + tall, left : left + wide]
    expected = torch.nn.functional.interpolate(cut, result, mode="bilinear", align_corners=False)
    assert torch.allclose(crop_resize(images, params, result), expected.flip(3) if flip else expected, atol=1e-12)


# --- tables ----------------------------------------------------------------------------------------------------------


def bits(kind: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Finite numbers of all magnitudes, zeros of both signs and the smallest ones too, by their bits."""
    whole = {torch.float16: np.uint16, torch.float32: np.uint32}[kind]
    drawn = np.random.default_rng(seed).integers(0, np.iinfo(whole).max, shape, whole, endpoint=True)
    drawn.reshape(-1)[::7] = 1  # the smallest
    drawn.reshape(-1)[3::7] = 1 << (8 * drawn.itemsize - 1)  # minus nothing
    values = torch.from_numpy(drawn.view({np.uint16: np.float16, np.uint32: np.float32}[whole]))
    return torch.where(values.isfinite(), values, torch.zeros((), dtype=kind))


@same
@given(
    st.sampled_from(["default", "tensor"]),
    st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 9),
    st.lists(WORDS, min_size=2, max_size=6, unique=True),
    st.booleans(),
    st.integers(1, 400),
    st.integers(0, 2**32),
)
def test_rows_come_back_bit_for_bit_from_any_groups_and_shards(name, shape, count, names, soft, group_bytes, seed):
    if name == "default":
        pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8))
    else:
        pixels = bits(torch.float32, (count, *shape), seed)
    labels = torch.randint(len(names), (count,), generator=generator(seed))
    logits = bits(torch.float16, (count, len(names)), seed) if soft else None
    rows = Rows(name, pixels.__getitem__, shape, labels, names, logits)
    before = tables.GROUP_BYTES, tables.SHARD_BYTES
    tables.GROUP_BYTES, tables.SHARD_BYTES = group_bytes, 3 * group_bytes
    try:
        with TemporaryDirectory() as folder:
            rows.write(Path(folder), "abc")
            back = read_rows(Path(folder), name, "abc", count, shape, len(names))
    finally:
        tables.GROUP_BYTES, tables.SHARD_BYTES = before
    assert back[0].numpy().tobytes() == pixels.numpy().tobytes()
    assert torch.equal(back[1], labels)
    assert (back[2] is None) == (logits is None)
    assert logits is None or back[2].numpy().tobytes() == logits.numpy().tobytes()


@same
@given(st.integers(2, 40), st.integers(1, 6), st.data())
def test_kept_logits_have_the_probabilities_of_all_and_keeping_all_is_float16(classes, count, data):
    kept = data.draw(st.none() | st.integers(1, classes))
    logits = (5 * torch.randn(count, classes, generator=generator(classes, count))).half().float()
    codec = Codec(kept)
    back = codec.decode(codec.encode(logits), classes)
    if kept in (None, classes):
        assert torch.equal(back, logits)
        return
    expected = logits.double().softmax(1)
    largest = expected.topk(kept, dim=1).indices
    probabilities = back.double().softmax(1)
    assert torch.allclose(probabilities.gather(1, largest), expected.gather(1, largest), rtol=1e-5)
    rest = 1 - expected.gather(1, largest).sum(1)
    spread = probabilities.scatter(1, largest, 0.0)
    assert torch.allclose(spread.sum(1), rest, rtol=1e-4, atol=1e-6)
    assert torch.allclose(spread.max(1).values, rest / (classes - kept), rtol=1e-4, atol=1e-6)
