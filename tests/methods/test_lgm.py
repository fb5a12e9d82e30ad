"""The maths of LGM and CLP-DD against autograd of everything, NumPy and scikit-learn; and mistakes told in a line."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor, nn

import hf_distill as hd
from hf_distill.augmentation.noisy_crops import NoisyCrops, normal
from hf_distill.data.images import Outline
from hf_distill.methods import lgm
from hf_distill.methods.lgm import (
    Pyramids,
    _check_fits,
    gradient_distance,
    head_gradient,
    image_gradient,
    one_hot,
    parts_of,
    ridge_head,
    ridge_loss,
    sides,
)
from hf_distill.networks.backbones import Backbone
from hf_distill.rng import generator
from hf_distill.runs.finish import DistillationDiverged
from hf_distill.runs.processes import make_accelerator
from hf_distill.training import features as kept_features
from hf_distill.training.features import features_folder, real_features

K, D = 3, 5
NET = {"student": "convnet_d1", "student_width": 4, "teacher_epochs": 1, "batch_train": 20}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(count: int) -> Tensor:
    return torch.arange(count) * 2 % K


# Heads


def test_the_gradient_of_a_head_is_that_of_autograd():
    z, weight, labels = drawn(7, D), drawn(K, D, seed=1).requires_grad_(), classes(7)
    bias = torch.zeros(K, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(F.linear(z, weight, bias), labels).backward()
    expected = torch.cat([weight.grad.flatten(), bias.grad])
    found = head_gradient(z, one_hot(labels, K).double(), weight.detach())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def seen_by(network: nn.Module):
    return lambda images, numbers: network(images * (1 + numbers.view(-1, 1, 1, 1) / 10))


def small_network() -> nn.Module:
    network = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, D)).double().requires_grad_(False)
    )
    draw = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return network


def test_the_gradient_of_images_is_that_of_a_graph_through_the_gradient_of_the_head():
    images, network, weight = drawn(4, 2, 4, 4), small_network(), 0.1 * drawn(K, D, seed=1)
    z, y, copies = drawn(9, D, seed=2), one_hot(classes(9), K).double(), 3
    labels = classes(4).repeat(copies)
    targets = one_hot(labels, K).double()

    def objective(synthetic: Tensor) -> Tensor:
        return gradient_distance(synthetic, weight=weight, z=z, y=y, targets=targets)

    loss, found = image_gradient(seen_by(network), images, copies, 100, objective)

    leaf = images.clone().requires_grad_()
    head, bias = weight.clone().requires_grad_(), torch.zeros(K, dtype=torch.float64, requires_grad=True)
    features = seen_by(network)(leaf.repeat(copies, 1, 1, 1), torch.arange(copies * 4))

    def asked(of: Tensor, their: Tensor, graph: bool) -> Tensor:
        ce = F.cross_entropy(F.linear(of, head, bias), their)
        return torch.cat([part.flatten() for part in torch.autograd.grad(ce, (head, bias), create_graph=graph)])

    real, synthetic = asked(z, classes(9), False), asked(features, labels, True)
    expected = 1 - F.cosine_similarity(real, synthetic, dim=0)
    (gradient,) = torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
    for most in (1, 3, 4, 5, 8, 12):  # in parts, of one copy or of several
        in_parts, same = image_gradient(seen_by(network), images, copies, most, objective)
        torch.testing.assert_close(in_parts, loss, rtol=0, atol=1e-12)
        torch.testing.assert_close(same, found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "copies", "most"), [(4, 3, 1), (4, 3, 3), (4, 3, 4), (4, 3, 9), (4, 3, 99), (1, 1, 1)]
)
def test_parts_are_all_looks_in_order_and_none_is_larger_than_asked(count, copies, most):
    looks = [
        [copy * count + image for copy in of for image in range(some.start, some.stop)]
        for of, some in parts_of(count, copies, most)
    ]
    assert [look for part in looks for look in part] == list(range(count * copies))
    assert max(map(len, looks)) <= most


def test_the_loss_is_0_where_both_sides_are_the_same_and_2_where_they_point_apart():
    z, y, weight = drawn(6, D), one_hot(classes(6), K).double(), drawn(K, D, seed=1)
    assert abs(gradient_distance(z, weight=weight, z=z, y=y, targets=y)) < 1e-12
    # Of two classes and a head of zeros, classes that change places turn the gradient around.
    pair, other = torch.eye(2, dtype=torch.float64).repeat(3, 1), torch.eye(2, dtype=torch.float64).flip(0).repeat(3, 1)
    nothing = torch.zeros(2, D, dtype=torch.float64)
    assert gradient_distance(z, weight=nothing, z=z, y=pair, targets=other).item() == pytest.approx(2)


@pytest.mark.parametrize("count", [4, 9])  # fewer images than features, and more
def test_the_ridge_head_is_that_of_scikit_learn(count):
    z, y = drawn(count, D), one_hot(classes(count), K).double()
    expected = Ridge(alpha=0.3, fit_intercept=False).fit(z.numpy(), y.numpy()).coef_
    np.testing.assert_allclose(ridge_head(z, y, 0.3).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ridge", [1e-5, 1e-6, 1e-7, 1e-8, 1e-9])
@pytest.mark.parametrize("apart", [0, 1e-4])
def test_the_ridge_head_of_nearly_equal_copies_is_right_or_no_number(ridge, apart):
    z, y = (drawn(10, 64).repeat(20, 1) + apart * drawn(200, 64, seed=1)).float(), one_hot(torch.arange(200) % 10, 10)
    scaled = ridge * z.square().sum(1).mean().item()
    expected = Ridge(alpha=scaled, fit_intercept=False).fit(z.double().numpy(), y.double().numpy()).coef_
    found = ridge_head(z, y, scaled).numpy()
    lost = np.isnan(found).all()
    assert lost or np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)
    assert lost or ridge > 1e-8
    assert not lost or ridge < 1e-5


def test_the_loss_of_the_ridge_head_is_the_cross_entropy_of_real_features_and_can_be_differentiated():
    z, synthetic, y = drawn(6, D, seed=4), drawn(4, D), one_hot(classes(6), K).double()
    targets = one_hot(classes(4), K).double()
    options = {"z": z, "y": y, "targets": targets, "ridge": 0.2, "temperature": 0.5}
    squares = (synthetic.numpy() ** 2).sum() / 4
    head = Ridge(alpha=0.2 * squares, fit_intercept=False).fit(synthetic.numpy(), targets.numpy()).coef_
    scores = z.numpy() @ head.T / 0.5
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    assert ridge_loss(synthetic, **options).item() == pytest.approx(-(logs * y.numpy()).sum() / 6, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: ridge_loss(x, **options), synthetic.requires_grad_())


# Pyramids


def test_the_sides_of_levels_double_up_to_the_image():
    assert sides((8, 8)) == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert sides((5, 3)) == [(1, 1), (2, 2), (4, 3), (5, 3)]
    assert len(sides((256, 256))) == 9
    assert sides((1, 1)) == [(1, 1)]


def test_an_image_of_one_level_is_its_colour_by_hand():
    pyramids = Pyramids(2, (3, 4, 4), seed=0)
    level = torch.tensor([[1.0, 0.0, 0.0], [0.5, -1.0, 2.0]]).view(2, 3, 1, 1)
    # Columns of the matrix are of length sqrt(0.26² + 2 · 0.27²), the largest, and shorter ones.
    longest = math.sqrt(0.26**2 + 2 * 0.27**2)
    sums = [[0.26, 0.27, 0.27], [0.13 - 0.09 + 0.04, 0.135 - 0.1, 0.135 + 0.09 + 0.06]]
    expected = [[1 / (1 + math.exp(-2 * value / longest)) for value in row] for row in sums]
    decoded = pyramids.decode([level])
    assert decoded.shape == (2, 3, 4, 4)
    torch.testing.assert_close(decoded, torch.tensor(expected).view(2, 3, 1, 1).expand(2, 3, 4, 4))


def test_a_level_that_joins_keeps_the_scale_of_the_sum():
    pyramids = Pyramids(2, (1, 8, 8), seed=0)
    fresh = [level.detach().clone() for level in pyramids.levels]
    assert int(pyramids.active) == 1
    for active in (2, 3, 4):
        pyramids.grow(active)
    assert int(pyramids.active) == 4
    # 1 · 1/2 · 2/3 · 3/4 of the first, 1/2 · 2/3 · 3/4 of the second, and so on: a quarter of each.
    large = [F.interpolate(level, (8, 8), mode="bilinear", align_corners=False) for level in fresh]
    torch.testing.assert_close(pyramids.decode(list(pyramids.levels)), (2 * sum(large) / 4).sigmoid())
    assert torch.equal(Pyramids(2, (1, 8, 8), seed=0).levels[3], fresh[3])
    assert not torch.equal(Pyramids(2, (1, 8, 8), seed=1).levels[3], fresh[3])


# Looks


def test_crops_of_everything_without_noise_are_the_images_and_noise_has_its_mean_and_deviation():
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(5)
    whole = NoisyCrops(3, (1.0, 1.0), flip=0, noise=0)
    torch.testing.assert_close(whole(images, (0,), rows, (8, 8)), images)
    noise = normal(3, (1,), torch.arange(400), 101)
    assert noise.shape == (400, 101)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert torch.equal(normal(3, (1,), torch.tensor([7, 399]), 101), noise[[7, 399]])
    dark = torch.zeros(400, 1, 4, 4)
    noisy = NoisyCrops(3, noise=0.25, noise_mean=0.5, noise_std=0.2)(dark, (0,), torch.arange(400), (6, 5))
    touched = noisy.flatten(1).any(1)
    assert noisy.shape == (400, 1, 6, 5)
    assert 0.18 < touched.float().mean() < 0.32
    assert noisy[touched].mean().item() == pytest.approx(0.5, abs=0.02)
    assert noisy[touched].std().item() == pytest.approx(0.2, abs=0.02)


def test_what_is_drawn_for_an_image_does_not_depend_on_its_batch_and_differs_by_path_and_seed():
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    look = NoisyCrops(1)
    seen = look(images, (4,), torch.arange(6), (6, 6))
    part = look(images[2:5], (4,), torch.arange(2, 5), (6, 6))
    torch.testing.assert_close(part, seen[2:5])
    assert not torch.allclose(look(images, (5,), torch.arange(6), (6, 6)), seen)
    assert not torch.allclose(NoisyCrops(2)(images, (4,), torch.arange(6), (6, 6)), seen)
    seen.sum().backward()
    assert images.grad.abs().sum() > 0


# Features that are kept


@pytest.fixture(scope="module")
def real() -> hd.RealImages:
    return hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=60, max_test_samples=20))[0]


@pytest.fixture(scope="module")
def backbone(real) -> Backbone:
    spec = hd.StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": "none"})
    return Backbone.from_teacher(hd.Teacher(spec.build(0), spec, real.class_names, real.preprocessing))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_features, "cache_folder", lambda: tmp_path)
    return tmp_path


def test_features_are_those_of_views_computed_once_and_gone_on_with(real, backbone, cache, monkeypatch, caplog):
    look, accelerator = NoisyCrops(7), make_accelerator()
    options = {"accelerator": accelerator, "disable_tqdm": True}
    monkeypatch.setattr(kept_features, "images_at_once", lambda *args: 16)
    features = real_features(real, backbone, look, 2, **options)
    assert features.shape == (2 * 60, backbone.width)
    assert features.dtype == torch.float16
    rows = torch.tensor([3, 41])
    expected = backbone.features(look(real.uint8(rows), (1,), rows, (8, 8)))
    torch.testing.assert_close(features[60 + rows].float(), expected, rtol=2e-3, atol=2e-3)

    folder = features_folder(real, backbone, look, 2, accelerator)
    whole = (folder / "features.f16").read_bytes()
    assert len(whole) == features.numel() * 2
    (folder / "features.f16").unlink()
    (folder / "features.f16.partial").write_bytes(
        b"\1" * 2 * backbone.width * 16 + b"cut off"
    )  # a batch, which is kept
    again = real_features(real, backbone, look, 2, **options)
    assert torch.equal(again[16:], features[16:])
    assert (folder / "features.f16").read_bytes()[: 32 * backbone.width] == b"\1" * 32 * backbone.width
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "features.f16"]

    monkeypatch.setattr(kept_features, "_compute", None)  # what is there is not computed
    assert torch.equal(real_features(real, backbone, look, 2, **options), again)
    others = [
        features_folder(real, backbone, NoisyCrops(8), 2, accelerator),
        features_folder(real, backbone, look, 3, accelerator),
        features_folder(real.subset(torch.arange(59, -1, -1)), backbone, look, 2, accelerator),
    ]
    assert len({folder, *others}) == 4


def test_damaged_features_are_computed_again_with_a_warning(real, backbone, cache, caplog):
    look, accelerator = NoisyCrops(11), make_accelerator()
    options = {"accelerator": accelerator, "disable_tqdm": True}
    features = real_features(real, backbone, look, 1, **options).clone()
    folder = features_folder(real, backbone, look, 1, accelerator)
    path, sums = folder / "features.f16", folder / "SHA256SUMS"
    whole, told = path.read_bytes(), sums.read_bytes()
    ways = {
        path: (whole[:100], b"", whole + b"\0\0", whole[:-1] + bytes([whole[-1] ^ 1])),
        sums: (b"", told[:30], b"\xff" * 80, told.replace(b"features", b"filtered")),
    }
    for damaged, contents in ways.items():
        for content in contents:
            caplog.clear()
            damaged.write_bytes(content)
            assert torch.equal(real_features(real, backbone, look, 1, **options), features)
            assert f"{path} is damaged: its size or its checksum is another" in caplog.text
            assert (path.read_bytes(), sums.read_bytes()) == (whole, told)
    caplog.clear()
    real_features(real, backbone, look, 1, **options)
    assert "damaged" not in caplog.text


def test_features_that_float16_does_not_hold_are_one_line(real, backbone, cache, monkeypatch):
    monkeypatch.setattr(backbone, "features", lambda images: torch.full((len(images), 1), 1e6))
    with pytest.raises(ValueError, match="not finite in float16; expected a backbone with features up to 65,504"):
        real_features(real, backbone, NoisyCrops(9), 1, accelerator=make_accelerator(), disable_tqdm=True)


# Steps


def prepared(method: type, real, backbone, folder, **settings):
    """A method on a backbone, at its beginning."""
    options = {"real_views": 2, "batch_real": 40, "max_steps": 9, "level_steps": 2, "select": "last", **settings}
    config = method.config_class(output_dir=str(folder), eval_protocol="probe", disable_tqdm=True, **options)
    return method(config, real, backbone=backbone, accelerator=make_accelerator())


def matched(weight: Tensor, z: Tensor, labels: Tensor, synthetic: Tensor, own: Tensor) -> Tensor:
    """L of LGM by a graph through the gradient of a head."""
    head, bias = weight.clone().requires_grad_(), torch.zeros(len(weight), requires_grad=True)
    sides = []
    for features, their in ((z, labels), (synthetic, own)):
        ce = F.cross_entropy(F.linear(features, head, bias), their)
        sides.append(torch.cat([g.flatten() for g in torch.autograd.grad(ce, (head, bias), create_graph=True)]))
    return 1 - F.cosine_similarity(*sides, dim=0)


def ridged(config, z: Tensor, labels: Tensor, synthetic: Tensor, own: Tensor) -> Tensor:
    """L of CLP-DD by the normal equations of D features."""
    scale = config.ridge * (synthetic**2).sum() / len(synthetic)
    normal = synthetic.T @ synthetic + scale * torch.eye(synthetic.shape[1])
    head = torch.linalg.solve(normal, synthetic.T @ F.one_hot(own, 10).float())
    return F.cross_entropy(z @ head / config.temperature, labels)


@pytest.mark.parametrize("method", [hd.LGM, hd.CLPDD])
def test_a_step_has_the_gradient_of_levels_by_autograd_through_everything(method, real, backbone, cache, tmp_path):
    step = 5  # of which 1 + 5 // 2 levels count
    made = prepared(method, real, backbone, tmp_path, ipc=2, augmentations=2, micro_batch_size=7)
    made.distilled = made.setup()
    made.ready()
    fresh = [level.detach().clone() for level in made.pyramids.levels]
    made.begin(step)
    assert [tuple(level.shape[1:]) for level in made._levels] == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    made._clear()
    loss = made.step(step)["loss"]

    levels = [(level / 3).requires_grad_() for level in fresh[:3]]
    large = [F.interpolate(level, (8, 8), mode="bilinear", align_corners=False) for level in levels]
    images = (2 * sum(large)).sigmoid()
    own, seed = torch.arange(10).repeat_interleave(2), made.config.seed
    seen = [
        backbone.features(made.config.augment("synthetic")(images, (step,), torch.arange(20) + 20 * copy, (8, 8)))
        for copy in range(2)
    ]
    rows, look = torch.randint(120, (40,), generator=generator(seed, "batch", step)), made.config.augment("real")
    z = torch.cat(
        [
            backbone.features(
                look(real.uint8(torch.tensor([row % 60])), (row // 60,), torch.tensor([row % 60]), (8, 8))
            )
            for row in rows.tolist()
        ]
    )
    told = {"z": z.half().float(), "labels": real.labels[rows % 60], "synthetic": torch.cat(seen), "own": own.repeat(2)}
    if method is hd.LGM:
        drawn_head = 0.01 * torch.randn(10, backbone.width, generator=generator(seed, "head", step))
        expected = matched(drawn_head, **told)
    else:
        expected = ridged(made.config, **told)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=0)
    for level, gradient in zip(made._levels, torch.autograd.grad(expected, levels), strict=True):
        assert (level.grad - gradient).norm() < 1e-3 * gradient.norm()

    made.constrain()
    shown = real.preprocessing.inverse(made.distilled.pixel_values)
    torch.testing.assert_close(shown, images.detach(), rtol=0, atol=1e-5)


def test_a_ridge_that_is_too_small_ends_a_run_of_clpdd_with_what_to_raise(real, backbone, cache, tmp_path):
    clpdd = prepared(hd.CLPDD, real, backbone, tmp_path, ridge=1e-12, augmentations=20, random_flip=0, noise=0)
    with pytest.raises(DistillationDiverged, match=r"the loss is nan.* Raise --ridge 1e-12 or --temperature 0\.07\."):
        clpdd.run()


def test_going_on_with_another_backbone_is_refused_before_its_features_are_computed(
    real, backbone, cache, tmp_path, monkeypatch
):
    prepared(hd.LGM, real, backbone, tmp_path, max_steps=2, save_steps=1).run()
    wider = hd.StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 5, "norm": "none"})
    other = Backbone.from_teacher(hd.Teacher(wider.build(0), wider, real.class_names, real.preprocessing))
    again = {"max_steps": 3, "resume_from_checkpoint": "latest"}
    with monkeypatch.context() as patch:
        patch.setattr(lgm, "real_features", None)
        with pytest.raises(ValueError, match=r"is of another run: its student\.digest is"):
            prepared(hd.LGM, real, other, tmp_path, **again).run()
        finished = prepared(hd.LGM, real, backbone, tmp_path, max_steps=2, resume_from_checkpoint="latest").run()
    gone_on = prepared(hd.LGM, real, backbone, tmp_path, **again).run()
    whole = prepared(hd.LGM, real, backbone, tmp_path / "whole", max_steps=3).run()
    assert torch.equal(gone_on.pixel_values, whole.pixel_values)
    assert not torch.equal(finished.pixel_values, whole.pixel_values)


# Mistakes


@pytest.mark.parametrize(
    ("config", "values", "said"),
    [
        (hd.CLPDDConfig, {"ridge": 0}, "--ridge is 0; expected a number above 0"),
        (hd.CLPDDConfig, {"ridge": -1}, "--ridge is -1"),
        (hd.CLPDDConfig, {"temperature": 0}, "--temperature is 0; expected a number above 0"),
        (hd.CLPDDConfig, {"temperature": math.nan}, "--temperature is nan"),
        (hd.LGMConfig, {"init": "real"}, "--init is real; expected noise"),
        (hd.LGMConfig, {"min_crop": 0}, "--min_crop is 0; expected above 0, and at most 1"),
        (hd.LGMConfig, {"noise": 1.5}, "--noise is 1.5; expected 0 to 1"),
        (hd.LGMConfig, {"noise_mean": math.inf}, "--noise_mean is inf"),
        (
            hd.LGMConfig,
            {"noise_mean": -1e38},
            r"--noise_mean is -1e\+38; expected at most 10 either way: pixels are in \[0, 1\]",
        ),
        (hd.CLPDDConfig, {"noise_std": 11}, "--noise_std is 11; expected at most 10"),
        (hd.CLPDDConfig, {"noise_std": math.nan}, "noise_std"),
        (hd.LGMConfig, {"augmentations": 0}, "augmentations"),
        (hd.LGMConfig, {"level_steps": 0}, "level_steps"),
        (hd.LGMConfig, {"backbone_revision": "main"}, "--backbone_revision main without --backbone"),
    ],
)
def test_settings_that_cannot_be_are_one_line(config, values, said):
    with pytest.raises(ValueError, match=said) as caught:
        config(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [hd.LGM, hd.CLPDD])
def test_images_and_backbones_that_do_not_fit_are_one_line(method, real, backbone, tmp_path, monkeypatch):
    accelerator, outline = make_accelerator(), real.outline
    config = method.config_class(eval_protocol="probe", batch_real=700)
    assert config.real_in_a_step(10, config.real_views * len(outline)) == 600  # of 60 images
    whitened, _ = hd.RealImages.train_and_test(
        hd.DataArguments(max_train_samples=60, max_test_samples=20, normalization="zca")
    )
    config = method.config_class(eval_protocol="probe", batch_real=10)
    with pytest.raises(ValueError, match="--normalization zca mixes them up; use --normalization mean_std"):
        method.check(config, whitened.outline, accelerator)
    given = method.config_class(eval_protocol="probe", batch_real=10, backbone=str(tmp_path))
    said = rf"--backbone {tmp_path}: .* has no config\.json; expected an image network"
    with pytest.raises(ValueError, match=said):
        method.check(given, outline, accelerator, [hd.TeacherConfig()])
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(ValueError, match=rf"--backbone {tmp_path}: .* has no model\.safetensors"):
        method.check(given, outline, accelerator, [hd.TeacherConfig()])
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"--backbone {tmp_path}: .*preprocessor_config\.json"):
        method.check(given, outline, accelerator, [hd.TeacherConfig()])
    for name, what in {"not/a/repository": "no folder here", "x" * 300: "no folder here", "": "no folder here"}.items():
        with pytest.raises(ValueError, match=f"--backbone {name}: .*{what}") as caught:
            method.learn(SimpleNamespace(networks=[None], config=replace(given, backbone=name)))
        assert "\n" not in str(caught.value)
    revised = replace(given, backbone_revision="v1")
    with pytest.raises(ValueError, match=rf"--backbone {tmp_path}: .* has no revision 'v1'"):
        method.check(revised, outline, accelerator, [hd.TeacherConfig()])
    coloured = Outline((3, 8, 8), real.class_names, outline.counts, False)
    with pytest.raises(ValueError, match="sees gray images, and the data have 3 channels"):
        _check_fits(backbone, coloured)


# Runs


@pytest.mark.slow
def test_a_short_run_says_that_levels_do_not_join_and_an_image_starts_smooth(real, cache, caplog, tmp_path):
    options = {"ipc": 1, "select": "last", "disable_tqdm": True, "eval_protocol": "probe", "real_views": 1, **NET}
    folder = str(tmp_path / "run")
    distilled = hd.LGM.distill(real, max_steps=2, level_steps=5, augmentations=2, output_dir=folder, **options)
    assert "the last of 4 levels joins after 15 iterations (--level_steps 5), and there are 2: images" in caplog.text
    assert "stay as coarse as 1x1 pixels" in caplog.text
    assert "takes 20 crops of 10 synthetic images through the backbone, and 20 of 50 real features" in caplog.text
    spread = distilled.pixel_values.flatten(1).std(1)
    assert spread.max() < 1e-5
    about = distilled.config["student"]["probe"]
    card = " ".join((tmp_path / "run" / "README.md").read_text().split())
    assert f"for linear heads on the frozen backbone `{about['name']}` (weights `{about['digest']}`), of which" in card
