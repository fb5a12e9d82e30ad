"""A network as a function of one flat vector is the network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_distill.networks.architectures import FlatModel, StudentSpec


def spec(norm: str = "instance", **kwargs) -> StudentSpec:
    return StudentSpec("convnet_d2", 5, 2, (8, 8), {"width": 4, "norm": norm, **kwargs})


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(6, 2, 8, 8, generator=random), torch.randint(5, (6,), generator=random)


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_logits_and_gradients_are_those_of_the_module(norm, batch, device):
    images, labels = batch
    module = spec(norm).build(3)  # in training mode: BatchNorm uses the statistics of the batch, as a FlatModel does
    flat = FlatModel(module).to(device)
    theta = flat.flatten(module).to(device).requires_grad_()
    logits = flat(theta, images.to(device))
    rounding = {} if device.type == "cpu" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(logits.cpu(), module(images), **rounding)
    F.cross_entropy(logits, labels.to(device)).backward()
    F.cross_entropy(module(images), labels).backward()
    wanted = torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()])
    torch.testing.assert_close(theta.grad.cpu(), wanted, **rounding)


def test_batch_norm_stores_no_statistics_and_forgets_those_it_has(batch):
    images, _ = batch
    module = spec("batch").build(0)
    fresh = FlatModel(module)(FlatModel(module).flatten(module), images)
    for _ in range(3):
        module(images * 10 + 5)  # moves the running statistics
    flat = FlatModel(module)
    theta = flat.flatten(module)
    assert torch.equal(flat(theta, images), fresh)
    assert torch.equal(flat(theta, images), flat(theta, images))
    assert not dict(flat.module.named_buffers())


def test_dropout_is_off(batch):
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(128, 3))
    flat = FlatModel(module)
    theta = flat.flatten(module)
    torch.testing.assert_close(flat(theta, batch[0]), module.eval()(batch[0]))


def test_flattening_and_loading_bring_back_every_value(batch):
    module = spec().build(1)
    flat = FlatModel(module)
    theta = flat.flatten(module)
    assert theta.shape == (flat.num_params,)
    assert flat.names == [name for name, _ in module.named_parameters()]
    for name, piece in flat.unflatten(theta).items():
        assert torch.equal(piece, dict(module.named_parameters())[name])
    loaded = flat.load(theta)
    assert not loaded.training
    assert torch.equal(flat.flatten(loaded), theta)
    assert torch.equal(loaded(batch[0]), module.eval()(batch[0]))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_flat_vector_shares_no_memory_with_the_module():
    module = spec().build(1)
    flat = FlatModel(module)
    theta = flat.flatten(module)
    before = theta.clone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert torch.equal(theta, before)
    assert torch.equal(flat.flatten(flat.load(theta)), before)


def test_double_precision_is_kept(batch):
    flat = FlatModel.from_spec(spec())
    theta = flat.init(0).double()
    assert flat(theta, batch[0].double()).dtype == torch.float64
    assert flat.load(theta).classifier.weight.dtype == torch.float64


def test_a_vector_of_another_length_is_refused():
    flat = FlatModel.from_spec(spec())
    with pytest.raises(ValueError, match=f"theta has 3 values and the architecture {flat.num_params}"):
        flat.load(torch.zeros(3))


def test_initialisations_follow_their_seed_and_need_a_spec():
    flat = FlatModel.from_spec(spec())
    assert torch.equal(flat.init(4), flat.flatten(spec().build(4)))
    assert not torch.equal(flat.init(4), flat.init(5))
    with pytest.raises(ValueError, match="from_spec"):
        FlatModel(spec().build(0)).init(0)


def test_vectorised_over_experts_it_is_each_expert(batch, device):
    flat, images = FlatModel.from_spec(spec()).to(device), batch[0].to(device)
    thetas = torch.stack([flat.init(seed) for seed in range(3)]).to(device)
    together = torch.vmap(flat, in_dims=(0, None))(thetas, images)
    for theta, logits in zip(thetas, together, strict=True):
        torch.testing.assert_close(logits, flat(theta, images), rtol=1e-4, atol=1e-5)
