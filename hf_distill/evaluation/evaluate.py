"""What students learn from a distilled set, beside what they learn from random, herding, k-center and all images.

Every set is trained on with the method's labels and with hard labels, several students each, under one protocol. The
learning rate of each is chosen on a held-out part of train: what chooses is never given the test images.

A number is a function of (seed, set, labels, student, number of the network): neither the processes that share the
work nor the other rows of the report change it, with one exception that the report names: what herding and k-center
compare images by comes from a network trained on all of them, and where full data is left out from their pixels.
"""

import difflib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..config import BASELINES, check_at_least, check_choice
from ..data.feed import Keep, Pool
from ..data.images import RealImages
from ..distilled.distilled_set import DistilledSet
from ..distilled.epoch_labels import EpochLabels
from ..distilled.labels import HardLabels, LabelSource, MeanLabels, NetworkLabels, ProjectorLabels
from ..distilled.pools import accuracy, topk_accuracy
from ..hub.cards import human_bytes
from ..hub.checks import is_number
from ..hub.results import EvalReport, EvalRow
from ..networks.architectures import StudentSpec
from ..rng import derive_seed
from .coresets import coresets, random_rows
from .protocols import PROTOCOLS, CropProtocol, EvalProtocol
from .students import check_student, student_name, students_at_once, train_student, train_students

__all__ = [
    "BASELINES",
    "PROTOCOLS",
    "Case",
    "EvalProtocol",
    "Pool",
    "Trainer",
    "accuracy",
    "check_data",
    "check_labels",
    "device_name",
    "distilled_pool",
    "evaluate",
    "made_for",
    "protocol_for",
    "real_pool",
    "student_name",
    "student_specs",
    "topk_accuracy",
    "train_student",
    "validation_accuracy",
]


def protocol_for(distilled: DistilledSet, protocol: str | EvalProtocol | None = None) -> EvalProtocol:
    """How students of a set are trained: one of `PROTOCOLS`, with the augmentation that the set was made with.

    Args:
        distilled: The set.
        protocol: A name, or a protocol that is taken as it is. If not given it is that of the distillation, else mtt;
            and where it is that, learning rates are chosen among those of the distillation.

    Raises:
        ValueError: There is no protocol of this name.
    """
    if isinstance(protocol, EvalProtocol):
        return protocol
    own = (distilled.config.get("hyperparameters") or {}).get("eval_protocol", "mtt")
    name = own if protocol is None else protocol
    if not isinstance(name, str) or name not in PROTOCOLS:
        nearest = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        expected = f"{hint}expected one of {', '.join(PROTOCOLS)}, or an EvalProtocol"
        if protocol is None:
            raise ValueError(f"the set was made for a protocol that is unknown here, {name!r}; {expected}")
        raise ValueError(f"there is no protocol {name!r}; {expected}")
    known = PROTOCOLS[name]
    known = replace(known, dsa_strategy=distilled.config.get("dsa_strategy", known.dsa_strategy))
    return replace(known, lrs=tuple(distilled.config.get("eval_lrs") or known.lrs)) if name == own else known


def made_for(distilled: DistilledSet) -> StudentSpec | None:
    """The student that a set was distilled for, as far as its configuration says."""
    return None if "student" not in distilled.config else StudentSpec.from_dict(distilled.config["student"])


@dataclass(frozen=True)
class Case:
    """One row of a report: E students, each on its rows of `pool`; `trial` (N,) are the rows to try rates on.

    What is drawn at random is a function of (`set`, `labels`, student), so cases that share them are pairs.
    """

    set: str
    labels: str
    spec: StudentSpec
    pool: Pool
    targets: Tensor | LabelSource
    rows: Tensor
    trial: Tensor
    lrs: tuple[float, ...]
    epochs: int


_Judge = Callable[[int, int, nn.Module], Any]  # (index of the case, number of the student, student)


@dataclass(frozen=True)
class Trainer:
    """Trains the students of many cases, spread over the processes; every process gets all results.

    Attributes:
        accelerator: Processes, device and precision.
        protocol: The schedule.
        seed: The one seed.
        held_out: What learning rates are chosen on; None takes the first of each case.
        disable_tqdm: No progress bars.
    """

    accelerator: Accelerator
    protocol: EvalProtocol
    seed: int
    held_out: Pool | None
    disable_tqdm: bool

    def choose(self, cases: Sequence[Case]) -> list[float]:
        """For each case the learning rate that does best on held-out images; the first if there are none."""
        chosen = [case.lrs[0] for case in cases]
        held_out = self.held_out
        if held_out is None:
            return chosen
        undecided = [i for i, case in enumerate(cases) if len(case.lrs) > 1]
        trials = []
        for case in (cases[i] for i in undecided):
            # One seed for all rates: they start from the same network and see the same batches.
            seed = derive_seed(self.seed, "trial", case.set, case.labels, student_name(case.spec))
            rows = case.trial.expand(len(case.lrs), -1)
            trials.append(_Job(case, rows, case.lrs, [seed] * len(case.lrs)))
        found = self._run(trials, lambda index, number, model: accuracy(model, held_out), "learning rates")
        for i, accuracies in zip(undecided, found, strict=True):
            chosen[i] = cases[i].lrs[accuracies.index(max(accuracies))]
        return chosen

    def train(self, cases: Sequence[Case], lrs: Sequence[float], judge: _Judge) -> list[list[Any]]:
        """For each case what `judge` says of each of its students."""
        jobs = []
        for case, lr in zip(cases, lrs, strict=True):
            path = ("student", case.set, case.labels, student_name(case.spec))
            seeds = [derive_seed(self.seed, *path, number) for number in range(len(case.rows))]
            jobs.append(_Job(case, case.rows, [lr] * len(seeds), seeds))
        return self._run(jobs, judge, "students")

    def _run(self, jobs: "Sequence[_Job]", judge: _Judge, what: str) -> list[list[Any]]:
        parts: list[tuple[int, slice]] = []
        for index, (case, rows, _, seeds) in enumerate(jobs):
            # Who trains side by side depends on the case alone, so that the number of processes changes no result.
            size = students_at_once(case.pool, rows, self.protocol)
            parts += [(index, slice(start, start + size)) for start in range(0, len(seeds), size)]
        mine = parts[self.accelerator.process_index :: self.accelerator.num_processes]
        found = []
        with tqdm(
            total=sum(len(jobs[index].seeds[part]) for index, part in mine),
            desc=f"evaluate ({what})",
            unit="net",
            leave=False,
            disable=self.disable_tqdm or not self.accelerator.is_main_process,
        ) as bar:
            for index, part in mine:
                case, rows, lrs, seeds = jobs[index]
                # The launcher's precision, for networks of many layers; trajectories are matched in single precision.
                with self.accelerator.autocast() if self.protocol.per_view else nullcontext():
                    students = train_students(
                        case.pool,
                        case.targets,
                        rows[part],
                        case.spec,
                        self.protocol,
                        epochs=case.epochs,
                        lrs=lrs[part],
                        seeds=seeds[part],
                        accelerator=self.accelerator,
                    )
                for number, student in enumerate(students, start=part.start):
                    found.append((index, number, judge(index, number, student)))
                bar.update(len(students))
        results: list[list[Any]] = [[None] * len(job.seeds) for job in jobs]
        for index, number, value in gather_object(found):
            results[index][number] = value
        return results


class _Job(NamedTuple):
    """E students of a case: the rows (E, N), the learning rate and the seed of each."""

    case: Case
    rows: Tensor
    lrs: Sequence[float]
    seeds: Sequence[int]


def evaluate(
    distilled: DistilledSet,
    train: RealImages,
    test: RealImages,
    *,
    held_out: RealImages | None = None,
    protocol: str | EvalProtocol | None = None,
    students: Sequence[str | StudentSpec] | None = None,
    num_seeds: int = 5,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    baselines: Sequence[str] | None = None,
    full_data: bool | None = None,
    labels: EpochLabels | ProjectorLabels | None = None,
    disable_tqdm: bool = False,
) -> EvalReport:
    """Train students on a distilled set and on the sets to compare it with, and test them. All processes call it.

    Real images go through the preprocessing of `distilled`, whatever `train` and `test` came with.

    Example:
        >>> import torch, hf_distill as hd
        >>> train, test = hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=100, max_test_samples=50))
        >>> rows = torch.cat([train.class_rows(label)[:1] for label in range(10)])
        >>> labels, names = train.labels[rows], train.class_names
        >>> distilled = hd.DistilledSet(train.uint8(rows), labels, names, train.preprocessing)
        >>> short = hd.EvalProtocol("short", epochs=3, full_data_epochs=1)
        >>> options = {"num_seeds": 2, "full_data": False, "disable_tqdm": True}
        >>> report = hd.evaluate(distilled, train, test, protocol=short, students=["convnet_d1"], **options)
        >>> {row.set: (row.labels, row.images, row.n) for row in report.rows if row.set != "k-center"}
        {'distilled': ('hard', 10, 2), 'random': ('hard', 10, 2), 'herding': ('hard', 10, 2)}

    Args:
        distilled: The set. With a teacher, it labels the baselines and all real images too.
        train: What baselines are drawn from.
        test: What the accuracies are measured on.
        held_out: Part of train that is not in `train`, to choose learning rates on; an empty one takes the protocol's
            first. If not given, it is split off `train` as at the distillation, where the set says how.
        protocol: The schedule, as `protocol_for` takes it: a name or a protocol; if not given as at the distillation.
        students: timm names or specs; the student that the set was made for if not given. A name that equals that of
            this student means this very student, with its width and normalisation.
        num_seeds: Students per row; random images are drawn anew for each.
        seed: The one seed.
        accelerator: Processes and device.
        baselines: Which of `BASELINES`; if not given as at the distillation, else all.
        full_data: Also train on all of `train`; if not given as at the distillation, else true. Herding and k-center
            then compare images by what such a network has before its logits: the student that the set was made for,
            whatever the `students` (the first of them where the set names none). Without it they compare pixels.
        labels: In place of the set's own soft ones: stored labels of its views, for protocols of views, or a projector.
        disable_tqdm: No progress bars.

    Returns:
        One row for each set, kind of labels and student; the set keeps them for its card. `meta` holds for each of
        them the learning rate and the epochs, and what herding and k-center compared images by.

    Raises:
        ValueError: There is no such protocol or baseline, the data are not those of the set, a class has too few
            images, or a student does not fit.
    """
    made_with = distilled.config.get("hyperparameters") or {}
    fraction = distilled.config.get("validation_fraction")
    if held_out is None and is_number(fraction) and 0 < fraction < 1:
        train, held_out = train.split(fraction, seed=0)
    if full_data is None:
        full_data = made_with.get("eval_full_data") is not False
    if baselines is None:
        compared_with = made_with.get("eval_baselines")
        baselines = [name for name in BASELINES if not isinstance(compared_with, list) or name in compared_with]
    protocol = protocol_for(distilled, protocol)
    accelerator = accelerator or Accelerator()
    check_at_least("num_seeds", num_seeds, 1)
    for name in baselines:
        check_choice("baselines", name, BASELINES)
    specs = student_specs(distilled, students)
    for spec in specs:
        check_student(spec)
    held_out = held_out if held_out is not None and len(held_out) else None
    for real in (train, test, *([] if held_out is None else [held_out])):
        check_data(distilled, real)
    counts = distilled.labels.bincount(minlength=distilled.num_classes).tolist()
    if baselines:
        _check_enough(train, counts)

    # Without networks trained on all of them, training images are looked at once, or few of them again and again.
    train_pool = real_pool(distilled, train, accelerator, keep="pixels" if full_data else "nothing")
    test_pool = real_pool(distilled, test, accelerator)
    held_out_pool = None if held_out is None else real_pool(distilled, held_out, accelerator)
    trainer = Trainer(accelerator, protocol, seed, held_out_pool, disable_tqdm)
    targets: dict[str, Tensor | LabelSource] = {"hard": train_pool.labels}
    if distilled.teacher is not None and (baselines or full_data):
        targets["soft"] = distilled.teacher

    def real_cases(name: str, rows: Tensor, trial: Tensor, epochs: int) -> list[Case]:
        return [
            Case(name, labels, spec, train_pool, wanted, rows, trial, protocol.lrs, epochs)
            for spec in specs
            for labels, wanted in targets.items()
        ]

    def test_accuracy(index: int, number: int, model: nn.Module) -> float:
        return accuracy(model, test_pool)

    def test_or_choose(index: int, number: int, model: nn.Module) -> tuple[float | None, dict[str, Tensor] | None]:
        chosen = coresets(train, train_pool, counts, greedy, model) if (index, number) == (guide_index, 0) else None
        return (test_accuracy(index, number, model) if index < reported else None), chosen

    greedy = [name for name in baselines if name != "random"]
    everything = torch.arange(len(train))
    guide = (made_for(distilled) or specs[0]) if full_data else None
    cases, lrs, accuracies = [], [], []
    if guide is not None:
        cases = real_cases("full data", everything.expand(num_seeds, -1), everything, protocol.full_data_epochs)
        reported = len(cases)
        if greedy and guide not in specs:
            cases.append(
                replace(cases[0], labels="hard", spec=guide, targets=targets["hard"], rows=everything.expand(1, -1))
            )
        guide_index = next((i for i, case in enumerate(cases) if (case.spec, case.labels) == (guide, "hard")), None)
        lrs = trainer.choose(cases)
        found = trainer.train(cases, lrs, test_or_choose)
        accuracies = [[measured for measured, _ in students] for students in found[:reported]]
        cases, lrs = cases[:reported], lrs[:reported]
        subsets = {} if guide_index is None else found[guide_index][0][1]
    else:
        subsets = coresets(train, train_pool, counts, greedy, None)

    small = _distilled_cases(distilled, specs, protocol, num_seeds, accelerator.device, labels)
    for name in baselines:
        if name == "random":
            rows = torch.stack([random_rows(train, counts, seed, number) for number in range(num_seeds)])
            small += real_cases(name, rows, random_rows(train, counts, seed, "trial"), protocol.epochs)
        else:
            small += real_cases(name, subsets[name].expand(num_seeds, -1), subsets[name], protocol.epochs)
    small_lrs = trainer.choose(small)
    accuracies += trainer.train(small, small_lrs, test_accuracy)
    compared = "pixels" if guide is None else f"features of {student_name(guide)}, trained on full data"
    split = str(test.provenance["split"])
    compared = compared if greedy else None
    report = _report([*cases, *small], [*lrs, *small_lrs], accuracies, trainer, compared, split, labels)
    distilled.report = (distilled.report or EvalReport()).merge(report)
    return report


def validation_accuracy(
    distilled: DistilledSet,
    held_out: RealImages | Pool,
    protocol: EvalProtocol,
    num_nets: int,
    seed: int,
    accelerator: Accelerator,
) -> float:
    """Mean accuracy in [0, 1] on held-out images of fresh students of the set; all processes call it and get it.

    They are the students that the set is made for, with its own labels and its learned learning rate, else the first
    of the protocol. Whoever calls it again and again gives `real_pool(distilled, held_out, accelerator)`, so that the
    images are read once.

    Raises:
        ValueError: The configuration of the set names no student.
    """
    pool = held_out if isinstance(held_out, Pool) else real_pool(distilled, held_out, accelerator)
    # Streams of their own: the students that select a step are not those that report on it.
    trainer = Trainer(accelerator, protocol, derive_seed(seed, "validation"), None, disable_tqdm=True)
    own = _distilled_cases(distilled, student_specs(distilled, None), protocol, num_nets, accelerator.device)[:1]
    found = trainer.train(own, trainer.choose(own), lambda index, number, model: accuracy(model, pool))
    return sum(found[0]) / num_nets


def student_specs(distilled: DistilledSet, students: Sequence[str | StudentSpec] | None) -> list[StudentSpec]:
    """The architectures that `evaluate` trains for such `students`; a `ValueError` if nothing names any."""
    own = made_for(distilled)
    if students is None:
        if own is None:
            raise ValueError("the set does not say which student it was made for; name one with --student")
        return [own]
    channels, height, width = distilled.pixel_values.shape[1:]
    specs: list[StudentSpec] = []
    for student in students:
        if isinstance(student, StudentSpec):
            spec = student
        elif own is not None and student == own.name:
            spec = own
        else:
            spec = StudentSpec(student, distilled.num_classes, channels, (height, width))
        if spec not in specs:
            specs.append(spec)
    return specs


def real_pool(distilled: DistilledSet, real: RealImages, accelerator: Accelerator, keep: Keep = "pixels") -> Pool:
    """Real images as the students of `distilled` see them."""
    return Pool(real, real.labels, preprocessing=distilled.preprocessing, device=accelerator.device, keep=keep)


def distilled_pool(distilled: DistilledSet, device: torch.device) -> Pool:
    """The images of the set as its students see them."""
    preprocessing = distilled.preprocessing if distilled.is_bytes else None
    return Pool(distilled.pixel_values, distilled.labels, preprocessing=preprocessing, device=device)


def check_data(distilled: DistilledSet, real: RealImages) -> None:
    """Raise a one-line `ValueError` unless `real` has images of the size and classes of the set."""

    def describe(shape: Sequence[int], names: Sequence[str]) -> str:
        more = ", ..." if len(names) > 3 else ""
        return f"{'x'.join(map(str, shape))} images of {len(names)} classes ({', '.join(names[:3])}{more})"

    shape = tuple(distilled.pixel_values.shape[1:])
    if real.shape != shape or real.class_names != distilled.class_names:
        raise ValueError(
            f"the distilled set has {describe(shape, distilled.class_names)} and the real data are "
            f"{describe(real.shape, real.class_names)}; expected the data it was distilled from, its classes in the "
            "same order: check --dataset_name, --classes and --resolution"
        )
    if not len(real):
        raise ValueError("there are no real images to train on, or none to test on; expected some of both")


def _check_enough(real: RealImages, counts: Sequence[int]) -> None:
    for label, count in enumerate(counts):
        found = len(real.class_rows(label))
        if found < count:
            raise ValueError(
                f"class {real.class_names[label]!r} has {found} training image(s) and the baselines need {count}; "
                "leave the class out of the distilled set, hold out less of train, or evaluate without baselines"
            )


def _distilled_cases(
    distilled: DistilledSet,
    specs: Sequence[StudentSpec],
    protocol: EvalProtocol,
    num_seeds: int,
    device: torch.device,
    labels: EpochLabels | ProjectorLabels | None = None,
) -> list[Case]:
    """The rows of the distilled set: for each student its own labels first, then hard ones."""
    pool = distilled_pool(distilled, device)
    source: LabelSource = labels or distilled.label_source
    if labels is not None:
        check_labels(labels, distilled, pool, protocol)
    targets: dict[str, Tensor | LabelSource] = {"hard": pool.labels}
    if source.kind != HardLabels.kind:
        targets = {"soft": source, **targets}
    own = next(iter(targets))
    learned = () if distilled.lr is None else (distilled.lr.item(),)
    rows = torch.arange(len(distilled))
    cases = []
    for spec in specs:
        for kind, wanted in targets.items():
            # Where everything is as in the distillation, the learned rate is part of the result and not to be tuned.
            as_made = learned and kind == own and spec == made_for(distilled)
            lrs = learned if as_made else (*learned, *protocol.lrs)
            every = rows.expand(num_seeds, -1)
            cases.append(Case("distilled", kind, spec, pool, wanted, every, rows, lrs, protocol.epochs))
    return cases


def check_labels(labels: LabelSource, distilled: DistilledSet, pool: Pool, protocol: EvalProtocol) -> None:
    """Raise a one-line `ValueError` unless these label the images of a set; those of views, for a protocol of views."""
    for source in labels.sources if isinstance(labels, MeanLabels) else [labels]:
        if isinstance(source, NetworkLabels):
            source.check_fits(distilled.class_names, distilled.preprocessing)
    if isinstance(labels, EpochLabels):
        if not protocol.per_view:
            raise ValueError(
                f"the protocol {protocol.name} looks at no views, and the labels are of views; use another"
            )
        labels.check_matches(pool, distilled.class_names)


def device_name(device: torch.device) -> str:
    """What reports call a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _report(
    cases: Sequence[Case],
    lrs: Sequence[float],
    accuracies: Sequence[list[float]],
    trainer: Trainer,
    compared: str | None,
    split: str,
    labels: EpochLabels | ProjectorLabels | None,
) -> EvalReport:
    protocol, name = trainer.protocol.name, device_name(trainer.accelerator.device)
    report = EvalReport()
    for case, lr, found in zip(cases, lrs, accuracies, strict=True):
        student, trained = student_name(case.spec), protocol
        if labels is not None and (case.set, case.labels) == ("distilled", "soft"):
            what = "stored labels" if isinstance(labels, EpochLabels) else f"label projector {labels.digest}"
            trained = f"{protocol}, {what} ({human_bytes(labels.num_bytes)})"
        report.rows.append(EvalRow(case.set, case.labels, student, trained, case.rows.shape[1], found, name, split))
        seen = {"dsa_strategy": trainer.protocol.dsa_strategy}
        if isinstance(trainer.protocol, CropProtocol):
            seen = {"views": trainer.protocol.views.to_config(), "loss": trainer.protocol.loss}
            seen |= {"ce_weight": trainer.protocol.ce_weight, "cosine": trainer.protocol.cosine}
            if trainer.protocol.loss == "kl":
                seen["temperature"] = trainer.protocol.temperature
        used = {"seed": trainer.seed, **seen, "learning_rates": {}, "epochs": {}}
        if compared is not None:
            used["coresets_compare"] = compared
        context = report.meta.setdefault(f"{protocol}, {student}", used)
        row = f"{case.set}, {case.labels} labels"
        context["learning_rates"][row], context["epochs"][row] = lr, case.epochs
    return report
