"""A tiny CLIP model, trained from scratch on a dataset and the names of its classes: a prior where there is none.

Its format is open_clip's, and its two towers are that library's: a transformer for images of any small size, in 16 to
64 patches where they are square, and one for texts. It knows of nothing but that dataset, so it shows how a prior is
used and not what a large one is worth.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import save
from torch import Tensor, nn

from ..augmentation.crops import CROP_DRAWS, crop_resize, draw_crops, uniform
from ..config import HfArg, PathArg, check_at_least
from ..data.feed import Pool
from ..data.images import RealImages
from ..data.preprocessing import Preprocessing
from ..hub.files import atomic_write, check_sum, load_json, load_sums, save_json, save_sums, sha256_of_file
from ..networks.compiling import say_uncompiled
from ..networks.priors import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, Prior, prompt_templates
from ..rng import derive_seed, generator
from ..runs.callbacks import Callback, Callbacks, ProgressBar, RunState
from ..runs.folder import check_same_run, describe_images
from ..runs.processes import on_main
from ..runs.rehearsal import META, STEPS, Ledger, Stage
from .epochs import say_left_out

__all__ = ["PriorArguments", "find_prior", "rehearse_small_clip", "small_clip_folder", "train_small_clip"]

WIDTH = 64  # of both towers, and of the space that they share
BATCH = 32
PATCHES = 8  # along the shorter side, at most
MEAN = STD = (0.5, 0.5, 0.5)
MOST_SCALE = 100.0  # of cosines, as CLIP's


@dataclass
class PriorArguments:
    """The CLIP model, or how a small one is trained where none is given.

    Example:
        >>> hd.PriorArguments(model_name_or_path="openai/clip-vit-base-patch32").model_library is None
        True
    """

    model_name_or_path: str | None = PathArg(
        default=None,
        help="Folder or Hub repository of a CLIP model of timm, transformers or open_clip. Without it: a small one "
        "that is trained here.",
    )
    model_revision: str | None = HfArg(default=None, help="Branch, tag or commit of that repository.")
    model_library: str | None = HfArg(
        default=None, help="timm, transformers or open_clip, where it has the files of several."
    )
    prior_epochs: int = HfArg(default=6, help="Passes over the training images that make a small CLIP model.")
    prior_lr: float = HfArg(default=1e-3, help="Highest learning rate of that training (Adam, one cycle).")

    def __post_init__(self) -> None:
        check_at_least("prior_epochs", self.prior_epochs, 1)
        check_at_least("prior_lr", self.prior_lr, 0)


def describe(real: RealImages, config: PriorArguments, seed: int) -> dict[str, Any]:
    """Everything that decides what the model becomes, as JSON types."""
    images = describe_images(real)
    return {
        "class_names": images["class_names"],
        "images": [len(real), *real.shape],  # and not their preprocessing: it is shown bytes, and its own comes after
        "labels_sha256": images["labels_sha256"],
        "revision": images["revision"],
        "seed": seed,
        "prior_epochs": config.prior_epochs,
        "prior_lr": config.prior_lr,
    }


def find_prior(
    config: PriorArguments,
    real: RealImages,
    *,
    seed: int,
    accelerator: Accelerator,
    disable_tqdm: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Prior:
    """The CLIP model that is named, or without a name a small one, trained on `real` unless it is there already.

    All processes call it; the main one fetches or trains first, and its `callbacks` look on.

    Raises:
        ValueError, OSError: As `Prior.from_pretrained` and `train_small_clip`.
    """
    name = config.model_name_or_path
    if name is None:
        folder = small_clip_folder(real, config, seed)
        shown = {"disable_tqdm": disable_tqdm, "callbacks": callbacks}
        return train_small_clip(real, folder, config, seed=seed, accelerator=accelerator, **shown)

    def commit() -> str | None:
        prior = Prior.from_pretrained(name, revision=config.model_revision, library=config.model_library)
        return None if prior.origin is None else prior.origin.revision

    revision = on_main(accelerator, commit)
    return Prior.from_pretrained(name, revision=revision, library=config.model_library)


# What open_clip calls the architecture of models that presets name; None for any other.
LOOKS_LIKE = {"openai/clip-vit-base-patch32": "ViT-B-32", "timm/resnet50_clip.openai": "RN50", None: "ViT-B-32"}


class UntrainedPrior(Prior):
    """A CLIP model whose image tower nobody has trained, on the meta device, and without a text tower.

    Args:
        config: Which one: of a repository, as far as it is known without being asked.
        real: The images that a small one would be trained on.
    """

    def __init__(self, config: PriorArguments, real: RealImages) -> None:
        import open_clip

        name, size = config.model_name_or_path, (real.shape[1], real.shape[2])
        cfg = _model_cfg(real)
        if name is not None:
            cfg = open_clip.get_model_config(LOOKS_LIKE.get(name, LOOKS_LIKE[None]))
            size = (cfg["vision_cfg"].get("image_size", 224),) * 2
        with META:
            tower = open_clip.CLIP(**cfg).visual
        super().__init__("open_clip", tower, cfg["embed_dim"], Preprocessing(3, size, MEAN, STD), Path("untrained"))
        self._log_scale = math.log(MOST_SCALE)

    def text_head(self, class_names: Sequence[str], templates: str | Sequence[str] = "openai") -> Tensor:
        """A vector for each class, of nothing."""
        return torch.zeros(len(class_names), self.dim)


def small_clip_folder(real: RealImages, config: PriorArguments, seed: int) -> Path:
    """The folder that recipes keep the model of these settings in: other settings, another folder."""
    described = json.dumps(describe(real, config, seed), sort_keys=True)
    name = Path(str(real.provenance["name"])).name
    return Path("outputs", f"prior-{name}-{hashlib.sha256(described.encode()).hexdigest()[:8]}")


def train_small_clip(
    real: RealImages,
    directory: str | Path,
    config: PriorArguments,
    *,
    seed: int,
    accelerator: Accelerator,
    disable_tqdm: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Prior:
    """The model of these settings, trained by the main process and saved, and loaded. All processes call it.

    Args:
        real: The images to train on; gray ones are repeated in three channels.
        directory: On storage that the processes share; a model of these settings that is there is only loaded.
        callbacks: Look on in the main process; a step is one of the optimizer.

    Raises:
        ValueError: `directory` holds something else, or a model that is damaged; or the loss stops being finite.
        OSError: `directory` cannot be written to.
    """
    folder, training = Path(directory), describe(real, config, seed)

    def make() -> None:
        if (folder / OPEN_CLIP_CONFIG).is_file():
            for name, digest in load_sums(folder).items():
                check_sum(folder / name, digest)
            check_same_run(folder, load_json(folder / OPEN_CLIP_CONFIG).get("training"), training)
            return
        if folder.exists():
            raise ValueError(f"{folder} holds something else than a CLIP model; give another folder")
        say_uncompiled(accelerator, "the training of a small CLIP model")
        model_cfg = _model_cfg(real)
        model = _train(
            real, model_cfg, config, seed, accelerator.device, Callbacks([ProgressBar(disable_tqdm), *callbacks])
        )
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        aside.mkdir(parents=True)
        try:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            atomic_write(aside / OPEN_CLIP_WEIGHTS, save(tensors, {"format": "pt"}))
            preprocess_cfg = {
                "mean": list(MEAN),
                "std": list(STD),
                "interpolation": "bilinear",
                "resize_mode": "squash",
            }
            about = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg, "training": training}
            save_json(aside / OPEN_CLIP_CONFIG, about)
            save_sums(aside, {path.name: sha256_of_file(path) for path in aside.iterdir()})
            if not (folder / OPEN_CLIP_CONFIG).is_file():  # which another run has made meanwhile
                os.rename(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    on_main(accelerator, make)
    return Prior.from_pretrained(folder)


def rehearse_small_clip(
    real: RealImages, config: PriorArguments, seed: int, ledger: Ledger
) -> tuple[list[Stage], dict[str, int]]:
    """What the training of a small model holds and computes on the meta device, and the bytes of its files; nothing
    where one is named."""
    if config.model_name_or_path is not None:
        return [], {}
    batch, few = min(BATCH, len(real)), replace(config, prior_epochs=1)
    ledger.forget()
    before = ledger.flop
    some = real.subset(torch.arange(min(STEPS * batch, len(real))))
    model = _train(some, _model_cfg(real), few, seed, META, Callbacks([]))
    steps = config.prior_epochs * (len(real) // batch)
    flop = steps * (ledger.flop - before) / (len(some) // batch)
    stage = ledger.stage("small CLIP", flop, f"{config.prior_epochs:,} epochs, by one process", parts=1)
    return [stage], {"small CLIP": sum(tensor.nbytes for tensor in model.state_dict().values())}


def _model_cfg(real: RealImages) -> dict[str, Any]:
    """The architecture, as open_clip's files say it."""
    height, width = real.shape[1:]
    shorter = min(height, width)
    vision = {
        "image_size": [height, width],
        "patch_size": min(max(2, -(-shorter // PATCHES)), shorter),
        "width": WIDTH,
        "layers": 3,
        "head_width": 32,
        "mlp_ratio": 2.0,
        "pool_type": "avg",
    }
    text = {"context_length": 16, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 1, "mlp_ratio": 2.0}
    return {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}


def _train(
    real: RealImages,
    model_cfg: dict[str, Any],
    config: PriorArguments,
    seed: int,
    device: torch.device,
    callbacks: Callbacks,
) -> nn.Module:
    """The trained model: each image among the sentences of all classes, of one template in each step."""
    from open_clip import CLIP, SimpleTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "prior", "init"))
        model = CLIP(**model_cfg)
        # Random vectors tell tokens apart if they are long; then Adam need not move all 49,408 in every step.
        nn.init.normal_(model.token_embedding.weight)
        model.token_embedding.requires_grad_(False)
    model.to(device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tokenizer = SimpleTokenizer(context_length=model_cfg["text_cfg"]["context_length"])
    templates = prompt_templates("openai")
    texts = [text.replace("{}", name) for text in templates for name in real.class_names]
    tokens = tokenizer(texts).view(len(templates), real.num_classes, -1).to(device)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    pool = Pool(real, real.labels, device=device)  # pixels as they are: CLIP has a preprocessing of its own
    batch = min(BATCH, len(real))
    per_epoch = len(real) // batch
    say_left_out("small CLIP", len(real), batch)
    optimizer = torch.optim.Adam(parameters, config.prior_lr)
    steps = config.prior_epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.prior_lr, steps)
    total = torch.zeros((), device=device)
    state = RunState("small CLIP", total=steps, unit="step", look=lambda: model)
    callbacks.on_begin(state)
    try:
        for epoch in range(config.prior_epochs):
            draw = generator(seed, "prior", "epoch", epoch)
            order = torch.randperm(len(real), generator=draw)
            chosen = torch.randint(len(templates), (per_epoch,), generator=draw).tolist()
            for rows, template in zip(order.split(batch), chosen, strict=False):
                pixels, labels = pool.take(rows)
                pixels = _cropped(pixels, uniform(seed, (epoch,), rows, CROP_DRAWS, device))
                images = model.encode_image((pixels.expand(-1, 3, -1, -1) - mean) / std, normalize=True)
                classes = model.encode_text(tokens[template], normalize=True)
                loss = F.cross_entropy(model.logit_scale.exp() * images @ classes.T, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    model.logit_scale.clamp_(0, math.log(MOST_SCALE))
                    total += loss
                state.step = state.done = state.step + 1
                callbacks.on_step(state)
    finally:
        callbacks.on_end(state)
    if not math.isfinite(total.item()):
        raise ValueError("the loss of the small CLIP model is not finite; lower --prior_lr")
    return model


def _cropped(pixels: Tensor, u: Tensor) -> Tensor:
    """A part of each image (n, C, H, W), at least half of it, at full size: CLIP too was trained on crops."""
    size = (pixels.shape[2], pixels.shape[3])
    return crop_resize(pixels, draw_crops(u, size, (0.5, 1.0), flip=0.0), size)
