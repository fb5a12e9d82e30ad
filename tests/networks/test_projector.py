"""Label projectors: CLIP's own answers at the start, the same answers for every reader, and LoRA that has an effect."""

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from hf_distill.data.preprocessing import Preprocessing, fit_zca
from hf_distill.hub.files import load_json, save_json
from hf_distill.networks.priors import Prior
from hf_distill.networks.projector import LabelProjector, Lora, ZeroShot
from hf_distill.rng import generator
from tests.helpers import without_sums
from tests.helpers.clips import MEAN, PROJECTOR_CONFIG, STD, TOWERS, awake, clip, learn, save_clip
from tests.helpers.goldens import check_golden

NAMES = ["cat", "Hund", "犬", "a/b | c"]
PROMPTS = ["a photo of a {}.", "a drawing of the {}."]


@pytest.fixture(scope="module")
def priors(tmp_path_factory) -> dict[str, Prior]:
    folder = tmp_path_factory.mktemp("priors")
    return {kind: Prior.from_pretrained(save_clip(kind, folder / kind)) for kind in TOWERS}


def own(prior: Prior) -> Preprocessing:
    return Preprocessing(3, prior.image_size, prior.mean, prior.std)


def make(prior: Prior, preprocessing: Preprocessing | None = None, *, lora=Lora(r=4), config=None) -> LabelProjector:
    return LabelProjector(prior, NAMES, preprocessing or own(prior), templates=PROMPTS, lora=lora, config=config)


def images(n: int = 3, channels: int = 3, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def clips_logits(kind: str, x: torch.Tensor) -> torch.Tensor:
    """What open_clip's own model and its own builder of zero-shot heads say."""
    model = clip(kind)
    templates = [lambda name, text=text: text.format(name) for text in PROMPTS]
    head = open_clip.build_zero_shot_classifier(model, open_clip.SimpleTokenizer(), NAMES, templates)
    return model.logit_scale.exp() * F.normalize(model.encode_image(x), dim=-1) @ head


# What it says


@pytest.mark.parametrize("kind", TOWERS)
def test_before_training_it_is_clips_zero_shot_classifier_bit_for_bit(priors, kind):
    prior, model = priors[kind], clip(kind)
    projector, x = make(prior), images()
    head = prior.text_head(NAMES, PROMPTS)
    with torch.no_grad():
        wanted = prior.logit_scale * F.normalize(model.encode_image(x), dim=-1) @ head.T
        assert torch.equal(projector(x), wanted)
        assert torch.equal(projector.zero_shot(x), wanted)
        assert torch.equal(projector.logits(x), wanted)
    torch.testing.assert_close(wanted, clips_logits(kind, x), rtol=1e-5, atol=1e-5)
    assert torch.equal(projector.text_head, head)


@pytest.mark.parametrize("kind", TOWERS)
def test_merging_changes_the_answers_by_rounding_and_unmerging_gives_the_base_bit_for_bit(priors, kind):
    projector, x = learn(make(priors[kind])), images()
    base = {name: tensor.clone() for name, tensor in projector.model.state_dict().items()}
    apart, zero = projector(x), projector.zero_shot(x)
    assert (apart - zero).abs().max() > 0.1
    features = projector.features(x)
    said = projector.model.get_base_model().classifier(projector.logit_scale * F.normalize(features, dim=-1))
    assert torch.equal(said, apart)
    merged = projector.merge()(x)
    torch.testing.assert_close(merged, apart, rtol=1e-5, atol=1e-5)
    assert not torch.equal(projector.model.base_model.model.classifier.base_layer.weight, projector.text_head)
    assert torch.equal(projector.zero_shot(x), zero)
    assert torch.equal(projector.merge()(x), merged)
    with pytest.raises(ValueError, match=r"merged.*call unmerge\(\)"):
        projector.parameters_to_train()
    projector.unmerge()
    for name, tensor in projector.model.state_dict().items():
        assert torch.equal(tensor, base[name]), name
    assert torch.equal(projector(x), apart)


@pytest.mark.parametrize("kind", TOWERS)
def test_the_prior_is_left_as_it_is_and_shares_its_memory(priors, kind):
    prior = priors[kind]
    before = {name: tensor.clone() for name, tensor in prior.visual.state_dict().items()}
    projector = learn(make(prior)).merge()
    assert prior.visual.state_dict().keys() == before.keys()
    for name, tensor in prior.visual.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    projector.unmerge()
    held = {tensor.data_ptr() for tensor in prior.visual.parameters()}
    tower = projector.model.base_model.model.visual
    frozen = [p for name, p in tower.named_parameters() if "lora" not in name]
    assert frozen
    assert all(parameter.data_ptr() in held for parameter in frozen)


def by_hand(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear enlargement of (H, W) with half-pixel centres."""
    axes = []
    for long, short in zip(size, x.shape, strict=True):
        at = ((np.arange(long) + 0.5) * short / long - 0.5).clip(0, short - 1)
        low = np.floor(at).astype(int)
        weights = np.zeros((long, short))
        weights[np.arange(long), low] += 1 - (at - low)
        weights[np.arange(long), np.minimum(low + 1, short - 1)] += at - low
        axes.append(weights)
    return axes[0] @ x @ axes[1].T


def test_a_gray_8x8_image_is_seen_enlarged_in_three_equal_channels(priors):
    prior = priors["vit"]
    projector = make(prior, Preprocessing(1, (8, 8), (0.3,), (0.2,)))
    x = images(2, 1, (8, 8))
    pixels = np.stack([by_hand(image[0].double().numpy(), (32, 32)) for image in x]) * 0.2 + 0.3
    seen = np.stack([(pixels - mean) / std for mean, std in zip(MEAN, STD, strict=True)], 1)
    with torch.no_grad():
        features = F.normalize(clip("vit").encode_image(torch.from_numpy(seen).float()), dim=-1)
        wanted = prior.logit_scale * features @ projector.text_head.T
        torch.testing.assert_close(projector(x), wanted, rtol=1e-4, atol=1e-4)


def test_whitened_images_are_seen_as_the_pixels_that_they_were(priors):
    pixels = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator())
    zca = Preprocessing(1, (8, 8), (0.0,), (1.0,), fit_zca([pixels], 0.1))
    plain = Preprocessing(1, (8, 8), (0.5,), (0.25,))
    one, other = (make(priors["vit"], preprocessing) for preprocessing in (zca, plain))
    with torch.no_grad():
        torch.testing.assert_close(one(zca(pixels[:3])), other(plain(pixels[:3])), rtol=1e-4, atol=1e-3)


def test_pixels_get_the_gradient_of_a_finite_difference(tmp_path, device):
    prior = Prior.from_pretrained(save_clip("vit", tmp_path))
    projector = learn(make(prior, Preprocessing(1, (8, 8), (0.3,), (0.2,)))).to(device)
    x, direction = images(2, 1, (8, 8)).to(device).split(1)
    x = x.clone().requires_grad_()
    projector(x).logsumexp(1).sum().backward()
    assert all(parameter.grad is None for parameter in projector.parameters())
    step = 1e-2 * direction
    with torch.no_grad():
        ends = [projector(x + sign * step).logsumexp(1).sum().item() for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 2 == pytest.approx((x.grad * step).sum().item(), rel=2e-2)


@pytest.mark.parametrize("kind", TOWERS)
def test_it_works_under_autocast_and_gives_float32(kind, tmp_path, device):
    prior = Prior.from_pretrained(save_clip(kind, tmp_path))  # one of its own, for it moves
    projector = learn(make(prior, Preprocessing(1, (8, 8), (0.3,), (0.2,)))).to(device)
    x = images(2, 1, (8, 8)).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        x.requires_grad_()
        logits = projector(x)
        logits.logsumexp(1).sum().backward()
    assert logits.dtype == torch.float32
    assert x.grad.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(logits, projector(x), rtol=0.1, atol=2)


def test_running_statistics_never_move(priors):
    projector = make(priors["conv"])
    before = {name: tensor.clone() for name, tensor in projector.named_buffers()}
    projector.train()
    projector.parameters_to_train()
    assert projector.training
    projector(images()).sum().backward()
    for name, tensor in projector.named_buffers():
        assert torch.equal(tensor, before[name]), name
    assert any("running_mean" in name for name in before)


# LoRA


@pytest.mark.parametrize("kind", TOWERS)
def test_every_matrix_learns_and_nothing_else(priors, kind):
    projector = learn(make(priors[kind]))
    assert not any(parameter.requires_grad for parameter in projector.parameters())
    matrices = projector.parameters_to_train()
    assert {id(p) for p in matrices} == {id(p) for p in projector.parameters() if p.requires_grad}
    projector(images()).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in matrices)
    assert all(p.grad is None for p in projector.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("kind", "targets", "says"),
    [
        ("conv", r"visual\.attnpool\.q_proj", r"LoRA in visual\.attnpool\.q_proj gets no gradient"),
        (
            "conv",
            r"visual\.(layer1\..*conv\d|attnpool\.[kv]_proj)",
            r"LoRA in visual\.attnpool\.k_proj, visual\.attnpool\.v_proj gets",
        ),
        (
            "vit",
            r"visual\..*\.attn\.out_proj",
            r"LoRA in visual\.transformer\.resblocks\.0\.attn\.out_proj, .*no gradient",
        ),
        ("vit", r"visual\..*\.attn", "matches nn.MultiheadAttention, which PEFT adapts by changing its weights"),
        ("vit", r"resblocks\..*\.mlp\..*", r"matches no module.*such as visual\.conv1, .* and 4 more"),
        ("vit", r"visual\.ln_post", r"matches visual\.ln_post \(LayerNorm\); expected linear layers"),
        ("vit", "visual.(", "is no regular expression"),
    ],
)
def test_lora_that_would_have_no_effect_or_a_wrong_one_is_one_line(priors, kind, targets, says):
    with pytest.raises(ValueError, match=says) as caught:
        make(priors[kind], lora=Lora(r=2, target_modules=targets))
    assert "\n" not in str(caught.value)


def test_a_module_that_is_always_zero_is_refused_too(tmp_path):
    folder = save_clip("conv", tmp_path)
    path = folder / "open_clip_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "visual.layer2.0.bn3.weight": torch.zeros(64)}, path)
    with pytest.raises(ValueError, match=r"visual\.layer2\.0\.conv1, .*or its output is always 0"):
        make(Prior.from_pretrained(folder))


def test_the_matrices_are_functions_of_the_seed_and_the_global_generator_stays(priors):
    torch.manual_seed(4)
    state = torch.get_rng_state()
    one, same = make(priors["vit"]), make(priors["vit"])
    assert torch.equal(torch.get_rng_state(), state)
    other = LabelProjector(priors["vit"], NAMES, own(priors["vit"]), templates=PROMPTS, lora=Lora(r=4), seed=1)
    assert one.digest == same.digest != other.digest
    firsts = [p for name, p in one.model.named_parameters() if ".lora_A." in name]
    assert all(0.5 < p.abs().max() * math.sqrt(p[0].numel()) <= 1.001 for p in firsts)  # Kaiming's bound with a = √5


def timm_tower() -> tuple[nn.Module, int, int, str]:
    return awake(timm.create_model("resnet50_clip")), 1024, 847_360, "timm"


def transformers_tower() -> tuple[nn.Module, int, int, str]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
            self.model = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=32, projection_dim=512, **sizes))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=x).image_embeds

    return Embeddings(), 512, 783_360, "transformers"


@pytest.mark.slow
@pytest.mark.parametrize("tower", [timm_tower, transformers_tower])
def test_the_parameters_are_as_many_as_the_papers_arithmetic_says(tower, tmp_path):
    visual, dim, count, library = tower()
    prior = Prior(library, visual, dim, Preprocessing(3, (224, 224), MEAN, STD), tmp_path)
    head = F.normalize(torch.randn(1000, dim, generator=generator(0, "test")), dim=1)
    names = [f"class {index}" for index in range(1000)]
    projector = LabelProjector(prior, names, own(prior), text_head=head, logit_scale=100.0)
    total = 128 * (dim + 1000)
    for name, module in visual.named_modules():
        if library == "timm" and name.startswith("stages") and ".conv" in name and isinstance(module, nn.Conv2d):
            if "shortcut" not in name:
                total += 8 * (module.kernel_size[0] ** 2 * module.in_channels + module.out_channels)
        elif library == "transformers" and name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "out_proj"):
            total += 8 * (module.in_features + module.out_features)
    assert projector.num_params == total == count
    assert (projector.num_bytes, projector.text_head_bytes) == (2 * count, 4 * 1000 * dim)
    assert projector.prior_bytes == prior.num_bytes > 100e6


def test_ranks_fit_themselves_and_an_explicit_one_must_fit(priors):
    assert make(priors["vit"]).lora == Lora(4, 16, 4, 8, priors["vit"].default_targets)
    assert (Lora().fitted(1000, 512, "x").head_r, Lora().fitted(30, 512, "x").head_r) == (128, 30)
    with pytest.raises(ValueError, match="rank of the head is 5, and 4 classes of 24 features make a matrix of rank 4"):
        make(priors["vit"], lora=Lora(head_r=5))
    for wrong, says in (
        ({"r": 0}, "rank r is 0"),
        ({"r": None}, "rank r is None"),
        ({"head_r": 2.5}, "rank head_r is 2.5"),
        ({"alpha": 0}, "factor alpha is 0"),
        ({"head_alpha": math.nan}, "factor head_alpha is nan"),
    ):
        with pytest.raises(ValueError, match=says):
            Lora(**wrong)


# Bad input


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_names": []}, r"class names \[\]; expected 1 to"),
        ({"class_names": ["cat", "dog", "cat"]}, "class names .*different"),
        ({"preprocessing": Preprocessing(2, (8, 8), (0.0,) * 2, (1.0,) * 2)}, "2 channels; expected 1"),
        ({"preprocessing": Preprocessing(1, (8, 8), (0.0,), (0.0,))}, "std .* cannot be undone"),
        ({"text_head": torch.zeros(3, 24)}, r"\(3, 24\); expected finite \(4, 24\)"),
        ({"text_head": torch.full((4, 24), math.nan)}, "expected finite"),
        ({"templates": "many"}, "templates 'many'"),
        ({"templates": ["a photo"]}, "'a photo' as a template"),
    ],
)
def test_a_projector_that_cannot_be_is_one_line(priors, changes, says):
    given = {"class_names": NAMES, "preprocessing": own(priors["vit"]), "templates": PROMPTS, **changes}
    with pytest.raises(ValueError, match=says) as caught:
        LabelProjector(priors["vit"], **given)
    assert "\n" not in str(caught.value)


def test_images_of_another_kind_are_one_line(priors):
    for wrong in (images(2, 1), images(2)[0]):
        with pytest.raises(ValueError, match=r"expected \(N, 3, height, width\)"):
            make(priors["vit"])(wrong)


def test_classes_are_the_same_names_in_the_same_order_or_one_error(priors):
    projector = make(priors["vit"])
    projector.check_classes(tuple(NAMES))
    with pytest.raises(ValueError, match="calls class 0 'cat', and here it is 'Hund'"):
        projector.check_classes(["Hund", "cat", *NAMES[2:]])
    with pytest.raises(ValueError, match="has 4 classes, and there are 3"):
        projector.check_classes(NAMES[:3])


# The same thing for every reader


LOAD = """
import sys, hf_distill
early = {'torch', 'peft', 'transformers', 'open_clip'} & set(sys.modules)
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from hf_distill import LabelProjector
print(*early, *({'peft', 'open_clip'} & set(sys.modules)))
x = load_file("x")["x"]
for folder in map(Path, sys.argv[1:]):
    projector = LabelProjector.from_pretrained(folder)
    projector.check_classes(["cat", "Hund", "犬", "a/b | c"])
    with torch.no_grad():
        save_file({"logits": projector(x)}, f"{folder}.logits")
    print(projector.digest)
"""


def test_a_saved_projector_says_the_same_in_another_process_that_is_offline_and_loads_peft_late(
    priors, online, tmp_path
):
    gray, x, folders = Preprocessing(1, (8, 8), (0.3,), (0.2,)), images(3, 1, (8, 8)), {}
    for kind in TOWERS:
        projector = learn(make(priors[kind], gray))
        folders[projector.save_pretrained(tmp_path / kind)] = projector
    save_file({"x": x}, tmp_path / "x")
    finished = online(LOAD, *folders, env={"HF_HUB_OFFLINE": "1"}, cwd=tmp_path)
    assert finished.status == [0], finished.err
    assert finished.out.splitlines() == ["", *(projector.digest for projector in folders.values())]
    for folder, projector in folders.items():
        with torch.no_grad():
            assert torch.equal(load_file(f"{folder}.logits")["logits"], projector(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOWERS)
def test_a_saved_projector_says_the_same_again_and_in_plain_peft(priors, kind, tmp_path):
    gray = Preprocessing(1, (8, 8), (0.3,), (0.2,))
    projector, x = learn(make(priors[kind], gray, config=PROJECTOR_CONFIG)), images(3, 1, (8, 8))
    folder = projector.save_pretrained(tmp_path / "projector")
    prior = Prior.from_pretrained(folder / "base")
    tensors = load_file(folder / "text_head.safetensors")
    with torch.no_grad():
        logits = projector(x)
        plain = PeftModel.from_pretrained(ZeroShot(prior.visual, tensors["text_head"], prior.logit_scale), folder)
        assert torch.equal(plain.eval()(projector._seen(x)), logits)
        again = LabelProjector.from_pretrained(folder)
        assert torch.equal(again(x), logits)
    assert (again.config, again.lora, again.templates) == (projector.config, projector.lora, PROMPTS)
    assert again.preprocessing.fingerprint() == gray.fingerprint()
    assert again.save_pretrained(folder) == folder
    assert LabelProjector.from_pretrained(folder, prior=priors[kind]).digest == projector.digest
    stored = load_file(folder / "adapter_model.safetensors").values()
    assert again.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in stored)
    assert (again.text_head_bytes, again.prior_bytes) == (tensors["text_head"].numel() * 4, prior.num_bytes)


def test_whitening_travels(priors, tmp_path):
    pixels = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator())
    zca = Preprocessing(1, (8, 8), (0.0,), (1.0,), fit_zca([pixels], 0.1))
    projector = make(priors["vit"], zca)
    again = LabelProjector.from_pretrained(projector.save_pretrained(tmp_path), prior=priors["vit"])
    assert torch.equal(again(zca(pixels)), projector(zca(pixels)))


def test_without_the_text_embeddings_they_are_made_again_and_compared(priors, tmp_path):
    projector = learn(make(priors["vit"]))
    folder, x, whole = without_sums(projector.save_pretrained(tmp_path)), images(), {"prior": priors["vit"]}
    (folder / "text_head.safetensors").unlink()
    assert torch.equal(LabelProjector.from_pretrained(folder, **whole)(x), projector(x))
    about = load_json(folder / "projector_config.json")
    rounded = {**about["text_head"], "sha256": "0" * 64}  # as where the text tower rounds in another way
    save_json(folder / "projector_config.json", {**about, "text_head": rounded})
    assert torch.equal(LabelProjector.from_pretrained(folder, **whole)(x), projector(x))
    others = {**about, "text_head": rounded, "templates": ["a photo of the {}."]}
    save_json(folder / "projector_config.json", others)
    with pytest.raises(ValueError, match=r"are not those that the projector was trained on; restore text_head"):
        LabelProjector.from_pretrained(folder, **whole)


@pytest.mark.parametrize("kind", TOWERS)
def test_the_base_that_it_carries_is_as_large_as_its_card_says(priors, kind, tmp_path):
    projector, x = learn(make(priors[kind])), images()
    folder = projector.save_pretrained(tmp_path / "projector")
    (weights,) = (folder / "base").glob("*.safetensors")
    held = load_file(weights)
    assert sum(tensor.nbytes for tensor in held.values()) == projector.prior_bytes + held["logit_scale"].nbytes
    assert projector.prior_bytes < weights.stat().st_size < projector.prior_bytes + 20_000
    whole = priors[kind].folder / weights.name
    assert weights.stat().st_size < whole.stat().st_size / 2  # the token embeddings alone are larger
    found = LabelProjector.from_pretrained(folder)
    assert found.prior.logit_scale == priors[kind].logit_scale
    for path in (folder / "base").iterdir():  # it is in memory, and what it came from may go
        path.unlink()
    again = LabelProjector.from_pretrained(found.save_pretrained(tmp_path / "again"))
    assert torch.equal(again(x), projector(x))
    assert again.prior.logit_scale == priors[kind].logit_scale
    (tmp_path / "again" / "text_head.safetensors").unlink()
    with pytest.raises(ValueError, match=r"text_head\.safetensors is missing, .*no text tower.*; restore it") as caught:
        LabelProjector.from_pretrained(tmp_path / "again")
    assert "\n" not in str(caught.value)


def broken(folder: Path, how: str) -> None:
    """Damage a saved projector."""
    index, weights, peft = (
        folder / name for name in ("projector_config.json", "adapter_model.safetensors", "adapter_config.json")
    )
    about, held = load_json(index), load_file(weights)
    first, head = next(iter(held)), folder / "text_head.safetensors"
    if how == "other classes":
        save_json(index, {**about, "class_names": NAMES[::-1]})
    elif how == "fewer classes":
        save_json(index, {**about, "class_names": NAMES[:3], "words": NAMES[:3]})
    elif how == "no adapter":
        weights.unlink()
    elif how == "cut short":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "other values":
        save_file({name: tensor + 1 for name, tensor in held.items()}, weights)
    elif how == "not finite":
        save_file({**held, first: torch.full_like(held[first], math.inf)}, weights)
    elif how == "another rank":
        save_json(index, {**about, "lora": {**about["lora"], "r": 5}})
    elif how == "another rank everywhere":
        save_json(index, {**about, "lora": {**about["lora"], "r": 5}})
        save_json(peft, {**load_json(peft), "r": 5})
    elif how == "no rank":
        save_json(index, {**about, "lora": {**about["lora"], "r": "8"}})
    elif how == "another scale of LoRA":
        save_json(peft, {**load_json(peft), "lora_alpha": 3})
    elif how == "head cut short":
        head.write_bytes(head.read_bytes()[:-10])
    elif how == "another head":
        save_file({"text_head": load_file(head)["text_head"] + 1}, head)
    elif how == "another base":
        save_clip("vit", folder / "base", 0.5)
    elif how == "base cut short":
        path = folder / "base" / "open_clip_model.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
    elif how == "no base":
        for path in (folder / "base").iterdir():
            path.unlink()
        (folder / "base").rmdir()
    elif how == "base nowhere":
        save_json(index, {**about, "base": {"library": "open_clip", "sha256": about["base"]["sha256"]}})
    elif how == "another normalisation":
        save_json(index, {**about, "mean": [0.0, 0.0, 0.0]})
    elif how == "no json":
        index.write_text("{")
    elif how == "newer":
        save_json(index, {**about, "format_version": 99})
    elif how == "nothing":
        index.unlink()


def test_a_projector_says_what_was_measured_of_it_in_one_line_and_to_sets_without_curves(priors):
    results = {"test_accuracy": 0.715, "zero_shot_accuracy": 0.4, "train_loss": [2.0, 1.0]}
    measured = make(priors["vit"], config={"results": results})
    assert measured.summary().endswith(" classes: zero-shot accuracy 40.0 %, test accuracy 71.5 %")
    assert make(priors["vit"]).summary().endswith(f" for {len(NAMES)} classes")
    about = measured.about()
    assert (about["test_accuracy"], about["zero_shot_accuracy"]) == (0.715, 0.4)
    assert "train_loss" not in about


@pytest.fixture(scope="module")
def saved(priors, tmp_path_factory) -> Path:
    return learn(make(priors["vit"])).save_pretrained(tmp_path_factory.mktemp("saved") / "projector")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("other classes", "or the classes there are others"),
        ("fewer classes", r"rank of the head is 4, and 3 classes|\(4, 24\); expected finite \(3, 24\)"),
        ("no adapter", "adapter_model.safetensors is no whole safetensors file"),
        ("cut short", "adapter_model.safetensors is no whole safetensors file"),
        ("other values", "does not hold the adapter that projector_config.json speaks of"),
        ("not finite", "values in .* that are not finite"),
        ("another rank", r"adapter_config\.json has r 4, and projector_config\.json 5"),
        ("another rank everywhere", r"has \(.*\) for .*lora_A\.weight, and the adapter that .* speaks of \(5, .*\)"),
        ("no rank", "LoRA rank r is '8'"),
        ("another scale of LoRA", "has lora_alpha 3"),
        ("head cut short", "text_head.safetensors is no whole safetensors file"),
        ("another head", "does not hold the text embeddings"),
        ("another base", "was trained on"),
        ("base cut short", "open_clip_model.safetensors"),
        ("no base", "lacks the folder base"),
        ("base nowhere", "has base .*; expected an object with library"),
        ("another normalisation", "a prior for images with"),
        ("no json", "is not valid JSON"),
        ("newer", "format_version 99.*upgrade hf_distill"),
        ("nothing", r"has no projector_config\.json"),
    ],
)
def test_a_damaged_projector_is_one_line(saved, how, says, tmp_path):
    folder = tmp_path / "p"
    for path in saved.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(saved)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(saved)).write_bytes(path.read_bytes())
    broken(folder, how)
    with pytest.raises(ValueError, match=says) as caught:
        LabelProjector.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_prior_at_hand_must_be_the_one(saved, priors, tmp_path):
    other = Prior.from_pretrained(save_clip("vit", tmp_path, 0.5))
    for wrong in (other, priors["conv"]):
        with pytest.raises(ValueError, match=f"weights {wrong.digest}, and .* was trained on {priors['vit'].digest}"):
            LabelProjector.from_pretrained(saved, prior=wrong)


def test_a_projector_that_is_not_finite_is_not_saved(priors, tmp_path):
    projector = make(priors["vit"])
    projector.parameters_to_train()[0].data.fill_(1e6)  # no number of float16
    with pytest.raises(ValueError, match=r"the projector has values in .*lora_A\.weight that are not finite"):
        projector.save_pretrained(tmp_path)


# On the Hub


def test_a_projector_comes_from_its_repository_and_its_prior_from_that_of_the_prior(hub, tmp_path):
    space, x = hub.namespace, images()
    files = {path.name: path.read_bytes() for path in save_clip("vit", tmp_path / "clip").iterdir()}
    hub.put("model", f"{space}/clip", files)
    commit = hub.head("model", f"{space}/clip")
    prior = Prior.from_pretrained(f"{space}/clip", token=hub.token)
    projector = learn(make(prior, config=PROJECTOR_CONFIG))
    info = projector.push_to_hub(f"{space}/projector", tag="v1.0.0", token=hub.token)
    hub.put("model", f"{space}/clip", {"open_clip_model.safetensors": b"something else"})  # the prior moved on
    make(prior).push_to_hub(f"{space}/projector", token=hub.token)
    published = hub.files("model", f"{space}/projector")
    assert not [name for name in published if name.startswith("base/")]
    peft = json.loads(published["adapter_config.json"])
    assert (peft["base_model_name_or_path"], peft["revision"]) == (f"{space}/clip", commit)

    again = LabelProjector.from_pretrained(f"{space}/projector", revision="v1.0.0", token=hub.token)
    hub.clear()
    cached = LabelProjector.from_pretrained(f"{space}/projector", revision=info.oid, local_files_only=True)
    assert not hub.requests
    for found in (again, cached):
        assert torch.equal(found(x), projector(x))
        assert found.digest == projector.digest
        assert (found.origin.revision, found.prior.origin.revision) == (info.oid, commit)
    assert (again.release["repo_id"], again.release["tag"]) == (f"{space}/projector", "v1.0.0")

    folder = projector.save_pretrained(tmp_path / "projector")
    assert not (folder / "base").exists()
    about = load_json(folder / "projector_config.json")
    save_json(folder / "projector_config.json", {**about, "base": {**about["base"], "repo_id": f"{space}/nowhere"}})
    with pytest.raises(ValueError, match=f"'{space}/nowhere' is no folder here and no model repository"):
        LabelProjector.from_pretrained(folder, token=hub.token)
    with pytest.raises(ValueError, match=f"{space}/nowhere.* is not in the local cache.*HF_HUB_OFFLINE"):
        LabelProjector.from_pretrained(folder, local_files_only=True)


def test_the_card_is_kept_as_a_golden(hub, tmp_path):
    files = {path.name: path.read_bytes() for path in save_clip("vit", tmp_path / "clip").iterdir()}
    hub.put("model", "org/clip", files)
    projector = make(Prior.from_pretrained("org/clip", token=hub.token), config=PROJECTOR_CONFIG)
    projector.push_to_hub("org/pets-projector", tag="v1.0.0", token=hub.token)  # which the Hub refuses if invalid
    published = hub.files("model", "org/pets-projector")
    card = published["README.md"].decode()
    commit = hub.head("model", "org/clip")
    for digits, name in ((commit, "c" * 40), (projector.digest, "d" * 8), (projector.prior.digest, "e" * 8)):
        assert digits in card
        card = card.replace(digits, name)  # initial weights differ in the last bits between machines
    check_golden("projector.md", card)
    about = ModelCard(card).data.to_dict()
    assert (about["library_name"], about["base_model"], about["license"]) == ("peft", "org/clip", "cc-by-nc-4.0")
    assert about["base_model_relation"] == "adapter"
    (result,) = ModelCard(card).data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_value) == ("org/pets", "test", 0.715)
    assert not [path for path in published if path.startswith(".eval_results")]  # for registered benchmarks alone


def test_the_card_of_a_projector_with_its_own_prior_is_kept_as_a_golden(priors, tmp_path):
    projector = make(priors["conv"])
    projector.config["versions"] = {}
    card = (projector.save_pretrained(tmp_path / "projector") / "README.md").read_text()
    for digits, name in ((projector.digest, "d" * 8), (projector.prior.digest, "e" * 8)):
        card = card.replace(digits, name)
    check_golden("projector_local.md", card)
