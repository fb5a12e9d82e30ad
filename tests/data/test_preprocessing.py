import json

import numpy as np
import pytest
import torch

from hf_distill.data.preprocessing import Preprocessing, fit_mean_std, fit_zca


def random_images(n: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """(n, C, H, W) uint8 images with correlated pixels, as photographs have."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(6, int(np.prod(shape))))
    levels = 128 + 30 * rng.normal(size=(n, 6)) @ basis + 5 * rng.normal(size=(n, int(np.prod(shape))))
    return torch.from_numpy(levels.clip(0, 255).astype(np.uint8).reshape(n, *shape))


def whitening(images: torch.Tensor, eps: float = 0.1) -> Preprocessing:
    channels, height, width = images.shape[1:]
    zca = fit_zca(images.split(100), eps)
    return Preprocessing(channels, (height, width), (0.0,) * channels, (1.0,) * channels, zca)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 6, 4)])
def test_mean_and_std_are_those_of_numpy_whatever_the_batches(shape):
    images = random_images(700, shape)
    expected = images.double().numpy() / 255
    for size in (1, 300, 700):
        mean, std = fit_mean_std(images.split(size))
        np.testing.assert_allclose(mean, expected.mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(std, expected.std((0, 2, 3)), rtol=1e-10)
        assert (mean, std) == fit_mean_std([images])


def test_statistics_are_exact_where_float32_sums_are_largest():
    images = torch.full((1000, 1, 2, 2), 255, dtype=torch.uint8)
    images[-1, 0, 0, 0] = 254
    mean, std = fit_mean_std([images])
    levels = images.double().numpy()
    assert mean[0] == pytest.approx(levels.mean() / 255, rel=1e-15)
    assert std[0] == pytest.approx(levels.std() / 255, rel=1e-6)


def test_a_channel_that_never_changes_becomes_zero():
    images = random_images(50, (3, 4, 4))
    images[:, 1] = 77
    mean, std = fit_mean_std([images])
    x = Preprocessing(3, (4, 4), mean, std)(images)
    assert std[1] == 1
    assert x[:, 1].abs().max() < 1e-6


@pytest.mark.parametrize("fit", [fit_mean_std, lambda batches: fit_zca(batches, 0.1)])
def test_statistics_of_nothing_are_refused(fit):
    with pytest.raises(ValueError, match="expected at least"):
        fit([])
    with pytest.raises(ValueError, match="expected uint8"):
        fit([torch.zeros(3, 1, 2, 2)])


def test_standardised_images_have_mean_zero_and_deviation_one():
    images = random_images(300, (3, 8, 6))
    x = Preprocessing(3, (8, 6), *fit_mean_std([images]))(images)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_zca_is_the_symmetric_whitening_of_numpy():
    images, eps = random_images(500, (3, 4, 5)), 0.1
    flat = images.flatten(1).double().numpy() / 255
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    expected = (flat - flat.mean(0)) @ vectors @ np.diag((values + eps) ** -0.5) @ vectors.T
    np.testing.assert_allclose(whitening(images, eps)(images).flatten(1).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("eps", [0.1, 0.001])
def test_the_covariance_of_whitened_images_has_eigenvalues_s_over_s_plus_eps(eps):
    images = random_images(500, (1, 6, 6))
    s = np.linalg.eigvalsh(np.cov(images.flatten(1).double().numpy().T / 255))
    whitened = np.cov(whitening(images, eps)(images).flatten(1).double().numpy().T)
    np.testing.assert_allclose(np.linalg.eigvalsh(whitened), s / (s + eps), rtol=1e-3, atol=1e-5)


def test_zca_works_with_fewer_images_than_pixels():
    images = random_images(10, (3, 4, 4))
    preprocessing = whitening(images)
    torch.testing.assert_close(preprocessing.inverse(preprocessing(images)), images / 255.0, atol=1e-5, rtol=0)


def test_zca_is_the_same_bit_for_bit_whatever_the_batches():
    images = random_images(600, (1, 5, 5))
    whole, parts = fit_zca([images], 0.1), fit_zca(images.split(7), 0.1)
    assert whole.digest == parts.digest
    for name in ("mean", "vectors", "values"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))


def test_zca_without_eps_of_a_singular_covariance_is_refused():
    images = random_images(50, (1, 4, 4))
    images[:, 0, 0, 0] = 3
    with pytest.raises(ValueError, match=r"--zca_eps is 0.*--zca_eps 0\.1"):
        fit_zca([images], 0)


@pytest.mark.parametrize("kind", ["mean_std", "zca"])
def test_inverse_undoes_preprocessing_and_bytes_survive_exactly(kind):
    images = random_images(200, (3, 6, 5))
    preprocessing = whitening(images) if kind == "zca" else Preprocessing(3, (6, 5), *fit_mean_std([images]))
    x = preprocessing(images)
    torch.testing.assert_close(preprocessing.inverse(x), images / 255.0, atol=1e-5, rtol=0)
    torch.testing.assert_close(preprocessing(preprocessing.inverse(x)), x, atol=1e-4, rtol=1e-4)
    assert torch.equal(preprocessing.to_uint8(x), images)
    torch.testing.assert_close(preprocessing(images / 255.0), x)


def test_values_beyond_white_and_black_are_clamped_in_bytes_only():
    preprocessing = Preprocessing(1, (1, 3), (0.5,), (0.5,))
    x = torch.tensor([[[[-3.0, 0.0, 3.0]]]])
    assert preprocessing.inverse(x).flatten().tolist() == [-1.0, 0.5, 2.0]
    assert preprocessing.to_uint8(x).flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind", ["mean_std", "zca"])
def test_gradients_flow_through_both_directions(kind):
    images = random_images(60, (1, 3, 3))
    preprocessing = whitening(images) if kind == "zca" else Preprocessing(1, (3, 3), *fit_mean_std([images]))
    pixels = (images[:2] / 255.0).requires_grad_()
    (back,) = torch.autograd.grad(preprocessing.inverse(preprocessing(pixels)).square().sum(), pixels)
    torch.testing.assert_close(back, 2 * pixels.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mean_std", "zca"])
def test_config_and_tensors_restore_the_same_bits(kind):
    images = random_images(120, (3, 4, 4))
    preprocessing = whitening(images) if kind == "zca" else Preprocessing(3, (4, 4), *fit_mean_std([images]))
    config = json.loads(json.dumps(preprocessing.to_config()))
    restored = Preprocessing.from_config(config, preprocessing.tensors())
    assert restored.fingerprint() == preprocessing.fingerprint()
    assert restored.to_config() == preprocessing.to_config()
    assert torch.equal(restored(images), preprocessing(images))
    assert torch.equal(restored.to("cpu")(images), preprocessing(images))


def test_zca_without_its_tensors_is_refused():
    preprocessing = whitening(random_images(120, (1, 4, 4)))
    with pytest.raises(ValueError, match="zca_mean, zca_vectors, zca_values"):
        Preprocessing.from_config(preprocessing.to_config(), {})


def test_fingerprints_differ_when_anything_does():
    images = random_images(120, (1, 4, 4))
    base = Preprocessing(1, (4, 4), (0.5,), (0.25,))
    others = [
        Preprocessing(1, (4, 4), (0.5,), (0.26,)),
        Preprocessing(1, (4, 4), (0.51,), (0.25,)),
        Preprocessing(1, (2, 8), (0.5,), (0.25,)),
        whitening(images),
        whitening(images, eps=0.2),
        whitening(random_images(120, (1, 4, 4), seed=1)),
    ]
    fingerprints = {preprocessing.fingerprint() for preprocessing in [base, *others]}
    assert len(fingerprints) == 7
    assert Preprocessing(1, (4, 4), (0.5,), (0.25,)).fingerprint() == base.fingerprint()


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 1, 4, 4\); expected \(N, 3, 4, 4\)"):
        Preprocessing(3, (4, 4), (0, 0, 0), (1, 1, 1))(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="one number per channel"):
        Preprocessing(1, (4, 4), (0, 0, 0), (1, 1, 1))
    with pytest.raises(ValueError, match="does not fit 1x5x5"):
        Preprocessing(1, (5, 5), (0,), (1,), fit_zca([random_images(20, (1, 4, 4))], 0.1))
