"""`Distiller`: the one loop of methods that optimise the whole set at once.

**`step` fills the gradients, the loop does the rest**: averages them over draws and processes, checks that they are
finite, updates, logs, selects the best step on held-out images, writes checkpoints and goes on from them.
"""

import dataclasses
import json
import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor

from ..config import DistillConfig, LoopConfig
from ..data.images import RealImages
from ..data.upload import upload
from ..distilled.distilled_set import DistilledSet
from ..distilled.targets import targets_of
from ..evaluation.accuracy import device_name
from ..evaluation.costs import Costs
from ..evaluation.evaluate import Pool, own_cases, real_pool, validation_accuracy
from ..hub.making import Work
from ..networks.compiling import say_uncompiled
from ..runs.callbacks import RunState, Trackers
from ..runs.checkpoints import find_checkpoint, load_checkpoint, pack_optimizers, save_checkpoint, unpack_optimizers
from ..runs.clock import Clock
from ..runs.folder import check_same_run
from ..runs.processes import on_main
from ..runs.rehearsal import Ledger, Stage, rehearse_student
from ..runs.stopping import Stop, stopping
from .method import FREE_TO_CHANGE, DistillationDiverged, Method
from .rows import RowSGD

logger = logging.getLogger(__name__)

MOVE_LIMIT = 1e6  # of normalised pixel values: no image is anywhere near


@dataclass
class _Best:
    """The step that selection prefers so far, kept on the host."""

    step: int = 0
    accuracy: float = -1.0
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Distiller(Method):
    """Runs a method that optimises the whole set: gradients from `step`, everything else from here.

    A method gives `paper`, `config_class` (a `LoopConfig`), `setup` and `step`; what it learns beside the set is in
    `modules`. See `Method` for the arguments. Without held-out images the last step is kept.

    Example:
        >>> issubclass(hd.TESLA, hd.Distiller), issubclass(hd.SRe2L, hd.Distiller)
        (True, False)

    Attributes:
        optimizers: Made by `setup`; between them they hold the parameters of the set and of `modules`.
    """

    config: LoopConfig
    optimizers: list[torch.optim.Optimizer]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.best = _Best()
        self._held_out_pool: Pool | None = None
        self._selects = False  # in a rehearsal
        if self.config.select == "best" and self.held_out is None:
            logger.warning(
                "--select is best, and no training image is held out to choose by: the last step is kept; expected a "
                "--validation_fraction above 0, or --select last"
            )

    @classmethod
    def chosen_by_held_out(cls, config: DistillConfig) -> list[str]:
        """As `Method.chosen_by_held_out`; and the step that is kept."""
        best = isinstance(config, LoopConfig) and config.select == "best"
        return [*(["choose the step that is kept"] if best else []), *super().chosen_by_held_out(config)]

    @abstractmethod
    def setup(self) -> DistilledSet:
        """The initial set on `self.device`; also makes `self.optimizers` and what `modules` returns."""

    def ready(self) -> None:
        """Make what takes long and steps alone need, once nothing is left that a run could be refused for.

        All processes call it, unless no step is left to do; its time is none of the steps'.
        """

    @abstractmethod
    def step(self, draw: int) -> Mapping[str, float | Tensor]:
        """Add the gradient of one draw to the `.grad` of what is optimised, and return what to log.

        Args:
            draw: The number that names everything random in this gradient. Processes and accumulation take
                different draws, so N processes compute what one process computes with N accumulation steps.

        Returns:
            At least "loss": numbers, or scalars on the device, which are read together once the gradients are there.
        """

    def begin(self, step: int) -> None:
        """Called before the gradients of a step."""

    @property
    def draws_per_step(self) -> int:
        """The draws of all processes that a step is made of."""
        return self.accelerator.num_processes * self.config.gradient_accumulation_steps

    def draws(self, step: int) -> range:
        """The draws of this process in a step."""
        count = self.config.gradient_accumulation_steps
        first = step * self.draws_per_step + self.accelerator.process_index * count
        return range(first, first + count)

    def foreseen(self) -> dict[str, Tensor]:
        """Scalars for `objection`, known before the step: "reach", the way of the value that the gradient moves most.

        It is NaN or infinite where the gradient is.
        """
        largest = [
            group["lr"] * torch.linalg.vector_norm(gradient, math.inf)
            for optimizer in self.optimizers
            for group, gradients in self._gradients_of(optimizer)
            for gradient in gradients
        ]
        return {"reach": torch.stack(largest).amax()}

    def objection(self, values: dict[str, float]) -> str | None:
        """An objection to the step whose gradients are there, in words; None if there is none.

        Where there is something, the run ends with everything as it was before the step.

        Args:
            values: What `step` returned, averaged, and what is `foreseen`.
        """
        loss, reach = values["loss"], values["reach"]
        if math.isfinite(loss) and reach < MOVE_LIMIT:
            return None
        return f"the loss is {loss:.4g}, and its gradient would move a value by {reach:.4g}"

    def declines(self, values: dict[str, float]) -> bool:
        """True where the step whose gradients are there is left out, and everything stays as it was before it.

        Args:
            values: What `step` returned, averaged.
        """
        return False

    def current(self) -> DistilledSet:
        """The set as it is now, for whoever looks at it while the run goes on."""
        return self.distilled

    def constrain(self) -> None:
        """Bring what a step has just moved back to where it may be; all processes call it."""

    def upgraded(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint, as this version names and measures them where an older one wrote it."""
        return tensors

    def advice(self) -> str:
        """Advice for a run whose numbers diverged."""
        given = {key: value for key, value in vars(self.config).items() if key.startswith("lr_") and value is not None}
        rates = ", ".join(f"--{key} {value:g}" for key, value in given.items())
        return f"Lower the learning rates ({rates})"

    def observed(self) -> dict[str, float]:
        """Further values to log, read every `logging_steps` after the update."""
        return {}

    def rehearse(self, ledger: Ledger, held_out: RealImages, tested: RealImages) -> list[Stage]:
        """As `Method.rehearse`: the last iteration of the loop, and selection where there is any."""
        config, count = self.config, self.accelerator.num_processes
        self.distilled = self.setup()
        self.rehearse_ready()
        self.begin(max(config.max_steps - 1, 0))
        self._clear()
        for optimizer in self.optimizers:  # which have their state from then on
            optimizer.step()
        ledger.forget()
        before = ledger.flop
        self.rehearse_step()
        flop = (ledger.flop - before) * config.max_steps * count
        stages = [ledger.stage("distillation", flop, f"{config.max_steps:,} iterations")]
        self._selects = config.select == "best" and len(held_out) > 0
        if self._selects:
            ledger.forget()
            distilled = self._with_blank_labels(self.current())
            case = own_cases(distilled, self.protocol, config.eval_nets, self.device, self.students())[0]
            seen = real_pool(distilled, held_out, self.accelerator)
            density = rehearse_student(case, seen, self.accelerator, ledger)
            times = (1 + -(-config.max_steps // config.eval_steps)) * config.eval_nets
            flop = times * Costs(self.device).of(case).flop
            words = f"{times:,} students on held-out images"
            stages.append(ledger.stage("selection", flop, words, operations=density * flop, parts=config.eval_nets))
        self._with_blank_labels(self.distilled)
        return stages

    @staticmethod
    def _with_blank_labels(distilled: DistilledSet) -> DistilledSet:
        """The set, labelled as by `relabel`, with no network being asked."""
        if distilled.teacher is not None:
            shape = (len(distilled), distilled.num_classes)
            distilled.soft_labels = torch.empty(shape, dtype=torch.float16, device=distilled.labels.device)
        return distilled

    def rehearse_step(self) -> None:
        """The last step of the loop."""
        self._gradients(max(self.config.max_steps - 1, 0), Stop())
        for optimizer in self.optimizers:
            optimizer.step()
        self.constrain()

    def rehearse_ready(self) -> None:
        """As `ready`, on the meta device."""
        self.ready()

    def foreseen_files(self) -> dict[str, int]:
        """As `Method.foreseen_files`: the checkpoints that are kept, and the one that is being written."""
        config = self.config
        one = sum(tensor.nbytes for tensor in (*self._state().values(), *pack_optimizers(self.optimizers).values()))
        if self._selects:
            one += sum(tensor.nbytes for tensor in self._state().values())
        most = -(-config.max_steps // config.save_steps)
        kept = most if config.save_total_limit is None else min(most, config.save_total_limit + 1)
        return {f"checkpoints, {kept} at the worst moment": kept * one}

    def run(self) -> DistilledSet:
        """The distilled set, from the beginning or from `resume_from_checkpoint`. All processes call it.

        Raises:
            DistillationDiverged: The state before the step that failed is in a checkpoint, which the message names.
            KeyboardInterrupt: A recipe was asked to stop (SIGTERM, SIGUSR1): the state is in a checkpoint.
            ValueError: The checkpoint to resume from is absent, broken, or of another run.
        """
        config = self.config
        self.distilled = self.setup()
        self._clock = Clock(self.accelerator.num_processes)
        self._share_state()
        self.distilled.config |= self._provenance()
        start = self._resume()
        if start < config.max_steps:
            self.ready()
            self._clock.go_on(self._clock.kept)
        state = RunState(
            f"distil ({self.name})",
            step=start,
            done=start,
            total=config.max_steps,
            is_main_process=self.accelerator.is_main_process,
            look=self.current,
        )
        if start < config.max_steps and self.uncompiled is not None:
            say_uncompiled(self.accelerator, self.uncompiled)
        self.callbacks.on_begin(dataclasses.replace(state))
        try:
            with stopping() as stop:
                for step in range(start, config.max_steps):
                    self._advance(step, state, stop)
        finally:
            self.callbacks.on_end(dataclasses.replace(state))
        for optimizer in self.optimizers:
            if isinstance(optimizer, RowSGD):
                optimizer.settle()
        keep_best = config.select == "best" and bool(self.best.tensors)
        if keep_best:
            self._restore(self.best.tensors)
            logger.info("keeping step %d, %.1f %% on held-out images", self.best.step, 100 * self.best.accuracy)
        self.relabel(self.distilled)
        self.distilled.config["selected_step"] = self.best.step if keep_best else config.max_steps
        self.distilled.making = self._making(Work(config.max_steps, self._clock.kept, device_name(self.device)))
        return self.distilled

    # What the loop is made of

    def _advance(self, step: int, state: RunState, stop: Stop) -> None:
        """Everything that belongs to step number `step`, from 0; the end of the run where that is asked for."""
        config = self.config
        if step == 0:
            self._select(state)
            self.callbacks.on_images(dataclasses.replace(state, shown=state.step))
        logs, foreseen, stopped = self._gradients(step, stop)
        problem, declined = self.objection(logs | foreseen), self.declines(logs)
        if problem and not declined:
            self._save(state)
            raise DistillationDiverged(
                f"step {step + 1} of {self.name}: {problem}. The state before it is in {state.folder}. {self.advice()}"
            )
        if not declined:
            for optimizer in self.optimizers:
                optimizer.step()
            self.constrain()
        state.step = state.done = step + 1
        state.values = logs | (self.observed() if self._due(config.logging_steps, state) else {})
        self.callbacks.on_step(dataclasses.replace(state))
        if self._due(config.eval_steps, state):
            self._select(state)
        if self._due(config.look_steps, state):
            self.callbacks.on_images(dataclasses.replace(state, shown=state.step))
        if stopped or self._due(config.save_steps, state):
            self._save(state)
        if stopped:
            stop.end()

    @staticmethod
    def _due(every: int, state: RunState) -> bool:
        """True in one of every so many steps, and in the last one."""
        return state.step % every == 0 or state.step == state.total

    def _trackers(self) -> Trackers:
        return Trackers(self.accelerator, self.config, self.config.logging_steps)

    @staticmethod
    def _gradients_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
        """The gradients of each group of parameters, which a step averages and an optimizer steps along."""
        for group in optimizer.param_groups:
            if isinstance(optimizer, RowSGD):
                yield group, [optimizer.gradient]
            else:
                yield group, [parameter.grad for parameter in group["params"]]

    def _clear(self) -> None:
        """Let all that is learned have a gradient of zero, as the rows of a `RowSGD` that has begun have."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, RowSGD):
                continue
            optimizer.zero_grad(set_to_none=False)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)

    @torch.no_grad()
    def _share_state(self) -> None:
        """Give all processes the `modules` of the main one: they may have been initialised without a seed."""
        if self.accelerator.num_processes > 1:
            for module in self.modules().values():
                for tensor in module.state_dict().values():
                    tensor.copy_(broadcast(tensor.clone()))

    @torch.no_grad()
    def _average_buffers(self) -> None:
        """Make buffers of `modules`, such as running statistics, the mean over processes, which saw different data."""
        if self.accelerator.num_processes > 1:
            for module in self.modules().values():
                for buffer in module.buffers():
                    if buffer.is_floating_point():
                        buffer.copy_(self.accelerator.reduce(buffer, reduction="mean"))

    def _gradients(self, step: int, stop: Stop) -> tuple[dict[str, float], dict[str, float], bool]:
        """Fill the gradients with the mean over accumulation steps and processes.

        Returns:
            The mean logs; what is `foreseen`; and whether any process was asked to stop, which all learn at the same
            step. Of a device, it is here alone that the host waits for numbers.
        """
        accelerator, world = self.accelerator, self.accelerator.num_processes
        own = self.draws(step)
        self.begin(step)
        self._clear()
        each = [self.step(draw) for draw in own]
        for optimizer in self.optimizers:
            for _, gradients in self._gradients_of(optimizer):  # a step may have put others in their place
                for gradient in gradients:
                    if len(own) > 1:
                        gradient.div_(len(own))
                    if world > 1:
                        gradient.copy_(accelerator.reduce(gradient, reduction="mean"))
        means = {key: sum(logs[key] for logs in each) / len(each) for key in each[0]}
        if world > 1:
            means["asked to stop"] = float(stop.asked)
            known = [key for key, value in means.items() if not isinstance(value, Tensor)]
            numbers = upload(torch.tensor([means[key] for key in known], dtype=torch.float64), self.device)
            means |= dict(zip(known, numbers, strict=True))
            together = accelerator.reduce(torch.stack([value.double() for value in means.values()]), reduction="mean")
            means = dict(zip(means, together, strict=True))
        foreseen = self.foreseen()
        waited_for = [value.double() for value in (*means.values(), *foreseen.values()) if isinstance(value, Tensor)]
        found = iter(torch.stack(waited_for).tolist())
        logs = {key: next(found) if isinstance(value, Tensor) else value for key, value in means.items()}
        stopped = logs.pop("asked to stop") > 0 if world > 1 else stop.asked
        return logs, dict(zip(foreseen, found, strict=True)), stopped

    def relabel(self, distilled: DistilledSet) -> None:
        """Let the teacher, where there is one, label the images."""
        if distilled.teacher is not None:
            pool = Pool(distilled.pixel_values, distilled.labels, device=self.device)
            distilled.soft_labels = targets_of(pool, distilled.teacher)

    def _select(self, state: RunState) -> None:
        """Train students on the set as it is now, test them on held-out images, remember the set if it is the best."""
        if self.held_out is None or self.config.select == "last":
            return
        self._average_buffers()
        distilled = self.current()
        self.relabel(distilled)
        if distilled.teacher is not None:
            self.distilled.soft_labels = distilled.soft_labels  # which whoever looks at this step sees
        if self._held_out_pool is None:
            self._held_out_pool = real_pool(distilled, self.held_out, self.accelerator)
        accuracy = validation_accuracy(
            distilled,
            self._held_out_pool,
            self.protocol,
            self.config.eval_nets,
            self.config.seed,
            self.accelerator,
            self.students(),
        )
        logger.info("step %d: %.1f %% on held-out images", state.step, 100 * accuracy)
        if accuracy > self.best.accuracy:
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in self._state(distilled).items()}
            self.best = _Best(state.step, accuracy, tensors)
        self.callbacks.on_evaluate(dataclasses.replace(state, values={"accuracy": accuracy}))

    # Checkpoints

    def _state(self, distilled: DistilledSet | None = None) -> dict[str, Tensor]:
        """All tensors that are learned or kept beside, by name; those of `modules` as module.<name>.<tensor>."""
        tensors: dict[str, Tensor] = dict((distilled or self.distilled).named_parameters())
        for name, module in self.modules().items():
            tensors |= {f"module.{name}.{key}": tensor for key, tensor in module.state_dict().items()}
        return tensors

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self._state().items():
            tensor.copy_(tensors[name])

    def _save(self, state: RunState) -> None:
        """Write `checkpoint-<step>`; all processes come here, the main one writes."""
        self._average_buffers()
        state.folder = self.output_dir / f"checkpoint-{state.step}"
        if self.accelerator.is_main_process:
            tensors = {f"set.{name}": tensor.detach() for name, tensor in self._state().items()}
            tensors |= pack_optimizers(self.optimizers)
            tensors |= {f"best.{name}": value for name, value in self.best.tensors.items()}
            about = {
                "step": state.step,
                "config": dataclasses.asdict(self.config),
                "draws_per_step": self.draws_per_step,
                "identity": self._identity(),
                "best_step": self.best.step,
                "best_accuracy": self.best.accuracy,
                "seconds": self._clock.keep(),
            }
            save_checkpoint(self.output_dir, tensors, about, self.config.save_total_limit)
        self.accelerator.wait_for_everyone()
        self.callbacks.on_save(dataclasses.replace(state))

    def _resume(self) -> int:
        """Load the checkpoint that the config asks for, and return the step to go on with."""
        resume = self.config.resume_from_checkpoint
        if resume is None:
            return 0
        folder = on_main(self.accelerator, lambda: find_checkpoint(self.output_dir, resume))
        if folder is None:
            logger.warning("%s holds no checkpoint yet; starting from the beginning", self.output_dir)
            return 0
        tensors, about = load_checkpoint(folder)
        tensors = self.upgraded(tensors)
        self._check_continues(folder, tensors, about)
        parts: dict[str, dict[str, Tensor]] = {"set": {}, "best": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, name = key.split(".", 1)
            parts[part][name] = value
        self._restore(parts["set"])
        try:
            unpack_optimizers(self.optimizers, tensors)
        except ValueError as error:
            raise ValueError(f"{folder} cannot be gone on with: {error}; resume from another one") from error
        self.best = _Best(about["best_step"], about["best_accuracy"], parts["best"])
        self._clock.go_on(about.get("seconds"))  # which version 0.1 did not measure
        logger.info("going on from %s", folder)
        return about["step"]

    @staticmethod
    def _needs(name: str) -> str:
        """The settings that decide about a learned tensor, for messages."""
        if name.startswith("module."):
            return f"the settings that {name.split('.')[1]!r} is learned with"
        if name == "soft_labels":
            return "a run that learns labels, as --label says"
        return "the same dataset, resolution and --ipc"

    def _check_continues(self, folder: Any, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Raise unless the checkpoint is of this kind of run; say which settings differ, for they may on purpose."""
        for name, tensor in self._state().items():
            saved = tensors.get(f"set.{name}")
            if saved is None or saved.shape != tensor.shape:
                there = "nothing" if saved is None else tuple(saved.shape)
                raise ValueError(
                    f"{folder} holds {there} for {name} and this run has {tuple(tensor.shape)}; expected a checkpoint "
                    f"of {self._needs(name)}: use another --output_dir for another run"
                )
        known = {f"set.{name}" for name in self._state()}
        for key in tensors:
            if key.startswith("set.") and key not in known:
                name = key.removeprefix("set.")
                raise ValueError(
                    f"{folder} holds {name}, which this run does not learn; expected {self._needs(name)}: use another "
                    "--output_dir for another run"
                )
        check_same_run(folder, about["identity"], self._identity())
        if about["step"] > self.config.max_steps:
            raise ValueError(
                f"{folder} is of step {about['step']} and --max_steps is {self.config.max_steps}; expected no fewer"
            )
        # What the checkpoint does not say came later, and is as before where it is not asked for.
        defaults = {field.name: field.default for field in dataclasses.fields(self.config)}
        before, now = about["config"], json.loads(json.dumps(dataclasses.asdict(self.config)))
        changed = [
            f"{name} {before.get(name)} -> {value}"
            for name, value in now.items()
            if before.get(name, defaults.get(name)) != value and name not in FREE_TO_CHANGE
        ]
        if about["draws_per_step"] != self.draws_per_step:
            changed.append(f"processes x accumulation {about['draws_per_step']} -> {self.draws_per_step}")
        if changed:
            logger.warning("going on with other settings than %s was made with: %s", folder, "; ".join(changed))
