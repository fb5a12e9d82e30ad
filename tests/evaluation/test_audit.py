"""The audit: copies are found and fresh images are not, members are told apart, and the card says both."""

import io
import json
import math
import runpy
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from sklearn.metrics import roc_auc_score

from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import NetworkLabels
from hf_distill.evaluation.audit import audit
from hf_distill.evaluation.copies import find_copies, mosaics, rarity
from hf_distill.evaluation.membership import auc, confidence, excess
from hf_distill.evaluation.nearest import kinds_for, nearest_features, nearest_windows, working
from hf_distill.evaluation.protocols import PROTOCOLS, EvalProtocol
from hf_distill.evaluation.spread import coverage, vendi_score
from hf_distill.hub.audit import audit_markdown, audit_text
from hf_distill.hub.results import EvalReport
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.teachers import Teacher
from tests.helpers import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = ROOT / "recipes" / "evaluate.py"
SPEC = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 8})
LONG = EvalProtocol("long", epochs=30, full_data_epochs=1, lrs=(0.05,), dsa_strategy="")


@pytest.fixture(scope="module")
def digits() -> RealImages:
    """All digits of train, in an order of chance."""
    train, _ = RealImages.train_and_test(DataArguments())
    return train.subset(torch.randperm(len(train), generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def large() -> RealImages:
    """As many pixels as two tiles of eight have along a side."""
    train, _ = RealImages.train_and_test(DataArguments(resolution=[16], max_train_samples=300))
    return train.subset(torch.randperm(len(train), generator=torch.Generator().manual_seed(0)))


def set_of(real: RealImages, rows: torch.Tensor, **config) -> DistilledSet:
    """Real images as if they had been distilled for `SPEC`."""
    config = {"student": SPEC.to_dict(), **config}
    return DistilledSet(real.uint8(rows), real.labels[rows], real.class_names, real.preprocessing, config=config)


def jpeg(pixels: torch.Tensor, quality: int) -> torch.Tensor:
    """Gray images (n, 1, H, W) written as JPEG files, and read."""
    images = []
    for picture in pixels[:, 0]:
        file = io.BytesIO()
        Image.fromarray(picture.numpy()).save(file, "JPEG", quality=quality)
        images.append(torch.from_numpy(np.array(Image.open(file)))[None])
    return torch.stack(images)


def shifted(pixels: torch.Tensor, by: int) -> torch.Tensor:
    moved = torch.zeros_like(pixels)
    moved[..., by:, by:] = pixels[..., :-by, :-by]
    return moved


# Searching


def test_the_nearest_shifted_and_mirrored_image_is_that_of_a_search_through_all_of_them(digits):
    images, real = digits.uint8(torch.arange(12)), digits.uint8(torch.arange(100, 160))
    kind = kinds_for((8, 8), 1)["image"]
    found = nearest_windows(kind.pieces(working(images)), kind, lambda rows: working(real[rows]), len(real), 3)

    def unit(window: np.ndarray) -> np.ndarray:
        window = window.astype(np.float64).ravel() - window.mean()
        return window / np.linalg.norm(window)

    for image, distances, rows in zip(images[:, 0].numpy(), found.distances, found.rows, strict=True):
        middle = image[1:7, 1:7]
        best = []
        for picture in real[:, 0].numpy():
            windows = [picture[y : y + 6, x : x + 6] for y, x in product(range(3), range(3))]
            pairs = product((middle, middle[:, ::-1]), windows)
            best.append(min(np.linalg.norm(unit(piece) - unit(window)) for piece, window in pairs))
        assert rows[0] == int(np.argmin(best))
        assert distances[0] == pytest.approx(min(best), abs=2e-3)
        assert torch.all(distances > torch.from_numpy(np.sort(best)[:3]) - 2e-3)  # what is next is only near the truth


def test_a_window_is_found_at_its_place_and_scale_and_as_its_mirror_image(large):
    real, kind = large.uint8(torch.arange(40)), kinds_for((16, 16), 1)["crop"]
    boxes = torch.tensor([[3, 1, 11, 11], [1, 3, 13, 13]])
    shown = kind.side
    windows = [working(real[row : row + 1, :, y : y + h, x : x + w]) for row, (y, x, h, w) in enumerate(boxes.tolist())]
    pieces = torch.cat([torch.nn.functional.interpolate(window, (shown, shown), mode="bilinear") for window in windows])
    pieces[1] = pieces[1].flip(-1)
    found = nearest_windows(pieces, kind, lambda rows: working(real[rows]), len(real), 4)
    assert found.rows[:, 0].tolist() == [0, 1]
    assert torch.equal(found.boxes[:, 0], boxes)
    assert found.mirrored[:, 0].tolist() == [False, True]
    assert found.distances[:, 0].max() < 1e-2 < found.distances[:, 1].min()


def test_the_nearest_features_are_those_of_all_pairs_whatever_the_blocks():
    g = torch.Generator().manual_seed(1)
    own, real = torch.randn(2, 7, 5, generator=g), torch.randn(50, 5, generator=g)
    blocks = ((rows, real[rows]) for rows in torch.arange(50).split(8))
    found = nearest_features(own, blocks, 4)
    unit = [each / each.norm(dim=-1, keepdim=True) for each in (own, real)]
    distances = (unit[0][:, :, None] - unit[1]).norm(dim=-1).amin(0).numpy()
    np.testing.assert_allclose(found.distances, np.sort(distances)[:, :4], rtol=1e-4, atol=1e-5)
    assert found.rows.tolist() == distances.argsort()[:, :4].tolist()


# Copies


def test_planted_copies_and_tiles_are_found_and_nothing_else(large):
    rows, source = torch.arange(6), large.uint8(torch.arange(6))
    tiles, fresh = mosaics(large.uint8(torch.arange(100, 124)), 2, 3)[:6], large.uint8(torch.arange(160, 172))
    planted = {
        "as they are": source,
        "shifted": shifted(source, 2),
        "mirrored": source.flip(-1),
        "recompressed": jpeg(source, 50),
    }
    images = torch.cat([*planted.values(), tiles, fresh])
    copies = find_copies(images, large.uint8(torch.arange(200, 260)), large.uint8, 160, 1, 0)
    found = torch.zeros(len(images), dtype=torch.bool)
    found[copies.images] = True
    for name, part in zip(planted, found.split(6), strict=False):
        assert part.all(), name
    assert found[24:30].sum() >= 4  # a tile of a few pixels can be of any image
    assert copies.pieces("tiles")[24:30].sum() >= 10
    assert not found[30:].any()
    for part in (0, 12):  # exact ones are found where they are
        assert torch.equal(copies.found["crop"].rows[part : part + 6, 0, 0], rows)


def test_tiles_of_a_set_that_says_so_are_measured_by_mosaics_of_held_out_images(large):
    pixels = large.uint8(torch.arange(200, 232))
    tiles, fresh = mosaics(large.uint8(torch.arange(8)), 2, 3), mosaics(pixels[:8], 2, 5)
    copies = find_copies(torch.cat([tiles, fresh]), pixels[8:], large.uint8, 100, 2, 0)
    assert "crop" not in copies.found  # the image itself is none
    assert len([image for image in copies.images if image < 8]) >= 5
    assert not [image for image in copies.images if image >= 8]


def test_a_mosaic_has_the_tiles_of_as_many_images_cut_as_rded_cuts_them(large):
    pixels = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 7, 9) * 10
    made = mosaics(pixels, 2, 0)
    assert made.shape == pixels.shape
    corners = made[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]] // 10
    assert corners.tolist() == [[i, (i - 1) % 5, (i - 2) % 5, (i - 3) % 5] for i in range(5)]
    assert mosaics(pixels, 1, 0) is pixels


def test_of_twenty_fresh_draws_nineteen_at_least_raise_no_alarm(digits):
    draws = digits.uint8(torch.arange(200))
    copies = find_copies(draws, digits.uint8(torch.arange(200, 300)), digits.subset(range(300, 800)).uint8, 500, 1, 0)
    alarms = [bool((copies.p_values[part] <= 0.01 / 10).any()) for part in torch.arange(200).split(10)]
    assert len(alarms) == 20
    assert sum(alarms) <= 1


def test_a_p_value_is_at_most_alpha_in_a_share_alpha_of_cases_beyond_the_held_out_images_too():
    g = torch.Generator().manual_seed(3)
    # Nearest neighbours in five dimensions: the tail is that of a power law.
    draws = torch.rand(2000, 61, generator=g, dtype=torch.float64) ** (1 / 5)
    values = torch.stack([rarity(draw[:1], draw[1:])[0] for draw in draws])
    assert values.min() > 0
    for alpha, most in ((0.2, 0.22), (0.05, 0.06), (0.01, 0.015), (0.001, 0.003)):
        assert float((values <= alpha).double().mean()) <= most, alpha
    assert float((values <= 0.01).double().mean()) >= 0.005  # and it has power below 1 / 61
    null = torch.tensor([0.5, 0.6, 0.7, 0.8])
    assert rarity(torch.tensor([0.9, 0.65, 0.5]), null).tolist() == pytest.approx([1.0, 0.6, 0.4])


# Membership


@pytest.mark.parametrize("levels", [4, 10**6])  # with ties and without
def test_the_area_is_that_of_scikit_learn_and_its_interval_that_of_delongs_sums(levels):
    g = torch.Generator().manual_seed(2)
    inside = torch.randint(1, levels + 2, (30,), generator=g).double()
    outside = torch.randint(0, levels, (50,), generator=g).double()
    found = auc(inside, outside)
    truth = roc_auc_score([1] * 30 + [0] * 50, torch.cat([inside, outside]).numpy())
    assert found.value == pytest.approx(truth)
    wins = np.array([[float(a > b) + 0.5 * float(a == b) for b in outside] for a in inside])
    deviation = math.sqrt(wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 50)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * deviation)


@pytest.mark.parametrize(
    ("inside", "outside", "low", "high"),
    [
        ([3, 4, 5], [0, 1, 2], 0.2924, 1),  # scipy.stats.binomtest(3, 3).proportion_ci() gives 0.2924 to 1
        ([0, 1], [2, 3, 4, 5], 0, 0.8419),  # and for 0 of 2
        ([1, 1, 1], [1, 1, 1], 0.1462, 0.8538),  # ties, each of them half a win
    ],
)
def test_the_interval_of_pairs_that_all_end_alike_is_that_of_as_many_throws(inside, outside, low, high):
    found = auc(torch.tensor(inside), torch.tensor(outside))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_confidence_is_the_logarithm_of_the_odds_of_the_right_class():
    logits = torch.tensor([[1.0, 2.0, 0.5], [30.0, -30.0, 0.0]], dtype=torch.float64)
    shares = logits.softmax(1)
    odds = [shares[0, 1] / (1 - shares[0, 1]), shares[1, 2] / (1 - shares[1, 2])]
    assert confidence(logits, torch.tensor([1, 2])).exp().tolist() == pytest.approx([float(each) for each in odds])


def test_the_excess_is_beside_those_references_alone_that_never_saw_the_image():
    references = torch.tensor([[1.0, 2.0, 7.0], [3.0, 10.0, 9.0]])
    seen = torch.tensor([[False, False, True], [False, True, True]])
    found = excess(torch.tensor([5.0, 5.0, 5.0]), references, seen)
    assert found[:2].tolist() == [3.0, 3.0]
    assert math.isnan(found[2])


# Coverage and diversity


def test_alike_images_are_worth_one_and_those_that_share_nothing_as_many_as_there_are():
    assert vendi_score(torch.ones(5, 3)) == pytest.approx(1)
    assert vendi_score(3 * torch.eye(6)) == pytest.approx(6)
    assert vendi_score(torch.eye(4).repeat(3, 1)) == pytest.approx(4)


def test_coverage_counts_the_balls_that_hold_an_image():
    g = torch.Generator().manual_seed(4)
    real, images = torch.randn(40, 3, generator=g), torch.randn(5, 3, generator=g)
    between = np.linalg.norm(real.numpy()[:, None] - real.numpy()[None], axis=2)
    radii = np.sort(between, axis=1)[:, 5]  # the first is the image itself
    to_images = np.linalg.norm(real.numpy()[:, None] - images.numpy()[None], axis=2)
    assert coverage(real, images) == pytest.approx((to_images.min(1) <= radii).mean())
    assert coverage(real, real) == 1


# All of it


@pytest.fixture(scope="module")
def audited(digits) -> tuple[DistilledSet, EvalReport]:
    """A set that is its own source, as an overfitted one would be."""
    train, test = digits.subset(range(60)), digits.subset(range(200, 300))
    distilled = set_of(train, torch.arange(60))
    options = {"protocol": LONG, "num_seeds": 3, "accelerator": Accelerator(cpu=True), "disable_tqdm": True}
    return distilled, audit(distilled, train, test, **options)


def area(report: EvalReport, name: str, held_in: str) -> dict[str, float]:
    (row,) = [row for row in report.audit["membership"]["rows"] if (row["set"], row["held_in"]) == (name, held_in)]
    return row


def test_an_overfitted_set_is_told_by_its_students_as_a_subset_is_by_its_own(audited):
    _, report = audited
    assert report.audit["copies"]["copies"] == list(range(60))
    assert area(report, "distilled", "training images")["low"] > 0.6
    assert area(report, "random", "its own images")["low"] > 0.5
    assert area(report, "distilled", "training images")["held_out"] == 100


def test_students_of_other_images_tell_nothing_of_train(digits):
    distilled = set_of(digits.subset(range(400, 440)), torch.arange(40))
    train, test = digits.subset(range(100)), digits.subset(range(200, 300))
    report = audit(distilled, train, test, protocol=LONG, num_seeds=3, accelerator=Accelerator(cpu=True))
    row = area(report, "distilled", "training images")
    assert row["low"] < 0.5 < row["high"]
    assert report.audit["copies"]["copies"] == []
    assert audit_text(report.audit).startswith("Found no copy: none of the 40 images")


@pytest.mark.parametrize("about", [{"imported_from": {"files": []}}, {"changes": [{"classes": [1, 0]}]}])
def test_a_set_that_may_be_made_of_any_training_image_is_looked_for_in_all_of_them(digits, about):
    fraction = {"arguments": {"validation_fraction": 0.1}}
    train, test = digits.subset(range(100)), digits.subset(range(200, 240))
    held_out = train.split(0.1, seed=0)[1]
    known, anywhere = (set_of(held_out, torch.arange(len(held_out)), source=fraction, **each) for each in ({}, about))
    options = {"protocol": replace(LONG, epochs=1), "num_seeds": 2, "accelerator": Accelerator(cpu=True)}
    found = {of: audit(of, train, test, **options).audit["copies"] for of in (known, anywhere)}
    assert (found[known]["copies"], found[known]["compared_with"]) == ([], 100 - len(held_out))
    assert found[anywhere]["copies"] == list(range(len(held_out)))
    assert (found[anywhere]["compared_with"], found[anywhere]["held_out"]) == (100, 40)
    rows = {each["image"]: each["train_row"] for each in found[anywhere]["nearest"]}
    assert [rows[image] for image in range(len(held_out))] == held_out.rows.tolist()
    said = "of which images of train the set was made is not known, so that all were searched"
    assert [said in " ".join(audit_text(of.report.audit).split()) for of in (known, anywhere)] == [False, True]
    with pytest.raises(ValueError, match="may be made of these images too; expected all training images as train"):
        audit(anywhere, train, test, held_out=held_out, **options)
    test.provenance = {**test.provenance, "split": "a fifth of train"}
    with pytest.raises(ValueError, match="the dataset has no test split, and the set"):
        audit(anywhere, train, test, **options)


def test_the_card_shows_what_results_json_holds_and_promises_nothing(audited, tmp_path):
    distilled, report = audited
    folder = distilled.save_pretrained(tmp_path / "set")
    assert json.loads((folder / "results.json").read_text())["audit"] == report.audit
    again = DistilledSet.from_pretrained(folder)
    assert again.report == distilled.report
    card = (folder / "README.md").read_text(encoding="utf-8")
    section = card[card.index("## Is it a copy?") : card.index("## Size")]
    assert audit_markdown(report.audit) in section
    assert "](assets/audit.png)" in section
    assert "**Found copies: 60 of 60 images are copies" in section
    assert "no proof of privacy, and none is claimed" in section
    elsewhere = again.save_pretrained(tmp_path / "elsewhere")
    assert (elsewhere / "assets" / "audit.png").read_bytes() == report.audit_picture
    with Image.open(elsewhere / "assets" / "audit.png") as picture:
        assert picture.width == 6 * 116 + 4
    merged = again.report.merge(EvalReport())
    assert (merged.audit, merged.audit_picture) == (report.audit, report.audit_picture)


def test_what_is_found_reaches_the_hub_with_its_picture(audited, digits, hub):
    repo, (_, report) = f"{hub.namespace}/audited", audited
    distilled = set_of(digits, torch.arange(60))
    distilled.push_to_hub(repo, token=hub.token)
    assert "assets/audit.png" not in hub.files("dataset", repo)
    distilled.push_results(repo, report, token=hub.token)
    assert hub.files("dataset", repo)["assets/audit.png"] == report.audit_picture
    there = DistilledSet.from_pretrained(repo, token=hub.token)
    assert (there.report.audit, there.report.audit_picture) == (report.audit, report.audit_picture)


def test_what_students_answered_is_kept(digits, tmp_path):
    train, test = digits.subset(range(80)), digits.subset(range(200, 240))
    short = replace(LONG, epochs=2)
    options = {"protocol": short, "num_seeds": 2, "accelerator": Accelerator(cpu=True), "output_dir": tmp_path}
    reports = [audit(set_of(train, torch.arange(20)), train, test, **options) for _ in range(2)]
    assert reports[0].audit == reports[1].audit
    assert len(list((tmp_path / "students").iterdir())) == 2


def test_the_teacher_s_features_are_compared_too_and_its_labels_teach(digits):
    spec = replace(SPEC, kwargs={"width": 4, "norm": "batch"})
    train, test = digits.subset(range(100)), digits.subset(range(200, 240))
    distilled = set_of(train, torch.arange(10))
    distilled.teacher = NetworkLabels(Teacher(spec.build(0), spec, train.class_names, train.preprocessing))
    report = audit(
        distilled, train, test, protocol=replace(LONG, epochs=1), num_seeds=2, accelerator=Accelerator(cpu=True)
    )
    features = report.audit["copies"]["kinds"]["features"]
    assert features["distances"]["distilled"] == pytest.approx([0.0] * 4, abs=2e-3)
    assert features["images"] == 10
    assert report.audit["spread"]["compared_by"].startswith("features of convnet_d1 (")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": 10}, "10 real images that the set was not made from, and an audit measures by 20 at least"),
        ({"train": 5}, "5 training images to look for copies of; expected more than 6"),
        ({"num_seeds": 1}, "--num_seeds is 1 and students of random subsets are compared"),
        ({"names": list("abcdefghij")}, "expected the data it was distilled from, its classes in the same order"),
    ],
)
def test_what_an_audit_cannot_measure_by_is_refused_in_one_line(digits, change, message):
    train, test = digits.subset(range(change.get("train", 40))), digits.subset(range(40, 40 + change.get("test", 30)))
    distilled = set_of(digits, torch.arange(10))
    distilled.class_names = change.get("names", distilled.class_names)
    with pytest.raises(ValueError, match=message) as error:
        audit(distilled, train, test, num_seeds=change.get("num_seeds", 2), accelerator=Accelerator(cpu=True))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_recipe_audits_a_folder_beside_its_results(tmp_path, monkeypatch, capsys):
    train, _ = RealImages.train_and_test(DataArguments(max_train_samples=200, max_test_samples=60))
    shuffled = set_of(train, torch.arange(10), source={"name": "digits"}).shuffle_classes(0)
    folder = shuffled.save_pretrained(tmp_path / "set")
    monkeypatch.setitem(PROTOCOLS, "long", replace(LONG, epochs=2))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    few = ["--max_train_samples", "200", "--max_test_samples", "60", "--baselines", "random", "--full_data", "false"]
    flags = ["--distilled_dataset", str(folder), "--protocol", "long", "--num_seeds", "2", "--audit", "--disable_tqdm"]
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *flags, *few])
    runpy.run_path(str(RECIPE), run_name="__main__")
    assert "10 of 10 images are copies" in capsys.readouterr().out
    report = DistilledSet.from_pretrained(folder).report
    assert len(report.rows) == 2
    assert report.audit["copies"]["compared_with"] == len(train)  # no part of it is known to be unseen
    assert "## Is it a copy?" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("where", "value"),
    [("copies", 3), ("copies.kinds", {"image": {}}), ("membership.rows", [{"auc": "high"}]), ("spread", None)],
)
def test_somebody_s_audit_is_checked_before_it_is_shown(audited, tmp_path, where, value):
    folder = audited[0].save_pretrained(tmp_path / "set")
    results = json.loads((folder / "results.json").read_text())
    *path, last = where.split(".")
    part = results["audit"]
    for name in path:
        part = part[name]
    part[last] = value
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=r"results\.json is damaged \(its audit has ") as error:
        DistilledSet.from_pretrained(folder)
    assert "\n" not in str(error.value)
