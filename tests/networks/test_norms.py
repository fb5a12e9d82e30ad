"""The normalisation with a second derivative of its own against PyTorch's, and against finite differences."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hf_distill.networks.architectures import FlatModel, StudentSpec
from hf_distill.networks.norms import GroupNorm, with_closed_norms
from hf_distill.rng import generator

SHAPES = [  # of x, and groups
    ((2, 4, 3, 5), 4),
    ((3, 6, 7, 1), 2),
    ((2, 3, 2, 3), 1),
    ((2, 4, 1, 1), 2),
    ((2, 4, 1, 1), 4),
    ((1, 4, 3), 2),
    ((3, 6), 3),
]


def pair(shape, groups, dtype=torch.float64) -> tuple[nn.GroupNorm, GroupNorm, Tensor]:
    """PyTorch's layer and ours with the same weights, and something off centre to normalise."""
    draw = generator(0, "norms", *shape, groups)
    theirs = nn.GroupNorm(groups, shape[1], eps=1e-3, dtype=dtype)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, generator=draw)
    ours = with_closed_norms(nn.Sequential(theirs))[0]
    assert type(ours) is GroupNorm
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours, (3 + 2 * torch.randn(shape, generator=draw, dtype=torch.float64)).to(dtype)


def derivatives(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """y, the gradient of a loss for x, weight and bias, and its Hessian's product with a vector."""
    inputs = [x.detach().requires_grad_(), layer.weight, layer.bias]
    y = layer(inputs[0])
    gradient = torch.autograd.grad(
        (y.float() if y.dtype.itemsize < 4 else y).tanh().mul(y).sum(), inputs, create_graph=True
    )
    draw = generator(1, "vector")
    vector = [torch.randn(g.shape, generator=draw, dtype=torch.float64).to(g) for g in gradient]
    return [y, *gradient, *torch.autograd.grad(gradient, inputs, vector)]


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_derivatives_are_those_of_finite_differences(shape, groups):
    _, ours, x = pair(shape, groups)
    inputs = [tensor.detach().requires_grad_() for tensor in (x, *ours.parameters())]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(ours, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize(("shape", "groups"), [*SHAPES, ((4, 8, 16, 16), 8)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_values_gradients_and_hessians_are_pytorchs(shape, groups, dtype, bound, device):
    theirs, ours, x = pair(shape, groups, dtype)
    expected = derivatives(theirs, x)
    found = [tensor.cpu() for tensor in derivatives(ours.to(device), x.to(device))]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=bound, atol=bound * max(1, other.abs().max().item()))


@pytest.mark.parametrize("layout", ["channels last", "every other column", "expanded"])
def test_strides_change_nothing(layout, device):
    theirs, ours, x = pair((3, 4, 5, 12), 2)
    theirs = copy.deepcopy(theirs)  # which stays on the CPU
    ours.to(device)
    strided = {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "every other column": x[..., ::2],
        "expanded": x[:, :1].expand_as(x),
    }[layout]
    for one, other in zip(
        derivatives(ours, strided.to(device)), derivatives(theirs, strided.contiguous()), strict=True
    ):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-10, atol=1e-10)
    constant = [layer(image).sum() for layer, image in ((ours, x.to(device)), (theirs, x))]  # an expanded gradient of y
    found, expected = (
        torch.autograd.grad(each, [*layer.parameters()]) for each, layer in zip(constant, (ours, theirs), strict=True)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-10, atol=1e-10)


def test_a_first_derivative_has_pytorchs_bits():
    theirs, ours, x = pair((3, 6, 5, 4), 6, torch.float32)
    for layer in (theirs, ours):
        layer(x).square().sum().backward()
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter.grad, ours.get_parameter(name).grad)


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_comes_out_as_it_went_in_with_statistics_in_float32(autocast, device):
    theirs, ours, x = pair((3, 4, 9, 7), 4, torch.float32)
    x = (x + 50).bfloat16()  # statistics in bfloat16 would be off by a tenth of the deviation
    expected = derivatives(theirs, x.float())
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        found = derivatives(ours.to(device), x.to(device))
    halves = [0, 1, 4]  # y, and the two gradients of x
    assert {place for place, tensor in enumerate(found) if tensor.dtype == torch.bfloat16} == set(halves)
    for place in halves:
        error = (found[place].cpu().float() - expected[place]).norm() / expected[place].norm()
        assert error < 1e-2, place


def test_a_network_keeps_its_names_and_what_is_no_plain_layer_with_weights():
    class Other(nn.GroupNorm):
        pass

    network = nn.Sequential(
        nn.GroupNorm(2, 4), nn.Sequential(nn.GroupNorm(4, 4), Other(1, 4)), nn.GroupNorm(2, 4, affine=False)
    )
    before = network.state_dict()
    assert with_closed_norms(network) is network
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == {
        name: tensor.data_ptr() for name, tensor in before.items()
    }
    kinds = [type(layer) for layer in network.modules() if isinstance(layer, nn.GroupNorm)]
    assert kinds == [GroupNorm, GroupNorm, Other, nn.GroupNorm]


def test_a_network_for_second_derivatives_says_what_it_said():
    spec = StudentSpec("convnet_d2", 5, 2, (8, 8), {"width": 4})
    plain, closed = FlatModel.from_spec(spec), FlatModel.from_spec(spec).for_second_derivatives()
    theta, x = plain.init(1), torch.randn(3, 2, 8, 8, generator=generator(0, "images"))
    assert closed.names == plain.names
    assert torch.equal(closed(theta, x), plain(theta, x))


def test_a_third_derivative_is_refused():
    _, ours, x = pair((2, 4, 3, 5), 4)
    value = ours(x.requires_grad_()).pow(4).sum()
    for _ in range(2):
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        value = slope.pow(3).sum()
    with pytest.raises(NotImplementedError, match=r"no third derivative; use torch\.nn\.GroupNorm"):
        torch.autograd.grad(value, x)
