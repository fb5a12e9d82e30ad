"""Backbones of four kinds: the bits of each library's own network, and mistakes told in a line."""

import json
from pathlib import Path

import datasets
import huggingface_hub.utils
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.utils import logging as transformers_logging

import hf_distill as hd
from hf_distill.networks.backbones import Backbone
from hf_distill.runs.start import disable_progress_bars
from tests.helpers.whole_clips import MEAN, STD, random, save_open_clip, save_timm

pytestmark = pytest.mark.slow

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "image_size": 8}
MADE = {
    "dinov2": (Dinov2Model, Dinov2Config(**SMALL, patch_size=4)),
    "vit": (ViTModel, ViTConfig(**SMALL, patch_size=4)),
    "clip": (CLIPVisionModel, CLIPVisionConfig(**SMALL, patch_size=4)),
    "convnext": (ConvNextModel, ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2, patch_size=2)),
}


def pixels(backbone: Backbone, count: int = 3) -> Tensor:
    return torch.rand(count, backbone.channels, *backbone.size, generator=torch.Generator().manual_seed(0))


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def save_transformers(folder: Path, kind: str) -> nn.Module:
    network, config = MADE[kind]
    model = random(network(config))
    model.save_pretrained(folder)
    size = {"height": 8, "width": 8}
    BitImageProcessor(image_mean=MEAN, image_std=STD, size={"shortest_edge": 8}, crop_size=size).save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", MADE)
def test_networks_of_transformers_without_a_head_give_what_they_pool(tmp_path, kind):
    model = save_transformers(tmp_path, kind)
    backbone = Backbone.from_pretrained(tmp_path)
    images = pixels(backbone)
    with torch.no_grad():
        expected = model(pixel_values=normalised(images)).pooler_output
        torch.testing.assert_close(backbone.features(images), expected)
    assert backbone.about() == {
        "name": str(tmp_path),
        "revision": None,
        "digest": backbone.digest,
        "library": "transformers",
        "width": expected.shape[1],
        "size": [8, 8],
    }
    assert json.loads(json.dumps(backbone.about())) == backbone.about()


@pytest.mark.parametrize("kind", ["dinov2", "classifier"])
def test_no_bar_is_shown_where_bars_are_disabled(tmp_path, kind, capsys, request):
    if kind == "classifier":
        random(ViTForImageClassification(ViTConfig(**SMALL, patch_size=4))).save_pretrained(tmp_path)
        size = {"height": 8, "width": 8}
        BitImageProcessor(image_mean=MEAN, image_std=STD, size=size, do_center_crop=False).save_pretrained(tmp_path)
    else:
        save_transformers(tmp_path, kind)
    for enabled in (
        transformers_logging.enable_progress_bar,
        datasets.enable_progress_bars,
        huggingface_hub.utils.enable_progress_bars,
    ):
        request.addfinalizer(enabled)
    transformers_logging.enable_progress_bar()
    disable_progress_bars()
    capsys.readouterr()
    Backbone.from_pretrained(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_a_vit_whose_pooler_was_never_stored_gives_its_first_token(tmp_path):
    model = save_transformers(tmp_path, "vit")
    path = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("pooler.")}
    save_file(kept, path, {"format": "pt"})
    backbone = Backbone.from_pretrained(tmp_path)
    images = pixels(backbone)
    with torch.no_grad():
        expected = model(pixel_values=normalised(images)).last_hidden_state[:, 0]
        torch.testing.assert_close(backbone.features(images), expected)


def test_a_classifier_of_transformers_gives_what_its_head_is_given(tmp_path):
    model = random(ViTForImageClassification(ViTConfig(**SMALL, patch_size=4, num_labels=5)))
    model.save_pretrained(tmp_path)
    save_processor(tmp_path)
    backbone = Backbone.from_pretrained(tmp_path)
    images = pixels(backbone)
    with torch.no_grad():
        expected = model(pixel_values=normalised(images)).logits
        torch.testing.assert_close(model.classifier(backbone.features(images)), expected)


def save_processor(folder: Path) -> None:
    size = {"height": 8, "width": 8}
    BitImageProcessor(image_mean=MEAN, image_std=STD, size={"shortest_edge": 8}, crop_size=size).save_pretrained(folder)


@pytest.mark.parametrize("classes", [0, 7])
def test_networks_of_timm_give_what_comes_before_their_logits_with_a_head_or_without(tmp_path, classes):
    model = random(timm.create_model("test_vit", num_classes=classes))
    model.pretrained_cfg.update(mean=tuple(MEAN), std=tuple(STD))
    save_for_hf(model, tmp_path, safe_serialization=True)
    backbone = Backbone.from_pretrained(tmp_path)
    images = pixels(backbone, 1)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(normalised(images)), pre_logits=True)
        torch.testing.assert_close(backbone.features(images), expected)
    assert backbone.width == model.num_features
    assert backbone.about()["digest"] == backbone.sha256[:8]


def test_clip_models_give_the_embeddings_of_their_image_tower(tmp_path):
    model = save_open_clip(tmp_path / "own", "vit")
    backbone = Backbone.from_pretrained(tmp_path / "own")
    assert backbone.library == "open_clip"
    images = pixels(backbone)
    with torch.no_grad():
        torch.testing.assert_close(backbone.features(images), model.encode_image(normalised(images)))
    save_timm(tmp_path / "both")
    save_open_clip(tmp_path / "both")
    assert Backbone.from_pretrained(tmp_path / "both").library == "open_clip"
    both = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = CLIPConfig(vision_config={**both, "image_size": 8, "patch_size": 4}, text_config=both, projection_dim=6)
    clip = random(CLIPModel(config))
    clip.save_pretrained(tmp_path / "new")
    save_processor(tmp_path / "new")
    backbone = Backbone.from_pretrained(tmp_path / "new")
    images = pixels(backbone)
    with torch.no_grad():
        expected = clip.get_image_features(pixel_values=normalised(images)).pooler_output
        torch.testing.assert_close(backbone.features(images), expected)


def teacher(**options) -> hd.Teacher:
    spec = hd.StudentSpec("convnet_d1", 3, 1, (8, 8), {"width": 4, "norm": "batch"})
    look = hd.Preprocessing(1, (8, 8), (0.5,), (0.25,), **options)
    return hd.Teacher(random(spec.build(0)), spec, ["a", "b", "c"], look)


def test_a_teacher_gives_what_comes_before_its_logits_and_stays_as_it_is(tmp_path):
    whole = teacher()
    whole.save_pretrained(tmp_path)
    for backbone in (Backbone.from_teacher(whole), Backbone.from_pretrained(tmp_path)):
        images = pixels(backbone).requires_grad_()
        features = backbone.features(images)
        torch.testing.assert_close(features, whole.features((images - 0.5) / 0.25))
        features.sum().backward()
        assert images.grad.abs().sum() > 0
        assert backbone.digest == whole.digest
        assert not any(parameter.requires_grad for parameter in backbone._network.parameters())


def test_gray_images_are_seen_as_rgb_by_a_backbone_of_three_channels(tmp_path):
    save_open_clip(tmp_path, "vit")
    backbone = Backbone.from_pretrained(tmp_path)
    gray = pixels(backbone)[:, :1]
    assert torch.equal(backbone.features(gray), backbone.features(gray.expand(-1, 3, -1, -1)))


def test_a_repository_is_pinned_to_its_commit(hub, tmp_path):
    save_transformers(tmp_path, "dinov2")
    repo = f"{hub.namespace}/dino"
    hub.put("model", repo, {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    commit = hub.head("model", repo)
    backbone = Backbone.from_pretrained(repo)
    assert (backbone.name, backbone.revision) == (repo, commit)
    assert backbone.sha256 == Backbone.from_pretrained(tmp_path).sha256
    teacher().save_pretrained(tmp_path / "teacher")
    files = {path.name: path.read_bytes() for path in (tmp_path / "teacher").iterdir() if path.is_file()}
    hub.put("model", f"{hub.namespace}/teacher", files)
    backbone = Backbone.from_pretrained(f"{hub.namespace}/teacher", revision="main")
    assert backbone.revision == hub.head("model", f"{hub.namespace}/teacher")
    assert backbone.digest == teacher().digest


def text(folder: Path) -> None:
    BertModel(BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)).save_pretrained(
        folder
    )


def without_weights(folder: Path) -> None:
    save_transformers(folder, "dinov2")
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    without_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def of_another(folder: Path) -> None:
    save_transformers(folder, "dinov2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 16}))


def huge(folder: Path) -> None:
    save_transformers(folder, "dinov2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 900}))


@pytest.mark.parametrize(
    ("save", "said"),
    [
        (text, "describes 'bert', whose features of images are not known"),
        (lambda folder: folder.mkdir(), r"has no config\.json; expected an image network"),
        (without_weights, r"has no model\.safetensors"),
        (pickled, r"has no model\.safetensors, and weights in other formats \(pickles\) are never read"),
        (of_another, "expected the weights of that network|are not those of its description|tensors, such as"),
        (huge, "is described with 900 layers"),
    ],
)
def test_what_gives_no_features_is_one_line(tmp_path, save, said):
    save(tmp_path / "given")
    with pytest.raises(ValueError, match=said) as caught:
        Backbone.from_pretrained(tmp_path / "given")
    assert "\n" not in str(caught.value)


def test_whitened_images_and_images_of_another_size_are_one_line():
    from hf_distill.data.preprocessing import fit_zca

    zca = fit_zca([torch.randint(0, 256, (70, 1, 8, 8), dtype=torch.uint8)], 0.1)
    spec = hd.StudentSpec("convnet_d1", 3, 1, (8, 8), {"width": 4, "norm": "none"})
    whitened = hd.Teacher(spec.build(0), spec, ["a", "b", "c"], hd.Preprocessing(1, (8, 8), (0.0,), (1.0,), zca))
    with pytest.raises(ValueError, match="sees whitened images, and a backbone is given pixels"):
        Backbone.from_teacher(whitened)
    with pytest.raises(ValueError, match=r"takes images .* \(1, 8, 8\), and was given \(1, 8, 9\); resize"):
        Backbone.from_teacher(teacher()).features(torch.rand(2, 1, 8, 9))
    with pytest.raises(ValueError, match=r"given \(3, 8, 8\)"):
        Backbone.from_teacher(teacher()).features(torch.rand(2, 3, 8, 8))
