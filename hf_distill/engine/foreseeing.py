"""The plans of runs: what is rehearsed of them, and the arithmetic of what lies on the disk."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from accelerate import Accelerator

from ..augmentation.views import Views
from ..config import ALL, BASELINES, DataArguments, DistillConfig
from ..data.feed import TEST_BATCH
from ..data.images import RealImages
from ..data.outlines import Outlines
from ..distilled.distilled_set import DistilledSet
from ..distilled.label_costs import stored
from ..distilled.labels import LabelSource
from ..evaluation.costs import Costs
from ..evaluation.evaluate import own_cases, real_pool
from ..evaluation.protocols import PROTOCOLS, ProbeProtocol, TrainingProtocol
from ..evaluation.trainer import Case
from ..hub.cards import human_bytes
from ..networks.architectures import StudentSpec
from ..runs.rehearsal import GRAPH, META, REAL, Elsewhere, Ledger, Stage, rehearse_student, unseen
from ..training.experts import EPOCHS, ExpertConfig, rehearse_experts
from ..training.projectors import ProjectorConfig, rehearse_projector
from ..training.small_clip import PriorArguments, UntrainedPrior
from ..training.teachers import TeacherConfig, rehearse_teacher, untrained_teachers
from .plan import TIGHT, Machine, Plan, rate_of

if TYPE_CHECKING:
    from .method import Method, Preparation

__all__ = ["foresee", "foresee_evaluation", "foresee_labels", "foresee_network", "foresee_projector"]

SMALL = 90_000  # bytes of a set's card, configuration and pictures
HALF = 0.55  # of the bytes of a graph in float32, in bfloat16: measured of a ResNet-18 (docs/scale.md)


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
        distilled, students = run.distilled, run.students()
        also = [PROTOCOLS[name].for_set(config.ipc, distilled.num_classes) for name in config.eval_also]
        table = _Table(
            distilled,
            [run.protocol, *also],
            students,
            config.eval_seeds,
            [*BASELINES] if ALL in config.eval_baselines else config.eval_baselines,
            config.eval_full_data,
            config.eval_unaugmented,
        )
        stages = [*stages, *made, table.stage(real, held_out, tested, run.accelerator, ledger)]
        spec = own_cases(distilled, run.protocol, 1, META, students)[0].spec
        disk |= run.foreseen_files() | _disk(data, distilled, outlines, _decoded(method, data, config, outlines))
    plan = _plan(
        _title(method.__name__, config, outlines),
        stages,
        spec,
        accelerator,
        machine,
        host=_host(config, distilled),
        disk=disk,
        downloads=_downloads(data, outlines, named),
    )
    if config.resume_from_checkpoint is not None:
        plan.notes.append("what the run has done already is counted again")
    return replace(plan, advice=_advice(method, having, plan, held_out, tested)) if plan.misfits else plan


def _plan(
    title: str,
    stages: list[Stage],
    spec: StudentSpec,
    accelerator: Accelerator,
    machine: Machine,
    *,
    host: dict[str, int],
    disk: dict[str, int],
    downloads: dict[str, int | None],
) -> Plan:
    """A plan with the rate of a network, in the precision of the launcher."""
    if accelerator.mixed_precision == "bf16":
        stages = [_in_bf16(stage) for stage in stages]
    rate_from = "given, not measured"
    if machine.rate is None:
        rate, operation, rate_from = rate_of(spec, accelerator.device)
        machine = replace(machine, rate=rate, operation=operation)
    notes = _notes(stages, accelerator, machine)
    host = {"Python and its libraries": psutil.Process().memory_info().rss, **host}
    world = accelerator.num_processes
    return Plan(title, stages, host, disk, downloads, machine, rate_from, world, notes=notes)


def _rehearsed(
    method: type["Method"], having: "Preparation", ledger: Ledger, held_out: RealImages, tested: RealImages
) -> tuple["Method", list[Stage]]:
    """A method after its rehearsal, and the stages of it."""
    config, times = method.shortened(having.config, having.train.outline)
    learned = method.untrained(having)
    run = method(config, having.train, **learned, held_out=held_out, accelerator=having.accelerator)
    stages = run.rehearse(ledger, held_out, tested)
    run.config = having.config
    return run, [stages[0].repeated(times), *stages[1:]]


@dataclasses.dataclass(frozen=True)
class _Table:
    """The rows of a final table, whose students are trained and tested.

    Attributes:
        distilled: The set, on the meta device.
        protocols: How students are trained.
        students: Which; None for what the set says.
        seeds: Students of a row.
        baselines: Subsets of the real images that have rows.
        full_data: So have all of them.
        unaugmented: And the set and random images without augmentation.
    """

    distilled: DistilledSet
    protocols: Sequence[TrainingProtocol]
    students: Sequence[StudentSpec] | None
    seeds: int
    baselines: Sequence[str]
    full_data: bool
    unaugmented: bool

    def stage(
        self, real: RealImages, held_out: RealImages, tested: RealImages, accelerator: Accelerator, ledger: Ledger
    ) -> Stage:
        """What its students take, and those that choose their learning rates."""
        costs, flop, operations, students = Costs(META), 0.0, 0.0, 0
        ledger.forget()
        shown = real_pool(self.distilled, tested, accelerator)
        for protocol in self.protocols:
            own, others, full = self._cases(protocol, real, accelerator)
            for cases in ([*own, *others], full):
                if not cases:
                    continue
                density = 0.0
                # Heads look at each real image once, by the batches that those of the set are looked at by.
                if cases is not full or not isinstance(protocol, ProbeProtocol):
                    density = rehearse_student(cases[-1 if cases is full else 0], shown, accelerator, ledger)
                for case in cases:
                    trials = len(case.lrs) if len(case.lrs) > 1 and len(held_out) else 0
                    work = (trials + len(case.rows)) * costs.of(case).flop
                    students += trials + len(case.rows)
                    flop += work
                    operations += density * work
        words = f"{students:,} students of the final table"
        return ledger.stage("evaluation", flop, words, operations=operations)

    def _cases(
        self, protocol: TrainingProtocol, real: RealImages, accelerator: Accelerator
    ) -> tuple[list[Case], list[Case], list[Case]]:
        """The rows of the set under a protocol; those of baselines, as if of its images, of which there are as many;
        and those of all real images."""
        own = own_cases(self.distilled, protocol, self.seeds, META, self.students)
        taught = self.distilled.teacher
        kinds = [case for case in own if case.labels == "hard" or taught is not None]
        kinds = [case if case.labels == "hard" or taught is None else replace(case, targets=taught) for case in kinds]
        taken = protocol.for_real_images()
        others = [
            replace(case, set=name, lrs=protocol.lrs, protocol=taken) for name in self.baselines for case in kinds
        ]
        bare = [own[0], replace(kinds[0], set="random")] if self.unaugmented and protocol.augments else []
        if not self.full_data:
            return own, [*others, *bare], []
        long, pool = protocol.for_full_data(), real_pool(self.distilled, real, accelerator)
        every = {"set": "full data", "pool": pool, "protocol": long, "lrs": long.lrs, "epochs": long.full_data_epochs}
        rows = torch.arange(len(real))
        everything = [
            replace(
                case,
                **every,
                rows=rows.expand(self.seeds, -1),
                trial=rows,
                targets=pool.labels if case.labels == "hard" else case.targets,
            )
            for case in kinds
        ]
        return own, [*others, *bare], everything


def _in_bf16(stage: Stage) -> Stage:
    """A stage whose forward passes are in bfloat16."""
    return replace(
        stage, memory={name: int(size * HALF) if name == GRAPH else size for name, size in stage.memory.items()}
    )


def _downloads(data: DataArguments, outlines: Outlines, named: Sequence[str]) -> dict[str, int | None]:
    """What is to be fetched, as far as it is not in a cache: a dataset, and networks."""
    images = {} if outlines.here else {str(data.dataset_name): outlines.download}
    return {**images, **{name: None for name in named if not Path(name).expanduser().exists()}}


def _title(method: str, config: DistillConfig, outlines: Outlines) -> str:
    train, size = outlines.train, "x".join(map(str, outlines.train.shape))
    return (
        f"{method}: {config.ipc * train.num_classes:,} images {size}, {config.ipc:,} for each of {train.num_classes:,} "
        f"classes, out of {len(train):,} ({sum(outlines.held_out):,} more held out, {sum(outlines.test):,} to test on)"
    )


def _host(config: DistillConfig, distilled: DistilledSet) -> dict[str, int]:
    """Beside what is mapped from disk, which needs no memory of its own."""
    pixels = distilled.pixel_values.nbytes
    best = {"the best images so far": pixels} if vars(config).get("select") == "best" else {}
    return {"the set, as it is saved": pixels, **best}


def _decoded(method: type["Method"], data: DataArguments, config: DistillConfig, outlines: Outlines) -> bool:
    """True where training images are decoded and kept on the disk."""
    given = data.mean is not None or data.normalization == "none"
    every = data.skip_corrupt or data.keep_side is not None or data.dataset_streaming or not sum(outlines.test)
    return method.decodes(config) or not given or every


def _disk(data: DataArguments, distilled: DistilledSet, outlines: Outlines, decoded: bool = True) -> dict[str, int]:
    """The images, decoded, and the finished set."""
    count, values = len(distilled), distilled.pixel_values[0].numel()
    logits = 2 * distilled.num_classes * (distilled.soft_labels is not None)
    row = (
        values + logits if distilled.is_bytes else 5 * values + 2 * logits
    )  # PNG; and floats, with labels of their own
    teacher = 0 if distilled.teacher is None else distilled.teacher.num_bytes
    what = "PNG" if distilled.is_bytes else "floats and PNG"
    return {**_real(outlines, decoded), f"the set: {what}, labels, its teacher": count * row + teacher + SMALL}


def _real(outlines: Outlines, decoded: bool = True) -> dict[str, int]:
    train = len(outlines.train) + sum(outlines.held_out) if decoded else 0
    channels, height, width = outlines.train.shape
    return {"real images, decoded once": (train + sum(outlines.test)) * channels * height * width}


def _notes(stages: Sequence[Stage], accelerator: Accelerator, machine: Machine) -> list[str]:
    notes: list[str] = []
    whole = sum(stage.flop for stage in stages)
    if stages[-1].name == "evaluation" and len(stages) > 1 and stages[-1].flop > whole / 2:
        share = 100 * stages[-1].flop / whole
        notes.append(
            f"the final table is {share:.0f} % of the work: --eval_seeds 1 trains a fifth of its students, and "
            "--eval_full_data false none on all real images"
        )
    needed = max(stage.peak - stage.memory.get(REAL, 0) for stage in stages)
    if machine.memory is not None and TIGHT * machine.memory < needed <= machine.memory:
        notes.append("little is left for what convolutions take within themselves, and for the device's own context")
    if accelerator.mixed_precision == "bf16":
        notes.append("bf16: graphs are taken for 55 % of what they hold in float32, as a ResNet-18 was measured")
    if accelerator.num_processes > 1:
        notes.append(f"device memory is that of each of {accelerator.num_processes} processes")
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


def foresee_network(
    settings: ExpertConfig | TeacherConfig,
    data: DataArguments,
    outlines: Outlines,
    accelerator: Accelerator,
    machine: Machine,
    *,
    seed: int = 0,
) -> Plan:
    """The plan of training experts, or a teacher."""
    real = unseen(outlines.train)
    with Ledger() as ledger:
        if isinstance(settings, ExpertConfig):
            epochs = settings.expert_train_epochs or EPOCHS
            stages, disk = rehearse_experts(real, settings, epochs, seed, Elsewhere(accelerator), ledger)
        else:
            stages, disk = rehearse_teacher(real, settings, seed, Elsewhere(accelerator), ledger)
    size = "x".join(map(str, real.shape))
    title = f"{stages[0].name}: {settings.student} on {len(real):,} images {size} of {real.num_classes:,} classes"
    start = vars(settings).get("pretrained_weights")
    named = [] if start is None else [start]
    kept: dict[str, Any] = {"host": {}, "disk": disk | _real(outlines), "downloads": _downloads(data, outlines, named)}
    return _plan(title, stages, settings.student_spec(real), accelerator, machine, **kept)


def foresee_evaluation(
    distilled: DistilledSet,
    protocols: Sequence[TrainingProtocol],
    students: Sequence[StudentSpec],
    data: DataArguments,
    outlines: Outlines,
    accelerator: Accelerator,
    machine: Machine,
    *,
    seeds: int,
    baselines: Sequence[str],
    full_data: bool,
    unaugmented: bool = False,
) -> Plan:
    """The plan of evaluating a set that is there."""
    elsewhere, images = Elsewhere(accelerator), f"{len(outlines.train):,} images ({sum(outlines.test):,} to test on)"
    title = f"evaluation of {distilled!r} beside {images}"
    with Ledger() as ledger:
        real, held_out, tested = (unseen(outlines.train, counts) for counts in (None, outlines.held_out, outlines.test))
        table = _Table(distilled.to(META), protocols, students, seeds, baselines, full_data, unaugmented)
        stage = table.stage(real, held_out, tested, elsewhere, ledger)
    kept: dict[str, Any] = {"host": {}, "disk": _real(outlines), "downloads": _downloads(data, outlines, [])}
    return _plan(title, [stage], students[0], accelerator, machine, **kept)


def foresee_projector(
    distilled: DistilledSet,
    views: Views,
    prior: PriorArguments,
    config: ProjectorConfig,
    teacher: TeacherConfig,
    names: Sequence[str] | None,
    data: DataArguments,
    outlines: Outlines,
    accelerator: Accelerator,
    machine: Machine,
    *,
    seed: int = 0,
) -> Plan:
    """The plan of a label projector for a set that is there, and of the teacher that is trained for it, if any."""
    real, elsewhere = unseen(outlines.train), Elsewhere(accelerator)
    with Ledger() as ledger:
        stages: list[Stage] = []
        disk = _real(outlines)
        if names is None:
            stages, made = rehearse_teacher(real, teacher, seed, elsewhere, ledger)
            disk |= made
        count = config.weak_teachers if names is None else 1
        teachers = [each.to(META) for _ in range(count) for each in untrained_teachers(names, teacher, real)]
        tower = UntrainedPrior(prior, real).to(META)
        stage, projector = rehearse_projector(real, tower, teachers, views, config, seed, elsewhere, ledger)
    name = prior.model_name_or_path
    kept: dict[str, Any] = {
        "host": {},
        "disk": {**disk, "label projector": projector.num_bytes + projector.text_head_bytes + 6 * projector.num_params},
        "downloads": _downloads(data, outlines, [*(names or []), *([] if name is None else [name])]),
    }
    spec = teacher.student_spec(real)
    return _plan(f"label projector of {distilled!r}", [*stages, stage], spec, accelerator, machine, **kept)


def foresee_labels(
    distilled: DistilledSet,
    source: LabelSource,
    epochs: int,
    logits: int | None,
    accelerator: Accelerator,
    machine: Machine,
) -> Plan:
    """The plan of storing what networks say of all views of a set."""
    count, classes, shape = len(distilled), distilled.num_classes, distilled.pixel_values.shape[1:]
    spec = StudentSpec("convnet_d1", classes, shape[0], (shape[1], shape[2]))
    with Ledger() as ledger:
        source.to(META)
        some = torch.arange(min(count, TEST_BATCH), device=META)
        with torch.no_grad():
            source(torch.empty((len(some), *shape), device=META), torch.zeros_like(some), some, 0)
        flop = epochs * count * ledger.flop / len(some)
        stage = ledger.stage("labels", flop, f"{epochs:,} epochs of {count:,} images, {len(some):,} at once")
    kept: dict[str, Any] = {
        "host": {},
        "disk": {"labels, before compression": stored(count, epochs, classes, logits)},
        "downloads": {},
    }
    return _plan(f"labels of {distilled!r}", [stage], spec, accelerator, machine, **kept)
