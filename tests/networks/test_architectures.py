"""Students: the ConvNets of the literature by their parameter counts, and anything of timm's at any size."""

import re

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_distill.networks.architectures import CONVNETS, NORMS, StudentSpec, layout_for
from hf_distill.networks.norms import with_closed_norms
from hf_distill.networks.timm_models import AS_TORCHVISION, timm


@pytest.mark.parametrize(
    ("depth", "classes", "size", "count"),
    [
        (3, 10, 32, 320_010),  # CIFAR-10
        (3, 100, 32, 504_420),  # CIFAR-100
        (4, 200, 64, 857_160),  # Tiny-ImageNet
        (4, 1000, 64, 2_496_360),  # ImageNet-1K
        (5, 10, 128, 615_690),  # ImageNet subsets
    ],
)
def test_a_convnet_has_as_many_parameters_as_that_of_the_papers(depth, classes, size, count):
    model = StudentSpec(f"convnet_d{depth}", classes, 3, (size, size)).build(0)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_a_convnet_is_its_features_then_its_head(norm, size):
    model = StudentSpec("convnet_d2", 5, 1, size, {"width": 4, "norm": norm}).build(0).eval()
    x = torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(0))
    features = model.forward_features(x)
    assert features.shape == (3, 4, size[0] // 4, size[1] // 4)
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (3, model.num_features)
    torch.testing.assert_close(model(x), before @ model.classifier.weight.T + model.classifier.bias)
    kinds = {"instance": nn.GroupNorm, "batch": nn.BatchNorm2d, "none": nn.Identity}
    assert sum(isinstance(module, kinds[norm]) for module in model.features) == 2


def test_instance_normalisation_looks_at_one_image_and_one_channel_only():
    model = StudentSpec("convnet_d1", 5, 3, (8, 8), {"width": 4}).build(0)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
    normalised = model.features[:2](x)
    torch.testing.assert_close(normalised.mean((2, 3)), torch.zeros(4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.var((2, 3), correction=0), torch.ones(4, 4), atol=1e-3, rtol=0)


class Written(TorchDispatchMode):
    """Counts the values of tensors of their own that operations give, of any but a few."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.seen = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and all(tensor.data_ptr() != other.data_ptr() for other in self.seen):
                self.seen.append(tensor)
                self.values += tensor.numel() * (tensor.numel() > 100)
        return result


@pytest.mark.parametrize(("norm", "tensors"), [("instance", 2), ("none", 1)])
@pytest.mark.parametrize("twice", [False, True])
def test_a_block_writes_its_convolution_its_norm_and_what_is_pooled_and_nothing_else(norm, tensors, twice):
    model = StudentSpec("convnet_d1", 5, 3, (16, 16), {"width": 8, "norm": norm}).build(0)
    if twice:
        model = with_closed_norms(model)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with Written() as written:
        written.seen.append(x)
        model.features(x)
    assert written.values == 4 * 8 * 16 * 16 * (tensors + 1 / 4)


def test_a_network_without_classes_gives_its_features():
    model = timm.create_model("convnet_d2", num_classes=0, in_chans=1, img_size=8, width=4)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, model.num_features)


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("convnet_d4", (8, 8), "convnet_d4 halves its images 4 times and they are 8x8; use convnet_d3 or less"),
        ("convnet_d3", (32, 4), "they are 32x4; use convnet_d2 or less"),
        ("convnet_d9", (512, 512), "the network 'convnet_d9' is no timm model; did you mean convnet_d"),
        ("resnet1", (32, 32), "is no timm model; did you mean resnet"),
        ("@@@@", (32, 32), "is no timm model; see timm.list_models()"),
    ],
)
def test_a_student_that_cannot_be_is_one_line_that_says_what_to_use(name, size, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        StudentSpec(name, 10, 3, size).build(0)
    assert "\n" not in str(error.value)


def test_an_unknown_normalisation_is_named():
    with pytest.raises(ValueError, match=r"'layer'; expected one of instance, batch, none"):
        StudentSpec("convnet_d1", 10, 3, (8, 8), {"norm": "layer"}).build(0)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_networks_of_timm_take_small_gray_images(name):
    model = StudentSpec(name, 7, 1, (32, 32)).build(0).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_all_depths_are_timm_models():
    assert set(CONVNETS) <= set(timm.list_models("convnet_d*"))
    assert len(CONVNETS) == 8


def test_the_seed_decides_the_initialisation_and_the_global_generator_is_left_alone():
    spec = StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4})
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = spec.build(1), spec.build(1), spec.build(2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_a_spec_comes_back_from_its_json_types():
    spec = StudentSpec("convnet_d2", 10, 1, (8, 6), {"width": 4, "norm": "batch"})
    assert StudentSpec.from_dict(spec.to_dict()) == spec
    assert spec.to_dict()["img_size"] == [8, 6]


def test_convolutions_on_cuda_have_channels_last_unless_groupnorm_would_change_that_after_each():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    kinds = {norm: StudentSpec("convnet_d1", 10, 1, (8, 8), {"width": 4, "norm": norm}) for norm in NORMS}
    found = {norm: layout_for(spec.build(0), cuda) for norm, spec in kinds.items()}
    last = torch.channels_last
    assert found == {"instance": torch.contiguous_format, "batch": last, "none": last}
    assert {layout_for(spec.build(0), cpu) for spec in kinds.values()} == {torch.contiguous_format}


def starting(model: nn.Module) -> dict[tuple[str, tuple[int, ...]], torch.Tensor]:
    """All weights of layers of one kind and shape, as one vector."""
    parts: dict[tuple[str, tuple[int, ...]], list[torch.Tensor]] = {}
    for layer in model.modules():
        kind = next((kind for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm2d) if isinstance(layer, kind)), None)
        if kind is not None:
            parts.setdefault((kind.__name__, tuple(layer.weight.shape)), []).append(layer.weight.detach().flatten())
    return {kind: torch.cat(weights) for kind, weights in parts.items()}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("resnet18", "resnet18"),
        ("mobilenetv2_100", "mobilenet_v2"),
        ("efficientnet_b0", "efficientnet_b0"),
        ("regnetx_008", "regnet_x_800mf"),
    ],
)
def test_a_fresh_network_of_timm_starts_as_torchvisions(name, other):
    ours, theirs = starting(StudentSpec(name, 100, 3, (224, 224)).build(0)), {}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = starting(torchvision.models.get_model(other, weights=None, num_classes=100))
    assert ours.keys() == theirs.keys()
    for kind, weights in ours.items():
        if kind[0] == "BatchNorm2d":
            assert torch.equal(weights, theirs[kind]), kind
            continue
        # Deviations of n independent draws from one distribution differ by about sqrt(1 / n) of themselves.
        assert abs(weights.std() / theirs[kind].std() - 1) < 5 * len(weights) ** -0.5, kind


def test_small_resnets_start_alike_and_networks_of_timms_own_as_timms():
    model = StudentSpec("resnet18_small", 10, 3, (32, 32)).build(0)
    assert all(layer.weight.min() == 1 for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    assert set(timm.list_models()) >= AS_TORCHVISION >= {"resnext50_32x4d", "resnet50_small", "regnety_080"}
    timms = {"resnetv2_50", "seresnet50", "tf_efficientnet_lite0", "test_resnet"}
    assert not AS_TORCHVISION & (timms | {"resnet14t", "resnet26d", "resnet50_gn", "efficientnet_b8"})
    own = StudentSpec("test_resnet", 10, 3, (32, 32)).build(0)
    assert any(layer.weight.max() == 0 for layer in own.modules() if isinstance(layer, nn.BatchNorm2d))
    asked = StudentSpec("resnet18_small", 10, 3, (32, 32), {"zero_init_last": True}).build(0)
    assert asked.layer1[0].bn2.weight.max() == 0


def test_a_description_says_nothing_of_the_start_and_old_ones_give_the_same_network():
    spec, given = StudentSpec("resnet18_small", 10, 3, (32, 32)), timm.create_model("resnet18_small", num_classes=10)
    assert spec.to_dict()["kwargs"] == {}
    model = spec.build(0)
    model.load_state_dict(given.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), given.parameters(), strict=True))
