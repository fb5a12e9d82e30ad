"""HeLlO: tiles that CLIP sees as it saw the crops, a projector beside them, and the few bytes that it costs."""

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from hf_distill.config import parse_args
from hf_distill.data.images import RealImages
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.data.ragged import Ragged
from hf_distill.data.resampling import resized
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.labels import ProjectorLabels
from hf_distill.evaluation.label_comparison import compare_labels
from hf_distill.evaluation.protocols import PROTOCOLS
from hf_distill.methods import RDED, HeLlO, HeLlOConfig, RDEDConfig
from hf_distill.methods import hello as hello_module
from hf_distill.methods.hello import update_in_prior
from hf_distill.networks.architectures import StudentSpec
from hf_distill.networks.priors import Prior
from hf_distill.networks.projector import LabelProjector
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator
from hf_distill.runs.processes import make_accelerator
from hf_distill.training.small_clip import find_prior
from hf_distill.training.teachers import find_teachers
from tests.helpers.clips import save_clip
from tests.helpers.graphs import UNORDERED, nodes
from tests.helpers.pets import NAMES, made, random_teacher, real
from tests.helpers.recipes import DIES_AT_THIRD_STATE

TINY = {"projector_epochs": 1, "batch_projector": 16, "prompts": "simple", "lora_r": 2, "num_crops": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def priors(tmp_path_factory) -> dict[str, Prior]:
    folder = tmp_path_factory.mktemp("priors")
    return {kind: Prior.from_pretrained(save_clip(kind, folder / kind)) for kind in ("vit", "conv")}


@pytest.fixture(scope="module")
def prior(priors) -> Prior:
    return priors["vit"]


@pytest.fixture(scope="module")
def train() -> RealImages:
    """Smooth pictures: of noise, CLIP would see nothing that a crop has and its half-sized copy has not."""
    coarse = torch.rand(30, 3, 4, 4, generator=generator(0, "pictures"))
    pictures = F.interpolate(coarse, (16, 16), mode="bicubic").clamp(0, 1)
    return real((pictures * 255).round().to(torch.uint8), [0, 1, 2] * 10)


def hello(folder: Path, train: RealImages, prior: Prior, teachers: list[Teacher] | None = None, **flags: Any) -> HeLlO:
    config = HeLlOConfig(output_dir=str(folder), disable_tqdm=True, **{**TINY, **flags})
    return HeLlO(config, train, teachers=teachers or [random_teacher(train)], prior=prior)


def rded(folder: Path, train: RealImages, **flags: Any) -> RDED:
    config = RDEDConfig(output_dir=str(folder), disable_tqdm=True, num_crops=TINY["num_crops"], **flags)
    return RDED(config, train, teachers=[random_teacher(train)])


# The update in CLIP's space


def pairs(channels: int = 3, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of 16 pixels and what is left of them on 8."""
    coarse = torch.rand(count, channels, 7, 7, generator=generator(1, "crops"))
    originals = F.interpolate(coarse, (16, 16), mode="bicubic").clamp(0, 1)
    return F.interpolate(originals, (8, 8), mode="bilinear", antialias=True), originals


@pytest.mark.parametrize("kind", ["vit", "conv"])
@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "colour"])
def test_the_update_is_adam_on_the_distance_of_embeddings_by_hand_in_double_precision(priors, kind, channels):
    prior, (tiles, originals) = priors[kind], pairs(channels, 4)
    tower, mean, std = copy.deepcopy(prior.visual).double(), *(torch.tensor(v) for v in (prior.mean, prior.std))

    def embed(images: torch.Tensor) -> torch.Tensor:
        seen = F.interpolate(images, (32, 32), mode="bilinear", align_corners=False)  # no smaller, so nothing to smooth
        return tower((seen.expand(-1, 3, -1, -1) - mean[:, None, None]) / std[:, None, None])

    def distance(images: torch.Tensor) -> torch.Tensor:
        large = F.interpolate(images, (16, 16), mode="bilinear", align_corners=False)
        return ((embed(large) - embed(originals.double())) ** 2).mean(1)

    x, first, second = tiles.double(), torch.zeros(tiles.shape), torch.zeros(tiles.shape)
    for step in range(1, 4):
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(distance(x).sum(), x)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        with torch.no_grad():
            x = (x - 0.02 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)).clamp(0, 1)
    found, before, after = update_in_prior(prior, tiles, originals, 3, 0.02)
    assert ((found - x).abs() > 2e-3).double().mean() < 0.01  # Adam makes whole steps of gradients that are rounding
    torch.testing.assert_close(before.double(), distance(tiles.double()).detach(), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(after.double(), distance(x).detach(), rtol=0.02, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_more_steps_bring_the_embeddings_closer_and_keep_pixels_in_range(priors, kind):
    tiles, originals = pairs()
    tiles[:, :, :2] = originals[:, :, :4] = 0.0  # at both ends of the range
    tiles[:, :, -2:] = originals[:, :, -4:] = 1.0
    means, given = [], tiles.clone()
    for steps in (0, 4, 16, 64):
        found, before, after = update_in_prior(priors[kind], tiles, originals, steps, 0.01)
        assert 0 <= found.min() <= found.max() <= 1
        assert (after < before).all() or not steps
        means.append(after.mean().item())
        assert means[0] == pytest.approx(before.mean().item())
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.5 * means[0]
    assert torch.equal(tiles, given)


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_no_part_of_the_gradient_of_tiles_is_one_that_an_accelerator_adds_up_in_any_order(priors, kind):
    tiles = torch.rand(2, 3, 8, 8, requires_grad=True)
    passed = nodes(priors[kind].embed(resized(tiles, (16, 16))))  # and then to the 32 pixels of the tower
    assert len(passed) > 10
    assert not [name for name in passed if UNORDERED.search(name)]


def test_tiles_do_not_depend_on_each_other(prior):
    tiles, originals = pairs()
    together, _, together_after = update_in_prior(prior, tiles, originals, 5, 0.01)
    for row in (0, 7):
        alone, _, after = update_in_prior(prior, tiles[[row]], originals[[row]], 5, 0.01)
        assert ((alone[0] - together[row]).abs() > 1e-3).double().mean() < 0.01
        torch.testing.assert_close(after, together_after[[row]], rtol=0.01, atol=0)


# The images


@pytest.mark.parametrize("flags", [{"factor": 1}, {"factor": 2, "update_steps": 0}], ids=["one tile", "no update"])
def test_where_nothing_is_to_be_mended_the_images_are_those_of_rded_bit_for_bit(tmp_path, train, prior, flags):
    method = hello(tmp_path, train, prior, ipc=2, **flags)
    plain = rded(tmp_path, train, ipc=2, factor=flags["factor"])
    for label in range(3):
        assert torch.equal(made(method, label), made(plain, label))


def test_tiles_of_images_in_one_buffer_are_those_of_the_same_images_side_by_side(tmp_path, train, prior):
    method = hello(tmp_path, train, prior, update_steps=1, factor=2)
    rows = method.candidates(1)[:4]
    boxes, images = method.boxes(rows)[:, 0], train.uint8(rows)
    ragged = Ragged.of(list(images.permute(0, 2, 3, 1).numpy()), images.shape[1])
    found, expected = (method.tile(each, boxes, (8, 8)).int() for each in (ragged, images))
    assert (found - expected).abs().max() <= 1  # sums of other lengths, rounded to bytes


@pytest.mark.parametrize(
    ("ipc", "factor", "batch", "together"),
    [(1, 2, 8, [8, 4]), (1, 2, 3, [3, 1] * 3), (1, 3, 100, [3, 6, 6, 12]), (2, 2, 13, [8] * 3)],
)
def test_tiles_of_one_size_are_mended_together_whatever_their_places_and_classes(
    tmp_path, train, prior, monkeypatch, ipc, factor, batch, together
):
    counts, mend = [], hello_module.update_in_prior

    def counted(prior, tiles, *rest):
        counts.append(len(tiles))
        return mend(prior, tiles, *rest)

    monkeypatch.setattr(hello_module, "update_in_prior", counted)
    assert hello(tmp_path, train, prior, batch_score=100).classes_at_once == 1  # so that processes have blocks to share
    monkeypatch.setattr(hello_module, "BLOCKS_TO_SHARE", 1)
    flags = {"ipc": ipc, "factor": factor, "update_steps": 1, "lr_update": 0.1}
    method = hello(tmp_path, train, prior, batch_score=batch, **flags)
    found = torch.cat([method.make(block, lambda *_: None) for block in method.blocks()])
    assert counts == together
    assert torch.cat([block.rows for block in method.blocks()]).tolist() == list(range(3 * ipc))
    alone = hello(tmp_path, train, prior, batch_score=1, **flags)
    difference = (found.int() - torch.cat([made(alone, label) for label in range(3)]).int()).abs()
    assert (difference > 1).double().mean() < 0.01  # other sums, so other rounding


@pytest.mark.slow
def test_mended_tiles_are_of_the_same_crops_and_closer_to_them_for_clip(tmp_path, train, prior):
    flags = {"ipc": 2, "factor": 2}
    plain = made(rded(tmp_path, train, **flags), 1)
    mended = made(hello(tmp_path, train, prior, update_steps=20, lr_update=0.004, **flags), 1)
    assert mended.dtype == torch.uint8
    difference = (mended.int() - plain.int()).abs()
    assert 0 < difference.max() <= 20 * 0.004 * 255 + 1  # Adam's steps are no longer than its rate
    assert (difference > 0).double().mean() > 0.5

    method = hello(tmp_path, train, prior, **flags)
    rows = method.candidates(1)[:4]
    boxes = method.boxes(rows)[:, 0]
    images = train.uint8(rows)
    tiles = [each.tile(images, boxes, (8, 8)).float() / 255 for each in (rded(tmp_path, train, **flags), method)]
    crops = [image[:, top : top + tall, left : left + wide][None].float() / 255
             for image, (top, left, tall, wide) in zip(images, boxes.tolist(), strict=True)]  # fmt: skip
    full = torch.cat([F.interpolate(crop, (16, 16), mode="bilinear", antialias=True) for crop in crops])
    far, near = (
        (prior.embed(F.interpolate(small, (16, 16), mode="bilinear")) - prior.embed(full)).square().mean(1)
        for small in tiles
    )
    assert (near < far)[far > 1e-5].all()  # a crop of eight pixels loses nothing on eight
    assert near.mean() < 0.5 * far.mean()


@pytest.mark.slow
def test_how_many_crops_are_mended_at_once_and_the_order_of_blocks_change_no_tile(tmp_path, train, prior):
    flags = {"ipc": 3, "factor": 2, "update_steps": 4}
    method = hello(tmp_path, train, prior, **flags)
    wanted = [made(method, label) for label in range(3)]
    back = hello(tmp_path, train, prior, **flags)
    assert all(torch.equal(made(back, label), wanted[label]) for label in (2, 1, 0))
    few = made(hello(tmp_path, train, prior, batch_score=2, **flags), 0)
    assert ((few.int() - wanted[0].int()).abs() > 1).double().mean() < 0.01  # other sums, so other rounding
    assert not torch.equal(made(hello(tmp_path, train, prior, seed=1, **flags), 0), wanted[0])


@pytest.mark.slow
def test_another_prior_does_not_continue_a_run_and_the_same_one_does(tmp_path, train, priors):
    flags = {"ipc": 1, "factor": 2, "update_steps": 1}
    found = hello(tmp_path, train, priors["vit"], **flags).run()
    with pytest.raises(ValueError, match=r"^.* is of another run: its prior is .*$"):
        hello(tmp_path, train, priors["conv"], **flags).run()
    again = hello(tmp_path, train, priors["vit"], resume_from_checkpoint="latest", **flags).run()
    assert torch.equal(again.pixel_values, found.pixel_values)
    assert again.teacher.digest == found.teacher.digest


# The set, its labels and their costs


def test_the_set_is_labelled_by_the_projector_which_imitates_all_teachers(tmp_path, train, prior):
    spec = random_teacher(train).spec
    teachers = [Teacher(spec.build(seed), spec, NAMES, train.preprocessing) for seed in (4, 5)]
    method = hello(tmp_path / "run", train, prior, teachers, ipc=2, factor=1, adapt_epochs=1)
    distilled = method.run()
    assert method.projector.config["training"]["teachers"] == [teacher.digest for teacher in teachers]
    assert method.projector.results["asked_about"] == "distilled images"
    assert method.guide().digest == teachers[-1].digest
    assert [each["digest"] for each in distilled.config["teachers"]] == [teacher.digest for teacher in teachers]
    again = DistilledSet.from_pretrained(distilled.save_pretrained(tmp_path / "saved"))
    assert isinstance(again.teacher, ProjectorLabels)
    assert again.teacher.digest == LabelProjector.from_pretrained(tmp_path / "run" / "label-projector").digest
    x = train.images(range(5))
    with torch.no_grad():
        wanted = sum(teacher.model(x) for teacher in teachers) / 2
        torch.testing.assert_close(method.online(x, train.labels[:5], torch.arange(5)), wanted)
        found = again.teacher(x, train.labels[:5], torch.arange(5))  # merged: other sums
        torch.testing.assert_close(found, method.projector(x), rtol=1e-4, atol=1e-4)


def test_the_costs_are_those_of_files_and_of_counting(tmp_path, train, prior):
    teachers = [random_teacher(train)] * 2
    method = hello(tmp_path, train, prior, teachers, ipc=2, factor=1, pruned_share=0.2)
    method.run()
    costs = method.costs()
    assert (costs.images, costs.epochs, costs.classes) == (6, 300, 3)
    table = {row.what: (row.num_bytes, row.share) for row in costs.rows}
    adapter = load_file(tmp_path / "label-projector" / "adapter_model.safetensors")
    params = sum(tensor.numel() for tensor in adapter.values())
    every = 6 * 300 * 3 * 2
    weights = sum(tensor.numel() * tensor.element_size() for tensor in prior.visual.state_dict().values())
    head = 3 * prior.dim * 4
    assert table["every view, logits and seeds"] == (every, 1)
    assert table["logits and seeds, 20 % of the epochs"] == (every // 5, pytest.approx(0.2))
    assert table["one per image"][0] == 6 * 3 * 2
    assert table["projector"][0] == 2 * params == method.projector.num_bytes
    assert table["projector with its text head"][0] == 2 * params + head
    assert table["projector with all that is shared"][0] == 2 * params + head + weights
    assert table["teacher, online"][0] == 2 * teachers[0].num_bytes
    assert table["classes"][0] == 0
    assert not any(what.startswith("MR-") for what in table)  # of three classes, ten cannot be kept


# What is refused


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"update_steps": -1}, "--update_steps is -1"),
        ({"lr_update": -1}, "--lr_update is -1"),
        ({"compare_labels": ["soft"]}, "--compare_labels is 'soft'; expected one of hard, one_per_image"),
        ({"pruned_share": 0.0}, "--pruned_share is 0.0; expected above 0, and at most 1"),
        ({"pruned_share": 1.5}, "--pruned_share is 1.5"),
        ({"factor": 0}, "--factor is 0"),
        ({"min_scale": 2.0}, "--min_scale is 2.0"),
        ({"lora_r": 0}, "--lora_r is 0"),
        ({"projector_epochs": 0}, "--projector_epochs is 0"),
        ({"eval_protocol": "quick"}, "--eval_protocol quick looks at no views of the images, which a projector labels"),
        ({"class_words": "imagenet"}, "--class_words imagenet has 1000 words, and there are 3 classes"),
        ({"lora_head_r": 4}, "the LoRA rank of the head is 4, and 3 classes"),
        ({"factor": 17, "num_crops": 500}, "--factor is 17 for images of 16x16 pixels"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_mean_nothing_are_one_line_before_anything_is_made(tmp_path, train, prior, flags, problem):
    with pytest.raises(ValueError, match=f"^{problem}.*$"):
        hello(tmp_path, train, prior, **flags)
    assert not list(tmp_path.iterdir())


def test_none_of_the_labels_are_compared_where_none_are_asked_for():
    assert HeLlOConfig(compare_labels=["none"]).compare_labels == []
    with pytest.raises(ValueError, match=r"^--compare_labels is 'none'; expected one of .*$"):
        HeLlOConfig(compare_labels=["hard", "none"])


def test_teachers_that_do_not_fit_are_one_line_before_anything_is_made(tmp_path, train, prior):
    with pytest.raises(ValueError, match=r"^HeLlO without a teacher has nothing to score crops with; give one$"):
        HeLlO(HeLlOConfig(output_dir=str(tmp_path), **TINY), train, teachers=[], prior=prior)
    own, spec = random_teacher(train), random_teacher(train).spec
    others = Teacher(own.model, spec, ["fish", *NAMES[1:]], train.preprocessing)
    shifted = Teacher(own.model, spec, NAMES, Preprocessing(3, (16, 16), (0.1,) * 3, (0.2,) * 3))
    large = StudentSpec("convnet_d1", 3, 3, (8, 8), {"width": 8})
    small = Teacher(large.build(0), large, NAMES, Preprocessing(3, (8, 8), (0.4,) * 3, (0.3,) * 3))
    for weak, says in (
        (others, "has 3 classes, and 1 of these 3 are not among them: 'cat'"),
        (shifted, "sees images through another preprocessing than these"),
        (small, "takes images .3, 8, 8."),
    ):
        with pytest.raises(ValueError, match=f"^.*{says}.*$"):
            hello(tmp_path, train, prior, [weak, own])
    assert not list(tmp_path.iterdir())


def test_teachers_of_more_classes_or_of_another_order_score_and_label_by_name(tmp_path, train, prior):
    more = random_teacher(train, ["fish", *NAMES[::-1]])
    method = hello(tmp_path, train, prior, [more, more])
    images = train.images([0, 1])
    expected = more.logits(images)[:, [3, 2, 1]]
    for teacher in (method.teacher, *method.teachers):
        torch.testing.assert_close(teacher.logits(images), expected, rtol=1e-6, atol=1e-6)
    labels = method.online(images, torch.zeros(2), torch.arange(2))
    torch.testing.assert_close(labels, expected, rtol=1e-6, atol=1e-6)


def test_half_precision_without_a_scaler_is_refused_before_images_are_made(tmp_path, train, prior):
    half = SimpleNamespace(mixed_precision="fp16", device=torch.device("cpu"))  # which a CPU has not
    with pytest.raises(ValueError, match=r"^mixed precision fp16 needs a loss scaler.*$"):
        HeLlO(
            HeLlOConfig(output_dir=str(tmp_path), **TINY),
            train,
            teachers=[random_teacher(train)],
            prior=prior,
            accelerator=half,
        )


# The recipe

SHORT = {
    "max_train_samples": 200,
    "max_test_samples": 50,
    "student": "convnet_d1",
    "student_width": 8,
    "teacher_epochs": 2,
    "weak_teachers": 2,
    "batch_train": 50,
    "prior_epochs": 1,
    "projector_epochs": 3,
    "adapt_epochs": 1,
    "batch_projector": 50,
    "ipc": 2,
    "factor": 2,
    "update_steps": 3,
    "eval_protocol": "hello-tiny",
    "eval_seeds": 1,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def home(recipes, tmp_path_factory) -> Path:
    """A folder with a finished run in `whole`, and its networks in `outputs`."""
    home = tmp_path_factory.mktemp("hello")
    done = recipes("hello", {**SHORT, "output_dir": "whole"}, home)
    assert done.status == [0], done.err
    (home / "whole.out").write_text(done.out)
    return home


def images_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "data").iterdir())]


def test_a_run_leaves_images_a_projector_and_what_labels_are_worth_their_bytes(home):
    folder, out = home / "whole", (home / "whole.out").read_text()
    distilled = DistilledSet.from_pretrained(folder)
    projector = LabelProjector.from_pretrained(folder / "label-projector")
    assert distilled.labels.bincount().tolist() == [2] * 10
    assert distilled.teacher.digest == projector.digest
    assert len(projector.config["training"]["teachers"]) == 2
    rows = {row.labels: row for row in distilled.report.labels}
    names = ["hard", "one per image", "stored", "pruned, 1 epochs", "projector, CLIP apart", "online teacher"]
    assert [row.labels for row in distilled.report.labels] == names
    assert rows["hard"].num_bytes == 0
    assert rows["projector, CLIP apart"].num_bytes == projector.num_bytes
    assert rows["pruned, 1 epochs"].num_bytes < rows["stored"].num_bytes
    card = (folder / "README.md").read_text()
    for name, row in rows.items():
        assert name in card
        assert name in out
        assert row.protocol == "hello-tiny"
    assert "every view, logits and seeds" in out
    with Image.open(folder / "assets" / "labels.png") as picture:
        assert picture.size[0] > 300
    assert "labels.png" in card
    assert "DistilledSet.from_pretrained" in out


def test_a_run_killed_while_its_projector_learns_goes_on_to_the_same_bits(recipes, home):
    # In the projector's third epoch: the networks before it are there already.
    flags = {**SHORT, "compare_labels": "none", "output_dir": "killed"}
    assert recipes("hello", flags, home, before=DIES_AT_THIRD_STATE).status == [-9]
    assert [path.name for path in (home / "killed" / "label-projector").glob("checkpoint-*")] == ["checkpoint-2"]
    done = recipes("hello", {**flags, "resume_from_checkpoint": "latest"}, home)
    assert done.status == [0], done.err
    assert images_of(home / "killed") == images_of(home / "whole")
    for name in ("adapter_model.safetensors", "adapter_config.json", "text_head.safetensors", "projector_config.json"):
        found, wanted = ((home / run / "label-projector" / name).read_bytes() for run in ("killed", "whole"))
        assert found == wanted, name
    (said,) = [row for row in DistilledSet.from_pretrained(home / "killed").report.rows if row.labels == "soft"][-1:]
    assert said in DistilledSet.from_pretrained(home / "whole").report.rows


@pytest.mark.slow
def test_two_processes_make_the_same_images_and_up_to_rounding_the_same_projector(recipes, home):
    # 51 images a batch, shared out as 25 and 26.
    flags = {**SHORT, "compare_labels": "none", "batch_projector": 51, "projector_epochs": 1, "adapt_epochs": 0}
    for processes in (1, 2):
        done = recipes("hello", {**flags, "output_dir": f"by-{processes}"}, home, processes=processes)
        assert done.status == [0] * processes, done.err
        assert done.out.count("Load the images") == 1
    assert images_of(home / "by-1") == images_of(home / "by-2") == images_of(home / "whole")
    one, two = (LabelProjector.from_pretrained(home / f"by-{processes}" / "label-projector") for processes in (1, 2))
    assert one.results["epoch_loss"] == pytest.approx(two.results["epoch_loss"], rel=1e-3)
    x = torch.randn(20, 1, 8, 8, generator=generator(0, "seen"))
    with torch.no_grad():
        # Adam turns the smallest gradients, which are rounding, into whole steps: logits, not weights, are compared.
        moved = (one(x) - one.zero_shot(x)).abs().mean()
        assert (one(x) - two(x)).abs().mean() < 0.01 * moved


COUNT = """
import os
import hf_distill.training.small_clip as small_clip
known = small_clip._train
def noted(*args):
    open(f"trained-{os.getpid()}", "w").close()
    return known(*args)
small_clip._train = noted
"""


def test_of_two_processes_one_trains_the_prior(recipes, home, tmp_path):
    flags = {**SHORT, "output_dir": "new", "teacher_epochs": 1}
    done = recipes("hello", flags, tmp_path, processes=2, before=COUNT)
    assert done.status == [1, 1]
    assert "2 teachers along 1 --teacher_epochs" in done.err  # found after the prior, so the test is short
    assert len(list(tmp_path.glob("trained-*"))) == 1
    (prior,) = (tmp_path / "outputs").glob("prior-*")
    assert Prior.from_pretrained(prior).sha256 == Prior.from_pretrained(next((home / "outputs").glob("prior-*"))).sha256


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"output_dir": "whole"}, "--output_dir whole already holds a run; use --resume_from_checkpoint latest"),
        ({"class_words": "nowhere.json"}, "--class_words nowhere.json cannot be read"),
        ({"eval_protocol": "tiny"}, "--eval_protocol tiny looks at no views"),
        ({"lora_head_r": 11}, "the LoRA rank of the head is 11"),
        ({"compare_labels": "soft"}, "--compare_labels is 'soft'"),
        ({"model_name_or_path": "."}, "holds no CLIP model"),
        ({"num_candidates": 1, "num_crops": 3}, "--num_crops 3 of --num_candidates 1 are fewer than the"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line_before_images_are_made(recipes, home, flags, says):
    done = recipes("hello", {**SHORT, "output_dir": "new", **flags}, home)
    assert done.status[0] in (1, 2)
    (line,) = [line for line in done.err.splitlines() if "error" in line.lower()]
    assert line.startswith("error: ")
    assert says in line
    assert not list((home / "new").glob("*"))


@pytest.mark.slow
def test_on_digits_a_projector_teaches_what_its_teachers_teach_for_a_hundredth_of_the_bytes_of_their_labels(
    recipes, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    demo = recipes.folder / "configs" / "hello" / "digits-ipc20.yaml"
    shorter = ["--prior_epochs", "20", "--eval_seeds", "1"]
    flags = ["--config", str(demo), "--compare_labels", "projector", "teacher", *shorter]
    args = ["--output_dir", str(tmp_path / "demo"), "--disable_tqdm", "true"]
    data, networks, clip, config, *_ = parse_args(*recipes.dataclasses("hello"), args=[*flags, *args])
    real_train, test = RealImages.train_and_test(data)
    real_train, held_out = real_train.split(data.validation_fraction, seed=0)
    options = {"seed": config.seed, "accelerator": make_accelerator(), "disable_tqdm": True}
    prior = find_prior(clip, real_train, **options)
    teachers = find_teachers(None, real_train, test, networks, along=config.weak_teachers, **options)
    method = HeLlO(config, real_train, teachers=teachers, prior=prior, test=test, held_out=held_out)
    distilled = method.run()
    protocol = PROTOCOLS[config.eval_protocol]
    short = dataclasses.replace(protocol, epochs=200)
    projected, taught = compare_labels(
        distilled, method.sources(), test, held_out=held_out, protocol=short, num_seeds=config.eval_seeds, **options
    )
    assert (projected.labels, taught.labels) == ("projector, CLIP apart", "online teacher")
    assert taught.mean > 0.9
    assert abs(projected.mean - taught.mean) <= 0.03  # of a student each, on 360 images: one is 0.3 points
    # Float16 logits of ten classes, of each view of two hundred images in the epochs of the protocol.
    stored = 200 * protocol.epochs * 10 * 2
    assert projected.num_bytes == method.projector.num_bytes
    assert method.projector.num_bytes + method.projector.text_head_bytes <= stored / 100
