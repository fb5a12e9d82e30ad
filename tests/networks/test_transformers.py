"""Image classifiers of transformers are teachers: the same logits of the same pixels, and nothing of others' is run."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)
from transformers.models.efficientnet import EfficientNetImageProcessor

from hf_distill.hub.files import load_json, save_json
from hf_distill.methods.batchnorm import BatchNormStatistics
from hf_distill.networks.architectures import StudentSpec, features_and_logits
from hf_distill.networks.teachers import Teacher
from hf_distill.networks.timm_files import PROCESSOR
from hf_distill.networks.timm_models import timm
from hf_distill.networks.transformers_files import read_transformers

NAMES = ["cat", "Hund", "犬", "a, b"]
IDS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


def resnet(folder: Path, **changes: Any) -> nn.Module:
    """A folder that transformers wrote, of a network with statistics of its own."""
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **{**IDS, **changes}
    )
    torch.manual_seed(0)
    model = ResNetForImageClassification(config).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    processor = ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875, image_mean=MEAN, image_std=STD)
    processor.save_pretrained(folder)
    return model


def vit(folder: Path, **changes: Any) -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes, **{**IDS, **changes})).eval()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("build", [resnet, vit])
def test_a_repository_of_transformers_is_a_teacher_that_says_what_transformers_says(build, hub, tmp_path):
    model, repo = build(tmp_path / "plain"), f"{hub.namespace}/{build.__name__}"
    hub.put("model", repo, files(tmp_path / "plain"))
    teacher = Teacher.from_pretrained(repo)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "plain", do_resize=False)
    seen = processor(image(), return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(image()).permute(2, 0, 1)[None]
    torch.testing.assert_close(teacher.preprocessing(pixels), seen, rtol=1e-6, atol=1e-6)
    logits = teacher.logits(teacher.preprocessing(pixels))
    torch.testing.assert_close(logits, model(pixel_values=seen).logits, rtol=1e-5, atol=1e-6)
    assert (teacher.class_names, teacher.spec.img_size) == (NAMES, (32, 32))
    side = 36 if build is resnet else 32  # 32 / 0.875 is 36.6
    assert (teacher.test_frame.side or 32) == (Teacher.frame_of(repo).side or 32) == side
    assert teacher.config["weights"] == {"repo_id": repo, "revision": hub.head("model", repo)}

    narrowed = teacher.narrowed(["a, b", "cat"])
    torch.testing.assert_close(narrowed.logits(seen), logits[:, [3, 0]], rtol=1e-5, atol=1e-6)
    for own in (teacher, narrowed):
        again = Teacher.from_pretrained(own.save_pretrained(tmp_path / str(own.spec.num_classes)))
        assert torch.equal(again.logits(seen), own.logits(seen))
        assert (again.digest, again.class_names, again.test_frame) == (own.digest, own.class_names, own.test_frame)
    alone = timm.create_model(f"local-dir:{tmp_path / '4'}", pretrained=True).eval()
    assert torch.equal(alone(teacher.preprocessing(pixels)), teacher.model(teacher.preprocessing(pixels)))
    share = json.loads((tmp_path / "4" / "config.json").read_text())["pretrained_cfg"]["crop_pct"]
    assert math.floor(32 / share) == side


@pytest.mark.parametrize("build", [resnet, vit], ids=["resnet", "vit"])
def test_what_the_classifier_of_a_transformer_is_given_are_its_features(build, tmp_path):
    build(tmp_path / "x")
    teacher = Teacher.from_pretrained(tmp_path / "x")
    images = torch.randn(3, 3, 32, 32)
    features, logits = features_and_logits(teacher.model, images)
    layer = teacher.model.get_submodule(teacher.model.classifiers[0])
    torch.testing.assert_close(features @ layer.weight.T + layer.bias, logits)
    torch.testing.assert_close(logits, teacher.model(images))
    torch.testing.assert_close(teacher.features(images), features)


def test_recovering_sees_every_batchnorm_of_a_resnet_and_a_vit_has_none(tmp_path):
    count = sum(isinstance(layer, nn.BatchNorm2d) for layer in resnet(tmp_path / "resnet").modules())
    assert count == 6
    statistics = BatchNormStatistics(Teacher.from_pretrained(tmp_path / "resnet").model)
    assert len(statistics.layers) == count
    vit(tmp_path / "vit")
    with pytest.raises(ValueError, match="has no BatchNorm2d layer"):
        BatchNormStatistics(Teacher.from_pretrained(tmp_path / "vit").model)


def test_checkpoints_of_older_names_are_read(tmp_path):
    model = vit(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() != model.state_dict().keys()  # transformers writes the old ones itself
    network = Teacher.from_pretrained(tmp_path).model.network
    for (name, one), other in zip(model.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.slow
def test_names_that_nobody_gave_or_that_repeat_are_none_and_of_imagenet_are_known(tmp_path):
    for number, labels in enumerate((["LABEL_0", "LABEL_1", "LABEL_2"], ["cat", "cat", "dog"])):
        folder = tmp_path / str(number)
        resnet(folder, id2label=dict(enumerate(labels)), label2id={})
        with pytest.raises(ValueError, match=r"does not name its 3 classes.*--teacher_class_names"):
            Teacher.from_pretrained(folder)
        assert Teacher.from_pretrained(folder, class_names=list("xyz")).class_names == list("xyz")
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    labels = [words.split(",")[0] for words in info.label_descriptions()]  # as usual repositories have them
    resnet(tmp_path / "imagenet", id2label=dict(enumerate(labels)), label2id={})
    assert len(set(labels)) < 1000
    assert Teacher.from_pretrained(tmp_path / "imagenet").class_names == info.label_names()


@pytest.mark.parametrize(
    ("values", "mean", "std", "size", "crop_pct"),
    [
        ({"size": 224, "crop_pct": 0.875}, MEAN, STD, (224, 224), 0.875),
        ({"size": 384, "crop_pct": 0.875}, MEAN, STD, (384, 384), 1.0),
        (
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": 256},
                "crop_size": 224,
                "do_center_crop": True,
            },
            *(MEAN, STD, (224, 224), 0.875),
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 48}, "do_normalize": False},
            *([0.0] * 3, [1.0] * 3, (32, 48), 1.0),
        ),
    ],
    ids=["an older one", "a large one", "clip", "another shape"],
)
def test_processors_say_what_images_go_through(tmp_path, values, mean, std, size, crop_pct):
    resnet(tmp_path)
    usual = {"feature_extractor_type": "ConvNextFeatureExtractor", "image_mean": MEAN, "image_std": STD}
    save_json(tmp_path / PROCESSOR, {**usual, **values})
    _, _, preprocessing, _, test_images = read_transformers(tmp_path)
    assert (preprocessing.image_size, test_images["crop_pct"]) == (size, crop_pct)
    np.testing.assert_allclose(preprocessing.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(preprocessing.std, std, rtol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"include_top": False}, {"rescale_offset": True, "rescale_factor": 1 / 127.5}])
def test_efficientnets_processor_is_followed_where_it_divides_twice_or_moves_the_range(tmp_path, changes):
    resnet(tmp_path)
    flags = {"image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 32}, **changes}
    processor = EfficientNetImageProcessor(**flags)
    processor.save_pretrained(tmp_path)
    _, _, preprocessing, _, _ = read_transformers(tmp_path)
    seen = processor(image(), return_tensors="pt", do_resize=False)["pixel_values"]
    pixels = torch.from_numpy(image()).permute(2, 0, 1)[None]
    torch.testing.assert_close(preprocessing(pixels), seen, rtol=1e-5, atol=1e-5)


def edit(path: Path, **changes: Any) -> None:
    save_json(path, {**load_json(path), **changes})


@pytest.mark.parametrize("values", [{"image_mean": 0.5}, {"image_std": "0.5"}, {"image_mean": 0.5, "image_std": 0.5}])
def test_a_mean_or_a_deviation_that_is_no_list_is_one_line(tmp_path, values):
    resnet(tmp_path)
    size = {"height": 32, "width": 32}
    usual = {"image_processor_type": "ViTImageProcessor", "size": size, "image_mean": MEAN, "image_std": STD}
    save_json(tmp_path / PROCESSOR, {**usual, **values})
    with pytest.raises(ValueError, match="expected a number for each channel"):
        read_transformers(tmp_path)


def break_it(folder: Path, how: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if how == "no classifier":
        ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(folder)
    elif how == "a text model":
        edit(config, model_type="bert", architectures=["BertForSequenceClassification"])
    elif how == "code of its own":
        edit(config, model_type="mine", architectures=["Mine"], auto_map={"AutoConfig": "code.Mine"})
    elif how == "pickles":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "no processor":
        (folder / PROCESSOR).unlink()
    elif how == "BGR":
        edit(folder / PROCESSOR, do_flip_channel_order=True, image_processor_type="MobileViTImageProcessor")
    elif how == "another processor":
        edit(folder / PROCESSOR, image_processor_type="MyProcessor", feature_extractor_type=None)
    elif how == "lacking weights":
        tensors = load_file(weights)
        save_file({name: value for name, value in tensors.items() if not name.startswith("classifier")}, weights)
    elif how == "other weights":
        tensors = load_file(weights)
        save_file({name.replace("classifier", "head"): value for name, value in tensors.items()}, weights)
    elif how == "a huge network":
        edit(config, hidden_sizes=[8, 100_000])
    elif how == "a huge number":
        edit(config, hidden_sizes=[8, 10**12])
    elif how == "a network that loads":
        edit(config, use_pretrained_backbone=True)
    elif how in ("a kernel", "a kernel of experts", "a kernel of a part", "a kernel by another name"):
        values = {
            "a kernel": {"attn_implementation": "somebody/kernel"},
            "a kernel of experts": {"_experts_implementation": "somebody/kernel"},
            "a kernel of a part": {"_attn_implementation": {"": "somebody/kernel"}},
            "a kernel by another name": {"attribute_map": {"x": "_attn_implementation"}, "x": "somebody/kernel"},
        }
        edit(config, **values[how])
    elif how == "a quantised one":
        edit(config, quantization_config={"load_in_8bit": True})
    elif how == "many layers":
        edit(config, depths=[1, 1_000_000])
    elif how == "more layers than tensors":
        edit(config, depths=[1, 900])
    elif how == "many stages":
        edit(config, hidden_sizes=[8] * 1001)
    elif how == "a size in words":
        edit(folder / PROCESSOR, image_processor_type="CLIPImageProcessor", size={"shortest_edge": "x"}, crop_pct=None)
    elif how == "nonsense":
        edit(config, hidden_sizes="many")
    elif how == "half a file":
        weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no classifier", r"describes 'ViTModel', which is no image classifier of transformers"),
        ("a text model", "describes 'BertForSequenceClassification', which is no image classifier"),
        ("code of its own", "describes 'Mine', which is no image classifier"),
        ("pickles", "pickles.*are never read"),
        ("no processor", r"preprocessor_config\.json cannot be read"),
        ("BGR", "turns the channels of images around"),
        ("another processor", "describes no image processor of transformers"),
        ("lacking weights", r"have 2 missing tensors, such as classifier\.1\.bias"),
        ("other weights", r"have 2 missing tensors, such as classifier\.1\.bias"),
        ("a huge network", r"has [\d,]+ values, and transformers_resnet for 4 classes takes"),
        ("a huge number", "has hidden_sizes 1000000000000; expected what builds a network"),
        ("a network that loads", "has use_pretrained_backbone True; expected what builds a network without loading"),
        ("a kernel", "has attn_implementation 'somebody/kernel'; expected what builds a network without loading"),
        ("a kernel of experts", "has _experts_implementation 'somebody/kernel'; expected"),
        ("a kernel of a part", r"has _attn_implementation\. 'somebody/kernel'; expected"),
        ("a kernel by another name", r"has attribute_map\.x '_attn_implementation'; expected"),
        ("a quantised one", r"has quantization_config\.load_in_8bit True; expected what builds a network without"),
        ("many layers", "has depths 1000000; expected what builds a network .* up to 1,000"),
        ("more layers than tensors", r"has \d+ tensors, and transformers_resnet is described with 900 layers"),
        ("many stages", r"has len\(hidden_sizes\) 1001; expected what builds a network .* up to 1,000"),
        (
            "a size in words",
            r"preprocessor_config\.json .*does not say what images go through: it has a value of another kind",
        ),
        ("nonsense", "transformers cannot make sense of the description of a resnet"),
        ("half a file", "is no whole safetensors file"),
    ],
)
def test_what_is_no_image_classifier_or_damaged_is_one_line(how, says, tmp_path):
    resnet(tmp_path)
    break_it(tmp_path, how)
    with pytest.raises(ValueError, match=says) as error:
        Teacher.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_stored_description_of_somebody_loads_nothing_and_is_one_line():
    for description in ('{"backbone": "microsoft/resnet-50"}', "[1]", "{", '{"hidden_sizes": 3}'):
        spec = StudentSpec("transformers_resnet", 4, 3, (32, 32), {"description": description})
        with pytest.raises(ValueError, match="description of a resnet") as error:
            spec.build(0)
        assert "\n" not in str(error.value)
    model = StudentSpec("transformers_vit", 4, 3, (32, 32), {"description": '{"num_channels": 1}'})
    with pytest.raises(ValueError, match="sees 1 channels, for images of 3"):
        model.build(0)
    assert not any(name.startswith("transformers_timm") for name in timm.list_models("transformers_*"))
