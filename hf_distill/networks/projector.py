"""`LabelProjector`: CLIP's image encoder with LoRA, which gives any image the soft label that stored logits would.

    f(x) = s · E(x) Wᵀ / ‖E(x)‖        E, W: frozen, plus LoRA matrices        W: text embeddings of the classes, (K, d)

Before the first step of training it is CLIP's zero-shot classifier. Only the LoRA matrices travel: the encoder is in a
repository that everybody has it from, and W is computed from the names of the classes. A folder or repository of it is
a plain PEFT adapter; `projector_config.json` beside it says the rest.
"""

import copy
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from ..data.precision import no_autocast
from ..data.preprocessing import Preprocessing
from ..data.resampling import resized
from ..hub.cards import render_card, source_context
from ..hub.checks import (
    NAMES,
    OBJECT,
    WORDS,
    Rules,
    are_names,
    are_words,
    check_values,
    class_difference,
    is_commit_of_repository,
    is_hex,
    is_number,
    is_whole,
)
from ..hub.files import SUMS, atomic_write, check_format_version, load_json, package_versions, save_json
from ..hub.folder import Home, HubFolder
from ..hub.making import MAKING, read_making
from ..rng import generator
from .architectures import differing_tensor, read_shapes, sha256_of
from .network_folder import (
    EVAL_RESULTS,
    RULES,
    ZCA_FILE,
    card_metadata,
    read_preprocessing,
    write_whitening,
)
from .priors import LIBRARIES, Prior

if TYPE_CHECKING:
    from peft import LoraConfig

INDEX = "projector_config.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TEXT_HEAD = "text_head.safetensors"
BASE = "base"
FORMAT_VERSION = 1
HEAD_RANK = 128
MOST_RANK = 4096
SKETCHES = 16
SKETCH_TOLERANCE = 1e-3  # of the norm of the text head: half precision stays below, another word in a prompt does not


class ZeroShot(nn.Module):
    """CLIP's zero-shot classifier: what PEFT adapts.

    Args:
        visual: The image tower, (N, 3, H, W) -> (N, d).
        text_head: (K, d) text embeddings of norm 1.
        scale: What cosines are multiplied by.
    """

    def __init__(self, visual: nn.Module, text_head: Tensor, scale: float) -> None:
        super().__init__()
        self.visual = visual
        self.classifier = nn.utils.skip_init(nn.Linear, *reversed(text_head.shape), bias=False)
        self.classifier.weight = nn.Parameter(text_head.detach().float().clone(), requires_grad=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) float32 of images (N, 3, H, W) in the tower's normalisation."""
        features = self.visual(x)  # (N, d)
        with no_autocast(features.device.type):  # bfloat16 holds no difference of 0.1 in logits of 30
            return self.classifier(self.scale * F.normalize(features.float(), dim=-1))


@dataclass(frozen=True)
class Lora:
    """The sizes of the LoRA matrices, in PEFT's terms.

    Attributes:
        r: Rank in the image tower.
        alpha: The product of the matrices there is multiplied by alpha / r.
        head_r: Rank in the head; None for 128, or the number of classes or features where that is less.
        head_alpha: The same as alpha, for the head; None for twice its rank.
        target_modules: A regular expression that the whole names of modules in the image tower match, which begin with
            "visual."; None for those that the prior names.
    """

    r: int = 8
    alpha: float = 16
    head_r: int | None = None
    head_alpha: float | None = None
    target_modules: str | None = None

    def __post_init__(self) -> None:
        for name, rank in (("r", self.r), ("head_r", self.head_r)):
            if not (is_whole(rank, most=MOST_RANK) or (rank is None and name == "head_r")):
                raise ValueError(
                    f"the LoRA rank {name} is {reprlib.repr(rank)}; expected a whole number, 1 to {MOST_RANK}"
                )
        for name, alpha in (("alpha", self.alpha), ("head_alpha", self.head_alpha)):
            if not ((is_number(alpha) and alpha > 0) or (alpha is None and name == "head_alpha")):
                raise ValueError(f"the LoRA factor {name} is {reprlib.repr(alpha)}; expected a number above 0")

    def fitted(self, num_classes: int, dim: int, default_targets: str) -> "Lora":
        """The same with every None filled in, for a head from `dim` features to `num_classes` logits."""
        most = min(num_classes, dim)
        if self.head_r is not None and self.head_r > most:
            raise ValueError(
                f"the LoRA rank of the head is {self.head_r}, and {num_classes} classes of {dim} features make a "
                f"matrix of rank {most}; give head_r up to that, or None"
            )
        head_r = min(HEAD_RANK, most) if self.head_r is None else self.head_r
        return replace(
            self,
            head_r=head_r,
            head_alpha=2 * head_r if self.head_alpha is None else self.head_alpha,
            target_modules=default_targets if self.target_modules is None else self.target_modules,
        )

    def to_peft(self) -> "LoraConfig":
        """PEFT's own description, for `ZeroShot`; everything is filled in."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            target_modules=_with_head(str(self.target_modules)),
            rank_pattern={"^classifier": self.head_r},
            alpha_pattern={"^classifier": self.head_alpha},
            lora_dropout=0.0,
            bias="none",
        )


def _is_templates(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def _is_base(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("library") not in LIBRARIES or not is_hex(64)(value.get("sha256")):
        return False
    return value.get("local") is True or is_commit_of_repository(value)


def _is_sketch(value: Any) -> bool:
    return isinstance(value, list) and len(value) == SKETCHES and all(map(is_number, value))


ABOUT: Rules = {
    **RULES,
    "base": (
        f"an object with library ({', '.join(LIBRARIES)}), sha256, and either repo_id, as owner/name, and revision, a "
        "commit, or local: true",
        _is_base,
    ),
    "words": (WORDS, are_words),
    "templates": ("the name of a set of prompts, or a list of texts", _is_templates),
    "logit_scale": ("a finite number", is_number),
    "lora": OBJECT,
    "lora.target_modules": ("a regular expression", lambda value: isinstance(value, str)),
    "text_head.sha256": ("64 hex digits", is_hex(64)),
    "text_head.sketch": (f"{SKETCHES} numbers", _is_sketch),
    "sha256": ("64 hex digits", is_hex(64)),
}
LORA = ("r", "alpha", "head_r", "head_alpha", "target_modules")


class LabelProjector(nn.Module, HubFolder):
    """Soft labels for any image: CLIP's image tower and a head of text embeddings, both adapted by LoRA.

        projector = LabelProjector.from_pretrained("outputs/projector")
        projector.check_classes(real.class_names)
        logits = projector.logits(real.images(rows))

    Example:
        >>> from hf_distill.runs.processes import make_accelerator
        >>> from hf_distill.training.small_clip import find_prior
        >>> settings, quiet = hd.PriorArguments(prior_epochs=1), {"disable_tqdm": True}
        >>> prior = find_prior(settings, train, seed=0, accelerator=make_accelerator(), **quiet)
        >>> projector = hd.LabelProjector(prior, train.class_names, train.preprocessing)
        >>> projector.logits(train.images([0, 1])).shape
        torch.Size([2, 10])

    Args:
        prior: The CLIP model. It is left as it is, and shares its weights with the projector on the CPU.
        class_names: Names of the logits, in order; what the prompts are filled with.
        preprocessing: What the images go through that it is asked about.
        templates: The prompts: "openai", "simple", or a list of texts with one {} each.
        words: What stands for each class in them, where its name is no word (an identifier, a number of a synset).
        lora: The sizes of the LoRA matrices.
        seed: Of their first values.
        config: What `projector_config.json` says beside these: source, training, results, versions, device.
        text_head: (K, d) text embeddings, where they are at hand; else the prior's text tower makes them.
        logit_scale: What cosines are multiplied by; the prior's if not given.

    Attributes:
        model: `ZeroShot` in PEFT's hands.
        lora: The sizes, with nothing left open.

    Raises:
        ValueError: The class names, the ranks or the preprocessing cannot be; or LoRA cannot adapt a module, or would
            do so without effect.
    """

    repo_type = "model"
    config_name = INDEX
    owned = ("README.md", SUMS, MAKING, INDEX, ADAPTER, ADAPTER_CONFIG, TEXT_HEAD, ZCA_FILE, EVAL_RESULTS, f"{BASE}/*")
    fetched = (INDEX, ADAPTER, ADAPTER_CONFIG, TEXT_HEAD, ZCA_FILE, f"{BASE}/*")
    loader = "LabelProjector.from_pretrained"

    def __init__(
        self,
        prior: Prior,
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        *,
        templates: str | Sequence[str] = "openai",
        words: Sequence[str] | None = None,
        lora: Lora = Lora(),
        seed: int = 0,
        config: dict[str, Any] | None = None,
        text_head: Tensor | None = None,
        logit_scale: float | None = None,
    ) -> None:
        super().__init__()
        names = list(class_names)
        if not are_names(names):
            raise ValueError(f"class names {reprlib.repr(names)}; expected {NAMES}")
        _check_inverts(preprocessing)
        self.prior, self.class_names, self.preprocessing = prior, names, preprocessing
        self.templates = templates if isinstance(templates, str) else list(templates)
        self.words = names if words is None else list(words)
        if not (are_words(self.words) and len(self.words) == len(names)):
            raise ValueError(
                f"{len(self.words)} words {reprlib.repr(self.words)} for {len(names)} classes; expected one for each, "
                "none of them empty"
            )
        self.lora = lora.fitted(len(names), prior.dim, prior.default_targets)
        self.config = {"source": {}, "results": {}, "versions": package_versions(), **(config or {})}
        check_targets(prior.visual, str(self.lora.target_modules))
        head = prior.text_head(self.words, self.templates) if text_head is None else text_head
        if tuple(head.shape) != (len(names), prior.dim) or not head.isfinite().all():
            raise ValueError(
                f"text embeddings of shape {tuple(head.shape)}; expected finite {(len(names), prior.dim)}, one row for "
                "each class"
            )
        scale = prior.logit_scale if logit_scale is None else logit_scale
        head = head.to(next(prior.visual.parameters()).device)  # where the prior may have been moved
        self.model = _adapted(ZeroShot(_twin(prior.visual), head, scale), self.lora)
        self._merged: list[tuple[nn.Module, Tensor]] = []  # modules, and the weights that they had before
        self._start(seed)
        # pixels = x · std + mean, and the tower's (pixels − mean') / std', are together one multiplication and one sum.
        mean, std, own_mean, own_std = (
            torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)
            for values in (preprocessing.mean, preprocessing.std, prior.mean, prior.std)
        )
        self.register_buffer("_factor", (std / own_std).float(), persistent=False)
        self.register_buffer("_offset", ((mean - own_mean) / own_std).float(), persistent=False)
        self.train(False)

    def _start(self, seed: int) -> None:
        """Check that every LoRA matrix has an effect, and give each its first values; the second factors are zero."""
        matrices = self._matrices()
        with torch.no_grad():
            for name, matrix in matrices.items():
                draw = generator(seed, "lora", name)
                if ".lora_A." in name:
                    bound = math.sqrt(1 / matrix[0].numel())  # as PEFT, Kaiming's with a = √5
                    matrix.copy_((2 * torch.rand(matrix.shape, generator=draw) - 1) * bound)
                else:
                    matrix.copy_(1e-3 * torch.randn(matrix.shape, generator=draw))
        self._check_gradients(matrices)
        for name, matrix in matrices.items():
            matrix.requires_grad_(False)
            if ".lora_A." not in name:
                matrix.zero_()
        self.round_parameters()

    def _check_gradients(self, matrices: dict[str, nn.Parameter]) -> None:
        """Raise a `ValueError` that names the modules whose LoRA gets no gradient from two images.

        Some towers hand the weights of a module to a function, and never call the module: what is added to its output
        is then lost without a word, and merging would change the answers.
        """
        device, draw = next(iter(matrices.values())).device, generator(0, "lora", "check")
        images = torch.randn(2, 3, *self.prior.image_size, generator=draw).to(device)
        weights = torch.randn(2, len(self.class_names), generator=draw).to(device)
        self.model.eval()
        with torch.enable_grad():
            for matrix in matrices.values():
                matrix.requires_grad_(True)
            total = (self.model(images) * weights).sum()
            gradients = torch.autograd.grad(total, list(matrices.values()), allow_unused=True)
        pairs = zip(matrices, gradients, strict=True)
        dead = list(dict.fromkeys(_module(name) for name, gradient in pairs if gradient is None or not gradient.any()))
        if dead:
            raise ValueError(
                f"LoRA in {_listed(dead)} gets no gradient: this image tower uses the weights there "
                "without calling the module, or its output is always 0; leave it out of target_modules"
            )

    def _matrices(self) -> dict[str, nn.Parameter]:
        """The LoRA matrices by name, in the order of the network."""
        return {name: matrix for name, matrix in self.model.named_parameters() if ".lora_" in name}

    # What it does

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (N, K) float32 of preprocessed images (N, C, H, W), in whatever autocast the caller is in;
        differentiable with respect to the images."""
        return self.model(self._seen(pixel_values))

    def logits(self, images: Tensor) -> Tensor:
        """The same, by the name that it has in `Teacher`."""
        return self(images)

    def features(self, images: Tensor) -> Tensor:
        """What the adapted image tower has of preprocessed `images` (N, C, H, W), (N, d), by its name in `Teacher`."""
        return self.model.get_base_model().visual(self._seen(images))

    @torch.no_grad()
    def zero_shot(self, pixel_values: Tensor) -> Tensor:
        """The prior's own logits (N, K) of preprocessed images: what the projector said before it was trained."""
        merged, learns = bool(self._merged), [matrix.requires_grad for matrix in self._matrices().values()]
        self.unmerge()
        with self.model.disable_adapter():
            logits = self(pixel_values)
        for matrix, learnt in zip(self._matrices().values(), learns, strict=True):
            matrix.requires_grad_(learnt)  # PEFT switches them all on
        if merged:
            self.merge()
        return logits

    def _seen(self, x: Tensor) -> Tensor:
        """The tower's input for preprocessed images (N, C, H, W): (N, 3, H', W') in its size and normalisation."""
        if x.ndim != 4 or x.shape[1] != self.preprocessing.channels:
            raise ValueError(
                f"images of shape {tuple(x.shape)}; expected (N, {self.preprocessing.channels}, height, width), "
                "preprocessed"
            )
        x = x.float() if self.preprocessing.zca is None else self.preprocessing.inverse(x)
        if tuple(x.shape[-2:]) != self.prior.image_size:
            x = resized(x, self.prior.image_size)
        return x * self._factor + self._offset  # one channel becomes three here

    def train(self, mode: bool = True) -> Self:
        """The network itself stays in evaluation mode: the statistics of BatchNorm are the prior's, and never move."""
        super().train(mode)
        self.model.eval()
        return self

    def to(self, device: torch.device | str) -> Self:
        """Move the network to `device`; on CUDA its weights get the layout that convolutions are fastest in."""
        super().to(device)
        if torch.device(device).type == "cuda":
            self.model.to(memory_format=torch.channels_last)
        return self

    # Training and merging

    def parameters_to_train(self) -> list[nn.Parameter]:
        """LoRA's matrices (float32), the only parameters that learn; they get gradients from this call on.

        Raises:
            ValueError: They are merged into the weights.
        """
        if self._merged:
            raise ValueError("the LoRA matrices are merged into the weights, where they learn nothing; call unmerge()")
        return [matrix.requires_grad_(True) for matrix in self._matrices().values()]

    @torch.no_grad()
    def round_parameters(self) -> None:
        """Round LoRA's matrices to float16, as they are stored: a projector that is loaded then gives the same bits."""
        for matrix in self._matrices().values():
            matrix.copy_(matrix.half())

    def merge(self) -> Self:
        """Add LoRA's matrices to the weights that they adapt: the answers are the same up to rounding, and faster."""
        if not self._merged:
            from peft.tuners.lora import LoraLayer

            layers = [layer.get_base_layer() for layer in self.model.modules() if isinstance(layer, LoraLayer)]
            self._merged = [(layer, layer.weight.data) for layer in layers]
            self.model.merge_adapter(safe_merge=True)  # safe: the sums are new tensors, and the prior's stay
        return self

    def unmerge(self) -> Self:
        """Take them out again: the weights are, bit for bit, those of the prior."""
        if self._merged:
            self.model.unmerge_adapter()  # which subtracts, and leaves the rounding of both
            for layer, weight in self._merged:
                layer.weight.data = weight.to(layer.weight.device)
            self._merged = []
        return self

    # What it is

    @property
    def name(self) -> str:
        """The prior that it adapts, for messages and cards."""
        return f"on {_name(self.prior)}"

    def about(self) -> dict[str, Any]:
        """The description that a set has of the projector that labels it, as JSON types."""
        measured = {key: value for key, value in self.results.items() if not isinstance(value, list)}
        return {
            "prior": _name(self.prior),
            "num_params": self.num_params,
            "num_bytes": self.num_bytes,
            "text_head_bytes": self.text_head_bytes,
            "prior_bytes": self.prior_bytes,
            **measured,
        }

    @property
    def results(self) -> dict[str, Any]:
        """Numbers that were measured, as far as they were: zero_shot_accuracy, test_accuracy, agreement, kl."""
        return self.config["results"]

    @property
    def text_head(self) -> Tensor:
        """The text embeddings (K, d) float32, without LoRA, on the CPU."""
        classifier = self.model.get_base_model().classifier.get_base_layer()
        unmerged = [weight for layer, weight in self._merged if layer is classifier]
        return (unmerged[0] if unmerged else classifier.weight.detach()).cpu().contiguous()

    @property
    def logit_scale(self) -> float:
        """The factor of the cosines."""
        return self.model.get_base_model().scale

    @property
    def num_params(self) -> int:
        """Of LoRA's matrices."""
        return sum(matrix.numel() for matrix in self._matrices().values())

    @property
    def num_bytes(self) -> int:
        """Bytes of LoRA's matrices as they are stored, in float16."""
        return 2 * self.num_params

    @property
    def text_head_bytes(self) -> int:
        """Bytes of the text embeddings, which are stored to spare readers the text tower."""
        return 4 * len(self.class_names) * self.prior.dim

    @property
    def prior_bytes(self) -> int:
        """Bytes of the image tower, which every reader needs and all projectors on it share."""
        return self.prior.num_bytes

    @property
    def _sha256(self) -> str:
        prompts = [self.class_names, self.words, self.templates]
        of = json.dumps([self.prior.sha256, *prompts, self.logit_scale, self.lora.alpha, self.lora.head_alpha])
        return hashlib.sha256((of + sha256_of(self._tensors())).encode()).hexdigest()

    @property
    def digest(self) -> str:
        """8 hex digits that name LoRA's matrices as they are stored, the prior, the classes and the prompts."""
        return self._sha256[:8]

    def summary(self) -> str:
        """One line: the prior, the classes, the parameters, and the accuracies where they are known."""
        what = f"LoRA of {self.num_params:,} parameters on {_name(self.prior)} for {len(self.class_names):,} classes"
        accuracies = [
            f"{name} accuracy {100 * self.results[key]:.1f} %"
            for key, name in (("zero_shot_accuracy", "zero-shot"), ("test_accuracy", "test"))
            if self.results.get(key) is not None
        ]
        return f"{what}: {', '.join(accuracies)}" if accuracies else what

    # Classes

    def check_classes(self, names: Sequence[str]) -> None:
        """Raise a `ValueError` that shows the first difference unless the classes are `names`, in order."""
        names = list(names)
        if names != self.class_names:
            raise ValueError(
                f"the projector {self.digest} {class_difference(self.class_names, names)}; use a projector of these "
                "classes in this order"
            )

    # From elsewhere, and to there

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        prior: Prior | None = None,
    ) -> Self:
        """The projector in a local folder or a Hub repository, on the prior that it was trained on.

        A prior from a repository is fetched from there, at the commit that the projector names.

        Args:
            repo_id_or_path: A folder that exists, or `owner/name`.
            revision, token, local_files_only: As `HubFolder.from_pretrained`, for the prior's repository as well.
            prior: The prior, where it is at hand.

        Raises:
            ValueError, OSError: As `HubFolder.from_pretrained`, and `Prior.from_pretrained`; or the prior is another.
        """
        where = {"token": token, "local_files_only": local_files_only}
        folder, origin = cls._find(repo_id_or_path, {"revision": revision, **where})
        projector = cls._read(folder, prior, **where)
        projector._check(folder)
        projector.making = read_making(folder / MAKING)
        projector.origin = origin
        return projector

    @classmethod
    def _read(cls, folder: Path, prior: Prior | None = None, **where: Any) -> Self:
        path = folder / INDEX
        about = load_json(path)
        check_format_version(path, about, FORMAT_VERSION)
        check_values(path, about, ABOUT)
        try:
            lora = Lora(**{name: about["lora"].get(name) for name in LORA})
            preprocessing = read_preprocessing(about["preprocessing"], folder / ZCA_FILE)
        except (OSError, SafetensorError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} or a file it names is damaged ({reason}); fetch or train it again") from error
        prior = _base(folder, about["base"], where) if prior is None else prior
        if prior.sha256 != about["base"]["sha256"]:
            raise ValueError(
                f"{_name(prior)} has an image tower with the weights {prior.digest}, and {folder} was trained on "
                f"{about['base']['sha256'][:8]}; give the prior that it was trained on"
            )
        seen = {name: about.get(name) for name in ("image_size", "mean", "std")}
        if seen != {"image_size": list(prior.image_size), "mean": list(prior.mean), "std": list(prior.std)}:
            raise ValueError(
                f"{path} has a prior for images with {reprlib.repr(seen)}, and {_name(prior)} is not for such; give "
                "the prior that it was trained on"
            )
        names, templates = about["class_names"], about["templates"]
        config = {name: value for name, value in about.items() if name in KEPT}
        projector = cls(
            prior,
            names,
            preprocessing,
            templates=templates,
            words=about["words"],
            lora=lora,
            config=config,
            text_head=_text_head(folder, about, prior),
            logit_scale=about["logit_scale"],
        )
        projector._check_adapter_config(folder / ADAPTER_CONFIG)
        projector._load_matrices(folder / ADAPTER)
        if projector._sha256 != about["sha256"]:
            raise ValueError(
                f"{folder / ADAPTER} does not hold the adapter that {INDEX} speaks of, or the classes there are "
                "others; fetch or save the projector again"
            )
        projector.release = about.get("release")
        return projector

    def _tensors(self) -> dict[str, Tensor]:
        """LoRA's matrices as they are stored, by PEFT's names."""
        return {
            name.replace(".default.", "."): matrix.detach().half().cpu().contiguous()
            for name, matrix in self._matrices().items()
        }

    def _load_matrices(self, path: Path) -> None:
        try:
            shapes = read_shapes(path)
            expected = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
            if difference := differing_tensor(shapes, expected):
                name, have, want = difference
                raise ValueError(
                    f"{path} has {have} for {name}, and the adapter that {INDEX} speaks of {want}; fetch the "
                    "repository again"
                )
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is no whole safetensors file ({reason}); fetch or train it again") from error
        _check_finite(path, tensors)
        with torch.no_grad():
            for name, matrix in self._matrices().items():
                matrix.copy_(tensors[name.replace(".default.", ".")])

    def _adapter_config(self) -> dict[str, Any]:
        """The file that PEFT reads: its own description of the adapter, and of what it belongs to."""
        origin = self.prior.origin
        peft = copy.copy(self.model.peft_config["default"])
        peft.base_model_name_or_path = None if origin is None else origin.repo_id
        peft.revision = None if origin is None else origin.revision
        peft.inference_mode = True
        known = peft.to_dict()
        runtime = ("runtime_config", "corda_config", "eva_config")  # objects that say how to start, not what it is
        return json.loads(
            json.dumps({name: known[name] for name in sorted(known) if name not in runtime}, default=list)
        )

    def _check_adapter_config(self, path: Path) -> None:
        stored, expected = load_json(path), self._adapter_config()
        for name in ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"):
            if stored.get(name) != expected[name]:
                raise ValueError(
                    f"{path} has {name} {reprlib.repr(stored.get(name))}, and {INDEX} {reprlib.repr(expected[name])}; "
                    "fetch the repository again"
                )

    def _write(self, folder: Path, home: Home) -> None:
        tensors, head = self._tensors(), self.text_head
        _check_finite("the projector", tensors)
        atomic_write(folder / ADAPTER, save(tensors, {"format": "pt"}))
        save_json(folder / ADAPTER_CONFIG, self._adapter_config())
        atomic_write(folder / TEXT_HEAD, save({"text_head": head}, {"format": "pt"}))
        write_whitening(folder, self.preprocessing)
        if self.prior.origin is None:
            self.prior.save_files(folder / BASE)
        about = {
            "format_version": FORMAT_VERSION,
            "base": self._base_config(),
            "class_names": self.class_names,
            "words": self.words,
            "templates": self.templates,
            "logit_scale": self.logit_scale,
            "preprocessing": self.preprocessing.to_config(),
            "image_size": list(self.prior.image_size),
            "mean": list(self.prior.mean),
            "std": list(self.prior.std),
            "lora": {**asdict(self.lora), "num_params": self.num_params},
            "text_head": {"sha256": sha256_of({"text_head": head}), "sketch": _sketch(head)},
            "sha256": self._sha256,
            **self.config,
            **home.to_config(),
        }
        atomic_write(folder / "README.md", self._card(home, about))
        save_json(folder / INDEX, about)

    def _base_config(self) -> dict[str, Any]:
        origin = self.prior.origin
        where = {"local": True} if origin is None else {"repo_id": origin.repo_id, "revision": origin.revision}
        return {"library": self.prior.library, **where, "sha256": self.prior.sha256}

    def _card(self, home: Home, about: dict[str, Any]) -> str:
        source, base, accuracy = self.config["source"], self.prior.origin, self.results.get("test_accuracy")
        metadata = card_metadata(
            source,
            {} if accuracy is None else {"test": accuracy},
            home,
            library="peft",
            tags=("image-classification", "label-projector", "hello", "lora"),
            base_model=None if base is None else base.repo_id,
            base_model_relation=None if base is None else "adapter",
            pipeline_tag="image-classification",
        )
        return render_card(
            "projector.md",
            metadata=metadata,
            call=home.arguments(),
            folder=home.name,
            on_hub=home.on_hub,
            base={"repo_id": None, **about["base"]},
            config={"device": None, "training": None, "versions": None, **about},
            preprocessing=self.preprocessing,
            digest=self.digest,
            prior_digest=self.prior.digest,
            sizes={"adapter": self.num_bytes, "head": self.text_head_bytes, "prior": self.prior_bytes},
            **source_context(source),
        )


KEPT = ("source", "results", "training", "teachers", "versions", "device")


def _name(prior: Prior) -> str:
    """The repository of a prior, or "a local <library> model"."""
    return f"a local {prior.library} model" if prior.origin is None else prior.origin.repo_id


def _module(name: str) -> str:
    """The module that a LoRA matrix adapts, by the matrix's name in PEFT's model."""
    return name.removeprefix("base_model.model.").partition(".lora_")[0]


def _listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _check_finite(where: str | Path, tensors: dict[str, Tensor]) -> None:
    broken = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise ValueError(f"{where} has values in {broken} that are not finite; train it again, with a lower rate")


def _check_inverts(preprocessing: Preprocessing) -> None:
    if preprocessing.channels not in (1, 3):
        raise ValueError(f"preprocessing for images of {preprocessing.channels} channels; expected 1 (gray) or 3 (RGB)")
    if not all(0 < std < math.inf for std in preprocessing.std):
        raise ValueError(
            f"preprocessing with std {list(preprocessing.std)} cannot be undone, and the prior sees pixels through its "
            "own; expected finite numbers above 0"
        )


def _with_head(regex: str) -> str:
    """The pattern of the modules in the image tower, and of the head."""
    return rf"(?:{regex})|classifier"


def check_targets(visual: nn.Module, regex: str) -> None:
    """Raise a `ValueError` unless `regex` names modules of the tower, and PEFT adapts each as it should."""
    try:
        re.compile(_with_head(regex))
        matched = [(name, module) for name, module in visual.named_modules() if re.fullmatch(regex, f"visual.{name}")]
    except re.error as error:
        raise ValueError(f"target_modules {regex!r} is no regular expression ({error})") from error
    if not matched:
        names = [f"visual.{name}" for name, module in visual.named_modules() if _fits(module)]
        raise ValueError(
            f"target_modules {regex!r} matches no module of the image tower; expected a regular expression of whole "
            f"names, such as {_listed(names)}"
        )
    if any(isinstance(module, nn.MultiheadAttention) for _, module in matched):
        # Seen in 0.21: the output projection's product is added twice, its gradient is that of once, and what is
        # subtracted after each call leaves its rounding in the frozen weights.
        raise ValueError(
            f"target_modules {regex!r} matches nn.MultiheadAttention, which PEFT adapts by changing its weights at "
            "each call, and not as it learns; choose linear layers and convolutions"
        )
    other = next((f"visual.{name} ({type(module).__name__})" for name, module in matched if not _fits(module)), None)
    if other is not None:
        raise ValueError(
            f"target_modules {regex!r} matches {other}; expected linear layers and convolutions without groups"
        )


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _twin(visual: nn.Module) -> nn.Module:
    """A tower of the same weights, in the same memory, whose modules PEFT may replace: the prior stays as it is."""
    return copy.deepcopy(visual, {id(p): nn.Parameter(p.data, requires_grad=False) for p in visual.parameters()})


def _adapted(base: ZeroShot, lora: Lora) -> Any:
    """`base` in PEFT's hands."""
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
        try:
            return get_peft_model(base, lora.to_peft())
        except (ValueError, TypeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"PEFT cannot adapt the modules {lora.target_modules!r} ({reason})") from error


def _sketch(head: Tensor) -> list[float]:
    """Products uᵀWv with random signs: those of two heads differ about as much as the heads, ‖W − W'‖."""
    draw, rows, columns = generator(0, "sketch"), *head.shape
    u, v = (2.0 * torch.randint(0, 2, (SKETCHES, n), generator=draw, dtype=torch.float64) - 1 for n in (rows, columns))
    return ((u @ head.double()) * v).sum(1).tolist()


def _text_head(folder: Path, about: dict[str, Any], prior: Prior) -> Tensor:
    """The text embeddings that a projector was trained on: stored beside it, or made again and compared."""
    path, expected = folder / TEXT_HEAD, about["text_head"]
    if path.is_file():
        try:
            head = load_file(path).get("text_head")
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is no whole safetensors file ({reason}); fetch it again") from error
        if head is None or sha256_of({"text_head": head}) != expected["sha256"]:
            raise ValueError(
                f"{path} does not hold the text embeddings that {INDEX} speaks of; fetch it again, or remove it"
            )
        return head
    try:
        head = prior.text_head(about["words"], about["templates"])
    except ValueError as error:
        raise ValueError(f"{path} is missing, and cannot be made again ({error}); restore it") from error
    if sha256_of({"text_head": head}) != expected["sha256"]:
        difference = max(abs(a - b) for a, b in zip(_sketch(head), expected["sketch"], strict=True))
        if not difference <= SKETCH_TOLERANCE * math.sqrt(len(head)):
            raise ValueError(
                f"the text embeddings that {_name(prior)} gives for the classes in {folder / INDEX} are not those that "
                f"the projector was trained on; restore {TEXT_HEAD}"
            )
    return head


def _base(folder: Path, base: dict[str, Any], where: dict[str, Any]) -> Prior:
    """The prior that a projector in `folder` names, or carries."""
    library = base["library"]
    if not base.get("local"):
        return Prior.from_pretrained(base["repo_id"], revision=base["revision"], library=library, **where)
    if not (folder / BASE).is_dir():
        raise ValueError(f"{folder} lacks the folder {BASE} with its prior; fetch or save the projector again")
    return Prior.from_pretrained(folder / BASE, library=library)
