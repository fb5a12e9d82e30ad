"""Heads on frozen backbones: Adam in NumPy, the views that a backbone is given, subsets by features, and reports."""

import json
import math
import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scipy.special import softmax
from torch import Tensor
from transformers import BitImageProcessor, ViTConfig, ViTModel

import hf_distill as hd
from hf_distill.augmentation.crops import CROP_DRAWS, draw_crops, uniform
from hf_distill.config import DataArguments
from hf_distill.data.feed import Pool
from hf_distill.data.preprocessing import Preprocessing, fit_zca
from hf_distill.distilled.epoch_labels import EpochLabels
from hf_distill.distilled.labels import StoredLabels
from hf_distill.evaluation.accuracy import accuracy
from hf_distill.evaluation.coresets import centroid, neighbours
from hf_distill.evaluation.costs import backbone_flop
from hf_distill.evaluation.evaluate import check_views, evaluate, student_specs, validation_accuracy
from hf_distill.evaluation.protocols import PROTOCOLS, Budget, ProbeProtocol
from hf_distill.evaluation.students import train_students
from hf_distill.networks.probes import ProbeSpec, centre
from hf_distill.rng import derive_seed, generator
from tests.helpers import ROOT
from tests.helpers.clips import save_clip

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = ROOT / "recipes" / "evaluate.py"
COUNT, CLASSES = 14, 4
LOOK = Preprocessing(1, (8, 8), (0.4,), (0.3,))
PROTOCOL = ProbeProtocol("heads", epochs=5, full_data_epochs=2, batch_size=4, lrs=(0.5,), scale=(0.3, 1.0))
ONCE = PROTOCOL.without_augmentation()


class Backbone(hd.Backbone):
    """A backbone that remembers the pixels that it saw."""

    seen: list[Tensor]

    def features(self, images: Tensor) -> Tensor:
        self.__dict__.setdefault("seen", []).append(images)
        return super().features(images)


def teacher(seed: int = 0, channels: int = 1, size: tuple[int, int] = (8, 8), width: int = 4) -> hd.Teacher:
    spec = hd.StudentSpec("convnet_d1", 10, channels, size, {"width": width})
    look = Preprocessing(channels, size, (0.3,) * channels, (0.2,) * channels)
    return hd.Teacher(spec.build(seed), spec, list("abcdefghij"), look)


def backbone(**options) -> Backbone:
    return Backbone.from_teacher(teacher(**options), "tiny")


def pool_of(look: Preprocessing = LOOK, count: int = COUNT) -> Pool:
    shape = (count, look.channels, *look.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "images"))
    return Pool(images, torch.arange(count) % CLASSES, preprocessing=look)


def probe(look: Preprocessing = LOOK, **options) -> ProbeSpec:
    return ProbeSpec.of(backbone(**options), CLASSES, look, look.image_size)


# Heads


def adam_by_hand(features: np.ndarray, labels: np.ndarray, protocol: ProbeProtocol, lr: float, seed: int):
    """The head that a loop over batches gives with Adam's equations, in float64."""
    fresh = probe().build(derive_seed(seed, "init")).head
    values = [fresh.weight.detach().double().numpy(), fresh.bias.detach().double().numpy()]
    first, second = ([np.zeros_like(value) for value in values] for _ in range(2))
    order, step = generator(seed, "order"), 0
    for epoch in range(protocol.epochs):
        places = np.arange(len(features))
        if len(features) > protocol.batch_size:
            places = torch.randperm(len(features), generator=order).numpy()
        rate = lr * protocol.batch_size / 256 * 0.5 * (1 + math.cos(math.pi * epoch / protocol.epochs))
        for start in range(0, len(places), protocol.batch_size):
            batch, step = places[start : start + protocol.batch_size], step + 1
            z, y = features[batch], labels[batch]
            error = (softmax(z @ values[0].T + values[1], axis=1) - y) / len(batch)
            for number, gradient in enumerate((error.T @ z, error.sum(axis=0))):
                first[number] = 0.9 * first[number] + 0.1 * gradient
                second[number] = 0.999 * second[number] + 0.001 * gradient**2
                move = first[number] / (1 - 0.9**step) / (np.sqrt(second[number] / (1 - 0.999**step)) + 1e-8)
                values[number] = values[number] - rate * move
    return values


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_heads_learn_as_adam_in_numpy_does_on_features_that_are_computed_once(soft):
    pool, spec = pool_of(), probe()
    logits = torch.randn(COUNT, CLASSES, generator=generator(0, "logits")).half()
    rows = torch.stack([torch.arange(9), torch.arange(COUNT)[-9:]])
    students = train_students(pool, logits if soft else pool.labels, rows, spec, ONCE, 5, [0.5] * 2, [3, 8])
    features = spec.features(pool).double().numpy()
    targets = softmax(logits.double().numpy(), axis=1) if soft else np.eye(CLASSES)[pool.labels]
    for student, own, seed in zip(students, rows, (3, 8), strict=True):
        weight, bias = adam_by_hand(features[own], targets[own], ONCE, 0.5, seed)
        np.testing.assert_allclose(student.head.weight.detach(), weight, atol=2e-5)
        np.testing.assert_allclose(student.head.bias.detach(), bias, atol=2e-5)
    assert len(spec.backbone.seen[-1]) == COUNT  # what is above; before that the two times 14 rows that are used, once


def test_a_student_is_the_same_alone_and_beside_others_of_other_rates():
    pool, rows = pool_of(), torch.arange(COUNT).expand(3, -1)
    several = train_students(pool, pool.labels, rows, probe(), PROTOCOL, 2, [0.5, 0.5, 0.1], [1, 2, 2])
    together = train_students(pool, pool.labels, rows[:2], probe(), PROTOCOL, 2, [0.5, 0.5], [1, 2])
    for one, other in zip(several, together, strict=False):
        torch.testing.assert_close(one.head.weight, other.head.weight)
    assert not torch.allclose(several[1].head.weight, several[2].head.weight)


def test_rates_fall_along_a_cosine_and_a_budget_ends_at_its_step():
    # ½ (1 + cos(π t / E)), by hand
    assert [PROTOCOL.rate(epoch, 4) for epoch in range(4)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    pool, rows = pool_of(), torch.arange(8)[None]
    limited = replace(ONCE, budget=Budget("of three", 3))
    spent = train_students(pool, pool.labels, rows, probe(), limited, 2, [0.5], [0])[0].head.weight
    whole = train_students(pool, pool.labels, rows, probe(), replace(ONCE, epochs=2), 2, [0.5], [0])[0].head.weight
    assert not torch.allclose(spent, whole)  # four steps


def test_the_rate_of_a_step_is_that_of_its_images():
    pool, start = pool_of(), probe().build(derive_seed(0, "init")).head.weight
    for count, share in ((2, 2 / 256), (8, 4 / 256)):  # a batch is all of two images, and four of eight
        rows = torch.arange(count)[None]
        first = replace(ONCE, epochs=1, budget=Budget("of one", 1))
        (student,) = train_students(pool, pool.labels, rows, probe(), first, 1, [0.5], [0])
        moved = (student.head.weight - start).abs().max().item()
        assert moved == pytest.approx(0.5 * share, rel=1e-3)  # Adam's first step is the rate itself


# Views


def test_the_backbone_is_given_flipped_crops_in_its_size_and_its_pixels():
    look = Preprocessing(1, (8, 12), (0.4,), (0.3,))
    pool, spec, protocol = pool_of(look), probe(look), replace(PROTOCOL, epochs=2, batch_size=100, flip=0.5)
    rows = torch.stack([torch.arange(5), torch.arange(5, 10)])
    train_students(pool, pool.labels, rows, spec, protocol, 2, [0.5] * 2, [3, 8])
    (seen,) = spec.backbone.seen[-1:]  # two epochs of two students at once
    raw, expected = pool.source.float() / 255, []
    for epoch in (0, 1):
        for own, seed in zip(rows, (3, 8), strict=True):
            numbers = uniform(derive_seed(seed, "views"), (epoch, 1), torch.arange(5), CROP_DRAWS)
            drawn = draw_crops(numbers, (8, 12), (0.3, 1.0))
            for row, (top, left, tall, wide), flip in zip(own, drawn.boxes.tolist(), drawn.flip, strict=True):
                part = raw[row : row + 1, :, top : top + tall, left : left + wide]
                part = F.interpolate(part, (8, 8), mode="bilinear", align_corners=False)
                expected.append(part.flip(3) if flip else part)
    torch.testing.assert_close(seen, torch.cat(expected), atol=1e-5, rtol=0)


def test_images_are_tested_at_the_centre_of_eight_sevenths_of_the_side():
    images = torch.rand(3, 3, 16, 20, generator=generator(0, "images"))
    # 14 of 16 is the share of 224 of 256, so nothing is resized
    assert torch.equal(centre(images, (14, 14)), images[:, :, 1:15, 3:17])
    resized = F.interpolate(images, (32, 40), mode="bilinear", antialias=True)
    torch.testing.assert_close(centre(images, (28, 28)), resized[:, :, 2:30, 6:34], atol=1e-5, rtol=0)
    spec = probe(size=(14, 14))
    gray = images[:, :1].sub(0.4).div(0.3)
    by_hand = spec.backbone.features(images[:, :1, 1:15, 3:17])
    torch.testing.assert_close(spec.build(0).forward_features(gray), by_hand)


def test_much_larger_images_are_reduced_before_they_are_cropped():
    look = Preprocessing(1, (64, 64), (0.0,), (1.0,))
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(2, 1, 64, 64)  # gray, where no pixel is skipped
    pool, spec = Pool(stripes, torch.tensor([0, 1]), preprocessing=look), probe(look)
    whole = replace(PROTOCOL, scale=(1.0, 1.0), flip=0.0, epochs=1)
    train_students(pool, pool.labels, torch.arange(2)[None], spec, whole, 1, [0.1], [0])
    assert (spec.backbone.seen[-1] - 0.5).abs().max() < 0.02


def test_gray_images_are_seen_by_a_backbone_of_colours_and_whitened_ones_as_pixels():
    pixels = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8, generator=generator(0, "images"))
    whitened = replace(LOOK, mean=(0.0,), std=(1.0,), zca=fit_zca([pixels], 0.1))
    spec = probe(whitened, channels=3)
    given = centre(pixels[:4].float() / 255, (8, 8))
    found = spec.build(0).forward_features(whitened(pixels[:4]))
    torch.testing.assert_close(found, spec.backbone.features(given.expand(-1, 3, -1, -1)), atol=1e-3, rtol=1e-3)


# Subsets


def test_centroids_and_neighbours_are_the_nearest_of_all():
    draw = generator(0, "features")
    features, own = torch.randn(40, 5, generator=draw), torch.randn(6, 5, generator=draw)
    to_mean = [np.linalg.norm(each - features.numpy().mean(axis=0)) for each in features.numpy()]
    assert centroid(features, 4).tolist() == np.argsort(to_mean)[:4].tolist()
    expected = [np.argmin([np.linalg.norm(each - mine) for each in features.numpy()]) for mine in own.numpy()]
    assert neighbours(features, own).tolist() == expected
    assert neighbours(features, features[[3, 3]]).tolist() == [3, 3]


# Reports


@pytest.fixture(scope="module")
def data():
    return hd.RealImages.train_and_test(DataArguments(max_train_samples=120, max_test_samples=40))


def set_of(train, ipc: int = 1, **options) -> hd.DistilledSet:
    rows = torch.cat([train.class_rows(label)[:ipc] for label in range(10)])
    noise = torch.randint(0, 256, (len(rows), 1, 8, 8), dtype=torch.uint8, generator=generator(1, "noise"))
    images = (train.uint8(rows) // 2 + noise // 2).to(torch.uint8)
    return hd.DistilledSet(images, train.labels[rows], train.class_names, train.preprocessing, **options)


def folder_of(tmp_path, name: str, **options) -> str:
    teacher(**options).save_pretrained(tmp_path / name)
    return str(tmp_path / name)


OPTIONS = {"num_seeds": 2, "disable_tqdm": True}


def test_a_table_of_backbones_has_their_digests_and_pairs_and_nothing_of_them_is_kept(data, tmp_path):
    names = [f"probe:{folder_of(tmp_path, name, seed=seed)}" for seed, name in enumerate(("one", "two"))]
    distilled, wanted = set_of(data[0]), ["random", "centroid", "neighbour", "herding"]
    given = {"students": names, "protocol": PROTOCOL, "baselines": wanted, "output_dir": tmp_path / "set", **OPTIONS}
    report = evaluate(distilled, *data, **given)
    specs = student_specs(distilled, names)
    assert [spec.name for spec in specs] == [
        f"probe:{name} ({spec.backbone.digest})" for name, spec in zip(("one", "two"), specs, strict=True)
    ]
    assert {(row.set, row.student) for row in report.rows} == {
        (name, spec.name) for name in [*wanted, "distilled", "full data"] for spec in specs
    }
    # Subsets by the features of the first, whose head has nothing to do with them.
    features = specs[0].backbone.features(centre(data[0].uint8(range(len(data[0]))).float() / 255, (8, 8)))
    mean_of = [features[data[0].class_rows(label)].mean(0) for label in range(10)]
    rows = [min(data[0].class_rows(k).tolist(), key=lambda row: (features[row] - mean_of[k]).norm()) for k in range(10)]
    as_centroids = hd.DistilledSet(data[0].uint8(rows), torch.arange(10), data[0].class_names, data[0].preprocessing)
    again = evaluate(
        as_centroids, *data, students=names, protocol=PROTOCOL, baselines=["random"], full_data=False, **OPTIONS
    )
    found = {(row.set, row.student): row.accuracies for row in [*report.rows]}
    for row in again.rows:
        assert row.accuracies == found["centroid" if row.set == "distilled" else "random", row.student], row.set
    said = next(iter(report.meta.values()))
    assert said["coresets"]["centroid"] == f"features of {specs[0].name}"
    assert said["backbone"]["sha256"] == specs[0].backbone.sha256
    pairs = np.subtract(*(found[name, specs[0].name] for name in ("distilled", "random")))
    (paired,) = (each for each in report.differences if (each.against, each.student) == ("random", specs[0].name))
    assert paired.difference.mean == pytest.approx(pairs.mean())
    # Nothing is trained again, and nothing of a backbone lies there.
    files = sorted((tmp_path / "set" / "students").iterdir())
    assert max(file.stat().st_size for file in files) < 20_000
    assert evaluate(distilled, *data, **given).to_json() == report.to_json()
    assert sorted((tmp_path / "set" / "students").iterdir()) == files
    json.dumps(report.to_json())


def test_without_full_data_images_are_compared_by_the_backbone(data):
    spec = ProbeSpec.of(backbone(), 10, data[0].preprocessing, (8, 8))
    distilled = set_of(data[0])
    known = {"students": [spec], "protocol": PROTOCOL, "baselines": ["k-center", "neighbour"], **OPTIONS}
    both = [evaluate(distilled, *data, full_data=full, **known) for full in (True, False)]
    rows = [{row.set: row.accuracies for row in report.rows if row.set != "full data"} for report in both]
    assert rows[0] == rows[1]
    assert next(iter(both[1].meta.values()))["coresets"]["neighbour"] == f"features of {spec.name}"
    with pytest.raises(ValueError, match="bps, which needs a network"):
        evaluate(distilled, *data, full_data=False, **{**known, "baselines": ["bps"]})


@pytest.mark.parametrize("budget", ["steps", "flops"])
def test_costs_are_those_of_the_backbone_and_the_head(data, budget):
    spec = ProbeSpec.of(backbone(), 10, data[0].preprocessing, (8, 8))
    flop, width = backbone_flop(spec, torch.device("cpu")), spec.backbone.width
    assert flop == 2 * 8 * 8 * 9 * 4  # a convolution of 3 x 3 from one channel to four
    known = {"students": [spec], "protocol": PROTOCOL, "baselines": ["random"], **OPTIONS}
    report = evaluate(set_of(data[0]), *data, unaugmented=True, budget=budget, **known)
    cost = {(row.set, "without" in row.protocol): row.cost for row in report.rows}
    seen, head = 5 * 10, 4 * 10 * width
    assert (cost["distilled", False].steps, cost["distilled", False].images_seen) == (5 * 3, seen)
    assert cost["distilled", False].flop == cost["random", False].flop == seen * (flop + head)
    assert cost["distilled", True].flop == 10 * flop + seen * head
    full = cost["full data", False]
    assert full.flop == len(data[0]) * flop + full.images_seen * head


def test_soft_labels_have_a_row_and_what_steps_select_by_takes_the_students_that_it_is_given(data):
    spec = ProbeSpec.of(backbone(), 10, data[0].preprocessing, (8, 8))
    labels = 5 * torch.eye(10)
    distilled = set_of(data[0], soft_labels=labels)
    report = evaluate(distilled, *data, students=[spec], protocol=PROTOCOL, baselines=[], full_data=False, **OPTIONS)
    assert [(row.set, row.labels) for row in report.rows] == [("distilled", "soft"), ("distilled", "hard")]
    assert isinstance(distilled.label_source, StoredLabels)
    share = validation_accuracy(distilled, data[1], PROTOCOL, 2, 0, Accelerator(), [spec])
    assert 0 <= share <= 1


# What the set was made with


def test_a_set_is_probed_by_the_backbone_that_it_was_made_with(data, tmp_path):
    folder = folder_of(tmp_path, "made")
    about = hd.Backbone.from_pretrained(folder).about()
    distilled = set_of(data[0], config={"student": {"probe": about}})
    (spec,) = student_specs(distilled, None)
    assert (spec.name, spec.num_classes, spec.img_size) == (f"probe:made ({about['digest']})", 10, (8, 8))
    other = ProbeSpec.of(backbone(seed=3), 10, data[0].preprocessing, (8, 8))
    known = {"protocol": PROTOCOL, "baselines": ["centroid"], "full_data": False, **OPTIONS}
    report = evaluate(distilled, *data, students=[other], **known)
    assert next(iter(report.meta.values()))["coresets"]["centroid"] == f"features of {spec.name}"
    distilled.config["student"]["probe"]["digest"] = "00000000"
    with pytest.raises(ValueError, match=r"whose weights are others now \(.*\); name one with --student probe:NAME"):
        student_specs(distilled, None)
    distilled.config["student"]["probe"] = {**about, "name": str(tmp_path / "gone")}
    with pytest.raises(ValueError, match=r"a backbone that is not found \(.*gone.*\); name one with --student probe"):
        student_specs(distilled, None)
    for name in ("", "long" * 1250):
        distilled.config["student"]["probe"] = {**about, "name": name}
        with pytest.raises(ValueError, match=r"not found \('.*' is no folder here .*\); name one with --student probe"):
            student_specs(distilled, None)
        with pytest.raises(ValueError, match=r"--student probe:.*(names no backbone|is no folder here)"):
            student_specs(distilled, [f"probe:{name}"])
    distilled.config["student"]["probe"] = ["nothing"]
    with pytest.raises(ValueError, match=r"made with the backbone \['nothing'\]; name one"):
        student_specs(distilled, None)
    # Others do without it.
    report = evaluate(distilled, *data, students=[other], **known)
    assert next(iter(report.meta.values()))["coresets"]["centroid"] == f"features of {other.name}"


def test_the_name_of_that_backbone_means_its_commit_and_others_may_be_asked_for(data, monkeypatch):
    asked, made = [], backbone()
    monkeypatch.setattr(hd.Backbone, "from_pretrained", lambda name, revision: asked.append((name, revision)) or made)
    about = {**made.about(), "name": "org/vit", "revision": "a" * 40}
    distilled = set_of(data[0], config={"student": {"probe": about}})
    student_specs(distilled, ["probe:org/vit", "probe:org/vit@main", "probe:org/other"])
    assert asked == [("org/vit", "a" * 40), ("org/vit", "main"), ("org/other", None)]


# Mistakes


@pytest.mark.parametrize(
    ("students", "protocol", "words"),
    [
        (["convnet_d1"], "probe", "--student convnet_d1 is none; name one, such as probe:facebook/dinov2-base"),
        (None, "mtt", "is a frozen backbone, and --protocol mtt trains whole networks; use --protocol probe"),
        (None, ["probe", "sre2l"], "--protocol sre2l trains whole networks"),
        (["probe:"], "probe", "--student probe: names no backbone"),
        (["probe:no/such folder"], "probe", "--student probe:no/such folder: .*no/such folder"),
    ],
)
def test_students_and_protocols_that_do_not_go_together_are_one_line(data, students, protocol, words):
    students = students or [ProbeSpec.of(backbone(), 10, data[0].preprocessing, (8, 8))]
    with pytest.raises(ValueError, match=words) as error:
        evaluate(set_of(data[0]), *data, students=students, protocol=protocol, **OPTIONS)
    assert "\n" not in str(error.value)


def test_labels_and_images_that_do_not_fit_are_one_line():
    pool, rows = pool_of(), torch.arange(COUNT)[None]
    with pytest.raises(ValueError, match="labels of 7 classes for a student of 4; expected as many"):
        train_students(pool, torch.zeros(COUNT, 7), rows, probe(), ONCE, 1, [0.1], [0])
    with pytest.raises(ValueError, match="probe:tiny sees gray images, and those of the set have 3 channels"):
        probe(Preprocessing(3, (8, 8), (0.4,) * 3, (0.3,) * 3))
    with pytest.raises(ValueError, match=r"has scale=\(0, 1\) and flip=0.5; expected shares"):
        ProbeProtocol("mine", epochs=1, full_data_epochs=1, scale=(0, 1))


def test_labels_of_views_and_sets_for_whole_networks_are_refused(data):
    with pytest.raises(ValueError, match="the protocol heads takes one label of each image, and the labels are of"):
        check_views([PROTOCOL], EpochLabels.__new__(EpochLabels))
    for flags in ({"eval_protocol": "probe"}, {"eval_also": ["probe"]}):
        words = f"--{next(iter(flags))} probe trains heads of frozen backbones, and sets of RDED are for whole networks"
        with pytest.raises(ValueError, match=words):
            hd.RDED.check(hd.RDEDConfig(**flags), data[0].outline, Accelerator())


def test_enlarged_images_are_said(data, caplog):
    spec = ProbeSpec.of(backbone(size=(16, 16)), 10, data[0].preprocessing, (8, 8))
    known = {"protocol": PROTOCOL, "baselines": [], "full_data": False, **OPTIONS}
    evaluate(set_of(data[0]), *data, students=[spec], **known)
    assert f"{spec.name} sees images of 8x8 pixels enlarged to 16x16" in caplog.text


def test_the_accuracy_of_a_probe_looks_at_each_image_once():
    pool, spec = pool_of(), probe()
    students = train_students(pool, pool.labels, torch.arange(COUNT).expand(2, -1), spec, ONCE, 5, [0.5] * 2, [0, 1])
    seen = len(spec.backbone.seen)
    shares = [accuracy(student, pool) for student in students]
    assert len(spec.backbone.seen) == seen  # it looked at them in the training
    for student, share in zip(students, shares, strict=True):
        guesses = student(pool.images(torch.arange(COUNT))).argmax(1)
        assert share == pytest.approx((guesses == pool.labels).double().mean().item())


def test_protocols_of_probes_are_known_by_name():
    assert {name for name, known in PROTOCOLS.items() if isinstance(known, ProbeProtocol)} == {"probe", "probe-quick"}


# The recipe


@pytest.mark.slow
def test_the_recipe_probes_four_backbones_of_three_libraries_in_one_table(data, tmp_path, monkeypatch, capsys):
    folders = [folder_of(tmp_path, name, seed=seed) for seed, name in enumerate(("one", "two"))]
    vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    ViTModel(vit).save_pretrained(tmp_path / "vit")
    processor = BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path / "vit")
    folders += [str(tmp_path / "vit"), str(save_clip("vit", tmp_path / "clip"))]
    arguments = {"max_train_samples": 120, "max_test_samples": 40}
    made_with = {"student": {"probe": hd.Backbone.from_pretrained(folders[0]).about()}}
    source = {"name": "digits", "arguments": {**arguments, "validation_fraction": 0.0}}
    distilled = set_of(data[0], config={**made_with, "source": source, "method": "lgm"})
    folder = str(distilled.save_pretrained(tmp_path / "set"))
    monkeypatch.setitem(PROTOCOLS, "heads", replace(PROTOCOL, name="heads"))
    flags = ["--distilled_dataset", folder, "--protocol", "heads", "--num_seeds", "2", "--disable_tqdm"]
    flags += ["--baselines", "random", "centroid", "neighbour", "--full_data", "false", "--student"]
    students = [f"probe:{name}" for name in folders]
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *flags, *students])
    runpy.run_path(str(RECIPE), run_name="__main__")
    told = capsys.readouterr().out
    kept = hd.DistilledSet.from_pretrained(folder)
    names = list(dict.fromkeys(row.student for row in kept.report.rows))
    assert [name.split()[0] for name in names] == ["probe:one", "probe:two", "probe:vit", "probe:clip"]
    assert all(name in told and name in (tmp_path / "set" / "README.md").read_text() for name in names)
    assert len(kept.report.rows) == 4 * 4
    (tmp_path / "one").rename(tmp_path / "gone")
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *flags[:-1]])
    with pytest.raises(SystemExit, match=r"a backbone that is not found .* name one with --student probe:NAME"):
        runpy.run_path(str(RECIPE), run_name="__main__")
