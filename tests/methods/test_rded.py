"""RDED: the crops that a teacher recognises best, scored, chosen and tiled as a plain loop over them would."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import functional as vision

from hf_distill.augmentation.crops import CROP_DRAWS, draw_crops, uniform
from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.data.preprocessing import Preprocessing, fit_zca
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.engine.method import DistillationDiverged
from hf_distill.evaluation.evaluate import protocol_for
from hf_distill.evaluation.protocols import PROTOCOLS
from hf_distill.methods import RDED, RDEDConfig
from hf_distill.methods.patches import centred, choose, take_crops
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator
from tests.helpers.pets import NAMES, made, random_teacher, real
from tests.helpers.photographs import cache_in, cropped, photographs, store


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed, "noise"))


class Likes(nn.Module):
    """A network whose logits are all what `measure` finds in an image, from -1 to 1 for the classes in turn."""

    def __init__(self, measure):
        super().__init__()
        self.measure = measure

    def forward(self, x):
        return self.measure(x)[:, None] * torch.linspace(-1, 1, len(NAMES))


def liking(train: RealImages, measure) -> Teacher:
    teacher = random_teacher(train)
    return Teacher(Likes(measure), teacher.spec, NAMES, train.preprocessing)


def rded(folder: Path, train: RealImages, teacher: Teacher | None = None, **flags) -> RDED:
    config = RDEDConfig(output_dir=str(folder), disable_tqdm=True, **flags)
    return RDED(config, train, teachers=[teacher or random_teacher(train)])


def plain_crop(image: torch.Tensor, box: list[int], size: tuple[int, int]) -> torch.Tensor:
    top, left, tall, wide = box
    part = image[None, :, top : top + tall, left : left + wide].double()
    return F.interpolate(part, size, mode="bilinear", align_corners=False, antialias=True)[0].round()


def plain_losses(method: RDED, rows: torch.Tensor, boxes: torch.Tensor, label: int) -> torch.Tensor:
    """The teacher's loss of one crop after the other."""
    (channels, height, width), factor = method.train.shape, method.config.factor
    known = method.preprocessing
    losses = torch.empty(boxes.shape[:2])
    for i, row in enumerate(rows.tolist()):
        for j, box in enumerate(boxes[i].tolist()):
            crop = plain_crop(method.train.uint8([row])[0], box, (height // factor, width // factor)) / 255
            crop = (crop.permute(1, 2, 0) - torch.tensor(known.mean)) / torch.tensor(known.std)
            seen = torch.zeros(height, width, channels)
            top, left = (height - height // factor) // 2, (width - width // factor) // 2
            seen[top : top + height // factor, left : left + width // factor] = crop
            logits = method.teacher.model(seen.permute(2, 0, 1)[None])[0].double()
            losses[i, j] = logits.exp().sum().log() - logits[label]
    return losses


# Crops


@pytest.mark.parametrize("shape", [(3, 48, 48), (3, 32, 48), (1, 48, 24)], ids=str)
def test_boxes_have_the_shape_of_the_image_and_at_least_a_twelfth_of_its_area(tmp_path, shape):
    train = real(noise(60, *shape), [0, 1, 2] * 20)
    boxes = rded(tmp_path, train, num_crops=6).boxes(train.class_rows(1))
    assert boxes.shape == (20, 6, 4)
    top, left, tall, wide = boxes.unbind(2)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= shape[1]).all()
    assert (left + wide <= shape[2]).all()
    assert ((tall * shape[2] / shape[1] - wide).abs() <= 1.5).all()
    area = (tall * wide) / (shape[1] * shape[2])
    assert 0.06 < area.min() < 0.2
    assert 0.85 < area.max() <= 1
    assert len(boxes.flatten(0, 1).unique(dim=0)) > 100
    large = rded(tmp_path, train, min_scale=0.5).boxes(train.class_rows(1))
    assert 0.45 < (large[..., 2] * large[..., 3]).min() / (shape[1] * shape[2]) < 0.6


def test_crops_of_an_image_do_not_depend_on_what_else_is_looked_at(tmp_path):
    train = real(noise(30, 1, 12, 12), [0, 1, 2] * 10)
    method = rded(tmp_path, train)
    rows = method.candidates(2)
    assert torch.equal(method.boxes(rows)[3:5], method.boxes(rows[3:5]))
    few = rded(tmp_path, train, num_crops=2)
    assert torch.equal(method.boxes(rows)[:, :2], few.boxes(rows))
    other = rded(tmp_path, train, seed=1)
    assert not torch.equal(method.boxes(rows), other.boxes(rows))


def test_candidates_are_different_images_of_the_class_and_others_with_another_seed(tmp_path):
    train = real(noise(60, 1, 8, 8), [0, 1, 2] * 20)
    chosen = [rded(tmp_path, train, num_candidates=7, seed=seed).candidates(1) for seed in range(2)]
    for rows in chosen:
        assert len(rows.unique()) == 7
        assert (train.labels[rows] == 1).all()
    assert set(chosen[0].tolist()) != set(chosen[1].tolist())
    everything = rded(tmp_path, train, num_candidates=300).candidates(1)
    assert everything.sort().values.tolist() == train.class_rows(1).tolist()


# Crops of images at their own shapes


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Photographs of three classes in shapes of their own, and what reads them at 16 pixels."""
    cache_in(tmp_path / "cache", monkeypatch)
    images = photographs(30)
    store(tmp_path / "photos", "train", images, classes=3)

    def read(side: str | None) -> RealImages:
        arguments = DataArguments(dataset_name=str(tmp_path / "photos"), resolution=[16], keep_side=side)
        return RealImages.from_arguments(arguments)

    return images, read


@pytest.mark.parametrize("side", ["source", "30"])
def test_tiles_are_what_pillow_cuts_out_of_the_kept_images(photos, tmp_path, side):
    images, read = photos
    train = read(side)
    teacher = random_teacher(train, ["0", "1", "2"])
    method = rded(tmp_path / "run", train, teacher, ipc=2, num_crops=3, batch_score=4)
    rows = method.candidates(1)
    boxes = method.boxes(rows)
    assert (boxes[..., 2] == boxes[..., 3]).all()  # squares, of images of any shape
    assert (boxes[..., :2] + boxes[..., 2:] <= train.kept_sizes(rows)[:, None]).all()
    losses = method.crop_losses(rows, boxes, 1)
    chosen, numbers = choose(losses, method.config.per_class)
    tiles = made(method, 1).unfold(2, 8, 8).unfold(3, 8, 8).permute(2, 3, 0, 1, 4, 5).flatten(0, 2)
    for tile, row, box in zip(tiles, rows[chosen].tolist(), boxes[chosen, numbers].tolist(), strict=True):
        image = images[row]
        if side == "30" and min(image.size) > 30:
            image = vision.resize(image, 30, vision.InterpolationMode.BICUBIC)
        assert np.abs(tile.numpy() - cropped(image, box, (8, 8))).max() <= 1


def test_no_box_of_an_image_of_500_by_375_is_enlarged_where_a_sixth_of_those_of_its_centre_are(tmp_path):
    u = uniform(0, (), torch.arange(5000), CROP_DRAWS)
    sizes = torch.tensor([[375, 500]]).repeat(5000, 1)
    assert draw_crops(u, sizes, ratio=(1.0, 1.0)).boxes[:, 2].min() >= 112
    assert 0.16 < (draw_crops(u, (224, 224), ratio=(1.0, 1.0)).boxes[:, 2] < 112).double().mean() < 0.2


def test_a_run_goes_on_with_the_images_it_began_with_alone(photos, tmp_path):
    _, read = photos
    train = read("30")
    teacher = random_teacher(train, ["0", "1", "2"])
    whole = rded(tmp_path / "run", train, teacher, ipc=2).run()
    again = rded(tmp_path / "run", train, teacher, ipc=2, resume_from_checkpoint="latest").run()
    assert torch.equal(whole.pixel_values, again.pixel_values)
    for other in ("source", None):
        with pytest.raises(ValueError, match="its keep_side is 30 and here it is"):
            rded(tmp_path / "run", read(other), teacher, ipc=2, resume_from_checkpoint="latest").run()


# Scores and choice


@pytest.mark.parametrize(("shape", "factor"), [((3, 16, 16), 2), ((1, 9, 15), 2), ((3, 8, 8), 1)], ids=str)
def test_scores_are_those_of_a_plain_loop_over_crops(tmp_path, shape, factor):
    train = real(noise(21, *shape), [0, 1, 2] * 7)
    method = rded(tmp_path, train, factor=factor, batch_score=3, num_crops=4)
    rows = method.candidates(1)
    boxes = method.boxes(rows)
    found = method.crop_losses(rows, boxes, 1)
    wanted = plain_losses(method, rows, boxes, 1)
    assert (found - wanted).abs().max() < 0.05 * wanted.std()  # a byte may be rounded the other way


def test_the_teacher_sees_the_mean_colour_around_a_crop(tmp_path):
    seen = []
    train = real(torch.full((3, 1, 11, 8), 255, dtype=torch.uint8), [0, 1, 2])
    teacher = liking(train, lambda x: seen.append(x) or x.mean((1, 2, 3)))
    method = rded(tmp_path, train, teacher, factor=2, num_crops=4)
    rows = method.candidates(0)
    method.crop_losses(rows, method.boxes(rows), 0)
    wanted = torch.zeros(11, 8)
    wanted[3:8, 2:6] = (1 - 0.4) / 0.3
    torch.testing.assert_close(seen[0][0, 0], wanted)


@pytest.mark.parametrize(("images", "crops", "count"), [(9, 4, 6), (9, 4, 9), (3, 4, 8), (2, 5, 10), (1, 3, 2)])
def test_the_best_crops_of_all_images_come_first_then_the_second_best_ones(images, crops, count):
    losses = torch.rand(images, crops, generator=generator(0, images, count))
    taken = []
    for rank in range(crops):
        nth = [sorted((losses[i, j].item(), i, j) for j in range(crops))[rank] for i in range(images)]
        taken += [(i, j) for _, i, j in sorted(nth)]
    found = torch.stack(choose(losses, count), dim=1)
    assert [tuple(pair) for pair in found.tolist()] == taken[:count]


def test_of_equal_crops_the_first_are_taken():
    images, numbers = choose(torch.ones(40, 3), 50)
    assert images.tolist() == [*range(40), *range(10)]
    assert numbers.tolist() == [0] * 40 + [1] * 10


def test_a_teacher_that_likes_white_corners_gets_crops_with_a_white_corner(tmp_path):
    images = noise(90, 1, 16, 16) // 3
    images[:, :, 2:6, 1:6] = 255
    train = real(images, [0, 1, 2] * 30)
    corner = liking(train, lambda x: 3 * x[:, 0, 4:6, 4:6].mean((1, 2)))  # of a crop of 8 pixels in the middle of 16
    method = rded(tmp_path, train, corner, ipc=3, num_crops=8)
    rows = method.candidates(2)
    boxes = method.boxes(rows)
    has = torch.tensor(
        [[plain_crop(images[row], box, (8, 8))[0, :2, :2].mean() > 240 for box in boxes[i].tolist()]
         for i, row in enumerate(rows.tolist())]
    )  # fmt: skip
    assert 12 <= has.any(1).sum() < 30
    tiles = made(method, 2).unfold(2, 8, 8).unfold(3, 8, 8).reshape(-1, 8, 8)
    assert len(tiles) == 12
    assert (tiles[:, :2, :2].float().mean((1, 2)) > 230).all()
    unloved = made(method, 0).unfold(2, 8, 8).unfold(3, 8, 8).reshape(-1, 8, 8)
    assert (unloved[:, :2, :2].float().mean((1, 2)) < 90).all()


# Tiles


@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "colour"])
@pytest.mark.parametrize(("size", "factor"), [((8, 8), 2), ((9, 11), 2), ((7, 8), 3), ((5, 5), 1)], ids=str)
def test_tile_k_of_image_i_is_the_crop_ranked_k_times_ipc_plus_i(tmp_path, channels, size, factor):
    ipc, count = 3, 40
    gray = torch.randperm(count, generator=generator(3)) * 6
    images = gray.to(torch.uint8)[:, None, None, None].expand(-1, channels, *size).repeat_interleave(3, 0)
    train = real(images, [0, 1, 2] * count)
    bright = liking(train, lambda x: x.mean((1, 2, 3)))
    method = rded(tmp_path, train, bright, ipc=ipc, factor=factor, num_crops=2, batch_score=2)
    found = made(method, 2)
    assert found.dtype == torch.uint8
    rows, columns = ([len(part) for part in torch.arange(side).tensor_split(factor)] for side in size)
    ranked = sorted(gray.tolist(), reverse=True)
    for i in range(ipc):
        tiles = torch.tensor(ranked[i : ipc * factor**2 : ipc]).view(factor, factor)
        wanted = tiles.repeat_interleave(torch.tensor(rows), 0).repeat_interleave(torch.tensor(columns), 1)
        assert torch.equal(found[i].long(), wanted.expand(channels, -1, -1))


@pytest.mark.parametrize(("shape", "factor"), [((3, 16, 16), 2), ((1, 9, 13), 2), ((3, 8, 8), 1)], ids=str)
def test_a_block_is_what_a_loop_over_crops_chooses_and_stitches(tmp_path, shape, factor):
    train = real(noise(60, *shape), [0, 1, 2] * 20)
    method = rded(tmp_path, train, ipc=3, factor=factor, num_candidates=18)
    rows = method.candidates(1)
    boxes = method.boxes(rows)
    losses = plain_losses(method, rows, boxes, 1)
    best = sorted((min((loss, j) for j, loss in enumerate(losses[i].tolist())), i) for i in range(len(rows)))
    found = made(method, 1).long()
    down, across = (torch.arange(side).tensor_split(factor) for side in shape[1:])
    for k, (tall, wide) in enumerate(itertools.product(down, across)):
        for image in range(3):
            (_, number), i = best[3 * k + image]
            wanted = plain_crop(train.uint8(rows[[i]])[0], boxes[i, number].tolist(), (len(tall), len(wide)))
            assert (found[image][:, tall][:, :, wide] - wanted).abs().max() <= 1


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_how_many_crops_are_scored_at_once_changes_no_byte(tmp_path, batch):
    train = real(noise(60, 3, 16, 16), [0, 1, 2] * 20)
    wanted = made(rded(tmp_path, train, ipc=2), 0)
    assert torch.equal(made(rded(tmp_path, train, ipc=2, batch_score=batch), 0), wanted)
    assert not torch.equal(made(rded(tmp_path, train, ipc=2, seed=1), 0), wanted)


def test_blocks_in_another_order_are_the_same_blocks(tmp_path):
    train = real(noise(60, 3, 8, 8), [0, 1, 2] * 20)
    forth, back = rded(tmp_path, train, ipc=2), rded(tmp_path, train, ipc=2)
    found = [made(back, label) for label in (2, 1, 0)][::-1]
    assert all(torch.equal(made(forth, label), found[label]) for label in range(3))


# Small classes


def test_a_class_with_few_images_gives_several_crops_of_each(tmp_path):
    images = torch.tensor([10, 90, 200])[:, None, None, None].expand(-1, 1, 8, 8).repeat_interleave(3, 0)
    train = real(images.to(torch.uint8), [0, 1, 2] * 3)
    bright = liking(train, lambda x: x.mean((1, 2, 3)))
    found = made(rded(tmp_path, train, bright, ipc=2), 2)
    tiles = found.unfold(2, 4, 4).unfold(3, 4, 4).reshape(2, 4, 16)
    assert (tiles == tiles[..., :1]).all()
    # Ranked: 200, 90, 10, 200, 90, 10, 200, 90; every second one is of the same image.
    assert tiles[..., 0].tolist() == [[200, 10, 90, 200], [90, 200, 10, 90]]


def test_a_class_with_too_few_crops_is_named(tmp_path):
    train = real(noise(7, 1, 8, 8), [0, 1, 2, 0, 1, 0, 1])
    with pytest.raises(
        ValueError, match=r"^--ipc 2 .* takes 8 crops, 5 of an image, and some .*: 'owl' has 1 of 2; raise"
    ):
        rded(tmp_path, train, ipc=2)
    assert rded(tmp_path, train, ipc=2, num_crops=8, eval_baselines=[]).run().labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"^--num_crops 5 of --num_candidates 1 are fewer than the 8 crops"):
        rded(tmp_path, train, ipc=2, num_candidates=1)


# The set, and what is refused


def test_the_set_holds_the_bytes_and_the_teacher_that_labels_them(tmp_path):
    train = real(noise(30, 3, 8, 8), [0, 1, 2] * 10)
    method = rded(tmp_path / "run", train, ipc=2)
    distilled = method.run()
    assert distilled.is_bytes
    assert torch.equal(distilled.pixel_values, torch.cat([made(method, label) for label in range(3)]))
    again = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "saved"))
    assert torch.equal(again.pixel_values, distilled.pixel_values)
    assert again.teacher.digest == method.teacher.digest
    assert again.config["hyperparameters"]["num_crops"] == 5
    meaningless = {"init", "max_steps", "logging_steps", "save_steps", "eval_steps", "eval_nets", "select"}
    assert not meaningless & set(again.config["hyperparameters"])
    assert "max_steps" not in (tmp_path / "saved" / "README.md").read_text()
    assert again.config["teachers"][0]["digest"] == method.teacher.digest


def test_another_teacher_does_not_continue_a_run(tmp_path):
    train = real(noise(30, 3, 8, 8), [0, 1, 2] * 10)
    rded(tmp_path, train, ipc=2).run()
    with pytest.raises(ValueError, match="its teacher is "):
        rded(tmp_path, train, Teacher(random_teacher(train).spec.build(7), random_teacher(train).spec, NAMES,
                                      train.preprocessing), ipc=2).run()  # fmt: skip


def test_a_teacher_of_more_classes_scores_and_labels_among_those_of_the_data(tmp_path):
    train = real(noise(30, 3, 8, 8), [0, 1, 2] * 10)
    more = random_teacher(train, ["fish", *NAMES[::-1], "newt"])
    order = [more.class_names.index(name) for name in NAMES]
    method = rded(tmp_path, train, more, ipc=2)
    rows = method.candidates(1)[:3]
    boxes = method.boxes(rows)
    crops = [
        [centred(take_crops(train.uint8([int(row)]), box[None], (4, 4)), train.preprocessing) for box in part]
        for row, part in zip(rows, boxes, strict=True)
    ]
    logits = torch.stack([torch.cat([more.logits(crop) for crop in part]) for part in crops])[..., order]
    expected = logits.logsumexp(-1) - logits[..., 1]
    torch.testing.assert_close(method.crop_losses(rows, boxes, 1), expected, rtol=1e-5, atol=1e-6)
    distilled = method.run()
    seen = distilled.floats()
    labels = distilled.teacher(seen, distilled.labels, torch.arange(6))
    torch.testing.assert_close(labels, more.logits(seen)[:, order], rtol=1e-5, atol=1e-6)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
    train = real(noise(30, 3, 8, 8), [0, 1, 2] * 10)
    with pytest.raises(ValueError, match="has 3 classes, and 1 of these 3 are not among them: "):
        rded(tmp_path, train, random_teacher(train, ["fish", "dog", "cat"]))
    large = random_teacher(real(noise(3, 3, 16, 16), [0, 1, 2]))
    with pytest.raises(ValueError, match=r"takes images \(3, 16, 16\).*give --resolution 16 16"):
        rded(tmp_path, train, large)


def test_a_teacher_whose_logits_are_no_numbers_stops_the_run(tmp_path):
    train = real(noise(30, 1, 8, 8), [0, 1, 2] * 10)
    broken = liking(train, lambda x: x.mean((1, 2, 3)).log())
    with pytest.raises(DistillationDiverged, match="ce_all of block 0 is nan"):
        rded(tmp_path, train, broken).run()


def test_crops_of_part_of_an_image_cannot_be_whitened(tmp_path):
    images = noise(30, 1, 8, 8)
    whitening = Preprocessing(1, (8, 8), (0.0,), (1.0,), fit_zca([images], 0.1))
    train = real(images, [0, 1, 2] * 10, whitening)
    with pytest.raises(ValueError, match=r"--normalization zca .*--factor 1"):
        rded(tmp_path, train)
    assert made(rded(tmp_path, train, factor=1), 0).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"num_crops": 0}, "--num_crops is 0"),
        ({"factor": 0}, "--factor is 0"),
        ({"num_candidates": 0}, "--num_candidates is 0"),
        ({"batch_score": 0}, "--batch_score is 0"),
        ({"min_scale": 0.0}, "--min_scale is 0.0"),
        ({"min_scale": 1.5}, "--min_scale is 1.5"),
        ({"teachers": ["a", "b"]}, "--teachers names 2 networks"),
        ({"factor": 9, "num_crops": 500}, "--factor is 9 for images of 8x8 pixels; expected at most 8"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_mean_nothing_are_refused_in_one_line(tmp_path, flags, problem):
    train = real(noise(30, 1, 8, 8), [0, 1, 2] * 10)
    with pytest.raises(ValueError, match=f"^{problem}.*$"):  # "." is no line break
        rded(tmp_path, train, **flags)


# The protocol of its students


@pytest.mark.parametrize("factor", [1, 2])
def test_students_are_trained_for_the_images_classes_and_tiles_of_the_set_then_and_whenever_it_is_loaded(
    tmp_path, factor
):
    train = real(noise(30, 1, 8, 8), [0, 1, 2] * 10)
    method = rded(tmp_path, train, ipc=2, factor=factor)
    assert method.protocol == PROTOCOLS["rded"].for_set(2, 3, factor)
    assert (method.protocol.batch_size, method.protocol.views.shuffle) == (6, factor)
    again = DistilledSet.from_pretrained(method.run().save_pretrained(tmp_path / "set"))
    assert protocol_for(again) == method.protocol
    assert protocol_for(again, "hello") == PROTOCOLS["hello"].for_set(2, 3, factor)


# Recipe


def test_without_flags_the_recipe_trains_a_teacher_and_tiles_digits(recipes, tmp_path):
    short = {"max_train_samples": 200, "max_test_samples": 50, "teacher_epochs": 1, "student_width": 8}
    flags = {
        **short,
        "eval_protocol": "crops-tiny",
        "eval_seeds": 1,
        "eval_baselines": "random",
        "output_dir": "out",
        "disable_tqdm": True,
    }
    done = recipes("rded", flags, tmp_path)
    assert done.status == [0], done.err
    distilled = DistilledSet.from_pretrained(tmp_path / "out")
    assert distilled.labels.bincount().tolist() == [5] * 10
    assert distilled.config["hyperparameters"]["factor"] == 1
    assert "assets/grid.png" in done.out


def test_the_recipe_names_a_class_that_gives_too_few_crops_before_it_trains_a_teacher(recipes, tmp_path):
    done = recipes("rded", {"num_candidates": 1, "num_crops": 3, "output_dir": "out"}, tmp_path)
    assert done.status == [2]
    assert "error: --num_crops 3 of --num_candidates 1 are fewer than the 5 crops that --ipc 5" in done.err
    assert not (tmp_path / "outputs").exists()
