"""`Difficulty`: how hard images are, by what experts left of their training; computed once and kept beside them.

    el2n(x, y)  = ‖softmax(f(x)) − onehot(y)‖₂, of an early epoch            (arXiv:2107.07075, equation 4)
    forgetting  = epochs after which x is wrong, and was right one before    (arXiv:1812.05159, definition 1)
    margin      = mean over epochs of f(x)_y − max_{k≠y} f(x)_k              (AUM, arXiv:2001.10528)

each averaged over experts. Experts leave their parameters after every epoch: el2n takes those after epoch `EARLY`, or
the last before it, and the others go through all of them. The papers count whenever an image is trained on, which an
expert does once in an epoch, augmented; here it is looked at as it is once the epoch is over.

A teacher leaves its last parameters alone: its el2n is that of a network that has learned all it can, and how often it
forgot an image nobody knows. Nothing is kept beside it: one look at each image, which takes no longer than finding out
whether they are the same, gives its el2n and its features together.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from ..data.feed import Pool, upload
from ..distilled.epoch_labels import images_sha256
from ..hub.files import atomic_write
from ..networks.architectures import sha256_of
from ..networks.batches import images_at_once
from ..networks.trajectories import ExpertTrajectories

__all__ = ["Difficulty", "el2n", "entropy", "forgetting", "margin"]

logger = logging.getLogger(__name__)

EARLY, EXPERTS = 10, 10  # the epoch of el2n, and the most experts that are asked: those of its paper
FILE = "scores-{}.safetensors"  # beside the experts; no part of them, so it is neither pushed nor removed
ABOUT = "hf_distill"


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """‖softmax − onehot‖₂ (n,) float64 of `logits` (n, K) for images of classes `labels` (n,): from 0 to √2."""
    return (logits.double().softmax(dim=1) - F.one_hot(labels, logits.shape[1])).norm(dim=1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far (n,) float64 the logit of its class is above the highest other one, for each image."""
    own = labels[:, None]
    others = logits.double().scatter(1, own, -torch.inf).amax(dim=1)
    return logits.double().gather(1, own)[:, 0] - others


def entropy(logits: Tensor) -> Tensor:
    """The entropies (n,) float64 of what a network guesses, in nats."""
    log = logits.double().log_softmax(dim=1)
    return -(log.exp() * log).sum(dim=1)


def forgetting(right: Tensor) -> Tensor:
    """How often (N,) each image was forgotten: right after an epoch, and wrong after the next.

    One that was never right counts as forgotten in each epoch, which is more than any other can be: so the authors'
    code, where the paper says infinity, lets networks be averaged.

    Args:
        right: (T, N) bool, epoch by epoch.
    """
    forgotten = (right[:-1] & ~right[1:]).sum(dim=0)
    return torch.where(right.any(dim=0), forgotten, len(right))


@dataclass(frozen=True)
class Difficulty:
    """Scores of images.

    Attributes:
        el2n, forgetting, margin: (N,) float64, on the CPU; see the top of this module.
        experts: How many networks they are the means of.
        epochs: How many each of them had.
        of: What the networks are, for people.
    """

    el2n: Tensor
    forgetting: Tensor
    margin: Tensor
    experts: int
    epochs: int
    of: str

    def hardness(self, name: str) -> Tensor:
        """The score (N,) that a baseline goes by, higher for harder images; of ccs the margin, as in its paper."""
        return {"el2n": self.el2n, "forgetting": self.forgetting, "ccs": -self.margin}[name]

    def words(self, name: str) -> str:
        """What a baseline goes by, for people."""
        if name == "el2n":
            return f"errors after epoch {min(EARLY, self.epochs)} of {self.of}"
        return f"{'counts' if name == 'forgetting' else 'margins'} in {self.epochs} epochs of {self.of}"

    @classmethod
    def of_experts(
        cls, experts: ExpertTrajectories, pool: Pool, accelerator: Accelerator, *, disable_tqdm: bool = False
    ) -> "Difficulty":
        """The scores that experts give the images of a pool: those that lie beside them, or else new ones.

        All processes call it, and share the images. The scores of these very images and experts are kept in the folder
        of the experts; where nothing can be written there, a warning says so.

        Args:
            experts: Up to `EXPERTS` of them are asked. They have no BatchNorm.
            pool: The images, with their classes, as the experts see them.
            accelerator: Processes and device.
            disable_tqdm: No progress bar.

        Raises:
            ValueError: A file of the experts is missing or damaged.
        """
        count, epochs = min(EXPERTS, experts.num_experts), experts.num_epochs
        of = f"{count} expert{'s' if count > 1 else ''} of {experts.spec.name}"
        found: list[Any] = [None, None]
        if accelerator.is_main_process:
            about = _about(experts, count, pool)
            found = [about, _read(experts.folder, about, len(pool))]
        about, tensors = broadcast_object_list(found)
        if tensors is None:
            tensors = _scores(experts, count, pool, accelerator, disable_tqdm)
            if accelerator.is_main_process:
                _keep(experts.folder, about, tensors)
        return cls(**tensors, experts=count, epochs=epochs, of=of)


def _about(experts: ExpertTrajectories, count: int, pool: Pool) -> dict[str, Any]:
    """All that decides the scores, as JSON types: the networks are known by where they end."""
    last = {str(expert): experts.row(expert, experts.num_epochs) for expert in range(count)}
    return {
        "experts": sha256_of(last),
        "student": experts.spec.to_dict(),
        "epochs": experts.num_epochs,
        "early": min(EARLY, experts.num_epochs),
        "images": images_sha256(pool),
        "labels": sha256_of({"labels": pool.labels}),
    }


@torch.no_grad()
def _scores(
    experts: ExpertTrajectories, count: int, pool: Pool, accelerator: Accelerator, disable_tqdm: bool
) -> dict[str, Tensor]:
    """The tensors of a `Difficulty`; every process looks at its part of the images, and gets all."""
    model, epochs = experts.flat_model().to(pool.device), experts.num_epochs
    first = experts.row(0, epochs).to(pool.device)
    size = images_at_once(lambda images: model(first, images), pool)
    # Which images are looked at together is the same for any number of processes.
    parts = torch.arange(len(pool)).split(size)[accelerator.process_index :: accelerator.num_processes]
    names = ("el2n", "forgetting", "margin")
    sums = {name: torch.zeros(len(pool), dtype=torch.float64, device=pool.device) for name in names}
    shown = tqdm(
        total=count * epochs,
        desc="difficulty of images",
        unit="net",
        leave=False,
        disable=disable_tqdm or not accelerator.is_main_process,
    )
    with shown as bar:
        for expert in range(count):
            right = torch.zeros(epochs, len(pool), dtype=torch.bool, device=pool.device)
            for epoch in range(1, epochs + 1):
                theta = experts.row(expert, epoch).to(pool.device)
                for rows, images in pool.each(parts):
                    places = upload(rows, pool.device)
                    logits, labels = model(theta, images), pool.labels[places]
                    right[epoch - 1, places] = logits.argmax(dim=1) == labels
                    sums["margin"][places] += margin(logits, labels) / (epochs * count)
                    if epoch == min(EARLY, epochs):
                        sums["el2n"][places] += el2n(logits, labels) / count
                bar.update()
            mine = upload(torch.cat(parts), pool.device) if parts else right.new_empty(0, dtype=torch.long)
            sums["forgetting"][mine] += forgetting(right[:, mine]) / count
    # Each image has been looked at by one process, and is 0 in all others.
    return {name: accelerator.reduce(total, "sum").cpu() for name, total in sums.items()}


def _path(folder: Path, about: dict[str, Any]) -> Path:
    return folder / FILE.format(hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16])


def _read(folder: Path, about: dict[str, Any], count: int) -> dict[str, Tensor] | None:
    """The scores that are kept of these images and experts; None where there are none, or they are damaged."""
    path = _path(folder, about)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            known = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
            tensors = {name: file.get_tensor(name) for name in ("el2n", "forgetting", "margin")}
        fit = all(scores.shape == (count,) and scores.dtype == torch.float64 for scores in tensors.values())
        if fit and known == {**about, "sha256": sha256_of(tensors)}:
            return tensors
    except (OSError, SafetensorError, ValueError):
        pass
    logger.warning("%s is damaged; the scores of images are computed again", path)
    return None


def _keep(folder: Path, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write scores down; where that cannot be, say so and do without."""
    known = {**about, "sha256": sha256_of(tensors)}
    try:
        atomic_write(_path(folder, about), save(tensors, {ABOUT: json.dumps(known, sort_keys=True)}))
    except OSError as error:
        logger.warning(
            "scores of images are not kept in %s (%s): the next report computes them again",
            folder,
            error.strerror or error,
        )
