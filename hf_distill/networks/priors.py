"""`Prior`: a CLIP model, whose image tower knows of images in general and whose text tower gives classes by name.

It comes from a folder or a repository in the format of one of three libraries, which is told by the files:

    library        description                                   weights
    timm           config.json with "architecture"               model.safetensors; the text tower as open_clip's
    transformers   config.json with "model_type": "clip"         model.safetensors, or pytorch_model.bin
    open_clip      open_clip_config.json                         open_clip_model.safetensors

That library's own classes are built, from what the description says of sizes alone: nothing in it can have a file
loaded. All texts go through open_clip's tokenizer, the byte pairs that CLIP was trained with; it needs no network.
"""

import math
import pickle
import re
import reprlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from typing_extensions import Self

from ..data.preprocessing import Preprocessing
from ..data.resampling import resized
from ..hub.checks import OBJECT_OR_NULL, WORDS, Rules, are_words, check_values, is_number, is_whole
from ..hub.files import atomic_write, load_json
from ..hub.folder import locate
from ..hub.repository import Repository
from .architectures import fill, read_shapes, sha256_of
from .folding import folded, versions
from .timm_files import PROCESSOR, TIMM_CONFIG, WEIGHTS, read_timm

__all__ = ["LIBRARIES", "TEMPLATES", "Prior", "prompt_templates"]

LIBRARIES = ("timm", "transformers", "open_clip")
TEMPLATES = ("openai", "simple")
CONFIG = TIMM_CONFIG  # timm's and transformers'
IMAGES = PROCESSOR
PICKLED = "pytorch_model.bin"  # read as plain tensors, where a repository of transformers has nothing else
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
FILES = {  # that the image tower comes from
    "timm": (CONFIG, WEIGHTS),
    "transformers": (CONFIG, IMAGES, WEIGHTS),
    "open_clip": (OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS),
}
SCALE = "logit_scale"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VOCABULARY = 49408  # tokens of CLIP's
TEXTS = 512  # that the text tower reads at once
# The modules that LoRA adapts, by what there is: convolutions of the blocks of ResNets; attention, or in open_clip,
# whose attention reads its weights past its modules, the layers between.
TARGETS = {
    "timm": (r"visual\.stages\..*conv\d_\w+\.conv", r"visual\.blocks\.\d+\.attn\.(qkv|proj)"),
    "transformers": (r"visual\..*\.(q|k|v|out)_proj",),
    "open_clip": (r"visual\.layer\d\.\d+\.conv\d", r"visual\.transformer\.resblocks\.\d+\.mlp\.c_(fc|proj)"),
}


def prompt_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The sentences that a class's name is put into, at their `{}`.

    Args:
        templates: "openai", the 80 that CLIP was evaluated with on ImageNet; "simple", one; or one's own.

    Raises:
        ValueError: There is no such set, or a sentence has no `{}`, or several.
    """
    if templates == "openai":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if templates == "simple":
        return ("a photo of a {}.",)
    if isinstance(templates, str):
        raise ValueError(
            f"templates {templates!r}; expected {' or '.join(TEMPLATES)}, or a list of sentences with {{}}"
        )
    wrong = [text for text in templates if not isinstance(text, str) or text.count("{}") != 1]
    if wrong or not templates:
        given = reprlib.repr(wrong[0]) if wrong else "nothing"
        raise ValueError(f"{given} as a template; expected a sentence with one {{}} in it, where the class's name goes")
    return tuple(templates)


class Prior:
    """A CLIP model: its image tower, frozen, and what it takes to use it.

        prior = Prior.from_pretrained("timm/resnet50_clip.openai")
        head = prior.text_head(["cat", "dog"], "openai")
        logits = prior.logit_scale * F.normalize(prior.visual(images)) @ head.T

    Attributes:
        library: The library that built the image tower, of `LIBRARIES`.
        visual: (N, 3, H, W) images in its own normalisation to embeddings (N, d), not normalised; in evaluation mode.
        image_size: Height and width of these images.
        mean, std: Their normalisation, of pixels in [0, 1].
        dim: d.
        folder: Where the files lie.
        origin: The repository at its commit; None for a local folder.
        sha256, digest: 64 and 8 hex digits that name the image tower's tensors.
        num_params, num_bytes: Of the image tower.
    """

    def __init__(
        self,
        library: str,
        visual: nn.Module,
        dim: int,
        images: Preprocessing,
        folder: Path,
        origin: Repository | None = None,
    ) -> None:
        if images.channels != 3:
            raise ValueError(f"{folder} holds an image tower for {images.channels} channel(s); expected one for 3")
        self.library, self.visual, self.dim = library, visual.eval().requires_grad_(False), dim
        self._folded: tuple[tuple[Any, ...], nn.Module] | None = None
        self.image_size, self.mean, self.std = images.image_size, images.mean, images.std
        self.folder, self.origin = folder, origin
        self._mean, self._std = (torch.tensor(values).view(-1, 1, 1) for values in (images.mean, images.std))
        # What `save_files` writes beside the tower, for the folder may be gone by then.
        descriptions = [folder / name for name in FILES[library] if name.endswith(".json")]
        self._descriptions = {path.name: path.read_bytes() for path in descriptions if path.is_file()}
        self._log_scale = _log_scale(folder, library)
        # Now, for adapters that are put into the tower change what it holds.
        tensors = visual.state_dict()
        self.sha256 = sha256_of(tensors)
        self.digest = self.sha256[:8]
        self.num_params = sum(parameter.numel() for parameter in visual.parameters())
        self.num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        names = [f"visual.{name}" for name, _ in visual.named_modules()]
        fitting = (regex for regex in TARGETS[library] if any(re.fullmatch(regex, name) for name in names))
        self._targets = next(fitting, None)

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        library: str | None = None,
    ) -> Self:
        """The prior in a local folder, which never touches the network, or in a Hub repository.

        Args:
            repo_id_or_path: A folder that exists, or `owner/name`.
            revision: Branch, tag or commit of the repository; the commit that it is now is kept in `origin`.
            token: Instead of that of the environment (`HF_TOKEN`) or of `hf auth login`; False for none.
            local_files_only: Use only what is in the cache.
            library: Whose files to take where there are those of several; by default the first of `LIBRARIES`.

        Raises:
            ValueError: There is no such folder or repository, or it holds no CLIP model of that library, or a damaged
                one.
            OSError: The Hub does not answer.
        """
        if library not in (None, *LIBRARIES):
            raise ValueError(f"library {library!r}; expected one of {', '.join(LIBRARIES)}")
        where = {"revision": revision, "token": token, "local_files_only": local_files_only}
        place, origin = locate(repo_id_or_path, "model", **where), None
        if isinstance(place, Repository):
            folder = place.snapshot([CONFIG, OPEN_CLIP_CONFIG])
            origin = place.pinned(folder)
        else:
            folder = place
        library = _library(folder, repo_id_or_path, library)
        if origin is not None:
            origin.snapshot(FILES[library])
            if library == "transformers" and not (folder / WEIGHTS).is_file():
                origin.snapshot([PICKLED])
        read = {"timm": _read_timm, "transformers": _read_transformers, "open_clip": _read_open_clip}[library]
        visual, dim, images = read(folder, str(repo_id_or_path))
        return cls(library, visual, dim, images, folder, origin)

    def to(self, device: torch.device | str) -> Self:
        """Move the image tower to `device`; on CUDA its weights get the layout that convolutions are fastest in."""
        self.visual.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        if torch.device(device).type == "cuda":
            self.visual.to(memory_format=torch.channels_last)
        return self

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings (N, d) of gray or RGB images (N, 1 or 3, H, W) in [0, 1], of any size; differentiable."""
        if tuple(pixels.shape[-2:]) != self.image_size:
            pixels = resized(pixels, self.image_size)
        now = versions(self.visual)
        if self._folded is None or self._folded[0] != now:
            self._folded = now, folded(self.visual, (3, *self.image_size))
        return self._folded[1]((pixels - self._mean) / self._std)  # one channel becomes three here

    @property
    def default_targets(self) -> str:
        """A regular expression of the modules that LoRA adapts, by their names where the tower is called `visual`.

        Raises:
            ValueError: The tower is of a kind that none is known for.
        """
        if self._targets is None:
            raise ValueError(
                f"what LoRA is to adapt in the image tower of {self.folder} is not known; give target_modules, a "
                "regular expression of names that begin with visual."
            )
        return self._targets

    @property
    def logit_scale(self) -> float:
        """The factor of the cosine of image and text: 100 in CLIP's own weights.

        Raises:
            ValueError, OSError: As `text_head`, where only the text tower's file has it.
        """
        if self._log_scale is None:
            path = self._text_file()
            self._log_scale = _log_scale(self.folder, self.library)
            if self._log_scale is None:
                raise ValueError(f"{path} has no {SCALE}; expected the weights of a whole CLIP model")
        return math.exp(self._log_scale)

    def text_head(self, class_names: Sequence[str], templates: str | Sequence[str] = "openai") -> Tensor:
        """A vector for each class, (K, d) float32 of length 1 on the CPU: the mean direction of its sentences.

        The text tower is fetched and read for this call, and works where the image tower is.

        Args:
            class_names: Names that are words: they are put into sentences.
            templates: As `prompt_templates`.

        Raises:
            ValueError: A name or template that cannot be, or the text tower is absent, damaged or of another kind.
            OSError: The Hub does not answer.
        """
        names, sentences = list(class_names), prompt_templates(templates)
        if not are_words(names):
            raise ValueError(f"class names {reprlib.repr(names)}; expected {WORDS}")
        encode, tokenizer, dim = self._text_tower()
        if dim != self.dim:
            raise ValueError(
                f"{self.folder} has a text tower of {dim} dimensions beside an image tower of {self.dim}; expected the "
                "two of one model"
            )
        device = next(self.visual.parameters()).device
        encode.to(device)
        step, rows = max(1, TEXTS // len(sentences)), []
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for start in range(0, len(names), step):
                part = names[start : start + step]
                tokens = tokenizer([text.replace("{}", name) for name in part for text in sentences])
                vectors = F.normalize(encode(tokens.to(device)), dim=1).view(len(part), len(sentences), dim)
                rows.append(F.normalize(vectors.mean(1), dim=1).cpu())
        return torch.cat(rows)

    def save_files(self, folder: Path) -> None:
        """Put into `folder` what `from_pretrained` reads: the image tower and `logit_scale`, and no text tower."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._descriptions.items():
            atomic_write(folder / name, content)
        tower = nn.ModuleDict({"visual": self.visual}) if self.library == "open_clip" else self.visual
        tower = tower.model if self.library == "transformers" else tower
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tower.state_dict().items()}
        scale = {} if self._log_scale is None else {SCALE: torch.tensor(self._log_scale)}
        files = {FILES[self.library][-1]: tensors}
        files.setdefault(_scale_file(self.library), {}).update(scale)
        for name, content in files.items():
            if content:
                atomic_write(folder / name, save(content, {"format": "pt"}))

    def _text_file(self) -> Path:
        """The weights that hold the text tower, fetched where they are on the Hub."""
        if self.library == "transformers":
            return _weights(self.folder)
        missing = [name for name in FILES["open_clip"] if not (self.folder / name).is_file()]
        if missing and self.origin is not None:
            self.origin.snapshot(FILES["open_clip"])
            missing = [name for name in missing if not (self.folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{self.folder} has no {missing[0]}, so no text tower; expected it beside the image tower, as "
                "repositories of CLIP models have it"
            )
        return self.folder / OPEN_CLIP_WEIGHTS

    def _text_tower(self) -> tuple[nn.Module, Callable[[list[str]], Tensor], int]:
        """Tokens (n, length) to embeddings (n, d), texts to tokens, and d."""
        from open_clip import SimpleTokenizer

        path = self._text_file()
        read = _transformers_texts if self.library == "transformers" else _open_clip_texts
        tower, text, dim = read(self.folder, path)
        clean = (text.get("tokenizer_kwargs") or {}).get("clean", "lower")
        length = text.get("context_length", text.get("max_position_embeddings", 77))
        return tower, SimpleTokenizer(context_length=length, clean=clean), dim


def _library(folder: Path, name: str | Path, chosen: str | None) -> str:
    """The library whose files `folder` holds: `chosen`, or the first."""
    config = load_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    there = {
        "timm": isinstance(config.get("architecture"), str),
        "transformers": config.get("model_type") == "clip",
        "open_clip": (folder / OPEN_CLIP_CONFIG).is_file(),
    }
    present = [library for library in LIBRARIES if there[library]]
    if not present:
        raise ValueError(
            f"{name} holds no CLIP model; expected a {CONFIG} of timm or of a CLIP model of transformers, or an "
            f"{OPEN_CLIP_CONFIG}"
        )
    if chosen is not None and chosen not in present:
        raise ValueError(f"{name} has no files of {chosen}; expected library={' or '.join(map(repr, present))}")
    return chosen or present[0]


def _scale_file(library: str) -> str:
    """The file that has `logit_scale`."""
    return WEIGHTS if library == "transformers" else OPEN_CLIP_WEIGHTS


def _log_scale(folder: Path, library: str) -> float | None:
    """The logarithm of what cosines are multiplied with, as far as the files here say."""
    path = folder / _scale_file(library)
    if path.is_file():
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(SCALE).item() if SCALE in file.keys() else None  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is no whole safetensors file ({reason}); fetch it again") from error
    pickled = _pickled(folder / PICKLED) if library == "transformers" and (folder / PICKLED).is_file() else {}
    return pickled[SCALE].item() if SCALE in pickled else None


def _preprocessing(size: Any, mean: Any, std: Any) -> Preprocessing:
    """Of an image tower for images of `size`, height and width or the side of a square."""
    sides = [size, size] if type(size) is int else size
    config = {"channels": 3, "image_size": sides, "mean": mean or list(CLIP_MEAN), "std": std or list(CLIP_STD)}
    return Preprocessing.from_config(config)


# timm


def _read_timm(folder: Path, name: str) -> tuple[nn.Module, int, Preprocessing]:
    """The image tower, its dimensions, and what its images go through; `name` is what the user calls the folder."""
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{name} has no {WEIGHTS}, and timm's pickles are never read; convert them")
    model, spec, preprocessing, description = read_timm(folder)
    quick = "quickgelu" in spec.name or spec.kwargs.get("act_layer") == "quick_gelu"
    if description.get("tag") == "openai" and spec.name.startswith("vit_") and not quick:
        raise ValueError(
            f"{name} calls OpenAI's weights a {spec.name}, which has GELU where they were trained with QuickGELU; give "
            "library='open_clip' if it has those files too, or another repository"
        )
    return model, spec.num_classes, preprocessing


# transformers


class _Field(nn.Module):
    """A tower of transformers that gives its embeddings alone."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[self.field]


def _read_transformers(folder: Path, name: str) -> tuple[nn.Module, int, Preprocessing]:
    """As `_read_timm`."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes, dim = _clip_config(folder, "vision_config")
    images = load_json(folder / IMAGES) if (folder / IMAGES).is_file() else {}
    config = CLIPVisionConfig(**sizes)
    preprocessing = _preprocessing(config.image_size, images.get("image_mean"), images.get("image_std"))
    ours = ("vision_model.", "visual_projection.")
    tower = _filled(
        lambda: CLIPVisionModelWithProjection(config), _weights(folder), lambda name: name.startswith(ours), "image"
    )
    return _Field(tower, "image_embeds"), dim, preprocessing


def _transformers_texts(folder: Path, path: Path) -> tuple[nn.Module, dict[str, Any], int]:
    """The text tower, what is said of its texts, and its dimensions."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes, dim = _clip_config(folder, "text_config")
    _check_vocabulary(folder, sizes)
    config = CLIPTextConfig(**sizes)
    tower = _filled(lambda: CLIPTextModelWithProjection(config), path, lambda name: name.startswith("text_"), "text")
    return _Field(tower, "text_embeds"), sizes, dim


def _weights(folder: Path) -> Path:
    for name in (WEIGHTS, PICKLED):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} has no {WEIGHTS}; expected the weights beside {CONFIG}: fetch or convert them")


def _pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save, which is not run."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
    ) as error:
        reason = reprlib.repr(" ".join(str(error).split()))
        raise ValueError(f"{path} is no whole file of plain tensors ({reason}); fetch it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} holds something else than named tensors; expected the weights of a CLIP model")
    return tensors


def _clip_config(folder: Path, tower: str) -> tuple[dict[str, Any], int]:
    """The arguments of the class of one tower, and the dimensions of both."""
    path = folder / CONFIG
    description = load_json(path)
    check_values(path, description, CLIP_RULES)
    part, dim = description.get(tower) or {}, description.get("projection_dim") or 512
    known = {name: part[name] for name in SIZES if part.get(name) is not None}
    check_values(f"{path}, {tower},", known, {name: SIZES[name] for name in known})
    # The towers' own number for it means nothing where they are part of a whole.
    return {**known, "projection_dim": dim}, dim


A_SIZE = (f"a whole number from 1 to {VOCABULARY}", lambda value: is_whole(value, 1, VOCABULARY))
A_TOKEN = (f"a whole number from 0 to {VOCABULARY}", lambda value: is_whole(value, 0, VOCABULARY))
SIZES: Rules = {  # that the towers' classes are told; and what else such a file can say, they are not
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), A_SIZE),
    **dict.fromkeys(("num_channels", "image_size", "patch_size", "vocab_size", "max_position_embeddings"), A_SIZE),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), A_TOKEN),
    "hidden_act": ("quick_gelu or gelu", lambda value: value in ("quick_gelu", "gelu")),
    "layer_norm_eps": ("a number", is_number),
}
CLIP_RULES: Rules = {
    "projection_dim": (A_SIZE[0], lambda value: value is None or is_whole(value, 1, VOCABULARY)),
    "vision_config": OBJECT_OR_NULL,
    "text_config": OBJECT_OR_NULL,
}


# open_clip


class _Texts(nn.Module):
    """The text tower of a model of open_clip."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)


def _read_open_clip(folder: Path, name: str) -> tuple[nn.Module, int, Preprocessing]:
    """As `_read_timm`."""
    from open_clip import CLIP

    path = folder / OPEN_CLIP_WEIGHTS
    if not path.is_file():
        raise ValueError(f"{name} has no {OPEN_CLIP_WEIGHTS}, and open_clip's pickles are never read; convert them")
    config, images = _open_clip_config(folder)
    quick = config.get("quick_gelu", False)
    if "openai" in Path(name).name.lower() and not quick:
        raise ValueError(
            f"{name} has OpenAI's weights by its name, which were trained with QuickGELU, and its {OPEN_CLIP_CONFIG} "
            'does not say so; expected "quick_gelu": true in its model_cfg'
        )
    vision, dim = config["vision_cfg"], config["embed_dim"]
    if vision.get("timm_model_name"):
        raise ValueError(f"{name} has an image tower of timm in a model of open_clip; expected one of open_clip's own")
    preprocessing = _preprocessing(vision.get("image_size", 224), images.get("mean"), images.get("std"))

    def build() -> nn.Module:
        return nn.ModuleDict({"visual": CLIP(dim, vision, SMALL_TEXTS, quick_gelu=quick).visual})

    return _filled(build, path, lambda name: name.startswith("visual."), "image")["visual"], dim, preprocessing


def _open_clip_texts(folder: Path, path: Path) -> tuple[nn.Module, dict[str, Any], int]:
    """As `_transformers_texts`."""
    from open_clip import CLIP, CustomTextCLIP

    config, _ = _open_clip_config(folder)
    _check_vocabulary(folder, config["text_cfg"])
    options = {name: value for name, value in config.items() if name not in ("custom_text", "vision_cfg")}
    kind = CustomTextCLIP if config.get("custom_text") else CLIP

    def build() -> nn.Module:
        model = kind(vision_cfg=SMALL_IMAGES, **options)
        model.visual = nn.Identity()
        return model

    return (
        _Texts(_filled(build, path, lambda name: not name.startswith("visual."), "text")),
        config["text_cfg"],
        config["embed_dim"],
    )


def _open_clip_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the model's class, and what its images go through."""
    path = folder / OPEN_CLIP_CONFIG
    description = load_json(path)
    check_values(path, description, OPEN_CLIP_RULES)
    if description["model_cfg"].get("multimodal_cfg"):
        raise ValueError(f"{path} describes a model that writes texts too; expected a CLIP model of two towers")
    return description["model_cfg"], description.get("preprocess_cfg") or {}


def _are_sizes(value: Any) -> bool:
    """True where no number in the description of a tower is beyond what towers have."""
    if isinstance(value, dict):
        return all(map(_are_sizes, value.values()))
    if isinstance(value, list):
        return len(value) <= 100 and all(map(_are_sizes, value))
    return value is None or isinstance(value, (bool, str)) or (is_number(value) and abs(value) <= VOCABULARY)


_TOWER = (f"an object with numbers up to {VOCABULARY}", lambda value: isinstance(value, dict) and _are_sizes(value))
OPEN_CLIP_RULES: Rules = {
    "model_cfg.embed_dim": A_SIZE,
    "model_cfg.vision_cfg": _TOWER,
    "model_cfg.text_cfg": _TOWER,
    "preprocess_cfg": OBJECT_OR_NULL,
}
# In place of the tower that is not wanted.
SMALL_TEXTS = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
SMALL_IMAGES = {"image_size": 1, "patch_size": 1, "width": 1, "head_width": 1, "layers": 1}


# All


def _check_vocabulary(folder: Path, text: dict[str, Any]) -> None:
    own = [name for name in ("hf_model_name", "hf_tokenizer_name") if text.get(name)]
    if own or text.get("vocab_size", VOCABULARY) != VOCABULARY:
        raise ValueError(
            f"{folder} has a text tower with a tokenizer of its own; expected one that reads CLIP's {VOCABULARY:,} "
            "tokens"
        )


def _filled(build: Callable[[], nn.Module], path: Path, ours: Callable[[str], bool], tower: str) -> nn.Module:
    """The network that `build` gives, in float32, with those tensors of a file that are `ours` by name; `tower`, image
    or text, is what it is."""

    def explained() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            try:
                return build()
            except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError, LookupError) as error:
                reason = reprlib.repr(" ".join(str(error).split()))
                raise ValueError(
                    f"{path.parent} describes a CLIP model that cannot be built ({reason}); fetch it again"
                ) from error

    def kept(name: str) -> bool:
        return ours(name) and not name.endswith(".position_ids")  # 0, 1, 2 and so on, in old files

    what = "what the description beside it says"
    if path.name == PICKLED:
        tensors = {name: tensor for name, tensor in _pickled(path).items() if kept(name)}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return fill(explained, shapes, lambda: tensors, path, what)

    def read() -> dict[str, Tensor]:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in shapes}

    try:
        shapes = {name: shape for name, shape in read_shapes(path).items() if kept(name)}
        if shapes.keys() <= {SCALE}:
            raise ValueError(
                f"{path} has no {tower} tower; give a whole CLIP model (what a label projector carries is its image "
                "tower alone)"
            )
        return fill(explained, shapes, read, path, what)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no whole safetensors file ({reason}); fetch it again") from error
