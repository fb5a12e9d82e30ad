"""Expert trajectories: networks trained on the real images, their parameters kept at the start and after every epoch.

Trajectory-matching methods (MTT, arXiv:2203.11932; TESLA, arXiv:2211.10586) read two rows of one trajectory at each
step. `train_experts` makes the trajectories, many experts at once where that is faster; `ExpertTrajectories` reads them
two rows at a time.

    theta <- theta - lr_teacher * v,   v <- mom_teacher * v + grad CE(f(theta; DSA(x)), y) + l2_teacher * theta

Differs from the authors' code: a snapshot is a copy on every device (on a CPU theirs are aliases of the live
parameters, so that all rows equal the last); files are safetensors, not pickled lists; an expert's randomness depends
on its number alone; only the epochs that will be read are trained.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.func import grad_and_value, vmap

from ..augmentation.dsa import DEFAULT_STRATEGY, DSA, DsaParams
from ..config import HfArg, PathArg, check_at_least, check_choice
from ..data.feed import Pool, upload
from ..data.images import Outline, RealImages
from ..data.precision import precision_of
from ..evaluation.accuracy import device_name
from ..evaluation.costs import student_flop
from ..evaluation.students import check_student
from ..hub.checks import is_number
from ..hub.files import atomic_write, load_json, package_versions, save_json
from ..hub.folder import Home
from ..hub.making import MAKING, Work, read_making, save_making
from ..networks.architectures import NORMS, FlatModel, StudentSpec
from ..networks.compiling import backend_of, compiled, in_precision, refuse_fp16
from ..networks.trajectories import (
    EXPERT_FILE,
    FORMAT_VERSION,
    INDEX,
    ExpertTrajectories,
    TensorFile,
    tensor_file,
)
from ..rng import derive_seed, generator
from ..runs.callbacks import Callback, Callbacks, ProgressBar, RunState
from ..runs.claims import claimed
from ..runs.clock import Clock
from ..runs.folder import check_same_run, describe_images
from ..runs.processes import make_accelerator
from ..runs.rehearsal import STEPS, Ledger, Stage
from ..runs.stopping import Stop, stopping

__all__ = ["ExpertConfig", "ExpertTrainer", "ExpertTrajectories", "train_experts"]

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished"  # rows of experts in training; gone once the folder is complete
FEW = 4  # experts that a rehearsal has: as many as label
EPOCHS = 50  # of each expert, where nothing says how many will be read


@dataclass
class ExpertConfig:
    """The network to distil for, and how its experts are trained.

    Example:
        >>> hd.ExpertConfig(student="convnet_d1", student_width=8).student_spec(train).num_params()
        1386
    """

    student: str = HfArg(default="convnet_d3", help="Network to distil for: convnet_d1 to convnet_d8 or any timm name.")
    student_width: int = HfArg(default=128, help="Channels of each convolution of a convnet.")
    student_norm: str = HfArg(default="instance", help="Normalisation of a convnet: instance, batch or none.")
    experts: str | None = PathArg(default=None, help="Folder or Hub repository of trained experts to use as they are.")
    experts_revision: str | None = HfArg(default=None, help="Branch, tag or commit of that repository.")
    num_experts: int = HfArg(default=10, help="Experts to train.")
    expert_train_epochs: int | None = HfArg(
        default=None, help="Epochs of each expert. Without it: what the recipe will read."
    )
    lr_teacher: float = HfArg(default=0.01, help="Learning rate of the experts.")
    mom_teacher: float = HfArg(default=0.0, help="Momentum of the experts' SGD; without it they are easier to imitate.")
    l2_teacher: float = HfArg(default=0.0, help="Weight decay of the experts' SGD.")
    batch_train: int = HfArg(default=256, help="Images per step of an expert.")
    dsa_strategy: str = HfArg(
        default=DEFAULT_STRATEGY, help="Augmentations joined by underscores; none to leave the images as they are."
    )
    experts_at_once: str = HfArg(
        default="auto",
        help="Experts trained side by side in one process; auto measures some numbers, takes the best. "
        "The number changes how sums are rounded: give one to get the same bits again.",
    )

    def __post_init__(self) -> None:
        check_choice("student_norm", self.student_norm, NORMS)
        for flag in ("student_width", "num_experts", "expert_train_epochs", "batch_train"):
            check_at_least(flag, getattr(self, flag), 1)
        for flag in ("lr_teacher", "mom_teacher", "l2_teacher"):
            check_at_least(flag, getattr(self, flag), 0)
        if self.experts_at_once != "auto" and not (self.experts_at_once.isdecimal() and int(self.experts_at_once)):
            raise ValueError(f"--experts_at_once is {self.experts_at_once!r}; expected auto or a number from 1")
        DSA(self.dsa_strategy)

    def student_spec(self, real: Outline | RealImages) -> StudentSpec:
        """The student for the classes, channels and size of `real`."""
        options = {"width": self.student_width, "norm": self.student_norm}
        return StudentSpec.for_images(self.student, real.num_classes, real.shape, **options)


def _pool(real: RealImages, device: torch.device) -> Pool:
    """All of `real` as the experts' networks see them, epoch after epoch."""
    return Pool(real, real.labels, preprocessing=real.preprocessing, device=device, keep="floats")


Network = Callable[[Tensor, Tensor], Tensor]  # logits (B, K) of parameters (P,) for images (B, C, H, W)


def _measured(network: Network, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and number of right answers of one network."""
    logits = network(theta, x)
    return F.cross_entropy(logits, y), (logits.detach().argmax(1) == y).sum()


def _gradients(network: Network, thetas: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (E, P), losses and numbers of right answers, both (E,), of networks `thetas` (E, P) side by side."""
    each = vmap(grad_and_value(partial(_measured, network), has_aux=True))
    gradients, (losses, right) = each(thetas, x, y)
    return gradients, losses, right


class ExpertTrainer:
    """Plain SGD on the real images for a group of experts: one after another is a group of one.

    An expert's initialisation, order of images and augmentations come from streams named by its number (and the
    epoch), so what it sees does not depend on its group, its process, or where an interrupted run went on.
    """

    def __init__(
        self,
        real: RealImages,
        spec: StudentSpec,
        config: ExpertConfig,
        seed: int,
        accelerator: Accelerator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        refuse_fp16(accelerator, "expert training")
        self.config, self.seed, self.accelerator, self.dtype = config, seed, accelerator, dtype
        self.flat = FlatModel.from_spec(spec).to(accelerator.device)
        self.dsa = DSA(config.dsa_strategy)
        self.images = _pool(real, accelerator.device)
        self._only_alone = self.flat.sees_batches and accelerator.mixed_precision != "no"
        self._logits = in_precision(self.flat, accelerator)
        self._one, self._many = compiled(_measured, accelerator), compiled(_gradients, accelerator)

    def init(self, experts: Sequence[int]) -> Tensor:
        """Initial parameters (E, P) on the device."""
        rows = [self.flat.init(derive_seed(self.seed, "expert", expert, "init")) for expert in experts]
        return torch.stack(rows).to(self.accelerator.device, self.dtype)

    def step(self, thetas: Tensor, velocities: Tensor | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step of SGD for each expert, in place.

        Args:
            thetas: Parameters (E, P).
            velocities: Momentum (E, P); None without momentum.
            x: Augmented images (E, B, C, H, W).
            y: Labels (E, B).

        Returns:
            Loss and number of right answers of each expert, both (E,).
        """
        if len(thetas) == 1:  # autograd's own graph takes less time and half the memory of a functional transform
            theta = thetas[0].detach().requires_grad_()
            loss, right = self._one(self._logits, theta, x[0], y[0])
            grads = torch.autograd.grad(loss, theta)[0][None]
            loss, right = loss[None], right[None]
        elif self._only_alone:
            raise ValueError(
                "torch cannot train several networks with BatchNorm at once in mixed precision; "
                "use --experts_at_once 1 (auto does), or no mixed precision"
            )
        else:
            grads, loss, right = self._many(self._logits, thetas, x, y)
        if self.config.l2_teacher:
            grads = grads.add(thetas, alpha=self.config.l2_teacher)
        if velocities is not None:
            grads = velocities.mul_(self.config.mom_teacher).add_(grads)
        thetas.sub_(grads, alpha=self.config.lr_teacher)
        return loss.detach(), right

    def epoch(
        self,
        experts: Sequence[int],
        epoch: int,
        thetas: Tensor,
        velocities: Tensor | None = None,
        *,
        first: int = 0,
        sums: Tensor | None = None,
        look: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Train `thetas` (E, P) in place through epoch number `epoch`, from 1; nothing waits for the device.

        Args:
            experts: Their numbers.
            epoch: Its number.
            thetas, velocities: As in `step`.
            first: Steps of the epoch that are done.
            sums: (2, E) what `look` was given after them.
            look: Called after each step but the last, with how many are done and the sums of losses and of right
                answers over their images.

        Returns:
            Mean loss and accuracy over the epoch's augmented batches, both (E,) on the device.
        """
        streams = [(self.seed, "expert", expert) for expert in experts]
        count = len(self.images)
        orders = [torch.randperm(count, generator=generator(*stream, "order", epoch)) for stream in streams]
        draws = [generator(*stream, "dsa", epoch) for stream in streams]
        batches = upload(torch.stack(orders), self.images.rows_device).split(self.config.batch_train, dim=1)
        sums = thetas.new_zeros(2, len(experts)) if sums is None else sums.to(thetas, copy=True)
        for rows in batches[:first]:  # what was drawn for the steps that are done
            self._augmentations(rows, draws)
        for step, rows in enumerate(batches[first:], first + 1):  # (E, B)
            for following in batches[step : step + 1]:
                self.images.expect(following)
            loss, right = self._augmented_step(thetas, velocities, rows, draws)
            sums += torch.stack([loss * rows.shape[1], right.to(loss)])
            if look is not None and step < len(batches):
                look(step, sums)
        return sums[0] / count, sums[1] / count

    def _augmentations(self, rows: Tensor, draws: Sequence[torch.Generator]) -> list[DsaParams]:
        return [self.dsa.sample(rows.shape[1], draw, self.images.shape[1:]) for draw in draws]

    def _augmented_step(
        self, thetas: Tensor, velocities: Tensor | None, rows: Tensor, draws: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        x, y = self.images.take(rows)
        params = self._augmentations(rows, draws)
        x = DSA.apply_each(x.to(self.dtype).flatten(0, 1), params, [rows.shape[1]] * len(rows))
        return self.step(thetas, velocities, x.unflatten(0, rows.shape), y)

    @torch.no_grad()
    def accuracy(self, theta: Tensor, images: Pool) -> float:
        """Accuracy in [0, 1] of one expert `theta` (P,) on `images`, without augmentation."""
        right = torch.zeros((), device=theta.device, dtype=torch.int64)
        for rows, x in images.batches(self.config.batch_train):
            labels = images.labels[upload(rows, images.device)]
            right += (self.flat(theta, x.to(theta.dtype)).argmax(1) == labels).sum()
        return right.item() / len(images)

    def rate(self, size: int, steps: int | None = None) -> float:
        """Experts x steps per second of a group of `size`, measured on the device after a warm-up step."""
        thetas = self.init([0]).repeat(size, 1)
        velocities = torch.zeros_like(thetas) if self.config.mom_teacher else None

        shape = (size, min(self.config.batch_train, len(self.images)))
        rows = torch.randint(len(self.images), shape, generator=generator(0, "rate"))
        rows = upload(rows, self.images.rows_device)
        draws = [generator(0, "rate", number) for number in range(size)]

        def seconds(count: int) -> float:
            self._synchronize()
            start = time.perf_counter()
            for _ in range(count):
                self._augmented_step(thetas, velocities, rows, draws)
            self._synchronize()
            return time.perf_counter() - start

        seconds(1)
        # At least half a second, or three steps where one takes longer than that.
        steps = steps or max(3, math.ceil(0.5 / seconds(1)))
        return size * steps / seconds(steps)

    def _synchronize(self) -> None:
        if self.accelerator.device.type != "cpu":
            torch.accelerator.synchronize(self.accelerator.device)

    def fastest_group(self, limit: int) -> int:
        """The number of experts, up to `limit`, whose joint training gives the most experts x steps per second."""
        if limit <= 1 or self._only_alone:
            return 1
        rates: dict[int, float] = {}
        for size in [*(2**power for power in range((limit - 1).bit_length())), limit]:
            try:
                rates[size] = self.rate(size)
            except torch.OutOfMemoryError:
                logger.info("experts at once: %d do not fit in memory", size)
                break
            if rates[size] < max(rates.values()):
                break
        if not rates:
            raise ValueError("one expert does not fit in memory; lower --batch_train or use a smaller --student")
        best = max(rates, key=rates.__getitem__)
        measured = ", ".join(f"{size}: {rate:.1f}" for size, rate in rates.items())
        logger.info("experts at once: %d, by experts x steps per second (%s)", best, measured)
        return best


class _Folder:
    """The folder of experts in training: finished files, and in `unfinished/` a small file per expert and epoch."""

    def __init__(self, root: str | Path, training: dict[str, Any]) -> None:
        self.root, self.training = Path(root), training
        self.aside = self.root / UNFINISHED
        self.run, self.index = self.aside / "run.json", self.root / INDEX

    def expert(self, expert: int) -> Path:
        return self.root / EXPERT_FILE.format(expert)

    def row(self, expert: int, epoch: int) -> Path:
        return self.aside / f"expert-{expert:05d}-epoch-{epoch:05d}.safetensors"

    def measured(self, expert: int) -> Path:
        """Of the seconds that an expert with a file took, until they are in that of the folder."""
        return self.aside / f"making-{expert:05d}.json"

    def part(self, experts: Sequence[int], epoch: int) -> Path:
        """Of an epoch of `experts` that is not done."""
        return self.aside / f"experts-{experts[0]:05d}-{experts[-1]:05d}-epoch-{epoch:05d}.safetensors"

    def clear(self) -> None:
        """Remove the rows and what is known of their run, and nothing else that somebody keeps in `unfinished/`."""
        for path in (*self.aside.glob("expert*-epoch-*.safetensors"), *self.aside.glob("making-*.json"), self.run):
            path.unlink(missing_ok=True)
        if self.aside.is_dir() and not any(self.aside.iterdir()):
            self.aside.rmdir()

    def finished(self) -> list[Path]:
        return sorted(self.root.glob("expert-[0-9]*.safetensors"))

    def check_own(self) -> None:
        """Raise a `ValueError` where the folder holds something else."""
        if not self.finished() and not self.run.exists() and (self.root / "README.md").exists():
            raise ValueError(
                f"{self.root} has a README.md and no experts: it holds something else; give another folder"
            )

    def check(self, epochs: int) -> int:
        """The epochs that experts get here: `epochs`, or more where every expert of the folder has more.

        Raises:
            ValueError: The folder holds experts trained in another way.
        """
        finished = {path: TensorFile(path).metadata for path in self.finished()}
        for path, metadata in finished.items():
            check_same_run(path, metadata.get("training"), self.training)
        if self.run.exists():
            check_same_run(self.run, load_json(self.run).get("training"), self.training)
        return max(epochs, min((len(metadata["loss"]) for metadata in finished.values()), default=epochs))

    def epochs_stored(self, expert: int) -> int:
        """The last epoch in the file of `expert`; -1 without a file."""
        path = self.expert(expert)
        return len(TensorFile(path).metadata["loss"]) if path.exists() else -1

    def epochs_done(self, expert: int, stored: int) -> int:
        """The last epoch up to which every row is whole, from `stored` (-1 when even the initialisation lacks)."""
        done = stored
        while self._is_whole(self.row(expert, done + 1)):
            done += 1
        return done

    @staticmethod
    def _is_whole(row: Path) -> bool:
        """True where a row is there as it was written; one that is damaged is made again."""
        if not row.exists():
            return False
        try:
            file = TensorFile(row)
            for name in ("row", *(["velocity"] if "velocity" in file else [])):
                file.read(name)
        except ValueError as error:
            logger.warning("%s, which is done", error)
            return False
        return True

    def kept(self, part: Path, experts: Sequence[int]) -> tuple[dict[str, Tensor], int, float | None]:
        """The tensors in a `part`, how many steps of the epoch are done and in what time; none where it begins."""
        if not part.exists():
            return {}, 0, 0.0
        try:
            file = TensorFile(part)
            if file.metadata["experts"] != list(experts):
                return {}, 0, 0.0
            names = ("thetas", "sums", *(["velocities"] if "velocities" in file else []))
            return {name: file.read(name) for name in names}, file.metadata["step"], file.metadata.get("seconds")
        except ValueError as error:
            logger.warning("%s; the epoch begins anew", error)
            return {}, 0, 0.0

    def write(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Write a safetensors file aside, then rename it: a file that is there is whole."""
        aside = self.aside / path.name
        with self.writing(path):
            atomic_write(aside, tensor_file(tensors, metadata))
            if path != aside:
                os.replace(aside, path)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Say of an `OSError` (a full disk) what could not be written, what is whole, and what to do."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{path} could not be written ({error}); the experts and epochs written before it are whole. Make room "
                "on the disk, or check who may write there, and start the same command again to go on"
            ) from error


def _describe(
    real: RealImages, spec: StudentSpec, config: ExpertConfig, seed: int, accelerator: Accelerator
) -> dict[str, Any]:
    """Everything that decides the bytes of a trajectory, the coarsest first, as JSON types."""
    hyperparameters = ("lr_teacher", "mom_teacher", "l2_teacher", "batch_train", "dsa_strategy")
    return {
        "student": spec.to_dict(),
        **describe_images(real),
        "seed": seed,
        **{name: getattr(config, name) for name in hyperparameters},
        "expert_format": "float32",  # of the rows; version 0.1 had another one too
        **precision_of(accelerator),
        **({"compiled": backend} if (backend := backend_of(accelerator)) else {}),  # other last bits
    }


class _Progress:
    """Tells callbacks how far this process is with its experts; a step is an epoch of an expert."""

    def __init__(self, callbacks: Sequence[Callback], total: int, is_main_process: bool) -> None:
        self.callbacks = Callbacks(callbacks)
        self.state = RunState("experts", total=total, is_main_process=is_main_process, unit="epoch")
        self.callbacks.on_begin(self.state)

    def skip(self, epochs: int) -> None:
        """Count epochs that are there already."""
        done = self.state.done + epochs
        self.state = replace(self.state, step=done, done=done)

    def trained(self, losses: list[float], accuracies: list[float]) -> None:
        """Tell of an epoch of each expert of a group."""
        self.skip(len(losses))
        values = {"loss": float(np.mean(losses)), "accuracy": float(np.mean(accuracies))}
        self.state = replace(self.state, values=values)
        self.callbacks.on_step(self.state)

    def finished(self, file: Path, test_accuracy: float | None) -> None:
        """Tell of an expert whose file is written."""
        if test_accuracy is not None:
            self.callbacks.on_evaluate(replace(self.state, values={"accuracy": test_accuracy}))
        self.callbacks.on_save(replace(self.state, folder=file))

    def end(self) -> None:
        self.callbacks.on_end(self.state)


def _train_group(
    trainer: ExpertTrainer,
    folder: _Folder,
    experts: Sequence[int],
    stored: int,
    epochs: int,
    progress: _Progress,
    stop: Stop,
) -> None:
    """Train `experts` side by side from the last epoch that all of them have; a row that is made again is the same.

    Args:
        stored: The last epoch in the files of all of them, -1 without files.
        stop: Asked after each step; the part of the epoch that is done is kept then.

    Raises:
        KeyboardInterrupt: It was.
    """
    start = min(folder.epochs_done(expert, stored) for expert in experts)
    thetas, velocities = trainer.init(experts), None
    if trainer.config.mom_teacher:
        velocities = torch.zeros_like(thetas)
    if start > 0:
        in_file = start == stored
        files = [TensorFile(folder.expert(expert) if in_file else folder.row(expert, start)) for expert in experts]
        last = [file.read("params", start) if in_file else file.read("row") for file in files]
        thetas.copy_(torch.stack(last))
        if velocities is not None:
            velocities.copy_(torch.stack([file.read("velocity") for file in files]))
    progress.skip(max(start, 0) * len(experts))
    for epoch in range(max(start, -1) + 1, epochs + 1):
        loss = accuracy = [None] * len(experts)
        clock = Clock()
        if epoch > 0:
            loss, accuracy = _train_epoch(trainer, folder, experts, epoch, thetas, velocities, stop, clock)
            if not np.isfinite(loss).all():
                raise ValueError(f"the loss of an expert is not finite in epoch {epoch}; lower --lr_teacher")
        rows, speeds = thetas.cpu(), None if velocities is None else velocities.cpu()
        seconds = clock.keep()
        for index, expert in enumerate(experts):
            tensors = {"row": rows[index]} if speeds is None else {"row": rows[index], "velocity": speeds[index]}
            about = {"loss": loss[index], "accuracy": accuracy[index]}
            about["seconds"] = None if seconds is None else seconds / len(experts)
            folder.write(folder.row(expert, epoch), tensors, about)
        folder.part(experts, epoch).unlink(missing_ok=True)
        if epoch > 0:
            progress.trained(loss, accuracy)
        if stop.asked:
            stop.end()


def _train_epoch(
    trainer: ExpertTrainer,
    folder: _Folder,
    experts: Sequence[int],
    epoch: int,
    thetas: Tensor,
    velocities: Tensor | None,
    stop: Stop,
    clock: Clock,
) -> tuple[list[float], list[float]]:
    """Train `experts` in place through an epoch, or what lacks of it; the loss and the accuracy of each."""
    part = folder.part(experts, epoch)
    kept, first, seconds = folder.kept(part, experts)
    clock.go_on(seconds)
    if kept:
        thetas.copy_(kept["thetas"])
        if velocities is not None:
            velocities.copy_(kept["velocities"])

    def look(step: int, sums: Tensor) -> None:
        if stop.asked:
            tensors = {"thetas": thetas.cpu(), "sums": sums.cpu()}
            if velocities is not None:
                tensors["velocities"] = velocities.cpu()
            folder.write(part, tensors, {"experts": list(experts), "step": step, "seconds": clock.keep()})
            stop.end()

    losses, accuracies = trainer.epoch(
        experts, epoch, thetas, velocities, first=first, sums=kept.get("sums"), look=look
    )
    return losses.tolist(), accuracies.tolist()


def _finish(
    trainer: ExpertTrainer,
    folder: _Folder,
    expert: int,
    stored: int,
    epochs: int,
    at_once: int,
    test: Pool | None,
    progress: _Progress,
) -> None:
    """Assemble the rows of `expert` after epoch `stored` and its file, if any, into its file; drop the rows."""
    paths = [folder.row(expert, epoch) for epoch in range(stored + 1, epochs + 1)]
    files = [TensorFile(path) for path in paths]
    params = torch.stack([file.read("row") for file in files])  # (epochs - stored, P)
    history: dict[str, list[float]] = {"loss": [], "accuracy": []}
    if stored >= 0:
        file = TensorFile(folder.expert(expert))
        params = torch.cat([file.read("params"), params])
        history = {name: file.metadata[name] for name in history}
    tensors = {"params": params}
    if trainer.config.mom_teacher:  # with the last row all that training for longer needs
        tensors["velocity"] = files[-1].read("velocity")
    trained = [file.metadata for file in files if file.metadata["loss"] is not None]  # not the initialisation
    last = params[-1].to(trainer.accelerator.device)
    metadata = {
        "expert": expert,
        "training": folder.training,
        "names": trainer.flat.names,
        "shapes": trainer.flat.shapes,
        "experts_at_once": at_once,
        **{name: [*before, *(metadata[name] for metadata in trained)] for name, before in history.items()},
        "train_accuracy": trainer.accuracy(last, trainer.images),
        "test_accuracy": None if test is None else trainer.accuracy(last, test),
    }
    seconds = [file.metadata.get("seconds") for file in files]
    if stored >= 0:
        seconds.append(_seconds(folder, expert, stored))
    spent = sum(each for each in seconds if each is not None)
    measured = {"epochs": epochs, "seconds": None if None in seconds else spent}
    with folder.writing(folder.measured(expert)):
        save_json(folder.measured(expert), measured)  # before its rows go
    folder.write(folder.expert(expert), tensors, metadata)
    for path in paths:
        path.unlink()
    progress.finished(folder.expert(expert), metadata["test_accuracy"])


def _seconds(folder: _Folder, expert: int, epochs: int) -> float | None:
    """The seconds that the epochs in the file of an expert took; None where nobody measured them."""
    try:
        measured = load_json(folder.measured(expert))
    except ValueError:  # absent, or damaged
        measured = {}
    seconds = measured.get("seconds")
    if measured.get("epochs") == epochs:
        return seconds if is_number(seconds) else None
    work = read_making(folder.root / MAKING).get(f"expert {expert}")
    return None if work is None else work.seconds


class UntrainedExperts(ExpertTrajectories):
    """Experts that nobody has trained, as far as a rehearsal asks for them.

    Args:
        real: What they would be trained on.
        config: How.
        epochs: Of each.
    """

    def __init__(self, real: RealImages, config: ExpertConfig, epochs: int) -> None:
        spec = config.student_spec(real)
        about = {
            "student": spec.to_dict(),
            "class_names": real.class_names,
            "num_experts": min(config.num_experts, FEW),
            "num_epochs": epochs,
            "num_params": spec.num_params(),
            "training": {"dsa_strategy": config.dsa_strategy},
        }
        super().__init__(Path("untrained"), about)

    def check_matches(self, real: Any, spec: Any = None) -> None:
        """They match."""

    def row(self, expert: int, epoch: int) -> Tensor:
        """Numbers that no other epoch has, (P,)."""
        return torch.full((self.num_params,), float(epoch))

    def segment(self, expert: int, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Two rows."""
        return self.row(expert, start), self.row(expert, start + length)


def rehearse_experts(
    real: RealImages, config: ExpertConfig, epochs: int, seed: int, accelerator: Accelerator, ledger: Ledger
) -> tuple[list[Stage], dict[str, int]]:
    """What the training of experts holds and computes on the meta device, and the bytes of their files."""
    spec = config.student_spec(real)
    trainer = ExpertTrainer(real, spec, config, seed, accelerator)
    size = 1 if config.experts_at_once == "auto" else min(int(config.experts_at_once), config.num_experts)
    thetas = trainer.init(range(size))
    velocities = torch.zeros_like(thetas) if config.mom_teacher else None
    rows = torch.arange(min(config.batch_train, len(real))).expand(size, -1)
    ledger.forget()
    for _ in range(STEPS):
        trainer._augmented_step(thetas, velocities, rows, [generator(seed, number) for number in range(size)])
    flop, count = config.num_experts * epochs * len(real) * student_flop(spec), config.num_experts
    words = f"{count:,} experts of {epochs} epochs" + (", one at a time" if size == 1 else f", {size} at once")
    return [ledger.stage("experts", flop, words, parts=-(-count // size))], {
        "experts": count * (epochs + 1) * 4 * spec.num_params()
    }


def check_experts(config: ExpertConfig, train: Outline, accelerator: Accelerator) -> FlatModel:
    """The form of such experts; raises a `ValueError` for what `train_experts` would refuse, as far as it is known
    before an image is decoded."""
    if config.experts is not None:
        experts = ExpertTrajectories.from_pretrained(config.experts, revision=config.experts_revision)
        experts.check_matches(train, config.student_spec(train))
        return experts.flat_model()
    refuse_fp16(accelerator, "expert training")
    return FlatModel(check_student(config.student_spec(train)))


def train_experts(
    real: RealImages,
    config: ExpertConfig | None = None,
    directory: str | Path | None = None,
    *,
    epochs: int | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    disable_tqdm: bool = False,
    test: RealImages | None = None,
    callbacks: Sequence[Callback] = (),
) -> ExpertTrajectories:
    """Trained experts: those of `config.experts`, else those of `directory`, where what lacks is trained.

    Every process must call it, with `directory` on storage that they share; groups of experts are spread over them.
    What an interrupted run left is continued, and so are experts with fewer epochs. The bytes are the same with any
    number of processes, interrupted, continued or not, for the same experts at once (and the same device and threads).
    A second job on the same folder waits until the first has finished.

    Args:
        real: The images to train on.
        config: The network, and how its experts are trained. Without it: 10 experts of a three-block ConvNet.
        directory: For the experts. Without it: that of `experts_folder`, which is of these settings alone.
        epochs: The number of epochs to have. Without it: `config.expert_train_epochs`, or 50.
        seed: The one seed.
        accelerator: Processes and device; those of the launcher if not given.
        disable_tqdm: No progress bar.
        test: Images to report accuracy on.
        callbacks: Look on, in each process at its own experts: a step is an epoch of one, and `folder` is the file of
            one that is finished.

    Returns:
        All of `config.experts`; else the first `config.num_experts` experts x `epochs` epochs of `directory`, whatever
        else it holds.

    Raises:
        ValueError: What is there does not fit `real`, `config` or `epochs`; or a loss stops being finite.
        OSError: A file could not be written (a full disk); what was written before it is whole.
        KeyboardInterrupt: A recipe was asked to stop (SIGTERM, SIGUSR1): what is done of the epoch is kept.

    Example:
        >>> import hf_distill as hd
        >>> train = hd.RealImages.from_arguments(hd.DataArguments(max_train_samples=200))
        >>> config = hd.ExpertConfig(student="convnet_d1", student_width=8, num_experts=2, experts_at_once="2")
        >>> experts = hd.train_experts(train, config, epochs=3, disable_tqdm=True)
        >>> start, target = experts.segment(expert=0, start=1, length=2)
        >>> experts.num_experts, experts.num_epochs, start.shape == target.shape
        (2, 3, True)
    """
    accelerator, config = accelerator or make_accelerator(), config or ExpertConfig()
    spec, epochs = config.student_spec(real), epochs or config.expert_train_epochs or EPOCHS
    if config.experts is not None:
        experts = ExpertTrajectories.from_pretrained(config.experts, revision=config.experts_revision)
        experts.check_matches(real, spec)
        if experts.num_epochs < epochs:
            raise ValueError(
                f"--experts {config.experts} holds {experts.num_epochs} epochs, and this run needs {epochs}; "
                "use other experts, or read fewer epochs"
            )
        return experts
    directory = directory or experts_folder(real, config, seed)
    folder = _Folder(directory, _describe(real, spec, config, seed, accelerator))
    folder.check_own()
    with claimed(folder.root, accelerator, wait=True):
        _train_lacking(
            folder, real, spec, config, epochs, seed, accelerator, test, [ProgressBar(disable_tqdm), *callbacks]
        )
    accelerator.wait_for_everyone()
    return ExpertTrajectories.from_pretrained(folder.root).limited(config.num_experts, epochs)


def _train_lacking(
    folder: _Folder,
    real: RealImages,
    spec: StudentSpec,
    config: ExpertConfig,
    epochs: int,
    seed: int,
    accelerator: Accelerator,
    test: RealImages | None,
    callbacks: Sequence[Callback],
) -> None:
    """Bring every expert to `epochs` epochs and the index up to date, on all processes of the one job there is."""
    epochs = folder.check(epochs)
    stored = {expert: folder.epochs_stored(expert) for expert in range(config.num_experts)}
    lacking = {expert: last for expert, last in stored.items() if last < epochs}
    begun = load_json(folder.run)["experts_at_once"] if folder.run.exists() else None
    accelerator.wait_for_everyone()
    if lacking:
        trainer = ExpertTrainer(real, spec, config, seed, accelerator)
        tested = None if test is None else _pool(test, accelerator.device)
        at_once = _begin(trainer, folder, lacking, begun)
        groups = _groups(lacking, config.num_experts, at_once, accelerator)
        total = sum(len(group) for _, group in groups) * epochs
        progress = _Progress(callbacks, total, accelerator.is_main_process)
        try:
            with stopping() as stop:
                for last, group in groups:
                    _train_group(trainer, folder, group, last, epochs, progress, stop)
                    for expert in group:
                        _finish(trainer, folder, expert, last, epochs, at_once, tested, progress)
        finally:
            progress.end()
        # Files, not a barrier: a process with one group more may take longer than a collective is allowed to wait.
        while any(folder.epochs_stored(expert) < epochs for expert in lacking):
            time.sleep(0.5)
    if accelerator.is_main_process and (lacking or folder.run.exists() or not folder.index.exists()):
        with folder.writing(folder.index):
            _write_index(folder, real, accelerator.device, None if test is None else str(test.provenance["split"]))
        folder.clear()


def _begin(trainer: ExpertTrainer, folder: _Folder, lacking: dict[int, int], begun: int | None) -> int:
    """The number of experts to train at once, once the folder for their rows says it. All processes call it.

    Args:
        trainer: Measures how many are fastest, where nothing else decides.
        folder: Of the experts.
        lacking: The last epoch in the file of each expert that lacks some; -1 without a file.
        begun: The number of the run that left rows here, if any.
    """
    config, accelerator, at_once = trainer.config, trainer.accelerator, begun
    if accelerator.is_main_process:
        if begun is None:  # rows that do not say how they were trained are not continued
            with folder.writing(folder.root):
                folder.clear()
        if config.experts_at_once != "auto":
            at_once = int(config.experts_at_once)
        elif begun is None and min(lacking.values()) >= 0:  # only continued: as they were trained
            at_once = max(TensorFile(folder.expert(expert)).metadata["experts_at_once"] for expert in lacking)
        elif begun is None:
            at_once = trainer.fastest_group(math.ceil(config.num_experts / accelerator.num_processes))
        with folder.writing(folder.run):
            folder.aside.mkdir(parents=True, exist_ok=True)
            save_json(folder.run, {"training": folder.training, "experts_at_once": at_once})
    return broadcast_object_list([at_once])[0]


def _groups(
    lacking: dict[int, int], num_experts: int, at_once: int, accelerator: Accelerator
) -> list[tuple[int, list[int]]]:
    """The experts that this process trains, in groups of one last epoch, each with that epoch.

    Groups are in blocks of numbers, whatever the processes and whatever is there already: the neighbours of an expert
    decide how its sums are rounded, so they must not change when a run is continued elsewhere.
    """
    blocks = [range(first, first + at_once) for first in range(0, num_experts, at_once)]
    groups = [
        (last, [expert for expert in block if lacking.get(expert) == last])
        for block in blocks[accelerator.process_index :: accelerator.num_processes]
        for last in sorted(set(lacking.values()))
    ]
    return [(last, group) for last, group in groups if group]


def _write_index(folder: _Folder, real: RealImages, device: torch.device, test_split: str | None) -> None:
    """Write the card and, last, the index of a folder whose expert files are all there."""
    count = 0
    while folder.expert(count).exists():
        count += 1
    epochs = min(folder.epochs_stored(expert) for expert in range(count))
    shapes = TensorFile(folder.expert(0)).metadata["shapes"]
    training = dict(folder.training)
    spec = StudentSpec.from_dict(training["student"])
    config = {
        "format_version": FORMAT_VERSION,
        "num_experts": count,
        "num_epochs": epochs,
        "num_params": sum(math.prod(shape) for shape in shapes),
        "student": training.pop("student"),
        "class_names": training.pop("class_names"),
        "preprocessing": training.pop("preprocessing"),
        "source": real.provenance,
        "test_split": test_split,
        "training": training,
        "device": device_name(device),
        "versions": package_versions(),
    }
    per_epoch = math.ceil(len(real) / training["batch_train"]), len(real) * student_flop(spec)
    making: dict[str, Work | None] = {}
    for expert in range(count):
        done = folder.epochs_stored(expert)
        steps, flop = (done * each for each in per_epoch)
        making[f"expert {expert}"] = Work(steps, _seconds(folder, expert, done), config["device"], flop)
    # What the expert files say themselves is read in one place.
    experts = ExpertTrajectories(folder.root, config).limited(count, epochs)
    with experts._rewritten(folder.root):
        save_making(folder.root / MAKING, making)
        experts._write_about(folder.root, real.preprocessing, Home(folder.root.name))


def experts_folder(real: RealImages, config: ExpertConfig, seed: int) -> Path:
    """The folder that the experts of these settings have unless they are given another one; more of them, the same."""
    described = _describe(real, config.student_spec(real), config, seed, Accelerator())
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
    name = Path(str(real.provenance["name"])).name
    return Path("outputs", f"experts-{name}-{config.student}-{digest}")
