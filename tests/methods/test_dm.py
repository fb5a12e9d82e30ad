"""DM: its loss and gradient beside a plain loop, its augmentation, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hf_distill as hd
from hf_distill.augmentation.dsa import DEFAULT_STRATEGY, DSA
from hf_distill.engine.memory import SavedBytes
from hf_distill.methods.dm import averaging, matching_gradient, parts_of
from hf_distill.networks.architectures import StudentSpec
from hf_distill.rng import derive_seed, generator
from hf_distill.runs.processes import make_accelerator

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (8, 8)
NET = {"student": "convnet_d1", "student_width": 4}


@pytest.fixture(scope="module")
def train() -> hd.RealImages:
    train, _ = hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=90, max_test_samples=10))
    return train


def begun(train: hd.RealImages, folder: object, **settings: object) -> hd.DM:
    """A method that is set up, with gradients of zero, before its first step."""
    config = hd.DMConfig(output_dir=str(folder), disable_tqdm=True, select="last", **{**NET, **settings})
    method = hd.DM(config, train)
    method.distilled = method.setup()
    method.distilled.pixel_values.grad = torch.zeros_like(method.distilled.pixel_values)
    return method


# The loss


def test_loss_and_gradient_of_linear_features_are_those_that_numpy_has():
    random = np.random.default_rng(0)
    maps, counts, ipc = random.normal(size=(6, 12)), [3, 1, 5], [2, 2, 2]  # features are a matrix times the pixels
    real, images = random.normal(size=(9, 12)), random.normal(size=(6, 12))
    apart = [
        (images[2 * c : 2 * c + 2].mean(0) - rows.mean(0)) @ maps.T for c, rows in enumerate(np.split(real, [3, 4]))
    ]

    def features(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ torch.from_numpy(maps).T

    goal = averaging(counts).double() @ features(torch.from_numpy(real))
    given = torch.from_numpy(images).view(6, 3, 2, 2)
    loss, gradient = matching_gradient(features, given, averaging(ipc).double(), goal)
    assert loss.item() == pytest.approx(sum(float(each @ each) for each in apart), rel=1e-6)
    wanted = np.repeat([2 * each @ maps / 2 for each in apart], 2, axis=0)
    np.testing.assert_allclose(gradient.flatten(1).numpy(), wanted, rtol=1e-6)


def plain_step(method: hd.DM, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of a step by a loop over the classes, written from the paper, with the draws of the seed."""
    config, train = method.config, method.train
    network = method.student.build(derive_seed(config.seed, "network", draw))
    images = method.distilled.pixel_values.detach().clone().requires_grad_()
    dsa, loss = DSA(config.dsa_strategy), torch.zeros(())
    for label in range(train.num_classes):
        rows = train.class_rows(label)
        rows = rows[
            torch.randperm(len(rows), generator=generator(config.seed, "real", draw, label))[: config.batch_real]
        ]
        drawn = dsa.sample(1, generator(config.seed, "dsa", draw, label), SIZE)
        means = []
        for batch in (train.images(rows), images[label * config.ipc :][: config.ipc]):
            seen = torch.cat([DSA.apply(batch[i : i + 1], drawn) for i in range(len(batch))])
            means.append(network.features(seen).flatten(1).mean(0))
        loss = loss + (means[0].detach() - means[1]).square().sum()
    (gradient,) = torch.autograd.grad(loss, images)
    return loss.detach(), gradient


@pytest.mark.parametrize(
    "settings",
    [
        {"ipc": 1, "batch_real": 5},
        {"ipc": 2, "batch_real": 100, "micro_batch_size": 20},  # more than a class has, and a few classes at a time
        {"ipc": 3, "batch_real": 2, "micro_batch_size": 1, "dsa_strategy": "none", "init": "noise"},
    ],
    ids=str,
)
def test_a_step_is_that_of_a_plain_loop_over_classes(settings, train, tmp_path):
    method = begun(train, tmp_path, **settings)
    for draw in (0, 3):
        before = method.distilled.pixel_values.grad.clone()
        found = method.step(draw)["loss"]
        loss, gradient = plain_step(method, draw)
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(method.distilled.pixel_values.grad - before, gradient, rtol=1e-4, atol=1e-6)


def test_with_batchnorm_all_classes_are_one_batch(train, tmp_path):
    method = begun(train, tmp_path, batch_real=4, micro_batch_size=8, student_norm="batch", dsa_strategy="none", ipc=2)
    loss = method.step(0)["loss"]
    network = method.student.build(derive_seed(0, "network", 0)).train()
    real = torch.cat([train.sample(label, 4, generator(0, "real", 0, label)) for label in range(10)])
    with torch.no_grad():
        real = network.features(real).flatten(1).unflatten(0, (10, 4)).mean(1)
        synthetic = network.features(method.distilled.pixel_values).flatten(1).unflatten(0, (10, 2)).mean(1)
    torch.testing.assert_close(loss, F.mse_loss(real, synthetic, reduction="sum"), rtol=1e-5, atol=1e-6)


def test_images_that_are_the_real_ones_match_them(tmp_path, train):
    """Under any augmentation: it is the same for both sides, whichever images it falls on."""
    few = train.subset(torch.cat([train.class_rows(label)[:2] for label in range(10)]))
    method = begun(few, tmp_path, ipc=2, batch_real=2, dsa_strategy=DEFAULT_STRATEGY)
    for draw in range(8):
        assert method.step(draw)["loss"].item() < 1e-9
    assert method.distilled.pixel_values.grad.abs().max() < 1e-6


def test_an_image_per_class_moves_to_the_mean_where_nothing_is_augmented_and_features_are_linear(train, tmp_path):
    distilled = hd.DM.distill(
        train,
        student="convnet_d1",
        student_width=4,
        student_norm="none",
        ipc=1,
        dsa_strategy="none",
        max_steps=60,
        lr_img=0.5,
        select="last",
        init="noise",
        disable_tqdm=True,
        validation_fraction=0,
        output_dir=str(tmp_path / "run"),
    )
    means = torch.stack([train.images(train.class_rows(label)).mean(0) for label in range(10)])
    start = torch.randn((10, *train.shape), generator=generator(0, "init"))
    assert (distilled.pixel_values - means).norm() < 0.7 * (start - means).norm()


# Memory


def test_the_graph_of_an_iteration_does_not_grow_with_the_classes(train, tmp_path):
    held = []
    for classes in (3, 10):
        some = train.of_classes([str(label) for label in range(classes)])
        method = begun(some, tmp_path / str(classes), ipc=2, batch_real=8, micro_batch_size=16)
        with SavedBytes() as saved:
            method.step(0)
        held.append(saved.peak)
    # What is drawn decides how much an augmentation keeps; ten classes in one graph would keep three times as much.
    assert held[1] < 1.5 * held[0]


def test_parts_hold_what_goes_together():
    assert parts_of([3, 3, 3], 6) == [slice(0, 2), slice(2, 3)]
    assert parts_of([9, 1, 1, 9], 4) == [slice(0, 1), slice(1, 3), slice(3, 4)]
    assert parts_of([2, 2], 1) == [slice(0, 1), slice(1, 2)]


# What is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_real": 0}, "--batch_real is 0; expected at least 1"),
        ({"micro_batch_size": 0}, "--micro_batch_size is 0; expected at least 1"),
        ({"lr_img": -1}, "--lr_img is -1; expected at least 0"),
        ({"mom_img": 1.5}, "--mom_img is 1.5; expected a number from 0 to 1"),
        ({"dsa_strategy": "swirl"}, "--dsa_strategy names 'swirl'"),
        ({"student_norm": "group"}, "--student_norm"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        hd.DMConfig(**settings)


def test_a_student_without_features_is_refused(train, monkeypatch):
    class Plain(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flatten(1))

    monkeypatch.setattr(StudentSpec, "build", lambda spec, seed: Plain(64, 10))
    with pytest.raises(
        ValueError, match=r"^--student convnet_d1 gives no features before its logits; expected "
    ) as error:
        hd.DM.check(hd.DMConfig(**NET), train.outline, make_accelerator())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ipc": 60}, r"^--ipc is 60 and some classes lack training images: "),
        ({"student": "convnet_d5"}, r"convnet_d5 halves its images 5 times"),
        ({"student": "convnet"}, r"'convnet' is no timm model; did you mean"),
        ({"student": "probe:me/vit"}, r"^--student probe:me/vit is a frozen backbone, .* lgm and clpdd \(--backbone"),
        ({"experts": "somewhere"}, r"experts"),
        ({"eval_baselines": ["forgetting"]}, r"forgetting, which needs the epochs of experts, and DM learns from none"),
    ],
    ids=str,
)
def test_what_cannot_be_distilled_is_refused_in_a_line(settings, says, train, tmp_path):
    with pytest.raises(ValueError, match=says) as error:
        hd.DM.distill(train, output_dir=str(tmp_path / "run"), **{**NET, "max_steps": 1, **settings})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_half_precision_that_needs_a_loss_scaler_is_refused(train, launch):
    with pytest.raises(
        ValueError, match=r"^mixed precision fp16 needs a loss scaler, and there is none for distribution"
    ):
        hd.DM.check(hd.DMConfig(**NET), train.outline, launch("fp16"))
