"""R_BN against closed forms, loops and NumPy; the priors on images against loops."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import SyncBatchNormAct, convert_sync_batchnorm
from torch import nn

from hf_distill.methods.batchnorm import BatchNormStatistics, input_statistics, mean_norm, total_variation
from hf_distill.rng import generator


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "images"), dtype=dtype)


class Network(nn.Module):
    """conv-bn-relu-conv-bn; the layer that runs first is registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.BatchNorm2d(5)
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 3, stride=2)
        self.first = nn.BatchNorm2d(4)
        random = generator(0, "network")
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.5)
            for layer in (self.first, self.second):
                layer.running_mean.copy_(torch.randn(layer.num_features, generator=random))
                layer.running_var.copy_(torch.rand(layer.num_features, generator=random) + 0.5)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.conv2(torch.relu(self.first(self.conv1(x)))))


def r_bn(model: nn.Module, x: torch.Tensor, groups: int | None = None, **options: float) -> torch.Tensor:
    with BatchNormStatistics(model, groups) as statistics:
        model(x)
        return statistics.loss(**options)


def remember(model: nn.Module, x: torch.Tensor) -> None:
    """Let `model` in evaluation mode have seen `x` and nothing else, layer by layer."""

    def take(layer, inputs):
        values = inputs[0].transpose(0, 1).flatten(1)
        layer.running_mean.copy_(values.mean(1))
        layer.running_var.copy_(values.var(1, unbiased=False))

    handles = [layer.register_forward_pre_hook(take) for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()


# The value


def test_the_biased_variance_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 1, 2, 2)
    mean, variance = input_statistics(x)
    assert mean.tolist() == [3.0]
    assert variance.tolist() == [(4 + 1 + 0 + 9) / 4]


def test_statistics_are_those_of_channels_laid_in_rows():
    x = noise(6, 5, 4, 3) * 3 + 7
    rows = x.permute(1, 0, 2, 3).reshape(5, -1).double().numpy()
    for found in (input_statistics(x), input_statistics(x.to(memory_format=torch.channels_last))):
        for part, wanted in zip(found, (rows.mean(1), rows.var(1)), strict=True):
            np.testing.assert_allclose(part.numpy(), wanted, rtol=1e-5)
            assert part.dtype == torch.float32
    assert input_statistics(x.double())[0].dtype == torch.float64


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    height, width = ((length - 3) // stride + 1 for length in x.shape[2:])
    result = np.zeros((len(x), len(weight), height, width))
    for i in range(height):
        for j in range(width):
            part = x[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
            result[:, :, i, j] = np.einsum("nchw,ochw->no", part, weight) + bias
    return result


def reference(model: Network, x: np.ndarray) -> float:
    """R_BN of `Network`, in NumPy."""
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    total = 0.0
    for number, stride, weight in ((1, 1, 10.0), (2, 2, 1.0)):
        x = conv(x, state[f"conv{number}.weight"], state[f"conv{number}.bias"], stride)
        bn = "first" if number == 1 else "second"
        for c, distances in ((0, []), (1, [])):
            for channel in range(x.shape[1]):
                values = x[:, channel].ravel()
                found = values.mean() if c == 0 else ((values - values.mean()) ** 2).sum() / len(values)
                distances.append(found - state[f"{bn}.running_{('mean', 'var')[c]}"][channel])
            total += weight * math.sqrt(sum(distance**2 for distance in distances))
        column = {name: state[f"{bn}.{name}"][:, None, None] for name in ("running_mean", "running_var")}
        x = (x - column["running_mean"]) / np.sqrt(column["running_var"] + 1e-5)
        x = np.maximum(x * state[f"{bn}.weight"][:, None, None] + state[f"{bn}.bias"][:, None, None], 0)
    return total


def test_value_and_gradient_are_those_of_the_network_in_numpy(device):
    model = Network().double()
    x = noise(2, 2, 7, 6, dtype=torch.float64)
    leaf = x.to(device, copy=True).requires_grad_()
    moved = Network().double().to(device)
    loss = r_bn(moved, leaf)
    assert loss.item() == pytest.approx(reference(model, x.numpy()), rel=1e-10)
    (gradient,) = torch.autograd.grad(loss, leaf)
    wanted = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        sides = []
        for step in (1e-6, -1e-6):
            beside = x.numpy().copy()
            beside[place] += step
            sides.append(reference(model, beside))
        wanted[place] = (sides[0] - sides[1]) / 2e-6
    np.testing.assert_allclose(gradient.cpu().numpy(), wanted, atol=1e-6 * np.abs(wanted).max())
    assert r_bn(moved.float(), x.float().to(device)).item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])  # the second has timm's BatchNormAct2d
def test_images_that_a_network_remembers_cost_nothing_and_have_a_gradient(name):
    model = timm.create_model(name, num_classes=3).eval().double()
    x = noise(3, 3, 32, 32, dtype=torch.float64)
    remember(model, x)
    x.requires_grad_()
    loss = r_bn(model, x)
    assert 0 <= loss.item() < 1e-6
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.isfinite(gradient).all()


def test_a_distance_of_zero_has_the_gradient_zero():
    model = nn.BatchNorm2d(2).eval()
    x = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1).expand(2, 2, 1, 1).clone()
    model.running_mean.fill_(1)
    x.requires_grad_()
    loss = r_bn(model, x)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_a_shift_of_one_channel_costs_its_length_and_ten_times_that_in_the_layer_that_runs_first():
    model = Network().double()
    x = noise(4, 2, 9, 9, dtype=torch.float64)
    for layer in ("first", "second"):
        for name in ("running_mean", "running_var"):
            remember(model, x)
            getattr(getattr(model, layer), name)[2] += 0.3
            # What the first layer shows the second moves with its statistics: only the weight tells its own part.
            own, rest = (r_bn(model, x, first_weight=weight).item() for weight in (10.0, 0.0))
            assert own - rest == pytest.approx(3.0 if layer == "first" else 0.0, abs=1e-6)
            if layer == "second":
                assert rest == pytest.approx(0.3, abs=1e-6)
            assert r_bn(model, x).item() == own


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_mean_and_variance_are_those_of_finite_differences(groups, layout, device):
    x = (noise(4, 3, 2, 5, dtype=torch.float64) + 2).to(device, memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: input_statistics(x, groups), x)


def test_gradients_hold_for_inputs_far_from_zero_in_single_precision():
    x = noise(8, 3, 9, 9, dtype=torch.float64) * 0.1 + 1000
    weights = noise(2, 3, seed=1, dtype=torch.float64)
    gradients = []
    for leaf in (x.clone(), x.float()):
        leaf.requires_grad_()
        mean, variance = input_statistics(leaf)
        (gradient,) = torch.autograd.grad((weights[0] * mean + weights[1] * variance).sum(), leaf)
        gradients.append(gradient.double())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3 * gradients[0].abs().max().item())


def held(model: nn.Module, x: torch.Tensor, statistics: bool) -> int:
    """Bytes that autograd keeps for backward, each storage once, under autocast."""
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other takes its place
        return tensor

    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = r_bn(model, leaf) if statistics else model(leaf)
    assert result.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_statistics_hold_no_copy_of_the_activations_for_backward():
    model = timm.create_model("resnet18", num_classes=3).eval().requires_grad_(False)
    x = noise(8, 3, 64, 64)
    remember(model, noise(2, 3, 64, 64, seed=1))
    without = held(model, x, statistics=False)
    assert without < held(model, x, statistics=True) < 1.01 * without


def test_gradients_under_autocast_point_where_those_in_single_precision_do():
    model = timm.create_model("resnet18", num_classes=3).eval().requires_grad_(False)
    remember(model, noise(6, 3, 48, 48, seed=1))
    x = (2 * noise(6, 3, 48, 48)).requires_grad_()
    (exact,) = torch.autograd.grad(r_bn(model, x), x)
    with torch.autocast("cpu", torch.bfloat16):
        (rough,) = torch.autograd.grad(r_bn(model, x), x)
    assert rough.dtype == torch.float32
    assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.99


class Rounded(torch.autograd.Function):
    """Rounds what passes a place of a network, forward or backward, as autocast does there."""

    @staticmethod
    def forward(ctx, x, forward):
        ctx.backward_too = not forward
        return x.bfloat16().float() if forward else x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.bfloat16().float() if ctx.backward_too else gradient, None


@pytest.mark.parametrize("smooth", [False, True])
def test_what_autocast_does_to_gradients_is_the_forward_pass_and_neither_statistics_nor_the_way_back(smooth):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model("resnet18", num_classes=3).eval().requires_grad_(False)
    remember(model, noise(6, 3, 48, 48, seed=1))
    x = 2 * (F.interpolate(noise(6, 3, 6, 6), 48, mode="bicubic") if smooth else noise(6, 3, 48, 48))
    x.requires_grad_()

    def error(*, autocast: bool = False, hook=None, kind: type = nn.Conv2d) -> float:
        layers = [module for module in model.modules() if hook and isinstance(module, kind)]
        handles = [layer.register_forward_pre_hook(lambda _, inputs: (hook(inputs[0]),)) for layer in layers]
        if kind is nn.Conv2d:
            handles += [layer.register_forward_hook(lambda _, inputs, output: hook(output)) for layer in layers]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            (found,) = torch.autograd.grad(r_bn(model, x), x)
        for handle in handles:
            handle.remove()
        return ((found - exact).norm() / exact.norm()).item()

    (exact,) = torch.autograd.grad(r_bn(model, x), x)
    whole = error(autocast=True)
    assert 0.02 < whole < 0.3
    assert error(hook=lambda values: Rounded.apply(values, True)) > 0.5 * whole
    assert error(hook=lambda values: Rounded.apply(values, False)) < 0.3 * whole
    # Were BatchNorm in float32, which takes twice the memory, little would be won.
    assert error(autocast=True, hook=lambda values: values.float(), kind=nn.BatchNorm2d) > 0.6 * whole


def test_norms_are_over_channels_neither_squared_nor_averaged():
    model = nn.BatchNorm2d(2).eval()
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 2, 1, 1)
    model.running_mean.copy_(torch.tensor([3.0, 4.0]))
    model.running_var.copy_(torch.tensor([6.0, 13.0]))
    assert r_bn(model, x, first_weight=1.0).item() == pytest.approx(5 + 13)


# Groups


@pytest.mark.parametrize("name", ["resnet18", None])
def test_groups_cost_what_they_would_alone(name):
    model = timm.create_model(name, num_classes=3) if name else Network()
    model.eval().double()
    x = noise(12, 3 if name else 2, 32, 32, dtype=torch.float64)
    remember(model, noise(5, *x.shape[1:], seed=1, dtype=torch.float64))
    x.requires_grad_()
    together = r_bn(model, x, groups=3)
    alone = torch.stack([r_bn(model, part) for part in x.split(4)])
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone)
    assert together.unique().numel() == 3
    gradients = [torch.autograd.grad(loss.sum(), x)[0] for loss in (together, alone)]
    torch.testing.assert_close(*gradients)
    one = r_bn(model, x, groups=1)
    assert one.shape == (1,)
    torch.testing.assert_close(one[0], r_bn(model, x))
    assert abs(one[0] - together.mean()) > 1e-3 * one[0]


def test_a_batch_that_does_not_split_evenly_is_refused():
    with pytest.raises(ValueError, match="a batch of 10 images does not split into 3 groups of one size"):
        r_bn(Network(), noise(10, 2, 9, 9), groups=3)


# The hooks


def test_reductions_stay_in_single_precision_under_autocast():
    model = Network()
    seen = []
    handle = model.second.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16), BatchNormStatistics(model) as statistics:
        model(noise(64, 2, 17, 17))
        loss = statistics.loss()
    handle.remove()
    assert seen[0].dtype == torch.bfloat16
    record = statistics_of(model, noise(64, 2, 17, 17))
    values = seen[0].double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(record[1][0].double(), values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(record[1][1].double(), values.var(1, unbiased=False), rtol=1e-5, atol=1e-6)
    assert loss.dtype == torch.float32


def statistics_of(model: nn.Module, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance of each layer, in the order in which they run, under autocast."""
    with torch.autocast("cpu", torch.bfloat16), BatchNormStatistics(model) as statistics:
        model(x)
        return [(record.mean, record.variance) for record in statistics._records]


def test_each_forward_pass_starts_anew_and_nothing_is_left_behind():
    model = Network()
    one, two = noise(3, 2, 9, 9), noise(3, 2, 9, 9, seed=1)
    wanted = r_bn(model, two)
    with BatchNormStatistics(model) as statistics:
        model(one)
        model(two)
        assert torch.equal(statistics.loss(), wanted)
        model(one)
        assert not torch.equal(statistics.loss(), wanted)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="no forward pass to take statistics from"):
        statistics.loss()
    with statistics:  # it may be entered again
        model(two)
        assert torch.equal(statistics.loss(), wanted)


def test_hooks_go_when_the_loop_fails():
    model = Network()
    with pytest.raises(ZeroDivisionError), BatchNormStatistics(model):
        raise ZeroDivisionError
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_b0", "densenet121", "mobilenetv2_100", "tf_efficientnet_lite0"]
)
def test_every_layer_of_usual_networks_is_read_once_in_order(name):
    model = timm.create_model(name, num_classes=3).eval()
    remember(model, noise(2, 3, 32, 32))
    layers = [key for key, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    with BatchNormStatistics(model) as statistics, torch.no_grad():
        model(noise(2, 3, 32, 32, seed=1))
        ran = [record.name for record in statistics._records]
        assert statistics.loss() > 0
    assert sorted(ran) == sorted(layers)
    assert ran[0] == layers[0]
    assert len(ran) == sum(name.endswith("running_mean") for name in model.state_dict())


@pytest.mark.parametrize("act", [False, True], ids=["plain", "with the activation inside"])
def test_layers_that_share_statistics_are_read_as_others_are(act):
    model = timm.create_model("tf_efficientnet_lite0" if act else "test_resnet", num_classes=3).eval()
    remember(model, noise(2, 3, 32, 32))
    shared = (convert_sync_batchnorm if act else nn.SyncBatchNorm.convert_sync_batchnorm)(copy.deepcopy(model)).eval()
    kinds = {type(layer) for layer in shared.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {SyncBatchNormAct if act else nn.SyncBatchNorm}
    x = noise(2, 3, 32, 32, seed=1)
    torch.testing.assert_close(r_bn(shared, x), r_bn(model, x), rtol=1e-5, atol=0)


class Odd(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order, self.norms = order, nn.ModuleList(nn.BatchNorm2d(2) for _ in range(2))
        for norm in self.norms:
            norm.running_mean.fill_(0.5)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in self.order:
            x = self.norms[index](x)
        return x


@pytest.mark.parametrize(
    ("order", "message"),
    [((0, 1, 0), r"'norms.0' ran 2 times"), ((0,), r"'norms.1' ran 0 times"), ((), "no forward pass")],
)
def test_a_layer_that_is_shared_or_skipped_is_named(order, message):
    with pytest.raises(ValueError, match=message):
        r_bn(Odd(*order), noise(3, 2, 4, 4))


def test_a_network_that_would_forget_is_refused():
    model = Network().train()
    before = model.first.running_mean.clone()
    with pytest.raises(ValueError, match=r"layer 'first' is in training mode .* call eval\(\)"):
        r_bn(model, noise(3, 2, 9, 9))
    assert torch.equal(model.first.running_mean, before)


def _spoil(name: str, value: float):
    def spoil(layer: nn.BatchNorm2d) -> None:
        getattr(layer, name)[1] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil("running_mean", math.nan), "layer 'second' has running statistics that are NaN"),
        (_spoil("running_var", math.nan), "layer 'second' has running statistics that are NaN"),
        (_spoil("running_var", math.inf), "layer 'second' has running statistics that are NaN, infinite"),
        (_spoil("running_var", -0.1), "layer 'second' has running statistics .* negative"),
        (nn.BatchNorm2d.reset_running_stats, "layer 'second' has never seen data"),
    ],
)
def test_statistics_that_are_none_are_refused_in_one_line(spoil, message):
    model = Network()
    spoil(model.second)
    with pytest.raises(ValueError, match=message) as caught:
        BatchNormStatistics(model)
    assert "\n" not in str(caught.value)


def test_networks_without_statistics_are_refused_in_one_line():
    for model, message in (
        (
            timm.create_model("vit_tiny_patch16_224", img_size=32),
            "VisionTransformer has no BatchNorm2d layer; expected",
        ),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "layer '0' keeps no running statistics"),
        (timm.create_model("resnet18", num_classes=3), "layer 'bn1' has never seen data"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            BatchNormStatistics(model)
        assert "\n" not in str(caught.value)


# Priors on images


def test_total_variation_is_that_of_loops_in_four_directions():
    x = noise(2, 3, 4, 5, dtype=torch.float64)
    wanted = 0.0
    for down, right in ((0, 1), (1, 0), (1, -1), (1, 1)):
        total = 0.0
        for n, c, i, j in np.ndindex(*x.shape):
            if i + down < 4 and 0 <= j + right < 5:
                total += (x[n, c, i + down, j + right] - x[n, c, i, j]).item() ** 2
        wanted += math.sqrt(total)
    assert total_variation(x).item() == pytest.approx(wanted, rel=1e-12)
    assert torch.autograd.gradcheck(total_variation, x.requires_grad_())


def test_total_variation_of_a_constant_is_zero_with_gradient_zero():
    x = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    value = total_variation(x)
    assert value.item() == 0
    assert torch.equal(torch.autograd.grad(value, x)[0], torch.zeros_like(x))


def test_the_norm_is_the_mean_over_images():
    assert mean_norm(torch.ones(5, 3, 4, 4)).item() == pytest.approx(math.sqrt(48))
    x = noise(4, 3, 5, 5)
    wanted = np.mean([math.sqrt((image.double().numpy() ** 2).sum()) for image in x])
    assert mean_norm(x).item() == pytest.approx(wanted, rel=1e-6)
