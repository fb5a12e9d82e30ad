"""Students: the ConvNets of the literature by their parameter counts, and anything of timm's at any size."""

import re

import pytest
import torch
from torch import nn

from hf_distill.networks.architectures import CONVNETS, NORMS, StudentSpec, layout_for
from hf_distill.networks.timm_models import timm


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
