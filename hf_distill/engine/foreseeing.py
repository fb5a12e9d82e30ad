"""The plans of runs: what is rehearsed of them, and the arithmetic of what lies on the disk."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from accelerate import Accelerator

from ..augmentation.views import Views
from ..config import ALL, BASELINES, DataArguments, DistillConfig
from ..data.images import RealImages
from ..data.outlines import Outlines
from ..distilled.distilled_set import DistilledSet
from ..distilled.epoch_labels import EpochLabels
from ..distilled.label_costs import stored
from ..distilled.labels import HardLabels, LabelSource, StoredLabels
from ..evaluation.costs import Costs, EqualCost
from ..evaluation.evaluate import own_cases, real_pool, unaugmented_cases, wants_unaugmented
from ..evaluation.label_comparison import compared_cases
from ..evaluation.protocols import PROTOCOLS, TrainingProtocol
from ..evaluation.trainer import Case
from ..hub.cards import human_bytes
from ..networks.architectures import StudentSpec
from ..runs.rehearsal import (
    GRAPH,
    META,
    REAL,
    Elsewhere,
    Ledger,
    Stage,
    rehearse_labels,
    rehearse_students,
    students_of,
    unseen,
)
from ..training.experts import EPOCHS, ExpertConfig, rehearse_experts
from ..training.projectors import ProjectorConfig, rehearse_projector
from ..training.small_clip import PriorArguments, UntrainedPrior, rehearse_small_clip
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
        evaluation = table.stage(real, held_out, tested, run.accelerator, ledger)
        stages = [*stages, *made, evaluation, *run.rehearse_comparison(ledger, held_out, tested)]
        share = evaluation.flop / max(sum(stage.flop for stage in stages), 1)
        notes = table.savings(real, held_out, run.accelerator, share) if share > 0.5 else []
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
        notes=notes,
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
    notes: Sequence[str] = (),
) -> Plan:
    """A plan with the rate of a network, in the precision of the launcher."""
    if accelerator.mixed_precision == "bf16":
        stages = [_in_bf16(stage) for stage in stages]
    rate_from = "given, not measured"
    if machine.rate is None:
        rate, operation, rate_from = rate_of(spec, accelerator)
        machine = replace(machine, rate=rate, operation=operation)
    notes = [*notes, *_notes(stages, accelerator, machine)]
    host = {"Python and its libraries": psutil.Process().memory_info().rss, **host}
    world = accelerator.num_processes
    disk = {**disk, **{f"{name}, as it is fetched": size for name, size in downloads.items() if size}}
    unknown = [name for name, size in downloads.items() if size is None]
    if unknown:
        notes.append(f"not counted among what the disk holds, for nobody knows its bytes: {', '.join(unknown)}")
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
    run.distilled.config |= run._provenance()
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
        unaugmented: And the set and random images without augmentation; None for what the set says.
        budget: What is the same for all students, if anything.
        labels: In place of the set's own soft ones.
    """

    distilled: DistilledSet
    protocols: Sequence[TrainingProtocol]
    students: Sequence[StudentSpec] | None
    seeds: int
    baselines: Sequence[str]
    full_data: bool
    unaugmented: bool | None = None
    budget: str | None = None
    labels: LabelSource | None = None
    costs: Costs = dataclasses.field(default_factory=lambda: Costs(META))

    def stage(
        self, real: RealImages, held_out: RealImages, tested: RealImages, accelerator: Accelerator, ledger: Ledger
    ) -> Stage:
        """What its students take, and those that choose their learning rates."""
        ledger.forget()
        shown = real_pool(self.distilled, tested, accelerator)
        groups = self._groups(real, accelerator)
        return rehearse_students("evaluation", groups, held_out, shown, self.costs, accelerator, ledger)

    def savings(self, real: RealImages, held_out: RealImages, accelerator: Accelerator, share: float) -> list[str]:
        """What settings of it that are not lower yet would leave, in words; it is a share of the work of a run."""

        def total(table: "_Table") -> tuple[int, float]:
            cases = [case for group in table._groups(real, accelerator) for case in group]
            counts = [students_of(case, held_out) for case in cases]
            return sum(counts), sum(n * self.costs.of(case).flop for n, case in zip(counts, cases, strict=True))

        (students, flop), less = total(self), {}
        if self.seeds > 1:
            less["--eval_seeds 1"] = total(replace(self, seeds=1))
        if self.full_data:
            less["--eval_full_data false"] = total(replace(self, full_data=False))
        words = [
            f"{flag} leaves {left:,} of its {students:,} students and {100 * work / flop:.0f} % of its FLOP"
            for flag, (left, work) in less.items()
        ]
        return [f"the final table is {100 * share:.0f} % of the work" + ": " * bool(words) + "; ".join(words)]

    def _groups(self, real: RealImages, accelerator: Accelerator) -> Iterator[list[Case]]:
        """For each protocol the rows of the set, with those of baselines, as if of its images, of which there are as
        many; and those of all real images."""
        taught, pool = self.distilled.teacher, real_pool(self.distilled, real, accelerator)
        for protocol in self.protocols:
            own = own_cases(self.distilled, protocol, self.seeds, META, self.students)
            kinds = [case for case in own if case.labels == "hard"]
            if taught is not None:
                kinds = [each for case in kinds for each in (case, replace(case, labels="soft", targets=taught))]
            if self.labels is not None:
                hard = [case for case in own if case.labels == "hard"]
                own = [each for case in hard for each in (replace(case, labels="soft", targets=self.labels), case)]
            equal = EqualCost.to(self.budget, own, self.costs)
            taken, long = protocol.for_real_images(), protocol.for_full_data()
            as_real = {"lrs": taken.lrs, "epochs": taken.epochs, "protocol": taken}
            others = [replace(case, set=name, **as_real) for name in self.baselines for case in kinds]
            cases = [equal(case) for case in (*own, *others)]
            asked = (self.distilled, protocol, self.baselines, self.labels, self.unaugmented)
            yield cases + unaugmented_cases(cases) if wants_unaugmented(*asked) else cases
            if self.full_data:
                rows = torch.arange(len(real))
                every: dict[str, Any] = {"set": "full data", "pool": pool, "trial": rows, "protocol": long}
                every |= {"rows": rows.expand(self.seeds, -1), "lrs": long.lrs, "epochs": long.full_data_epochs}
                whole = [replace(case, **every) for case in kinds]
                yield [equal(replace(case, targets=pool.labels) if case.labels == "hard" else case) for case in whole]


def _in_bf16(stage: Stage) -> Stage:
    """A stage whose forward passes are in bfloat16."""
    return replace(
        stage, memory={name: int(size * HALF) if name == GRAPH else size for name, size in stage.memory.items()}
    )


def _downloads(data: DataArguments, outlines: Outlines, named: Sequence[str]) -> dict[str, int | None]:
    """What is to be fetched, unless a cache has it already: a dataset, and networks."""
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
    # A row of PNG; and one of floats, with labels of its own.
    row = values + logits if distilled.is_bytes else 5 * values + 2 * logits
    teacher = 0 if distilled.teacher is None else distilled.teacher.num_bytes
    what = "PNG" if distilled.is_bytes else "floats and PNG"
    return {**_real(outlines, decoded), f"the set: {what}, labels, its teacher": count * row + teacher + SMALL}


def _real(outlines: Outlines, decoded: bool = True) -> dict[str, int]:
    train = len(outlines.train) + sum(outlines.held_out) if decoded else 0
    channels, height, width = outlines.train.shape
    return {"real images, decoded once": (train + sum(outlines.test)) * channels * height * width}


def _notes(stages: Sequence[Stage], accelerator: Accelerator, machine: Machine) -> list[str]:
    notes: list[str] = []
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
    if largest.name == "evaluation" and config.eval_full_data:
        advice.append("--eval_full_data false trains on no more images than the set has")
    for flag in (*method.saving, *method.trading, "ipc"):
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
        advice.append(
            f"--{flag} {fewer} takes {human_bytes(stages[0].peak)} to distil"
            + ", and makes other images" * (flag in method.trading)
        )
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
    unaugmented: bool | None = None,
    budget: str | None = None,
    labels: LabelSource | None = None,
    compared: Mapping[str, LabelSource] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """The plan of evaluating a set that is there."""
    elsewhere, images = Elsewhere(accelerator), f"{len(outlines.train):,} images ({sum(outlines.test):,} to test on)"
    title = f"evaluation of {distilled!r} beside {images}"
    with Ledger() as ledger:
        real, held_out, tested = (unseen(outlines.train, counts) for counts in (None, outlines.held_out, outlines.test))
        asked = (protocols, students, seeds, baselines, full_data, unaugmented, budget)
        table = _Table(distilled.to(META), *asked, labels=None if labels is None else _on_meta(labels, distilled))
        stages = [table.stage(real, held_out, tested, elsewhere, ledger)]
        if compared:
            sources = {name: _on_meta(source, distilled) for name, source in compared.items()}
            pairs, shown = product(protocols, students), real_pool(table.distilled, tested, elsewhere)
            cases = [compared_cases(table.distilled, sources, spec, way, seeds, META) for way, spec in pairs]
            ledger.forget()
            known = (held_out, shown, table.costs, elsewhere, ledger)
            stages.append(rehearse_students("label comparison", cases, *known))
    kept: dict[str, Any] = {"host": {}, "disk": _real(outlines), "downloads": _downloads(data, outlines, [])}
    return _plan(title, stages, students[0], accelerator, machine, notes=notes, **kept)


def _on_meta(source: LabelSource, distilled: DistilledSet) -> LabelSource:
    """Labels on the meta device; of those that are stored, and need no network, as many as there are images."""
    if isinstance(source, EpochLabels | StoredLabels):
        return StoredLabels(torch.empty((len(distilled), distilled.num_classes), device=META))
    return source if isinstance(source, HardLabels) else source.to(META)


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
        stages, made = rehearse_small_clip(real, prior, seed, ledger)
        disk = _real(outlines) | made
        if names is None:
            trained, made = rehearse_teacher(real, teacher, seed, elsewhere, ledger)
            stages, disk = [*stages, *trained], disk | made
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
    """The plan of storing what networks, on the meta device, say of all views of a set."""
    count, classes, shape = len(distilled), distilled.num_classes, distilled.pixel_values.shape[1:]
    spec = StudentSpec("convnet_d1", classes, shape[0], (shape[1], shape[2]))
    with Ledger() as ledger:
        stage = rehearse_labels(source, distilled.pixel_values, epochs, ledger)
    kept: dict[str, Any] = {
        "host": {},
        "disk": {"labels, before compression": stored(count, epochs, classes, logits)},
        "downloads": {},
    }
    return _plan(f"labels of {distilled!r}", [stage], spec, accelerator, machine, **kept)
