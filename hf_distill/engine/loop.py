"""`Distiller`: the one loop that every method runs in.

**`step` fills the gradients, the loop does the rest**: averages them over draws and processes, checks that they are
finite, updates, logs, selects the best step on held-out images, writes checkpoints and goes on from them.
"""

import copy
import dataclasses
import json
import logging
import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ..config import LoopConfig
from ..data.images import RealImages
from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import StoredLabels
from ..evaluation.evaluate import Pool, real_pool, validation_accuracy
from ..runs.checkpoints import (
    find_checkpoint,
    load_checkpoint,
    pack_optimizers,
    save_checkpoint,
    unpack_optimizers,
)
from ..runs.folder import check_same_run
from .method import FREE_TO_CHANGE, DistillationDiverged, Method

logger = logging.getLogger(__name__)

MOVE_LIMIT = 1e6  # of normalised pixel values: no image is anywhere near
LR_LIMIT = 100.0  # a learned learning rate that moved by this factor is diverging, not learning


@dataclass
class _Best:
    """The step that selection prefers so far, kept on the host."""

    step: int = 0
    accuracy: float = -1.0
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Distiller(Method):
    """Runs a method: gradients from `step`, everything else from here.

    A method gives `paper`, `config_class`, `setup` and `step`. One that does not fit overrides `distill` openly.

    Args:
        config: The hyper-parameters; `output_dir` must be given here (`runs.start.start_run` does).
        train: The images to distil.
        held_out: Part of train that nothing else sees, to select the best step on; without it the last one is kept.
        accelerator: Processes, device and trackers (`runs.start.start_run` makes one); a plain one if not given.
    """

    config: LoopConfig
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        config: LoopConfig,
        train: RealImages,
        *,
        held_out: RealImages | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        super().__init__(config, train, held_out=held_out, accelerator=accelerator)
        self.best = _Best()
        self.first_lr: float | None = None
        self._held_out_pool: Pool | None = None

    @abstractmethod
    def setup(self) -> DistilledSet:
        """The initial set on `self.device`; also makes `self.optimizer` and the frozen networks."""

    @abstractmethod
    def step(self, draw: int) -> dict[str, float]:
        """Add the gradient of one draw to the `.grad` of the set's parameters, and return what to log.

        Args:
            draw: The number that names everything random in this gradient. Processes and accumulation take
                different draws, so N processes compute what one process computes with N accumulation steps.

        Returns:
            At least "loss".
        """

    def distill(self) -> DistilledSet:
        """The distilled set, from the beginning or from `resume_from_checkpoint`. All processes call it.

        Raises:
            DistillationDiverged: The state before the step that failed is in a checkpoint, which the message names.
            ValueError: The checkpoint to resume from is absent, broken, or of another run.
        """
        config, accelerator = self.config, self.accelerator
        self.distilled = self.setup()
        self.distilled.config |= self._provenance()
        self.first_lr = None if self.distilled.lr is None else self.distilled.lr.item()
        start = self._resume()
        self.start_trackers()
        bar = tqdm(
            range(start, config.max_steps),
            desc=f"distil ({self.name})",
            initial=start,
            total=config.max_steps,
            disable=config.disable_tqdm or not accelerator.is_main_process,
        )
        for step in bar:
            if step == 0:
                self._select(0)
            logs = self._gradients(step)
            problem = self._update(logs)
            if problem:
                where = self._save(step)
                bar.close()
                raise DistillationDiverged(
                    f"step {step + 1} of {self.name}: {problem}. The state before it is in {where}. "
                    f"Lower the learning rates ({self._learning_rates()}), or use other expert segments"
                )
            bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
            done = step + 1
            if done % config.logging_steps == 0 or done == config.max_steps:
                if self.distilled.lr is not None:
                    logs["student_lr"] = self.distilled.lr.item()
                accelerator.log({f"train/{key}": value for key, value in logs.items()}, step=done)
            if done % config.eval_steps == 0 or done == config.max_steps:
                self._select(done)
            if done % config.save_steps == 0 or done == config.max_steps:
                self._save(done)
        keep_best = config.select == "best" and bool(self.best.tensors)
        if keep_best:
            self._restore(self.best.tensors)
            logger.info("keeping step %d, %.1f %% on held-out images", self.best.step, 100 * self.best.accuracy)
        self.relabel()
        self.distilled.config["selected_step"] = self.best.step if keep_best else config.max_steps
        self.end_trackers()
        return self.distilled

    # What the loop is made of

    def _gradients(self, step: int) -> dict[str, float]:
        """Fill `.grad` with the mean over accumulation steps and processes, and return the mean logs."""
        accelerator, count = self.accelerator, self.config.gradient_accumulation_steps
        world = accelerator.num_processes
        for parameter in self.distilled.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.zero_()
        first = (step * world + accelerator.process_index) * count
        found = [self.step(first + i) for i in range(count)]
        for parameter in self.distilled.parameters():
            if count > 1:
                parameter.grad.div_(count)
            if world > 1:
                parameter.grad.copy_(accelerator.reduce(parameter.grad, reduction="mean"))
        logs = {key: sum(logs[key] for logs in found) / count for key in found[0]}
        if world > 1:
            means = torch.tensor(list(logs.values()), dtype=torch.float64, device=self.device)
            logs = dict(zip(logs, accelerator.reduce(means, reduction="mean").tolist(), strict=True))
        return logs

    def _update(self, logs: dict[str, float]) -> str | None:
        """Take the step, or say in words why it must not be taken: then everything is as it was before."""
        reach = self._reach()
        if not (math.isfinite(logs["loss"]) and reach < MOVE_LIMIT):
            return f"the loss is {logs['loss']:.4g}, and its gradient would move a value by {reach:.4g}"
        log_lr, pixels = self.distilled.log_lr, self.distilled.pixel_values
        if log_lr is not None:
            # An optimizer passes over parameters without a gradient. The learning rate goes first, alone: undoing it
            # takes a copy of two numbers, undoing the pixels would take a copy of all of them.
            gradient, pixels.grad = pixels.grad, None
            before, momentum = log_lr.detach().clone(), copy.deepcopy(self.optimizer.state.get(log_lr))
            self.optimizer.step()
            pixels.grad, log_lr.grad = gradient, None
            lr = self.distilled.lr.item()
            if not 1 / LR_LIMIT < lr / self.first_lr < LR_LIMIT:
                with torch.no_grad():
                    log_lr.copy_(before)
                self.optimizer.state.pop(log_lr, None)
                if momentum is not None:
                    self.optimizer.state[log_lr] = momentum
                return f"the learned learning rate went from {self.first_lr:.4g} to {lr:.4g}"
        self.optimizer.step()
        return None

    def _reach(self) -> float:
        """How far the gradient alone moves the value that it moves most; NaN or infinite where the gradient is."""
        moves = [
            group["lr"] * torch.linalg.vector_norm(parameter.grad, math.inf).item()
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        ]
        return max(moves, key=lambda move: math.inf if math.isnan(move) else move)

    def _learning_rates(self) -> str:
        return ", ".join(f"--{key} {value:g}" for key, value in vars(self.config).items() if key.startswith("lr_"))

    def relabel(self) -> None:
        """Let the teacher, where there is one, label the images as they are now."""
        if self.distilled.teacher is None:
            return
        labels, pixels = self.distilled.labels, self.distilled.pixel_values.detach()
        logits = self.distilled.teacher(pixels, labels, torch.arange(len(labels), device=self.device))
        self.distilled.soft_labels = StoredLabels(logits).logits

    def _select(self, step: int) -> None:
        """Train students on the set as it is now, test them on held-out images, remember the set if it is the best."""
        if self.held_out is None or self.config.select == "last":
            return
        self.relabel()
        if self._held_out_pool is None:
            self._held_out_pool = real_pool(self.distilled, self.held_out, self.accelerator)
        accuracy = validation_accuracy(
            self.distilled,
            self._held_out_pool,
            self.protocol,
            self.config.eval_nets,
            self.config.seed,
            self.accelerator,
        )
        self.accelerator.log({"eval/accuracy": accuracy}, step=step)
        logger.info("step %d: %.1f %% on held-out images", step, 100 * accuracy)
        if accuracy > self.best.accuracy:
            tensors = {k: p.detach().cpu().clone() for k, p in self.distilled.named_parameters()}
            self.best = _Best(step, accuracy, tensors)

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        for key, parameter in self.distilled.named_parameters():
            parameter.copy_(tensors[key])

    # Checkpoints

    def _save(self, step: int) -> str:
        """Write `checkpoint-<step>`; all processes come here, the main one writes."""
        if self.accelerator.is_main_process:
            tensors = {f"set.{name}": parameter.detach() for name, parameter in self.distilled.named_parameters()}
            tensors |= pack_optimizers([self.optimizer])
            tensors |= {f"best.{name}": value for name, value in self.best.tensors.items()}
            state = {
                "step": step,
                "config": dataclasses.asdict(self.config),
                "draws_per_step": self._draws_per_step,
                "identity": self._identity(),
                "best_step": self.best.step,
                "best_accuracy": self.best.accuracy,
            }
            save_checkpoint(self.output_dir, tensors, state, self.config.save_total_limit)
        self.accelerator.wait_for_everyone()
        return f"{self.output_dir}/checkpoint-{step}"

    @property
    def _draws_per_step(self) -> int:
        return self.accelerator.num_processes * self.config.gradient_accumulation_steps

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued, as JSON types: the images and what is imitated."""
        config = self.distilled.config
        identity = {
            **self._data_identity(),
            **{key: config[key] for key in ("student", "dsa_strategy") if key in config},
            "experts": {key: value for key, value in config.get("experts", {}).items() if key != "source"},
        }
        return json.loads(json.dumps(identity))

    def _resume(self) -> int:
        """Load the checkpoint that the config asks for, and return the step to go on with."""
        if self.config.resume_from_checkpoint is None:
            return 0
        folder = find_checkpoint(self.output_dir, self.config.resume_from_checkpoint)
        if folder is None:
            logger.warning("%s holds no checkpoint yet; starting from the beginning", self.output_dir)
            return 0
        tensors, state = load_checkpoint(folder)
        self._check_continues(folder, tensors, state)
        parts: dict[str, dict[str, Tensor]] = {"set": {}, "best": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, name = key.split(".", 1)
            parts[part][name] = value
        self._restore(parts["set"])
        unpack_optimizers([self.optimizer], tensors)
        self.best = _Best(state["best_step"], state["best_accuracy"], parts["best"])
        logger.info("going on from %s", folder)
        return state["step"]

    def _check_continues(self, folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Raise unless the checkpoint is of this kind of run; say which settings differ, for they may on purpose."""
        for name, parameter in self.distilled.named_parameters():
            saved = tensors.get(f"set.{name}")
            if saved is None or saved.shape != parameter.shape:
                found = "nothing" if saved is None else tuple(saved.shape)
                raise ValueError(
                    f"{folder} holds {found} for {name} and this run has {tuple(parameter.shape)}; expected a "
                    "checkpoint of the same dataset, resolution and --ipc: use another --output_dir for another run"
                )
        check_same_run(folder, state["identity"], self._identity(), may_say_more=True)
        before, now = state["config"], json.loads(json.dumps(dataclasses.asdict(self.config)))
        changed = [
            f"{name} {before.get(name)} -> {value}"
            for name, value in now.items()
            if before.get(name) != value and name not in FREE_TO_CHANGE
        ]
        if state["draws_per_step"] != self._draws_per_step:
            changed.append(f"processes x accumulation {state['draws_per_step']} -> {self._draws_per_step}")
        if changed:
            logger.warning("going on with other settings than %s was made with: %s", folder, "; ".join(changed))
