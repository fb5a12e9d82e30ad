"""Expert trajectories from `.pt` buffers: list[expert][epoch][parameter]."""

import logging
import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..augmentation.dsa import DEFAULT_STRATEGY, DSA
from ..data.feed import TEST_BATCH, Pool
from ..data.images import RealImages
from ..hub.files import atomic_write, folder_aside, package_versions
from ..hub.folder import Home
from ..networks.architectures import CONVNETS, FlatModel, StudentSpec
from ..networks.batches import images_at_once
from ..networks.trajectories import EXPERT_FILE, FORMAT_VERSION, ExpertTrajectories, tensor_file
from .files import known_classes, known_preprocessing, load_pt, origin_of, require_empty

logger = logging.getLogger(__name__)


def _buffers(paths: Sequence[str | Path]) -> list[Path]:
    """The files of a list of files and folders; those of a folder by their number."""

    def number(path: Path) -> tuple[int, str]:
        numbers = re.findall(r"\d+", path.stem)
        return int(numbers[-1]) if numbers else -1, path.name

    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("replay_buffer_*.pt"), key=number) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path} holds no replay_buffer_*.pt; name the files")
        files += inside
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise ValueError(f"{absent[0]} is no file; expected a replay_buffer_<n>.pt, or a folder of them")
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError("a file of trajectories is named twice; name each once")
    return files


def _trajectory(path: Path, expert: int, snapshots: Any, flat: FlatModel) -> Tensor:
    """One expert of a buffer as rows (T + 1, P) float32."""
    who = f"expert {expert} of {path}"
    if not isinstance(snapshots, (list, tuple)) or len(snapshots) < 2:
        raise ValueError(f"{who} is no list of two or more snapshots; expected list[expert][epoch][parameter]")
    rows = []
    for epoch, snapshot in enumerate(snapshots):
        if not isinstance(snapshot, (list, tuple)) or not all(isinstance(part, Tensor) for part in snapshot):
            raise ValueError(f"epoch {epoch} of {who} is no list of tensors; expected list[expert][epoch][parameter]")
        shapes = [tuple(part.shape) for part in snapshot]
        if shapes != flat.shapes:
            index = next(
                (i for i, pair in enumerate(zip(shapes, flat.shapes, strict=False)) if pair[0] != pair[1]),
                min(len(shapes), len(flat.shapes)),
            )
            theirs, ours = (str(known[index]) if index < len(known) else "none" for known in (shapes, flat.shapes))
            name = flat.names[index] if index < len(flat.names) else "nothing"
            raise ValueError(
                f"parameter {index} of epoch {epoch} of {who} has shape {theirs}, and that of the student ({name}) is "
                f"{ours}; give the --student, its width and norm, the --resolution and classes that were trained"
            )
        rows.append(torch.cat([part.detach().float().flatten() for part in snapshot]))
    params = torch.stack(rows)  # (T + 1, P)
    if not params.isfinite().all():
        raise ValueError(f"{who} has NaN or infinite parameters: its training diverged; leave the file out")
    if (params == params[0]).all():
        raise ValueError(
            f"all {len(params)} snapshots of {who} are the same: they are aliases of the final parameters, as training "
            "on a CPU saves them without a copy; the path is lost, train it again with recipes/experts.py"
        )
    return params


@torch.no_grad()
def _accuracy(flat: FlatModel, theta: Tensor, images: Pool) -> float:
    """Accuracy in [0, 1] of `theta` (P,), without augmentation."""
    right, size = 0, TEST_BATCH if flat.sees_batches else images_at_once(partial(flat, theta), images)
    for rows in torch.arange(len(images)).split(size):
        x, y = images.take(rows)
        right += int((flat(theta, x).argmax(1).to(y.device) == y).sum())
    return right / len(images)


def _warn_near_chance(accuracies: Sequence[float], real: RealImages) -> None:
    chance = 1 / real.num_classes
    noise = 2 * math.sqrt(chance * (1 - chance) / len(real))
    mean = sum(accuracies) / len(accuracies)
    if mean < chance + min(chance / 2, 0.1) + noise:
        now = "ZCA whitening" if real.preprocessing.zca is not None else "mean and std"
        logger.warning(
            "the last snapshots are right on %.1f %% of the training images, and chance is %.1f %%: most likely they "
            "were trained on other preprocessing than the %s of this run (see --normalization, --mean, --std), or on "
            "classes in another order",
            100 * mean,
            100 * chance,
            now,
        )


def import_trajectories(
    paths: Sequence[str | Path],
    directory: str | Path,
    spec: StudentSpec,
    *,
    real: RealImages | None = None,
    test: RealImages | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dsa_strategy: str = DEFAULT_STRATEGY,
    method: str | None = None,
    device: torch.device | str = "cpu",
    disable_tqdm: bool = False,
) -> ExpertTrajectories:
    """Expert trajectories in a new folder, from `replay_buffer_<n>.pt` files; one file is open at a time.

    Parameters are taken in the order of the file. For the ConvNets of this package that is the order of DC's and MTT's:
    in each block the weight and bias of the convolution, then of the normalisation; at the end those of the linear
    layer, whose input is flattened by channel, height and width in both. It is the same function too, for colour
    images; gray ones are padded by 3 pixels at the first convolution there, and by 1 here. For a network with BatchNorm
    such a file has no running statistics, and here none are used.

    Args:
        paths: Files, or folders of `replay_buffer_*.pt`; experts are numbered in this order.
        directory: A new or empty folder.
        spec: The network that was trained.
        real: The training images: they give class names, preprocessing and provenance, and the last snapshots are
            measured on them.
        test: Images to measure them on too.
        class_names: Where there is no `real`.
        mean: Per channel, where there is no `real`.
        std: Per channel, where there is no `real`.
        dsa_strategy: The augmentation that the experts were trained with, which methods use again; MTT's by default.
        method: What made them, as cards say it.
        device: What accuracies are computed on.
        disable_tqdm: No progress bar.

    Raises:
        ValueError: A file needs code to run, does not fit `spec`, or holds no path; or `directory` is not empty.
    """
    DSA(dsa_strategy)
    directory, files = Path(directory), _buffers(paths)
    require_empty(directory)
    shape = (spec.in_chans, *spec.img_size)
    preprocessing = known_preprocessing(real, shape, mean, std, str(files[0]))
    names = known_classes(real, class_names, None, str(files[0]))
    if len(names) != spec.num_classes:
        raise ValueError(f"the student has {spec.num_classes} classes and {len(names)} are named; give the same ones")
    if spec.name in CONVNETS and spec.in_chans == 1:
        logger.warning(
            "MTT's ConvNet pads gray images by 3 pixels at its first convolution and %s by 1: the imported rows are "
            "exact, and the network they belong to is a slightly different one here",
            spec.name,
        )
    flat = FlatModel.from_spec(spec).to(device)
    training = {"method": method, "dsa_strategy": dsa_strategy, "expert_format": "float32"}
    directory.parent.mkdir(parents=True, exist_ok=True)
    with folder_aside(".importing-", directory.parent) as aside:
        writer = _Writer(aside, flat, training, {"train": real, "test": test}, torch.device(device))
        with tqdm(total=len(files), desc="files", disable=disable_tqdm) as bar:
            for file in files:
                writer.add_file(file)
                bar.update()
        if real is not None:
            _warn_near_chance(writer.train_accuracies, real)
        config = {
            "format_version": FORMAT_VERSION,
            "num_experts": writer.count,
            "num_epochs": writer.epochs,
            "num_params": flat.num_params,
            "student": spec.to_dict(),
            "class_names": names,
            "preprocessing": preprocessing.to_config(),
            "source": {} if real is None else real.provenance,
            "training": training,
            "imported_from": {"layout": "list[expert][epoch][parameter]", "files": writer.origin},
            "device": None,
            "versions": package_versions(),
        }
        # What the expert files say themselves is read in one place.
        experts = ExpertTrajectories(aside, config).limited(writer.count, writer.epochs)
        experts._write_about(aside, preprocessing, Home(directory.name))
        ExpertTrajectories.from_pretrained(aside).save_pretrained(directory)
    return ExpertTrajectories.from_pretrained(directory)


class _Writer:
    """Writes the experts of one file after another, each into a file of its own, and measures them.

    Args:
        folder: Where they go.
        flat: The network that was trained.
        training: What is said of it in each file.
        sets: Images by split; the last snapshots are measured on those that there are.
        device: What they are measured on.

    Attributes:
        count: Experts so far.
        epochs: Of each of them.
        origin: The files that they come from.
        train_accuracies: In [0, 1], of the last snapshots, where there are training images.
    """

    def __init__(
        self,
        folder: Path,
        flat: FlatModel,
        training: dict[str, Any],
        sets: dict[str, RealImages | None],
        device: torch.device,
    ) -> None:
        self.folder, self.flat, self.training, self.splits, self.device = folder, flat, training, list(sets), device
        self.images = {
            split: Pool(part, part.labels, preprocessing=part.preprocessing, device=device, keep="floats")
            for split, part in sets.items()
            if part is not None
        }
        self.count, self.epochs = 0, 0
        self.origin: list[dict[str, str]] = []
        self.train_accuracies: list[float] = []

    def add_file(self, file: Path) -> None:
        """Write the experts of `file`.

        Raises:
            ValueError: They do not fit the network, or have another number of epochs than those before.
        """
        self.origin += origin_of([file])
        for params in _experts(file, self.flat):
            epochs = len(params) - 1
            if self.count and epochs != self.epochs:
                raise ValueError(
                    f"{file} holds an expert of {epochs} epochs and those before have {self.epochs}; "
                    "import files of one length"
                )
            self.epochs = epochs
            self._add(params)

    def _add(self, params: Tensor) -> None:
        last = params[-1].to(self.device)
        accuracies = {split: _accuracy(self.flat, last, images) for split, images in self.images.items()}
        if "train" in accuracies:
            self.train_accuracies.append(accuracies["train"])
        metadata = {
            "expert": self.count,
            "imported_from": self.origin[-1],
            "training": self.training,
            "names": self.flat.names,
            "shapes": self.flat.shapes,
            "experts_at_once": None,
            "loss": [None] * self.epochs,
            "accuracy": [None] * self.epochs,
            **{f"{split}_accuracy": accuracies.get(split) for split in self.splits},
        }
        atomic_write(self.folder / EXPERT_FILE.format(self.count), tensor_file({"params": params}, metadata))
        self.count += 1


def _experts(file: Path, flat: FlatModel) -> Iterator[Tensor]:
    """The trajectories (T + 1, P) of one file, one at a time."""
    buffer = load_pt(file)
    if not isinstance(buffer, (list, tuple)) or not buffer:
        raise ValueError(f"{file} holds a {type(buffer).__name__}; expected list[expert][epoch][parameter]")
    for expert, snapshots in enumerate(buffer):
        yield _trajectory(file, expert, snapshots, flat)
