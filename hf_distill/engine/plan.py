"""What a run will take: memory, disk, downloads, FLOP and hours, before anything is trained, fetched or decoded.

A method is rehearsed on the meta device (`runs.rehearsal`): its own code takes a step or two at the real shapes, so
that no second account of it can be wrong. Hours are FLOP by a rate: that of a network of the run on the device at hand,
measured for seconds, or one that is assumed.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ..config import ALL, BASELINES, DataArguments, DistillConfig, HfArg, check_choice
from ..data.images import RealImages
from ..data.outlines import Outlines, outlines_of
from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import HardLabels
from ..evaluation.accuracy import device_name
from ..evaluation.costs import Costs, student_flop
from ..evaluation.evaluate import own_cases, real_pool
from ..evaluation.protocols import PROTOCOLS, ProbeProtocol, TrainingProtocol
from ..evaluation.trainer import Case
from ..hub.cards import human_bytes, human_flop, human_seconds
from ..networks.architectures import StudentSpec
from ..networks.probes import ProbeSpec
from ..runs.processes import make_accelerator
from ..runs.rehearsal import GRAPH, META, REAL, Elsewhere, Ledger, Stage, rehearse_student, unseen
from .memory import parse_bytes

if TYPE_CHECKING:
    from .method import Method, Preparation

__all__ = ["Machine", "Plan", "PlanArguments", "foresee", "print_plan", "rate_of"]

TIGHT = 0.9  # of the memory of a device: beyond, convolutions and the device's context may lack room
SMALL = 90_000  # bytes of a set's card, configuration and pictures
SECONDS = 2.0  # that measuring a rate takes at most, about
HALF = 0.5  # of the bytes of a graph in float32, in bfloat16
KINDS = ("text", "json")


@dataclass
class PlanArguments:
    """What to say of a run in place of running it."""

    plan: str | None = HfArg(
        default=None,
        metadata={"nargs": "?", "const": "text"},
        help="Say what memory, disk, downloads, FLOP and hours this takes, and end before anything is written; json for "
        "programs. The exit status is 1 where it will not fit.",
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
    """

    name: str
    memory: int | None
    host: int
    disk: int
    rate: float | None = None

    @classmethod
    def here(cls, device: torch.device, folder: str | Path | None, *, memory: str | None = None,
             rate: float | None = None) -> "Machine":
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
        """FLOP of all stages."""
        return sum(stage.flop for stage in self.stages)

    def seconds(self, stage: Stage) -> float:
        """How long a stage takes, by the rate."""
        return stage.flop / (self.machine.rate or 1.0) / (self.processes if stage.shared else 1)

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
            wanted = [("memory", needed + host * self.processes, machine.host)]
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
            (stage.name, human_bytes(stage.peak), human_flop(int(stage.flop)), human_seconds(self.seconds(stage)),
             stage.times)
            for stage in self.stages
        ]
        total = human_seconds(3600 * self.hours)
        rows = [("", "device memory", "FLOP", "time", ""), *rows,
                ("the run", human_bytes(self.peak), human_flop(int(self.flop)), total, "")]
        first = max(len(row[0]) for row in rows)
        for name, memory, flop, seconds, times in rows:
            yield f"{name:{first}}  {memory:>13}  {flop:>10}  {seconds:>10}  {times}".rstrip()
        yield f"time by {self.rate_from}"


def _sizes(sizes: dict[str, Any], *, total: bool = True) -> list[str]:
    known = sorted(sizes.items(), key=lambda item: -(item[1] or 0))
    if total and len(known) > 1:
        known.append(("together", sum(size for _, size in known)))
    width = max((len(name) for name, _ in known), default=0)
    return [f"  {name:{width}}  {'not known' if size is None else human_bytes(int(size)):>10}" for name, size in known]


def foresee(
    method: type["Method"],
    data: DataArguments,
    having: "Preparation",
    outlines: Outlines,
    accelerator: Accelerator,
    machine: Machine | None = None,
) -> Plan:
    """The plan of a run of `method`; all processes may call it, and none waits.

    Args:
        method: Its class.
        data: How the images are read.
        having: All that `Method.learn` would have, with images that are `unseen` and an accelerator `Elsewhere`.
        outlines: What is known of the images.
        accelerator: Processes and device.
        machine: What there is; the device at hand if not given.
    """
    config, networks, real = having.config, having.networks, having.train
    machine = machine or Machine.here(accelerator.device, config.output_dir)
    held_out, tested = (unseen(outlines.train, counts) for counts in (outlines.held_out, outlines.test))
    named = method.fetched(config, networks)
    method.check(config, outlines.train, accelerator, () if named else networks)
    with Ledger() as ledger:
        stages, disk = method.rehearse_learning(having, ledger)
        run, made = _rehearsed(method, having, ledger, held_out, tested)
        stages += made
        stages.append(_evaluation(run, real, held_out, tested, ledger))
        distilled, spec = run.distilled, own_cases(run.distilled, run.protocol, 1, META, run.students())[0].spec
        disk |= run.foreseen_files()
        disk |= _disk(method, data, config, distilled, outlines)
    if accelerator.mixed_precision == "bf16":
        stages = [_in_bf16(stage) for stage in stages]
    rate_from = "the rate that was given"
    if machine.rate is None:
        rate, rate_from = rate_of(spec, accelerator.device)
        machine = replace(machine, rate=rate)
    downloads: dict[str, int | None] = {} if outlines.here else {str(data.dataset_name): outlines.download}
    downloads |= {name: None for name in named if not Path(name).expanduser().exists()}
    plan = Plan(
        title=_title(method.__name__, config, outlines),
        stages=stages,
        host=_host(config, distilled),
        disk=disk,
        downloads=downloads,
        machine=machine,
        rate_from=rate_from,
        processes=accelerator.num_processes,
        notes=_notes(stages, config, accelerator, machine),
    )
    return replace(plan, advice=_advice(method, having, plan, held_out, tested)) if plan.misfits else plan


def _rehearsed(
    method: type["Method"], having: "Preparation", ledger: Ledger, held_out: RealImages, tested: RealImages
) -> tuple["Method", list[Stage]]:
    """A method after its rehearsal, and the stages of it."""
    config, times = method.shortened(having.config, having.train.outline)
    learned = method.untrained(having)
    run = method(config, having.train, **learned, held_out=held_out, accelerator=having.accelerator)
    stages = run.rehearse(ledger, held_out, tested)
    run.config = having.config
    return run, [replace(stages[0], flop=times * stages[0].flop), *stages[1:]]


def _evaluation(run: "Method", real: RealImages, held_out: RealImages, tested: RealImages, ledger: Ledger) -> Stage:
    """The final table: its students, and what chooses their learning rates."""
    config, distilled, costs = run.config, run.distilled, Costs(META)
    also = [PROTOCOLS[name].for_set(config.ipc, distilled.num_classes) for name in config.eval_also]
    tried, flop, students = real_pool(distilled, tested, run.accelerator), 0.0, 0
    ledger.forget()
    for protocol in [run.protocol, *also]:
        for case in _cases(run, protocol, real):
            trials = len(case.lrs) if len(case.lrs) > 1 and len(held_out) else 0
            students += trials + len(case.rows)
            flop += (trials + len(case.rows)) * costs.of(case).flop
        own = own_cases(distilled, protocol, config.eval_seeds, META, run.students())
        shown = own[-1:] if distilled.teacher is None else [replace(own[0], targets=distilled.teacher)]
        full = _full_data(shown, distilled, protocol, real, run.accelerator) if config.eval_full_data else []
        for case in (own[0], *full):
            rehearse_student(case, tried, run.accelerator)
    return ledger.stage("evaluation", flop, f"{students:,} students of the final table")


def _cases(run: "Method", protocol: TrainingProtocol, real: RealImages) -> list[Case]:
    """The rows of the table under a protocol; those of baselines look at the images of the set, of which there are as
    many."""
    config, distilled = run.config, run.distilled
    own = own_cases(distilled, protocol, config.eval_seeds, META, run.students())
    names = [*BASELINES] if ALL in config.eval_baselines else config.eval_baselines
    asked = distilled.teacher
    shown = own[-1:] if asked is None else [replace(own[0], targets=asked), own[-1]]
    as_taken = [replace(case, lrs=protocol.lrs, protocol=protocol.for_real_images()) for case in shown]
    full = _full_data(shown, distilled, protocol, real, run.accelerator) if config.eval_full_data else []
    bare = [own[0], as_taken[0]] if config.eval_unaugmented and protocol.augments else []
    return [*own, *(replace(case, set=name) for name in names for case in as_taken), *full, *bare]


def _full_data(
    cases: Sequence[Case], distilled: DistilledSet, protocol: TrainingProtocol, real: RealImages, accelerator: Accelerator
) -> list[Case]:
    everything, long = torch.arange(len(real)), protocol.for_full_data()
    kept = {"set": "full data", "protocol": long, "epochs": long.full_data_epochs, "lrs": long.lrs}
    pool = real_pool(distilled, real, accelerator)
    return [
        replace(
            case,
            **kept,
            pool=pool,
            rows=everything.expand(len(case.rows), -1),
            trial=everything,
            targets=pool.labels if case.labels == "hard" else case.targets,
        )
        for case in cases
    ]


def _in_bf16(stage: Stage) -> Stage:
    """A stage whose forward passes are in bfloat16."""
    return replace(stage, memory={name: int(size * HALF) if name == GRAPH else size for name, size in stage.memory.items()})


def _title(method: str, config: DistillConfig, outlines: Outlines) -> str:
    train, size = outlines.train, "x".join(map(str, outlines.train.shape))
    return (
        f"{method}: {config.ipc * train.num_classes:,} images {size}, {config.ipc:,} for each of {train.num_classes:,} "
        f"classes, out of {len(train):,} ({sum(outlines.held_out):,} more held out, {sum(outlines.test):,} to test on)"
    )


def _host(config: DistillConfig, distilled: DistilledSet) -> dict[str, int]:
    """Beside what is mapped from disk, which needs no memory of its own."""
    pixels = distilled.pixel_values.nbytes
    known = {"Python and its libraries": psutil.Process().memory_info().rss, "the set, as it is saved": pixels}
    if vars(config).get("select") == "best":
        known["the best images so far"] = pixels
    return known


def _disk(
    method: type["Method"], data: DataArguments, config: DistillConfig, distilled: DistilledSet, outlines: Outlines
) -> dict[str, int]:
    """The images, decoded, and the finished set."""
    count, values = len(distilled), distilled.pixel_values[0].numel()
    normalized = data.mean is not None or data.normalization == "none"
    on_demand = normalized and not (method.decodes(config) or data.skip_corrupt or data.keep_side or data.dataset_streaming)
    real = sum(outlines.test) + (0 if on_demand else len(outlines.train) + sum(outlines.held_out))
    logits = 2 * distilled.num_classes * (distilled.soft_labels is not None)
    tables = {"floats and PNG": values * 5 + 2 * logits} if not distilled.is_bytes else {"PNG": values + logits}
    ((what, row),) = tables.items()
    teacher = 0 if distilled.teacher is None else distilled.teacher.num_bytes
    return {
        "real images, decoded once": real * values,
        f"the set: {what}, labels, its teacher": count * row + teacher + SMALL,
    }


def rate_of(spec: StudentSpec, device: torch.device) -> tuple[float, str]:
    """FLOP in a second of a network in training on a device, in seconds of measuring; and what was measured, in words.

    Batches grow until one takes long enough to be measured.
    """
    where = device_name(device)
    if isinstance(spec, ProbeSpec):
        side = 1024
        one, other = (torch.randn(side, side, device=device) for _ in range(2))
        rate = _best(lambda: one @ other, device, 2 * side**3)
        return rate, f"{human_flop(int(rate))}/s of a product of matrices on {where}"
    model, each = spec.build(0).to(device).train(), student_flop(spec)
    rate, count, spent = 0.0, 4, 0.0
    while count <= 256 and spent < SECONDS / 4:
        x, y = torch.randn(count, spec.in_chans, *spec.img_size, device=device), torch.zeros(count, device=device).long()
        begun = time.perf_counter()
        found = _best(lambda x=x, y=y: F.cross_entropy(model(x), y).backward(), device, each * count)
        rate, spent, count = max(rate, found), time.perf_counter() - begun, count * 4
    return rate, f"{human_flop(int(rate))}/s of {spec.name} in training, measured on {where}"


def _best(work: Callable[[], Any], device: torch.device, flop: int) -> float:
    """FLOP in a second, the better of two tries after one that does not count."""
    taken = []
    for _ in range(3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return flop / max(min(taken[1:]), 1e-6)


def _notes(stages: Sequence[Stage], config: DistillConfig, accelerator: Accelerator, machine: Machine) -> list[str]:
    notes = []
    whole = sum(stage.flop for stage in stages)
    if whole and stages[-1].flop > whole / 2:
        share = 100 * stages[-1].flop / whole
        notes.append(
            f"the final table is {share:.0f} % of the work: --eval_seeds 1 trains a fifth of its students, and "
            "--eval_full_data false none on all real images"
        )
    needed = max(stage.peak - stage.memory.get(REAL, 0) for stage in stages)
    if machine.memory is not None and TIGHT * machine.memory < needed <= machine.memory:
        notes.append("little is left for what convolutions take within themselves, and for the device's own context")
    if accelerator.mixed_precision == "bf16":
        notes.append("bf16: graphs are taken for half of what they hold in float32")
    if accelerator.num_processes > 1:
        notes.append(f"device memory is that of each of {accelerator.num_processes} processes")
    if config.resume_from_checkpoint is not None:
        notes.append("what the run has done already is counted again")
    return notes


def _advice(
    method: type["Method"], having: "Preparation", plan: Plan, held_out: RealImages, tested: RealImages
) -> list[str]:
    """What takes less, with the bytes of distilling that each leaves."""
    config, advice = having.config, []
    largest = max(plan.stages, key=lambda stage: stage.peak)
    if largest.name == "selection":
        advice.append("--select last needs no selection")
    if largest.name == "evaluation":
        advice.append("--eval_full_data false trains on no more images than the set has")
    for flag in (*method.saving, "ipc"):
        value = getattr(config, flag)
        images = config.ipc * having.train.num_classes
        fewer = max(1, (value or getattr(config, "batch_syn", None) or images) // (2 if flag == "ipc" else 4))
        if value == fewer:
            continue
        try:
            smaller = dataclasses.replace(having, config=dataclasses.replace(config, **{flag: fewer}))
            with Ledger() as ledger:
                _, stages = _rehearsed(method, smaller, ledger, held_out, tested)
        except ValueError:  # which the network or the protocol does not take
            continue
        advice.append(f"--{flag} {fewer} takes {human_bytes(stages[0].peak)} to distil")
    if sum(plan.disk.values()) > plan.machine.disk and getattr(config, "save_total_limit", 1) != 1:
        advice.append("--save_total_limit 1 keeps one checkpoint")
    return advice


def print_plan(
    method: type["Method"],
    asked: PlanArguments,
    data: DataArguments,
    config: DistillConfig,
    networks: Sequence[Any] = (),
) -> None:
    """What a recipe does for `--plan`: the report, on the main process.

    Raises:
        ValueError: The run will not fit; or as `Method.plan`.
    """
    accelerator = make_accelerator(**config.for_processes)
    machine = Machine.here(accelerator.device, config.output_dir, memory=asked.plan_memory, rate=asked.plan_rate)
    outlines = outlines_of(data, asked.plan_images, asked.plan_classes)
    show(method.foresee(data, config, networks, outlines, accelerator, machine), asked, accelerator)


def show(plan: Plan, asked: PlanArguments, accelerator: Accelerator) -> None:
    """Print a plan on the main process; a `ValueError` of one line where it will not fit."""
    accelerator.print(json.dumps(plan.to_json(), indent=1, default=str) if asked.plan == "json" else str(plan))
    if plan.misfits:
        raise ValueError(f"this will not fit: {'; '.join(plan.misfits)}")
