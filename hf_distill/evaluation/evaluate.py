"""`evaluate`: students of a distilled set, beside students of random, herding, k-center and all images.

Every set is trained on with the method's labels and with hard labels, several students each, under one protocol. The
learning rate of each is chosen on a held-out part of train: what chooses is never given the test images.

A number is a function of (seed, set, labels, student, number of the network): neither the processes that share the
work nor the other rows of the report change it, with one exception that the report names: what herding and k-center
compare images by comes from a network trained on all of them; where full data is left out from the network that the
set was distilled with, or else from their pixels.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..config import BASELINES, check_at_least, check_choice
from ..data.feed import Keep, Pool
from ..data.images import Outline, RealImages
from ..distilled.distilled_set import DistilledSet
from ..distilled.epoch_labels import EpochLabels
from ..distilled.labels import HardLabels, LabelSource, MeanLabels, NetworkLabels, ProjectorLabels, TeacherLabels
from ..hub.cards import human_bytes
from ..hub.checks import is_number, is_share, is_whole
from ..hub.results import EvalReport, EvalRow, RowCost
from ..networks.architectures import StudentSpec, before_logits
from ..networks.projector import LabelProjector
from ..networks.teachers import Teacher
from ..rng import derive_seed
from .accuracy import device_name
from .coresets import coresets, random_rows
from .costs import Costs, EqualCost
from .protocols import PROTOCOLS, CropProtocol, EvalProtocol, TrainingProtocol
from .student_results import StudentResults
from .students import check_student, student_name
from .trainer import Case, Question, Result, Trainer

__all__ = [
    "PROTOCOLS",
    "EvalProtocol",
    "Pool",
    "check_data",
    "check_labels",
    "crop_protocol_for",
    "device_name",
    "distilled_pool",
    "evaluate",
    "made_for",
    "protocol_for",
    "real_pool",
    "student_specs",
    "trainer_for",
    "validation_accuracy",
]


def protocol_for(
    distilled: DistilledSet, protocol: str | TrainingProtocol | None = None, factor: int | None = None
) -> TrainingProtocol:
    """The way to train students of a set: one of `PROTOCOLS`, for a set like this and with the augmentation it had.

    Args:
        distilled: The set: its images per class, its classes and its tiles say what protocols that follow the set are.
        protocol: A name, or a protocol that is taken as it is. If not given it is that of the distillation, else mtt;
            and where it is that, learning rates are chosen among those of the distillation.
        factor: Tiles along a side of each image, for a protocol that follows them. If not given as at the distillation,
            else 1: images of a set that does not say are whole ones.

    Raises:
        ValueError: There is no protocol of this name, or the tiles are less than one or more than pixels.
    """
    if isinstance(protocol, TrainingProtocol):
        return protocol
    made_with = distilled.config.get("hyperparameters") or {}
    own = made_with.get("eval_protocol", "mtt")
    name = own if protocol is None else protocol
    if not isinstance(name, str) or name not in PROTOCOLS:
        nearest = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        expected = f"{hint}expected one of {', '.join(PROTOCOLS)}, or an EvalProtocol"
        if protocol is None:
            raise ValueError(f"the set was made for a protocol that is unknown here, {name!r}; {expected}")
        raise ValueError(f"there is no protocol {name!r}; {expected}")
    most = min(distilled.pixel_values.shape[2:])
    if factor is None:
        recorded = made_with.get("factor")
        factor = recorded if is_whole(recorded, most=most) else 1
    elif not is_whole(factor, most=most):
        raise ValueError(f"--factor is {factor}; expected the tiles along a side of each image, from 1 to {most}")
    ipc = math.ceil(len(distilled) / distilled.num_classes)
    known = PROTOCOLS[name].for_set(ipc, distilled.num_classes, factor)
    strategy = distilled.config.get("dsa_strategy")
    known = known if strategy is None else known.with_augmentation(strategy)
    return replace(known, lrs=tuple(distilled.config.get("eval_lrs") or known.lrs)) if name == own else known


def crop_protocol_for(distilled: DistilledSet, protocol: str | None = None, factor: int | None = None) -> CropProtocol:
    """As `protocol_for`, for labels of views; a `ValueError` where the protocol looks at none."""
    known = protocol_for(distilled, protocol, factor)
    if not isinstance(known, CropProtocol):
        raise ValueError(f"the set's protocol is {known.name}, which looks at no views; choose one with --protocol")
    return known


def made_for(distilled: DistilledSet) -> StudentSpec | None:
    """The student that a set was distilled for, as far as its configuration says."""
    return None if "student" not in distilled.config else StudentSpec.from_dict(distilled.config["student"])


def evaluate(
    distilled: DistilledSet,
    train: RealImages,
    test: RealImages,
    *,
    held_out: RealImages | None = None,
    protocol: str | TrainingProtocol | None = None,
    students: Sequence[str | StudentSpec] | None = None,
    num_seeds: int = 5,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    baselines: Sequence[str] | None = None,
    full_data: bool | None = None,
    labels: EpochLabels | ProjectorLabels | None = None,
    guide: Teacher | None = None,
    budget: str | None = None,
    output_dir: str | Path | None = None,
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
            whatever the `students` (the first of them where the set names none).
        labels: In place of the set's own soft ones: stored labels of its views, for protocols of views, or a projector.
        guide: A network for the classes of the set, by whose features herding and k-center compare images where there
            is no full data. If not given it is what labels the set, of several networks the first; where none does,
            they compare pixels.
        budget: "steps" trains every student as many steps as one of the set with its own labels has under the protocol,
            whatever the images; "flops" for the same FLOP, those of a teacher that labels meanwhile among them, as
            nearly as steps allow. Rates drop at the same shares of a training. Without it epochs say how long.
        output_dir: Folder of a run or of the set, on storage that the processes share. Its `students/` keeps what each
            student reached as soon as it did, and what is there already is not trained again: whoever calls this again
            after an interruption, or with further students, gets the same report. Nothing is kept if not given.
        disable_tqdm: No progress bars.

    Returns:
        One row for each set, kind of labels and student, with what a student costs; the set keeps them for its card.
        `meta` holds for each of them the learning rate and the epochs, and what herding and k-center compared images
        by.

    Raises:
        ValueError: There is no such protocol, baseline or budget, the data are not those of the set, a class has too
            few images, or a student does not fit.
    """
    made_with = distilled.config.get("hyperparameters") or {}
    fraction = ((distilled.config.get("source") or {}).get("arguments") or {}).get("validation_fraction")
    if held_out is None and is_number(fraction) and 0 < fraction < 1:
        train, held_out = train.split(fraction, seed=0)
    if full_data is None:
        full_data = made_with.get("eval_full_data") is not False
    protocol = protocol_for(distilled, protocol)
    accelerator = accelerator or Accelerator()
    check_at_least("num_seeds", num_seeds, 1)
    specs, baselines = check_evaluation(distilled, train.outline, students, baselines)
    counts = distilled.labels.bincount(minlength=distilled.num_classes).tolist()
    trainer = trainer_for(distilled, test, held_out, seed, accelerator, disable_tqdm, output_dir)
    own = _distilled_cases(distilled, specs, protocol, num_seeds, accelerator.device, labels)
    costs = Costs(accelerator.device)
    equal = EqualCost.to(budget, own, costs)
    # Without networks trained on all of them, training images are looked at once, or few of them again and again.
    pool = real_pool(distilled, train, accelerator, keep="pixels" if full_data else "nothing")
    real = _RealSets(
        train, pool, distilled.teacher, counts, specs, tuple(baselines), num_seeds, protocol, trainer, equal
    )

    if full_data:
        learner = made_for(distilled) or specs[0]
        results, coreset_rows = real.full_data(learner)
        compared = f"features of {student_name(learner)}, trained on full data"
    else:
        network = _guide(distilled, guide, accelerator.device) if real.greedy else None
        results, coreset_rows = [], real.coresets(None if network is None else network.features)
        kind = "label projector" if isinstance(network, LabelProjector) else "teacher"
        compared = "pixels" if network is None else f"features of the {kind} {network.name} ({network.digest})"
    results += trainer.measure([*map(equal, own), *real.baselines(coreset_rows)])
    context = {"coresets_compare": compared} if real.greedy else {}
    bytes_of = {"distilled": distilled.pixel_values.element_size()}
    spent = [costs.of(case, bytes_of.get(case.set, 1)) for case, _, _ in results]
    report = _report(results, spent, trainer, str(test.provenance["split"]), labels, context)
    distilled.report = (distilled.report or EvalReport()).merge(report)
    return report


@dataclass(frozen=True)
class _RealSets:
    """The sets of real images that a distilled one is compared with: all of them, and subsets as large as it is.

    Attributes:
        train: All of them.
        pool: The same, as students see them.
        teacher: What labels them where the set has soft labels.
        counts: Images of each class in a subset.
        specs: The students.
        names: Which subsets.
        num_seeds: Students per row.
        protocol: That of the distilled set.
        trainer: What trains and tests students.
        equal: Gives students what those of the distilled set have.
    """

    train: RealImages
    pool: Pool
    teacher: LabelSource | None
    counts: Sequence[int]
    specs: Sequence[StudentSpec]
    names: Sequence[str]
    num_seeds: int
    protocol: TrainingProtocol
    trainer: Trainer
    equal: EqualCost

    @property
    def greedy(self) -> list[str]:
        """The names of the subsets that compare images."""
        return [name for name in self.names if name != "random"]

    def coresets(self, features_of: Callable[[Tensor], Tensor] | None) -> dict[str, Tensor]:
        """The rows (N,) of the subsets that compare images, by what `features_of` gives of them, else by pixels."""
        return coresets(self.train, self.pool, self.counts, self.greedy, features_of)

    def full_data(self, guide: StudentSpec) -> tuple[list[Result], dict[str, Tensor]]:
        """The results of all real images, and the `coresets` by the first network `guide` that learned them."""
        everything = torch.arange(len(self.train))
        protocol = self.protocol.for_full_data()
        rows = everything.expand(self.num_seeds, -1)
        cases = self._cases("full data", rows, everything, protocol, protocol.full_data_epochs)
        reported = len(cases)
        if self.greedy and guide not in self.specs:  # a network for the features alone
            only, classes = everything.expand(1, -1), self.pool.labels
            length = {"epochs": protocol.full_data_epochs, "protocol": protocol}  # of no row, and so of no budget
            cases.append(replace(cases[0], labels="hard", spec=guide, targets=classes, rows=only, **length))
        guiding = next((i for i, case in enumerate(cases) if (case.spec, case.labels) == (guide, "hard")), None)
        tested = self.trainer.accuracy_on(self.trainer.test)

        def ask(number: int, model: nn.Module) -> list[Any]:
            """The accuracy of a network that guides too, and the rows that the first of them lets subsets take."""
            chosen = {} if number else self.coresets(partial(before_logits, model))
            return [tested.ask(number, model), {name: rows.tolist() for name, rows in chosen.items()}]

        questions = [tested] * len(cases)
        if guiding is not None:
            counts = {"coresets": self.greedy, "counts": list(self.counts)}
            questions[guiding] = Question({**tested.about, **counts}, ask, self._may_guide)
        lrs = self.trainer.choose(cases)
        answers = self.trainer.train(cases, lrs, questions)
        coreset_rows: dict[str, Tensor] = {}
        if guiding is not None:
            coreset_rows = {name: torch.tensor(rows) for name, rows in answers[guiding][0][1].items()}
            answers[guiding] = [measured for measured, _ in answers[guiding]]
        return [Result(*each) for each in zip(cases, lrs, answers, strict=True)][:reported], coreset_rows

    def _may_guide(self, number: int, answer: Any) -> bool:
        """True for an accuracy with rows of train for each subset, of the first network; of others, with none."""
        if not (isinstance(answer, list) and len(answer) == 2 and is_share(answer[0]) and isinstance(answer[1], dict)):
            return False
        expected, last = [] if number else self.greedy, len(self.train) - 1
        return [*answer[1]] == expected and all(
            isinstance(rows, list) and len(rows) == sum(self.counts) and all(is_whole(row, 0, last) for row in rows)
            for rows in answer[1].values()
        )

    def baselines(self, coreset_rows: dict[str, Tensor]) -> list[Case]:
        """The cases of the subsets; `coreset_rows` are those of `coresets`, and random ones are drawn here."""
        cases, seed, protocol = [], self.trainer.seed, self.protocol.for_real_images()
        for name in self.names:
            if name == "random":
                draws = [random_rows(self.train, self.counts, seed, number) for number in range(self.num_seeds)]
                rows, trial = torch.stack(draws), random_rows(self.train, self.counts, seed, "trial")
            else:
                rows, trial = coreset_rows[name].expand(self.num_seeds, -1), coreset_rows[name]
            cases += self._cases(name, rows, trial, protocol, protocol.epochs)
        return cases

    def _cases(self, name: str, rows: Tensor, trial: Tensor, protocol: TrainingProtocol, epochs: int) -> list[Case]:
        """For each student the case of classes, and that of the teacher's labels."""
        targets: dict[str, Tensor | LabelSource] = {"hard": self.pool.labels}
        if self.teacher is not None:
            targets["soft"] = self.teacher
        return [
            self.equal(Case(name, labels, spec, self.pool, target, rows, trial, protocol.lrs, epochs, protocol))
            for spec in self.specs
            for labels, target in targets.items()
        ]


def _guide(distilled: DistilledSet, guide: Teacher | None, device: torch.device) -> Teacher | LabelProjector | None:
    """The network whose features stand for images, on `device`: `guide`, else what labels the set; None without any.

    Raises:
        ValueError: `guide` is for other classes or another preprocessing than the set.
    """
    source = distilled.teacher
    if guide is not None:
        source = NetworkLabels(guide)
        source.check_fits(distilled.class_names, distilled.preprocessing)
    if isinstance(source, NetworkLabels):
        source.ready(device)
        return source.teacher
    if not isinstance(source, TeacherLabels) or source.model.sees_batches:
        return None
    network = source.model.load(source.thetas[0])
    return Teacher(network, source.spec, distilled.class_names, distilled.preprocessing).to(device)


def validation_accuracy(
    distilled: DistilledSet,
    held_out: RealImages | Pool,
    protocol: TrainingProtocol,
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
    trainer = Trainer(accelerator, derive_seed(seed, "validation"), pool, held_out=None, disable_tqdm=True)
    own = _distilled_cases(distilled, student_specs(distilled, None), protocol, num_nets, accelerator.device)
    (result,) = trainer.measure(own[:1])
    return sum(result.accuracies) / num_nets


def student_specs(distilled: DistilledSet, students: Sequence[str | StudentSpec] | None) -> list[StudentSpec]:
    """The architectures that `evaluate` trains for such `students`; a `ValueError` if nothing names any."""
    own = made_for(distilled)
    if students is None:
        if own is None:
            raise ValueError(
                "the set names no student that it was made for; name one with --student (in Python: students)"
            )
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


def check_evaluation(
    distilled: DistilledSet,
    train: Outline,
    students: Sequence[str | StudentSpec] | None = None,
    baselines: Sequence[str] | None = None,
) -> tuple[list[StudentSpec], list[str]]:
    """The students and the baselines of an evaluation; raises a `ValueError` for what `evaluate` would refuse, as far
    as it is known before an image is decoded.

    Args:
        distilled: The set.
        train: What is known of the images that it was made of, without those that are held out.
        students, baselines: As for `evaluate`.
    """
    if baselines is None:
        compared_with = (distilled.config.get("hyperparameters") or {}).get("eval_baselines")
        baselines = [name for name in BASELINES if not isinstance(compared_with, list) or name in compared_with]
    for name, several in (("students", students), ("baselines", baselines)):
        if isinstance(several, str):
            raise ValueError(f"{name} is {several!r}; expected a list, such as [{several!r}]")
    for name in baselines:
        check_choice("baselines", name, BASELINES)
    specs = student_specs(distilled, students)
    for spec in specs:
        check_student(spec)
    check_data(distilled, train)
    if baselines:
        needed = distilled.labels.bincount(minlength=distilled.num_classes).tolist()
        hint = "leave them out of the distilled set, hold out less of train, or evaluate without baselines"
        train.require(needed, "baselines take as many images as the set has", hint)
    return specs, list(baselines)


def distilled_pool(distilled: DistilledSet, device: torch.device) -> Pool:
    """The images of the set as its students see them."""
    preprocessing = distilled.preprocessing if distilled.is_bytes else None
    return Pool(distilled.pixel_values, distilled.labels, preprocessing=preprocessing, device=device)


def trainer_for(
    distilled: DistilledSet,
    test: RealImages,
    held_out: RealImages | None,
    seed: int,
    accelerator: Accelerator,
    disable_tqdm: bool,
    output_dir: str | Path | None = None,
) -> Trainer:
    """The trainer of students of a set, who are tested on `test`; learning rates are chosen on `held_out`, where it is,
    and results kept in `output_dir`.

    Raises:
        ValueError: The images are not like those of the set.
    """
    held_out = held_out if held_out is not None and len(held_out) else None
    for real in (test, *([] if held_out is None else [held_out])):
        check_data(distilled, real)
    test_pool = real_pool(distilled, test, accelerator)
    held_out_pool = None if held_out is None else real_pool(distilled, held_out, accelerator)
    kept = None if output_dir is None else StudentResults(output_dir, accelerator)
    return Trainer(accelerator, seed, test_pool, held_out_pool, disable_tqdm, kept)


def check_data(distilled: DistilledSet, real: Outline | RealImages) -> None:
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


def _distilled_cases(
    distilled: DistilledSet,
    specs: Sequence[StudentSpec],
    protocol: TrainingProtocol,
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
        for kind, target in targets.items():
            # Where everything is as in the distillation, the learned rate is part of the result and not to be tuned.
            as_made = learned and kind == own and spec == made_for(distilled)
            lrs = learned if as_made else (*learned, *protocol.lrs)
            every = rows.expand(num_seeds, -1)
            cases.append(Case("distilled", kind, spec, pool, target, every, rows, lrs, protocol.epochs, protocol))
    return cases


def check_labels(labels: LabelSource, distilled: DistilledSet, pool: Pool, protocol: TrainingProtocol) -> None:
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


def _report(
    results: Sequence[Result],
    costs: Sequence[RowCost],
    trainer: Trainer,
    split: str,
    labels: EpochLabels | ProjectorLabels | None,
    context: dict[str, str],
) -> EvalReport:
    """The report of some results and their `costs`; `context` is what meta says beside how students were trained."""
    device = device_name(trainer.accelerator.device)
    report = EvalReport()
    for (case, lr, accuracies), cost in zip(results, costs, strict=True):
        student, protocol = student_name(case.spec), case.protocol
        trained = protocol.title
        if labels is not None and (case.set, case.labels) == ("distilled", "soft"):
            kind = "stored labels" if isinstance(labels, EpochLabels) else f"label projector {labels.digest}"
            trained = f"{protocol.title}, {kind} ({human_bytes(labels.num_bytes)})"
        images = case.rows.shape[1]
        report.rows.append(EvalRow(case.set, case.labels, student, trained, images, accuracies, device, split, cost))
        about = {"seed": trainer.seed, **protocol.to_config(), "learning_rates": {}, "epochs": {}, **context}
        about = report.meta.setdefault(f"{protocol.title}, {student}", about)
        row = f"{case.set}, {case.labels} labels"
        about["learning_rates"][row], about["epochs"][row] = lr, case.epochs
    return report
