"""Folded networks: the same answers and gradients, fewer operations, and nothing changed of what is folded."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_distill.data.preprocessing import Preprocessing
from hf_distill.methods.batchnorm import BatchNormStatistics
from hf_distill.networks.architectures import StudentSpec, sha256_of
from hf_distill.networks.folding import folded
from hf_distill.networks.teachers import Teacher
from hf_distill.rng import generator

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(network: nn.Module) -> nn.Module:
    """`network` with statistics and scales of any size, in double precision and evaluation mode."""
    draw = generator(0, "statistics")
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            width = module.running_mean.shape
            module.running_mean.copy_(0.2 * torch.randn(width, generator=draw))
            module.running_var.copy_(0.5 + torch.rand(width, generator=draw))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(width, generator=draw))
                module.bias.copy_(0.2 * torch.randn(width, generator=draw))
    return network.double().eval().requires_grad_(False)


def left(network: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


class Operations(TorchDispatchMode):
    """Counts them, without views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operations(network: nn.Module, x: Tensor) -> int:
    with Operations() as counted:
        network(x)
    return counted.count


def drawn(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=generator(1), dtype=torch.float64).requires_grad_()


NETWORKS = {  # how it is built, the size of images, and the BatchNorm layers that nothing can take in
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=7), 32, 0),
    "convnet": (lambda: StudentSpec("convnet_d3", 7, 3, (32, 32), {"width": 8, "norm": "batch"}).build(0), 32, 0),
    "mobilenetv2": (lambda: timm.create_model("mobilenetv2_050", num_classes=7), 32, 0),
    "efficientnet": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=7), 32, 0),  # which pads unevenly
    "densenet": (lambda: timm.create_model("densenet121", num_classes=7, growth_rate=4), 32, 62),  # before convolutions
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_network_gives_the_same_answers_and_gradients_in_fewer_operations(name):
    build, size, stay = NETWORKS[name]
    network = trained(build())
    given = sha256_of(network.state_dict())
    found = folded(network, (3, size, size))
    assert (left(network) > stay, left(found)) == (True, stay)
    x = drawn(size)
    answers = [each(x) for each in (network, found)]
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(answer.square().sum(), x)[0] for answer in answers]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9 * gradients[0].abs().max().item())
    assert operations(network, x) - operations(found, x) >= left(network) - stay
    assert sha256_of(network.state_dict()) == given


class Odd(nn.Module):
    """BatchNorm that cannot be folded, each for a reason of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
        if kind == "made weights":
            self.conv = nn.utils.parametrizations.weight_norm(self.conv)
        if kind == "no statistics":
            self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kind == "seen elsewhere":
            return self.last(self.norm(y) + y)
        if self.kind == "changed between":
            return self.last(self.norm(y.relu_()))
        if self.kind == "twice":
            return self.last(self.norm(y) + self.norm(self.conv(x + 1)))
        if self.kind == "normalised twice":
            return self.last(self.norm(self.norm(y)))
        return self.last(self.norm(y))


@pytest.mark.parametrize(
    "kind",
    ["seen elsewhere", "changed between", "twice", "normalised twice", "made weights", "no statistics"],
)
def test_what_another_part_of_the_network_sees_or_changes_is_left_alone(kind):
    network = Odd(kind)
    if kind == "no statistics":
        network.double().eval().requires_grad_(False)
    else:
        trained(network)
    assert folded(network, (3, 8, 8)) is network


def test_a_network_without_statistics_is_not_even_asked():
    assert folded(network := nn.Linear(3, 2), (1, 9, 9)) is network


def test_a_teacher_answers_folded_and_is_stored_recovered_from_and_named_as_it_was(tmp_path):
    spec = StudentSpec("convnet_d2", 3, 3, (16, 16), {"width": 4, "norm": "batch"})
    network = trained(spec.build(0)).float()
    teacher = Teacher(network, spec, list("abc"), Preprocessing(3, (16, 16), (0.5,) * 3, (0.25,) * 3))
    plain, digest = copy.deepcopy(network), teacher.digest
    x = drawn(16).detach().float()
    with BatchNormStatistics(teacher.model) as statistics:  # whose hooks a folded network has not
        torch.testing.assert_close(teacher.logits(x), plain(x), rtol=1e-5, atol=1e-6)
        teacher.model(x)
        assert statistics.loss() > 0
    assert (left(teacher.model), left(teacher.folded)) == (2, 0)
    assert teacher.num_bytes < teacher.held_bytes < 2 * teacher.num_bytes
    again = Teacher.from_pretrained(teacher.save_pretrained(tmp_path / "teacher"))
    assert again.digest == digest
    assert again._tensors().keys() == plain.state_dict().keys()
    before = teacher.folded
    assert teacher.to("cpu").folded is before
    other = trained(spec.build(1)).float()
    teacher.model.load_state_dict(other.state_dict())  # whoever changes the network gets other answers
    torch.testing.assert_close(teacher.logits(x), other(x), rtol=1e-5, atol=1e-6)
    teacher.model.double()
    torch.testing.assert_close(teacher.logits(x.double()), other.double()(x.double()))


class Unusual(nn.Module):
    """Networks whose answers do not follow from what their layers are, beside some that look at their layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.norm = kind, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        if kind == "two names":
            self.blocks = nn.ModuleList([self.conv, self.norm])
        if kind == "spectral norm":
            self.conv = torch.nn.utils.spectral_norm(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kind == "written into":
            y[:, :, 0] = 0
        if self.kind == "by the count" and len(x) > 1:
            y = y + 1
        y = self.norm(y)
        if self.kind == "weights used again":
            y = y * self.conv.weight.mean()
        return y * self.norm.weight.sum() if self.kind == "looks at its layers" else y


UNUSUAL = ["two names", "spectral norm", "written into", "by the count", "weights used again", "looks at its layers"]


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_network_that_would_answer_otherwise_is_left_alone(kind):
    network, x = trained(Unusual(kind)), drawn(8)
    expected = network(x)
    torch.testing.assert_close(folded(network, (3, 8, 8))(x), expected)
    assert (folded(network, (3, 8, 8)) is network) is (kind != "spectral norm")  # whose weights stay as they are here


def test_what_was_first_asked_without_autograd_has_gradients_later():
    spec = StudentSpec("convnet_d2", 3, 3, (16, 16), {"width": 4, "norm": "batch"})
    teacher = Teacher(trained(spec.build(0)), spec, list("abc"), Preprocessing(3, (16, 16), (0.5,) * 3, (0.25,) * 3))
    with torch.inference_mode():
        teacher.logits(drawn(16))
    x = drawn(16)
    teacher.logits(x).sum().backward()
    assert x.grad.abs().sum() > 0
