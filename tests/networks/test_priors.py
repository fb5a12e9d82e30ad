"""CLIP models of three libraries: the bits of each library's own loading, its own zero-shot head, and mistakes told."""

import math
import re
import shutil
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel

from hf_distill.config import DataArguments
from hf_distill.data.images import RealImages
from hf_distill.hub.files import load_json, save_json
from hf_distill.networks.priors import Prior, prompt_templates
from hf_distill.runs.processes import make_accelerator
from hf_distill.training.small_clip import PriorArguments, small_clip_folder, train_small_clip
from tests.helpers import flips
from tests.helpers.whole_clips import DIM, MEAN, STD, save_open_clip, save_timm, save_transformers

pytestmark = pytest.mark.slow

NAMES = ["tabby cat", "car", "ice-cream", "7"]
OWN = ["a sketch of {}.", "{} at night"]


def images(prior: Prior) -> Tensor:
    return torch.randn(3, 3, *prior.image_size, generator=torch.Generator().manual_seed(1))


def check_described(prior: Prior, library: str, size: tuple[int, int], tower: nn.Module) -> None:
    assert (prior.library, prior.dim, prior.image_size, prior.origin) == (library, DIM, size, None)
    assert (list(prior.mean), list(prior.std)) == (MEAN, STD)
    assert prior.num_params == sum(parameter.numel() for parameter in tower.parameters())
    assert prior.num_bytes == sum(tensor.nbytes for tensor in tower.state_dict().values())
    assert not any(module.training for module in prior.visual.modules())
    assert not any(parameter.requires_grad for parameter in prior.visual.parameters())


def adapted(prior: Prior) -> list[str]:
    """What LoRA would adapt, by the names of the tower alone."""
    names = [f"visual.{name}" for name, _ in prior.visual.named_modules()]
    return [name.removeprefix("visual.") for name in names if re.fullmatch(prior.default_targets, name)]


@pytest.mark.parametrize(
    ("tower", "changes", "size", "expected"),
    [
        ("resnet", {}, (32, 32), [f"layer{layer}.0.conv{i}" for layer in (1, 2, 3, 4) for i in (1, 2, 3)]),
        (
            "vit",
            {"quick_gelu": True},
            (8, 12),
            [f"transformer.resblocks.{i}.mlp.c_{c}" for i in "01" for c in ("fc", "proj")],
        ),
        ("vit", {"custom_text": True}, (8, 12), None),
    ],
)
def test_a_model_of_open_clip_gives_the_bits_of_open_clip_and_its_zero_shot_head(
    tmp_path, tower, changes, size, expected
):
    saved = save_open_clip(tmp_path, tower, **changes)
    prior = Prior.from_pretrained(tmp_path)
    model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    check_described(prior, "open_clip", size, saved.visual)
    x = images(prior)
    with torch.no_grad():
        assert torch.equal(prior.visual(x), model.encode_image(x))
    for given, templates in (("openai", open_clip.OPENAI_IMAGENET_TEMPLATES), (["a {}", "this: {}!"],) * 2):
        head = prior.text_head(NAMES, given)
        theirs = open_clip.build_zero_shot_classifier(model, open_clip.tokenize, NAMES, templates).T
        assert (head - theirs).abs().max() <= 1e-6
    assert head.shape == (len(NAMES), DIM)
    assert prior.logit_scale == pytest.approx(1 / 0.07)
    assert expected is None or adapted(prior) == expected


def test_a_model_of_transformers_gives_the_bits_of_transformers_and_its_texts(tmp_path):
    saved = save_transformers(tmp_path)
    prior = Prior.from_pretrained(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model.get_image_features(pixel_values=images(prior)).pooler_output
        assert torch.equal(prior.visual(images(prior)), wanted)
        rows = []
        for name in NAMES:
            vectors = []
            for text in OWN:
                tokens = open_clip.tokenize([text.replace("{}", name)])
                vector = model.get_text_features(input_ids=tokens).pooler_output[0].double()
                vectors.append(vector / vector.norm())
            mean = torch.stack(vectors).mean(0)
            rows.append(mean / mean.norm())
    assert (prior.text_head(NAMES, OWN) - torch.stack(rows)).abs().max() <= 1e-6
    tower = nn.ModuleList([saved.vision_model, saved.visual_projection])
    check_described(prior, "transformers", (16, 16), tower)
    assert prior.logit_scale == pytest.approx(math.exp(2.6592))
    layers = [f"model.vision_model.encoder.layers.{i}.self_attn" for i in (0, 1)]
    assert sorted(adapted(prior)) == sorted(f"{layer}.{p}_proj" for layer in layers for p in ("q", "k", "v", "out"))


def test_a_pickle_of_transformers_is_read_as_plain_tensors_and_copied_as_none(tmp_path):
    save_transformers(tmp_path / "new")
    prior, tensors = Prior.from_pretrained(tmp_path / "new"), load_file(tmp_path / "new" / "model.safetensors")
    (tmp_path / "old").mkdir()
    shutil.copy(tmp_path / "new" / "config.json", tmp_path / "old")
    positions = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}  # which old files have
    torch.save({**tensors, **positions}, tmp_path / "old" / "pytorch_model.bin")
    old = Prior.from_pretrained(tmp_path / "old")
    assert old.sha256 == prior.sha256
    assert old.logit_scale == prior.logit_scale
    assert torch.equal(old.text_head(NAMES, "simple"), prior.text_head(NAMES, "simple"))
    assert old.mean == (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, where a folder is silent
    old.save_files(tmp_path / "copy")
    assert files(tmp_path / "copy").keys() == {"config.json", "model.safetensors"}
    assert Prior.from_pretrained(tmp_path / "copy").sha256 == prior.sha256
    torch.save({"logit_scale": Path("code")}, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is no whole file of plain tensors"):
        Prior.from_pretrained(tmp_path / "old")


@pytest.mark.parametrize(("name", "targets"), [("test_byobnet", None), ("test_vit", r"blocks\.\d\.attn\.(qkv|proj)")])
def test_a_model_of_timm_gives_the_bits_of_timm_and_the_texts_beside_it(tmp_path, name, targets):
    saved, clip = save_timm(tmp_path, name), save_open_clip(tmp_path)
    prior = Prior.from_pretrained(tmp_path)
    check_described(prior, "timm", saved.pretrained_cfg["input_size"][1:], saved)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(prior.visual(images(prior)), model(images(prior)))
    theirs = open_clip.build_zero_shot_classifier(clip, open_clip.tokenize, NAMES, ["a photo of a {}."]).T
    assert (prior.text_head(NAMES, "simple") - theirs).abs().max() <= 1e-6
    assert prior.logit_scale == pytest.approx(1 / 0.07)
    if targets is not None:
        assert len(adapted(prior)) == 2 * len(saved.blocks)
        assert all(re.fullmatch(targets, found) for found in adapted(prior))
    # The same folder holds a whole model of open_clip.
    with torch.no_grad():
        whole = Prior.from_pretrained(tmp_path, library="open_clip")
        assert torch.equal(whole.visual(images(whole)), clip.visual(images(whole)))


def save_both(folder: Path) -> None:
    save_timm(folder)
    save_open_clip(folder)


@pytest.mark.parametrize(
    ("save", "weights"),
    [
        (save_open_clip, {"open_clip_model.safetensors": r"(visual\..*|logit_scale)"}),
        (save_transformers, {"model.safetensors": r"(vision_model\..*|visual_projection\..*|logit_scale)"}),
        (save_both, {"model.safetensors": ".*", "open_clip_model.safetensors": "logit_scale"}),
        (save_timm, {"model.safetensors": ".*"}),
    ],
)
def test_what_travels_is_the_image_tower_and_the_scale_and_no_text_tower(tmp_path, save, weights):
    save(tmp_path / "whole")
    prior = Prior.from_pretrained(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    prior.save_files(tmp_path / "copy")
    copy = Prior.from_pretrained(tmp_path / "copy")
    with torch.no_grad():
        assert torch.equal(copy.visual(images(prior)), prior.visual(images(prior)))
    assert (copy.library, copy.sha256, copy.image_size, copy.mean, copy.std) == (
        *(prior.library, prior.sha256, prior.image_size, prior.mean, prior.std),
    )
    found = {path.name: load_file(path) for path in (tmp_path / "copy").glob("*.safetensors")}
    assert found.keys() == weights.keys()
    for name, pattern in weights.items():
        assert all(re.fullmatch(pattern, tensor) for tensor in found[name])
    held = [tensor.nbytes for tensors in found.values() for name, tensor in tensors.items() if name != "logit_scale"]
    assert sum(held) == prior.num_bytes
    said = r"no text tower"
    if save is save_timm:
        with pytest.raises(ValueError, match=said):
            _ = copy.logit_scale
    else:
        assert copy.logit_scale == prior.logit_scale
    with pytest.raises(ValueError, match=said) as caught:
        copy.text_head(NAMES)
    assert "\n" not in str(caught.value)


def test_a_whole_model_without_a_scale_is_one_line_where_it_is_asked_for(tmp_path):
    save_open_clip(tmp_path)
    path = tmp_path / "open_clip_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "logit_scale"}, path)
    with pytest.raises(ValueError, match=r"open_clip_model\.safetensors has no logit_scale"):
        _ = Prior.from_pretrained(tmp_path).logit_scale


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_embedded_at_the_towers_size_in_its_normalisation(tmp_path, channels):
    save_open_clip(tmp_path, "vit")
    prior = Prior.from_pretrained(tmp_path)
    pixels = torch.rand(2, channels, 16, 24, generator=torch.Generator().manual_seed(0))
    # Halved with antialiasing: a triangle of weights 1, 3, 3, 1, and 3, 3, 1 at the edge.
    wide = torch.nn.functional.pad(pixels.double(), (1, 1, 1, 1))
    ones = torch.nn.functional.pad(torch.ones_like(pixels).double(), (1, 1, 1, 1))
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)

    def halved(x: Tensor) -> Tensor:
        return torch.einsum("nchwij,i,j->nchw", x.unfold(2, 4, 2).unfold(3, 4, 2), weights, weights)

    seen = (halved(wide) / halved(ones)).expand(-1, 3, -1, -1)
    assert seen.shape[-2:] == prior.image_size
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        wanted = prior.visual(((seen - mean) / std).float())
        torch.testing.assert_close(prior.embed(pixels), wanted, rtol=1e-4, atol=1e-5)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_repository_is_pinned_to_its_commit_fetches_texts_when_asked_and_works_from_the_cache(hub, tmp_path):
    save_timm(tmp_path / "old")
    save_open_clip(tmp_path / "old")
    save_transformers(tmp_path / "new")
    repo = f"{hub.namespace}/clip"
    hub.put("model", repo, files(tmp_path / "old"))
    commit, local = hub.head("model", repo), Prior.from_pretrained(tmp_path / "old")
    prior = Prior.from_pretrained(repo)
    assert (prior.origin.repo_id, prior.origin.revision, prior.folder.name) == (repo, commit, commit)
    assert prior.sha256 == local.sha256
    assert not (prior.folder / "open_clip_model.safetensors").exists()
    hub.put("model", repo, files(tmp_path / "new"))  # another model meanwhile
    assert torch.equal(prior.text_head(NAMES), local.text_head(NAMES))
    assert prior.logit_scale == local.logit_scale
    assert Prior.from_pretrained(repo).library == "transformers"
    assert Prior.from_pretrained(repo, revision=commit).sha256 == local.sha256
    hub.stop()
    cached = Prior.from_pretrained(repo, revision=commit, local_files_only=True)
    assert cached.sha256 == local.sha256
    assert torch.equal(cached.text_head(NAMES), local.text_head(NAMES))
    with pytest.raises((ValueError, OSError), match=f"{hub.namespace}/other") as caught:
        Prior.from_pretrained(f"{hub.namespace}/other", local_files_only=True)
    assert "\n" not in str(caught.value)


def broken(folder: Path, how: str) -> None:
    weights, config = folder / "open_clip_model.safetensors", folder / "open_clip_config.json"
    tensors, said = load_file(weights), load_json(config)
    match how:
        case "weights":
            weights.unlink()
        case "shape":
            save_file({**tensors, "visual.conv1.weight": torch.zeros(5, 3, 3, 3)}, weights)
        case "absent":
            save_file({name: value for name, value in tensors.items() if name != "visual.bn1.weight"}, weights)
        case "finite":
            save_file({**tensors, "visual.bn1.weight": torch.full((4,), math.nan)}, weights)
        case "cut":
            weights.write_bytes(weights.read_bytes()[:5000])
        case "config":
            config.write_text("{}")
        case "nothing":
            config.unlink()
        case "option":
            save_json(config, {**said, "model_cfg": {**said["model_cfg"], "vision_cfg": {"depth": 3}}})
        case "huge":
            save_json(config, {**said, "model_cfg": {**said["model_cfg"], "embed_dim": 10**9}})
        case "timm":
            said["model_cfg"]["vision_cfg"]["timm_model_name"] = "resnet50"
            save_json(config, said)
        case "coca":
            said["model_cfg"]["multimodal_cfg"] = {"width": 8}
            save_json(config, said)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("weights", r"has no open_clip_model\.safetensors, and open_clip's pickles are never read"),
        ("shape", r"has \(5, 3, 3, 3\) for visual\.conv1\.weight, and .* \(4, 3, 3, 3\)"),
        ("absent", r"has nothing for visual\.bn1\.weight"),
        ("finite", r"values in visual\.bn1\.weight that are not finite"),
        ("cut", "is no whole safetensors file"),
        ("config", r"model_cfg\.embed_dim None; expected a whole number"),
        ("nothing", "holds no CLIP model; expected"),
        ("option", "describes a CLIP model that cannot be built"),
        ("huge", r"model_cfg\.embed_dim 1000000000; expected a whole number from 1 to 49408"),
        ("timm", "has an image tower of timm in a model of open_clip"),
        ("coca", "writes texts too"),
    ],
)
def test_a_damaged_model_is_one_line(tmp_path, how, said):
    save_open_clip(tmp_path)
    broken(tmp_path, how)
    with pytest.raises(ValueError, match=said) as caught:
        Prior.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_library_that_a_folder_has_no_files_of_is_named_with_what_it_has(tmp_path):
    save_open_clip(tmp_path)
    with pytest.raises(ValueError, match=r"no files of transformers; expected library='open_clip'"):
        Prior.from_pretrained(tmp_path, library="transformers")
    with pytest.raises(ValueError, match="'keras'; expected one of timm, transformers, open_clip"):
        Prior.from_pretrained(tmp_path, library="keras")


def test_weights_of_openai_without_their_activation_are_refused(tmp_path):
    save_open_clip(tmp_path / "clip.openai", "vit")
    with pytest.raises(ValueError, match=r'expected "quick_gelu": true'):
        Prior.from_pretrained(tmp_path / "clip.openai")
    save_open_clip(tmp_path / "whole" / "clip.openai", "vit", quick_gelu=True)
    Prior.from_pretrained(tmp_path / "whole" / "clip.openai")
    save_timm(tmp_path / "timm", "vit_tiny_patch16_224", depth=1, img_size=32)
    config = load_json(tmp_path / "timm" / "config.json")
    Prior.from_pretrained(tmp_path / "timm")
    config["pretrained_cfg"]["tag"] = "openai"
    save_json(tmp_path / "timm" / "config.json", config)
    with pytest.raises(ValueError, match="GELU where they were trained with QuickGELU"):
        Prior.from_pretrained(tmp_path / "timm")


def test_a_text_tower_of_another_vocabulary_is_refused_where_texts_are_asked_for(tmp_path):
    save_open_clip(tmp_path)
    said = load_json(tmp_path / "open_clip_config.json")
    said["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "somebody/else"
    save_json(tmp_path / "open_clip_config.json", said)
    prior = Prior.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a tokenizer of its own"):
        prior.text_head(NAMES)


@pytest.mark.parametrize(
    ("names", "templates", "said"),
    [
        ([], "simple", r"class names \[\]; expected 1 to"),
        (["cat", 7], "simple", r"class names \['cat', 7\]; expected"),
        (["cat", "  "], "simple", "none of them empty"),
        (NAMES, "imagenet", "templates 'imagenet'; expected openai or simple, or a list"),
        (NAMES, ["a photo"], r"'a photo' as a template; expected a sentence with one \{\}"),
        (NAMES, ["{} and {}"], r"'\{\} and \{\}' as a template"),
        (NAMES, [], "nothing as a template"),
    ],
)
def test_names_and_templates_that_cannot_be_are_one_line(tmp_path, names, templates, said):
    save_open_clip(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        Prior.from_pretrained(tmp_path).text_head(names, templates)
    assert "\n" not in str(caught.value)


def test_the_sets_of_templates_are_those_of_open_clip():
    assert [text.replace("{}", "cat") for text in prompt_templates("openai")] == [
        template("cat") for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]
    assert prompt_templates("simple") == ("a photo of a {}.",)


# A small CLIP of one's own


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[RealImages, RealImages, Path, Prior]:
    train, test = RealImages.train_and_test(DataArguments())
    folder = tmp_path_factory.mktemp("prior") / "clip"
    prior = train_small_clip(
        train, folder, PriorArguments(prior_epochs=6), seed=0, accelerator=make_accelerator(), disable_tqdm=True
    )
    return train, test, folder, prior


def test_a_small_clip_knows_digits_it_has_not_seen_by_their_names_and_plain_open_clip_reads_it(small):
    _, test, folder, prior = small
    pixels = (test.uint8(range(len(test))) / 255).expand(-1, 3, -1, -1)
    x = (pixels - torch.tensor(prior.mean)[:, None, None]) / torch.tensor(prior.std)[:, None, None]
    names = test.class_names
    with torch.no_grad():
        features = prior.visual(x)
        for templates in ("openai", "simple"):
            right = (features @ prior.text_head(names, templates).T).argmax(1) == test.labels
            assert 0.7 < right.double().mean() < 0.99  # a prior, with room to adapt it
        model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        assert torch.equal(model.eval().encode_image(x), features)
    assert tuple(preprocess.transforms[-1].mean) == prior.mean
    order = [3, 1, 0, 2, 4, 5, 6, 7, 8, 9]  # its texts, and not the order of its classes, say which is which
    head = prior.text_head([names[i] for i in order])
    assert (head - prior.text_head(names)[order]).abs().max() < 1e-6


def test_a_small_clip_is_a_function_of_its_settings_and_is_trained_once(small, tmp_path):
    train, _, folder, prior = small
    options = {"accelerator": make_accelerator(), "disable_tqdm": True}
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = train_small_clip(train, folder, PriorArguments(prior_epochs=6), seed=0, **options)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert again.sha256 == prior.sha256
    for path in flips(folder, "open_clip*", 6):
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            train_small_clip(train, folder, PriorArguments(prior_epochs=6), seed=0, **options)
    with pytest.raises(ValueError, match="is of another run: its seed is 0 and here it is 1; use"):
        train_small_clip(train, folder, PriorArguments(prior_epochs=6), seed=1, **options)
    some = train.subset(range(100))
    state = torch.get_rng_state()
    made = [
        train_small_clip(some, tmp_path / str(i), PriorArguments(prior_epochs=1), seed=i // 2, **options)
        for i in range(3)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert made[0].sha256 == made[1].sha256 != made[2].sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").touch()
    with pytest.raises(ValueError, match="holds something else than a CLIP model"):
        train_small_clip(some, tmp_path / "taken", PriorArguments(prior_epochs=1), seed=0, **options)


def test_the_folder_of_a_small_clip_is_another_for_other_images_settings_and_seeds(small):
    train = small[0]
    folders = {
        small_clip_folder(train, PriorArguments(), 0),
        small_clip_folder(train.subset(range(1000)), PriorArguments(), 0),
        small_clip_folder(train, PriorArguments(prior_epochs=7), 0),
        small_clip_folder(train, PriorArguments(), 1),
    }
    assert len(folders) == 4
    assert all(folder.parent == Path("outputs") for folder in folders)
