"""What a run will take: memory, disk, downloads, FLOP and hours, before anything is trained or written.

A method is rehearsed on the meta device (`runs.rehearsal`): its own code takes a step or two at the real shapes, so
that no second account of it can be wrong. Hours are FLOP by a rate, and operations by the time that one takes however
little it computes: both of a network of the run on the device at hand, measured for seconds; or a rate that is given.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ..config import DataArguments, DistillConfig, HfArg, check_choice
from ..data.outlines import Outlines, outlines_of
from ..evaluation.accuracy import device_name
from ..evaluation.costs import student_flop
from ..hub.cards import human_bytes, human_flop, human_seconds
from ..networks.architectures import StudentSpec
from ..networks.compiling import in_precision
from ..networks.probes import ProbeSpec
from ..runs.processes import make_accelerator
from ..runs.rehearsal import REAL, Ledger, Stage
from .memory import parse_bytes

if TYPE_CHECKING:
    from ..data.images import RealImages
    from .method import Method

__all__ = ["Machine", "Plan", "PlanArguments", "fastest", "plan", "print_plan", "rate_of", "show"]

TIGHT = 0.9  # of the memory of a device: beyond, convolutions and the device's context may lack room
SECONDS = 2.0  # that measuring a rate takes at most, about
KINDS = ("text", "json")


@dataclass
class PlanArguments:
    """What to say of a run in place of running it."""

    plan: str | None = HfArg(
        default=None,
        metadata={"nargs": "?", "const": "text"},
        help="Say what memory, disk, downloads, FLOP and hours this takes, and end before anything is written; `json` "
        "for programs. The exit status is 1 where it will not fit.",
    )
    plan_memory: str | None = HfArg(
        default=None, help="Plan for a device of so much memory, such as 24GB. Without it: the one at hand."
    )
    plan_rate: float | None = HfArg(
        default=None, help="Plan for a device of so many TFLOP/s. Without it: measured for seconds on the one at hand."
    )
    plan_images: list[int] | None = HfArg(
        default=None, help="Plan for so many images to train on, and to test on, of a dataset that is not here."
    )
    plan_classes: int | None = HfArg(default=None, help="Plan for so many classes of them.")

    def outlines(self, data: DataArguments) -> Outlines:
        """What is known of the images."""
        return outlines_of(data, self.plan_images, self.plan_classes)

    def machine(self, accelerator: Accelerator, folder: str | Path | None) -> "Machine":
        """What there is, or is said to be."""
        return Machine.here(accelerator.device, folder, memory=self.plan_memory, rate=self.plan_rate)

    def __post_init__(self) -> None:
        if self.plan is not None:
            check_choice("plan", self.plan, KINDS)
        if self.plan_memory is not None:
            parse_bytes("plan_memory", self.plan_memory)
        if self.plan_rate is not None and not 0 < self.plan_rate < 1e6:
            raise ValueError(f"--plan_rate is {self.plan_rate}; expected TFLOP/s above 0, such as 20")
        given = [name for name, value in vars(self).items() if name != "plan" and value is not None]
        if given and self.plan is None:
            raise ValueError(f"--{given[0]} is given without --plan, so nothing would be planned; add it")


@dataclass(frozen=True)
class Machine:
    """What there is for a run.

    Attributes:
        name: Of the device.
        memory: Bytes of the device; None where it has no memory but that of the host.
        host: Bytes of the host.
        disk: Free bytes.
        rate: FLOP in a second; None to measure it.
        operation: Seconds of an operation beside its FLOP.
    """

    name: str
    memory: int | None
    host: int
    disk: int
    rate: float | None = None
    operation: float = 0.0

    @classmethod
    def here(
        cls, device: torch.device, folder: str | Path | None, *, memory: str | None = None, rate: float | None = None
    ) -> "Machine":
        """This one, or another as far as it is said.

        Args:
            device: To compute on.
            folder: Where the run is to be written.
            memory: Of another device, as `--plan_memory`.
            rate: TFLOP/s, as `--plan_rate`.
        """
        place = Path(folder or ".").absolute()
        place = next(each for each in (place, *place.parents) if each.exists())
        has = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
        name = device_name(device)
        if memory is not None:
            has, name = parse_bytes("plan_memory", memory), f"a device of {memory}"
        known = None if rate is None else rate * 1e12
        return cls(name, has, psutil.virtual_memory().total, shutil.disk_usage(place).free, known)


@dataclass(frozen=True)
class Plan:
    """What a run will take; as a text, a report.

    Example:
        >>> plan = hd.DM.plan(train, ipc=1, student="convnet_d1", max_steps=10)
        >>> [stage.name for stage in plan.stages], plan.misfits
        (['distillation', 'selection', 'evaluation'], [])

    Attributes:
        title: The method and its images, in words.
        stages: The parts of the run, in order.
        host: Bytes of the host's memory at the peak, by what they are.
        disk: Bytes on the disk at the worst moment, by what they are.
        downloads: Bytes to fetch, by what they are; None where nobody knows.
        machine: What there is.
        rate_from: Where the rate comes from, in words.
        processes: How many share the work.
        advice: What would take less, and how much.
        notes: What else there is to know.
    """

    title: str
    stages: list[Stage]
    host: dict[str, int]
    disk: dict[str, int]
    downloads: dict[str, int | None]
    machine: Machine
    rate_from: str = ""
    processes: int = 1
    advice: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Bytes of the device, at the peak of the largest stage."""
        return max((stage.peak for stage in self.stages), default=0)

    @property
    def flop(self) -> float:
        """FLOP of all stages, of all processes."""
        return sum(stage.flop for stage in self.stages)

    def seconds(self, stage: Stage) -> float:
        """How long a stage takes, by the rate and what operations take beside."""
        computed = stage.flop / (self.machine.rate or 1.0) + stage.operations * self.machine.operation
        return computed / max(1, min(self.processes, stage.parts or self.processes))

    @property
    def hours(self) -> float:
        """Of all stages."""
        return sum(map(self.seconds, self.stages)) / 3600

    @property
    def misfits(self) -> list[str]:
        """What there is not enough of, in words; nothing where the run fits."""
        machine, host, disk = self.machine, sum(self.host.values()), sum(self.disk.values())
        # Real images are kept on the device where they leave room.
        needed = max((stage.peak - stage.memory.get(REAL, 0) for stage in self.stages), default=0)
        if machine.memory is None:
            wanted = [("memory", (needed + host) * self.processes, machine.host)]
        else:
            wanted = [("device memory", needed, machine.memory), ("host memory", host * self.processes, machine.host)]
        wanted.append(("disk", disk, machine.disk))
        return [
            f"{what}: {human_bytes(int(size))} of {human_bytes(there)}" for what, size, there in wanted if size > there
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON types."""
        stages = [{**asdict(each), "peak": each.peak, "seconds": self.seconds(each)} for each in self.stages]
        known = {"peak": self.peak, "flop": self.flop, "hours": self.hours, "misfits": self.misfits}
        return {**asdict(self), "stages": stages, **known}

    def __str__(self) -> str:
        machine, largest = self.machine, max(self.stages, key=lambda stage: stage.peak, default=None)
        lines = [self.title, "", *self._stages()]
        if largest is not None and largest.memory:
            there = "" if machine.memory is None else f" of {human_bytes(machine.memory)}"
            lines += ["", f"device memory{there}, at the peak of the {largest.name}", *_sizes(largest.memory)]
        for title, sizes, there in (("host memory", self.host, machine.host), ("disk", self.disk, machine.disk)):
            free = " that are free" if title == "disk" else ""
            lines += ["", f"{title}, of {human_bytes(there)}{free}", *_sizes(sizes)]
        if self.downloads:
            lines += ["", "downloads", *_sizes(self.downloads, total=False)]
        lines += [""] * bool(self.notes or self.advice) + [f"- {each}" for each in (*self.notes, *self.advice)]
        verdict = f"This will not fit: {'; '.join(self.misfits)}" if self.misfits else "This fits."
        return "\n".join([*lines, "", verdict])

    def _stages(self) -> Iterator[str]:
        rows = [
            (
                stage.name,
                human_bytes(stage.peak),
                human_flop(int(stage.flop)),
                human_seconds(self.seconds(stage)),
                stage.times,
            )
            for stage in self.stages
        ]
        total = human_seconds(3600 * self.hours)
        rows = [
            ("", "device memory", "FLOP", "time", ""),
            *rows,
            ("the run", human_bytes(self.peak), human_flop(int(self.flop)), total, ""),
        ]
        first = max(len(row[0]) for row in rows)
        for name, memory, flop, seconds, times in rows:
            yield f"{name:{first}}  {memory:>13}  {flop:>10}  {seconds:>10}  {times}".rstrip()
        beside = f" and {1e6 * self.machine.operation:.1f} us an operation" if self.machine.operation else ""
        yield f"time at {human_flop(int(self.machine.rate or 0))}/s{beside}: {self.rate_from}"


def _sizes(sizes: dict[str, Any], *, total: bool = True) -> list[str]:
    known = sorted(sizes.items(), key=lambda item: -(item[1] or 0))
    if total and len(known) > 1:
        known.append(("together", sum(size for _, size in known)))
    width = max((len(name) for name, _ in known), default=0)
    return [f"  {name:{width}}  {'not known' if size is None else human_bytes(int(size)):>10}" for name, size in known]


def rate_of(spec: StudentSpec, accelerator: Accelerator) -> tuple[float, float, str]:
    """What a network in training reaches on the device, in the precision of the launcher, in seconds of measuring.

    Batches grow until one takes long enough to be measured. What the smallest takes beyond its FLOP is shared out among
    its operations.

    Returns:
        FLOP in a second; seconds of an operation beside its FLOP; and what was measured, in words.
    """
    device, bf16 = accelerator.device, accelerator.mixed_precision == "bf16"
    where = device_name(device) + " in bf16" * bf16
    if isinstance(spec, ProbeSpec):  # whose backbone may have to be fetched
        spec = StudentSpec("convnet_d2", spec.num_classes, spec.in_chans, spec.img_size, {"width": 64})
    model, each = spec.build(0).to(device).train(), student_flop(spec)
    look = in_precision(model, accelerator)
    rate, count, spent, first = 0.0, 4, 0.0, 0.0
    while count <= 256 and spent < SECONDS / 4:
        begun = time.perf_counter()
        try:
            taken = fastest(partial(_train, look, spec, count, device), device)
        except torch.OutOfMemoryError:  # of a device that others use, or that such batches do not fit
            if not rate:
                raise ValueError(
                    f"--plan measures a rate with {count} images of {spec.name}, which the device has no room for; "
                    "give the rate with --plan_rate"
                ) from None
            break
        rate, first, count = max(rate, each * count / taken), first or taken, count * 4
        spent = time.perf_counter() - begun
    with Ledger(device.type) as ledger:
        _train(look, spec, 4, device)
    operation = max(0.0, first - 4 * each / rate) / ledger.operations
    return rate, operation, f"{spec.name} in training, measured on {where}"


def _train(look: Callable[..., Tensor], spec: StudentSpec, count: int, device: torch.device) -> None:
    """A step's forward and backward pass of so many images."""
    x = torch.zeros(count, spec.in_chans, *spec.img_size, device=device)
    F.cross_entropy(look(x), torch.zeros(count, device=device).long()).backward()


def fastest(work: Callable[[], object], device: torch.device, tries: int = 2) -> float:
    """Seconds of the fastest of some tries, after one that does not count; a GPU is waited for."""
    taken = []
    for _ in range(tries + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return max(min(taken[1:]), 1e-6)


def print_plan(
    method: type["Method"],
    asked: PlanArguments,
    data: DataArguments,
    config: DistillConfig,
    networks: Sequence[Any] = (),
) -> None:
    """What a method's recipe does for `--plan`: the report, on the main process.

    Raises:
        ValueError: The run will not fit; or as `Method.plan`.
    """
    accelerator = make_accelerator(**config.for_processes)
    plan = method.foresee(
        data, config, networks, asked.outlines(data), accelerator, asked.machine(accelerator, config.output_dir)
    )
    show(plan, asked, accelerator)


def show(plan: Plan, asked: PlanArguments, accelerator: Accelerator) -> None:
    """Print a plan on the main process; a `ValueError` of one line where it will not fit."""
    accelerator.print(json.dumps(plan.to_json(), indent=1, default=str) if asked.plan == "json" else str(plan))
    if plan.misfits:
        raise ValueError(f"this will not fit: {'; '.join(plan.misfits)}")


def plan(method: type["Method"], train: "RealImages | Outlines | None" = None, **settings: Any) -> Plan:
    """As `method.plan(train, **settings)`: what distilling with a method takes, before it begins.

    Example:
        >>> plan = hd.plan(hd.DM, train, ipc=2, student="convnet_d1", max_steps=10, select="last")
        >>> [stage.name for stage in plan.stages], plan.peak > 20 * 8 * 8 * 4
        (['distillation', 'evaluation'], True)
    """
    return method.plan(train, **settings)
