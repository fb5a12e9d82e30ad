"""`evaluate`: students of a distilled set, beside students of random images, of coresets and of all images.

Every set is trained on with the method's labels and with hard labels, several students each, under one protocol. The
learning rate of each is chosen on a held-out part of train: what chooses is never given the test images.

What is drawn for a student is a function of (seed, labels, student, number of the network): those of one number start
from the same weights on every set and see its images in the same order, so that rows are pairs; random images are drawn
by (seed, number). Neither the processes that share the work nor the other rows of the report change a number, with one
exception that the report names: what coresets compare images by comes from a network trained on all of them; where full
data is left out from the network that the set was distilled with, or else from their pixels. Scores of images come from
experts where there are some, else from that network.
"""

import difflib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..config import ALL, BASELINES, USUAL, check_at_least, check_choice
from ..data.feed import Keep, Pool
from ..data.images import Outline, RealImages
from ..data.preprocessing import Preprocessing
from ..distilled.arranging import changes_classes
from ..distilled.distilled_set import DistilledSet
from ..distilled.epoch_labels import EpochLabels
from ..distilled.labels import HardLabels, LabelSource, MeanLabels, NetworkLabels, ProjectorLabels, TeacherLabels
from ..hub.cards import human_bytes
from ..hub.checks import is_number, is_whole
from ..hub.results import EvalReport, EvalRow, RowCost
from ..networks.architectures import StudentSpec, features_and_logits
from ..networks.probes import PREFIX, Probe, ProbeSpec
from ..networks.projector import LabelProjector
from ..networks.teachers import Teacher
from ..networks.trajectories import ExpertTrajectories
from ..rng import derive_seed
from .accuracy import device_name
from .coresets import COMPARING, coresets, random_rows
from .costs import Costs, EqualCost
from .difficulty import Difficulty
from .protocols import PROTOCOLS, CropProtocol, EvalProtocol, ProbeProtocol, TrainingProtocol
from .student_results import StudentResults
from .students import check_protocol, check_student, student_name
from .trainer import Case, Question, Result, Trainer

__all__ = [
    "PROTOCOLS",
    "EvalProtocol",
    "Pool",
    "baselines_for",
    "check_data",
    "check_labels",
    "check_views",
    "crop_protocol_for",
    "device_name",
    "distilled_pool",
    "evaluate",
    "learned_rates",
    "made_for",
    "own_cases",
    "protocol_for",
    "protocols_for",
    "real_pool",
    "student_specs",
    "tiles_of",
    "trainer_for",
    "unaugmented_cases",
    "validation_accuracy",
    "wants_unaugmented",
]

logger = logging.getLogger(__name__)

SCORED = ("el2n", "forgetting", "ccs")  # baselines that go by scores of images
LOGITS = {"el2n", "ccs", "bps"}  # that need guesses of a network beside its features, or in their place


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
    own = _own_protocol(distilled)
    name = own if protocol is None else protocol
    if not isinstance(name, str) or name not in PROTOCOLS:
        nearest = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        expected = f"{hint}expected one of {', '.join(PROTOCOLS)}, or an EvalProtocol"
        if protocol is None:
            raise ValueError(f"the set was made for a protocol that is unknown here, {name!r}; {expected}")
        raise ValueError(f"there is no protocol {name!r}; {expected}")
    factor = tiles_of(distilled, factor)
    ipc = math.ceil(len(distilled) / distilled.num_classes)
    known = PROTOCOLS[name].for_set(ipc, distilled.num_classes, factor)
    strategy = distilled.config.get("dsa_strategy")
    known = known if strategy is None else known.with_augmentation(strategy)
    return replace(known, lrs=tuple(distilled.config.get("eval_lrs") or known.lrs)) if name == own else known


def _own_protocol(distilled: DistilledSet) -> str:
    """The name of the protocol of the distillation, as far as the set says, else mtt."""
    return (distilled.config.get("hyperparameters") or {}).get("eval_protocol", "mtt")


def learned_rates(distilled: DistilledSet, protocol: TrainingProtocol) -> tuple[float, ...]:
    """The learned rate of a set, if it has one, for protocols that train as trajectories do: SGD on whole images. Those
    of views have losses and optimizers of their own, for which nobody learned it."""
    return (distilled.lr.item(),) if distilled.lr is not None and isinstance(protocol, EvalProtocol) else ()


def tiles_of(distilled: DistilledSet, factor: int | None = None) -> int:
    """Tiles along a side of each image: `factor`, else as at the distillation, else 1.

    Raises:
        ValueError: They are less than one or more than pixels.
    """
    most = min(distilled.pixel_values.shape[2:])
    if factor is None:
        recorded = (distilled.config.get("hyperparameters") or {}).get("factor")
        return recorded if is_whole(recorded, most=most) else 1
    if not is_whole(factor, most=most):
        raise ValueError(f"--factor is {factor}; expected the tiles along a side of each image, from 1 to {most}")
    return factor


def protocols_for(
    distilled: DistilledSet,
    protocol: str | TrainingProtocol | Sequence[str | TrainingProtocol] | None = None,
    factor: int | None = None,
) -> list[TrainingProtocol]:
    """The ways to train students of a set that one report has: one or several, each as `protocol_for` gives it.

    Raises:
        ValueError: As `protocol_for`; or two that differ would have one title in the report.
    """
    several = [protocol] if protocol is None or isinstance(protocol, str | TrainingProtocol) else list(protocol)
    known = list(dict.fromkeys(protocol_for(distilled, each, factor) for each in several))
    titles = [each.title for each in known]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise ValueError(f"two protocols that differ are called {twice!r}; give each a name of its own")
    if not known:
        raise ValueError("there is no protocol to train students by; expected one name or more")
    return known


def check_views(protocols: Sequence[TrainingProtocol], labels: LabelSource | None) -> None:
    """Raise a one-line `ValueError` where labels were stored of views, and a protocol has no use for such."""
    blind = [f"{protocol.name} {_blind(protocol)}" for protocol in protocols if not protocol.per_view]
    if blind and isinstance(labels, EpochLabels):
        raise ValueError(
            f"the protocol {blind[0]}, and the labels are of views; use another: "
            f"{', '.join(name for name, known in PROTOCOLS.items() if known.per_view)}"
        )


def crop_protocol_for(distilled: DistilledSet, protocol: str | None = None, factor: int | None = None) -> CropProtocol:
    """As `protocol_for`, for labels of views; a `ValueError` where the protocol looks at none."""
    known = protocol_for(distilled, protocol, factor)
    if not isinstance(known, CropProtocol):
        raise ValueError(f"the set's protocol is {known.name}, which {_blind(known)}; choose one with --protocol")
    return known


def _blind(protocol: TrainingProtocol) -> str:
    """Why a protocol has no use for labels of views."""
    return "takes one label of each image" if isinstance(protocol, ProbeProtocol) else "looks at no views"


def made_for(distilled: DistilledSet) -> StudentSpec | None:
    """The student that a set was distilled for, as far as its configuration says; a backbone is read for it.

    Raises:
        ValueError: The configuration describes none, or a backbone that is not found.
        OSError: The Hub does not answer.
    """
    if "student" not in distilled.config:
        return None
    if (backbone := _backbone(distilled)) is not None:
        return ProbeSpec.recorded(backbone, *_probed(distilled))
    return StudentSpec.from_dict(distilled.config["student"])


def _backbone(distilled: DistilledSet) -> Any:
    """What the set says of the backbone that it was made with; None where it was made with none."""
    student = distilled.config.get("student")
    return student.get("probe") if isinstance(student, dict) else None


def _named_probe(distilled: DistilledSet, student: str) -> ProbeSpec:
    """The student that is named: at its commit, where the set was made with this backbone of a repository."""
    own = _backbone(distilled)
    same = isinstance(own, dict) and own.get("revision") is not None and student == f"{PREFIX}{own.get('name')}"
    if same:
        return ProbeSpec.recorded(own, *_probed(distilled))
    return ProbeSpec.named(student, *_probed(distilled))


def _probed(distilled: DistilledSet) -> tuple[int, Preprocessing, tuple[int, int]]:
    """What a backbone needs to become a student of a set: classes, preprocessing, height and width."""
    height, width = distilled.pixel_values.shape[2:]
    return distilled.num_classes, distilled.preprocessing, (height, width)


def _learner(distilled: DistilledSet, specs: Sequence[StudentSpec], protocol: TrainingProtocol) -> StudentSpec:
    """The student whose features images are compared by: that which the set was made for, where the protocol trains
    such and it is there, else the first of `specs`."""
    probes = isinstance(protocol, ProbeProtocol)
    if (backbone := _backbone(distilled)) is None:
        return (None if probes else made_for(distilled)) or specs[0]
    if not probes:
        return specs[0]
    digest = backbone.get("digest") if isinstance(backbone, dict) else None
    same = (spec for spec in specs if isinstance(spec, ProbeSpec) and spec.backbone.digest == digest)
    if (known := next(same, None)) is not None:
        return known
    try:
        return made_for(distilled) or specs[0]
    except (ValueError, OSError) as error:
        logger.warning("real images are compared by %s: %s", student_name(specs[0]), error)
        return specs[0]


def evaluate(
    distilled: DistilledSet,
    train: RealImages,
    test: RealImages,
    *,
    held_out: RealImages | None = None,
    protocol: str | TrainingProtocol | Sequence[str | TrainingProtocol] | None = None,
    students: Sequence[str | StudentSpec] | None = None,
    num_seeds: int = 5,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    baselines: Sequence[str] | None = None,
    full_data: bool | None = None,
    labels: EpochLabels | ProjectorLabels | None = None,
    guide: Teacher | None = None,
    experts: ExpertTrajectories | None = None,
    unaugmented: bool | None = None,
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
            Of several, each has the rows that it has alone; what is known to be wrong with one is found out first.
        students: timm names or specs; the student that the set was made for if not given. A name that equals that of
            this student means this very student, with its width and normalisation. For protocols of probes
            `probe:NAME`, or `probe:NAME@REVISION`, of folders and repositories that `Backbone.from_pretrained` takes.
        num_seeds: Students per row; random images are drawn anew for each.
        seed: The one seed.
        accelerator: Processes and device.
        baselines: Which of `BASELINES` (see `coresets`), or ["all"] for all that can be made with what is there; if not
            given as at the distillation, else random, herding and k-center.
        full_data: Also train on all of `train`; if not given as at the distillation, else true. Herding, k-center and
            bps then compare images by what such a network has before its logits: the student that the set was made for,
            whatever the `students` (the first of them where the set names none). So do centroid and neighbour. Under a
            protocol of probes it is its backbone, with full data or without.
        labels: In place of the set's own soft ones: stored labels of its views, for protocols of views, or a projector.
        guide: A network for the classes of the set, by which herding, k-center and bps compare images where there is no
            full data. If not given it is what labels the set, of several networks the first, or else the first of the
            experts; where there is none, herding and k-center compare pixels.
        experts: Trained on such images: el2n, forgetting and ccs go by the scores that their training gives images
            (`difficulty`), which are kept in their folder. Without them el2n and ccs go by the errors of the network
            that images are compared by.
        unaugmented: Also train on the set and on random images, with the method's own labels, without augmentation,
            which gives the report an augmentation robust score; if not given as at the distillation, as far as that can
            be made here, else false. A protocol that augments nothing has no such rows; a warning says so.
        budget: "steps" trains every student as many steps as one of the set with its own labels has under the protocol,
            whatever the images; "flops" for the same FLOP, those of a teacher that labels meanwhile among them, as
            nearly as steps allow. Rates drop at the same shares of a training. Without it epochs say how long.
        output_dir: Folder of a run or of the set, on storage that the processes share. Its `students/` keeps what each
            student reached as soon as it did, and what is there already is not trained again: whoever calls this again
            after an interruption, or with further students, gets the same report; results on all real images are in
            the cache of `datasets` too, for other sets, of whatever size; the one network that chooses coresets is
            trained again for a set with other numbers of images, or another list of coresets. Nothing is kept if not
            given.
        disable_tqdm: No progress bars.

    Returns:
        One row for each set, kind of labels, student and protocol, with what a student costs; the set keeps them for
        its card. `meta` holds for each of them the learning rate and the epochs, and what each coreset was chosen by.

    Raises:
        ValueError: There is no such protocol, baseline or budget, a baseline needs what is not there, the data are not
            those of the set, a class has too few images, or a student does not fit; or `unaugmented` lacks random
            images, or labels of images as they are.
    """
    given = locals()
    protocol, *others = protocols_for(distilled, protocol)
    check_views([protocol, *others], labels)
    _check_list("students", students)
    specs = student_specs(distilled, students)
    for each in (protocol, *others):
        check_protocol(specs, each)
    given["students"] = specs
    if others:
        report = EvalReport()
        for each in (protocol, *others):
            report = report.merge(evaluate(**{**given, "protocol": each}))
        return report
    made_with = distilled.config.get("hyperparameters") or {}
    fraction = ((distilled.config.get("source") or {}).get("arguments") or {}).get("validation_fraction")
    if held_out is None and is_number(fraction) and 0 < fraction < 1:
        train, held_out = train.split(fraction, seed=0)
    if full_data is None:
        full_data = made_with.get("eval_full_data") is not False
    accelerator = accelerator or Accelerator()
    check_at_least("num_seeds", num_seeds, 1)
    known: dict[str, Any] = {"full_data": full_data, "guide": guide, "experts": experts}
    baselines = baselines_for(distilled, baselines, **known)
    check_evaluation(distilled, train.outline, specs, baselines, experts)
    _say_sizes(specs)
    bare = wants_unaugmented(distilled, protocol, baselines, labels, unaugmented)
    counts = distilled.labels.bincount(minlength=distilled.num_classes).tolist()
    trainer = trainer_for(distilled, test, held_out, seed, accelerator, disable_tqdm, output_dir)
    own = _distilled_cases(distilled, specs, protocol, num_seeds, accelerator.device, labels)
    costs = Costs(accelerator.device)
    equal = EqualCost.to(budget, own, costs)
    asked = experts if experts is not None and _know_images(experts) and set(baselines) & set(SCORED) else None
    # Without networks that look at all of them, training images are looked at once, or few of them again and again.
    pool = real_pool(distilled, train, accelerator, keep="pixels" if full_data or asked else "nothing")
    scores = None
    if asked is not None:
        asked.check_matches(train.seen_through(distilled.preprocessing))
        scores = Difficulty.of_experts(asked, pool, accelerator, disable_tqdm=disable_tqdm)
    real = _RealSets(
        train,
        pool,
        distilled.teacher,
        counts,
        specs,
        tuple(baselines),
        num_seeds,
        protocol,
        trainer,
        equal,
        (own[0].pool, distilled.labels.cpu()),
        scores,
    )

    if full_data:
        learner = _learner(distilled, specs, protocol)
        results, coreset_rows = real.full_data(learner)
        network = f"{student_name(learner)}, trained on full data"
        by = f"features of {student_name(learner) if isinstance(learner, ProbeSpec) else network}"
    else:
        seen = _guide(distilled, guide, experts, accelerator.device) if real.compared else None
        kind = "label projector" if isinstance(seen, LabelProjector) else "teacher"
        network = "" if seen is None else f"the {kind} {seen.name} ({seen.digest})"
        by, look = f"features of {network}" if network else "pixels", None
        probed = isinstance(protocol, ProbeProtocol) and real.compared and guide is None
        if probed and isinstance(probe := _learner(distilled, specs, protocol), ProbeSpec):
            by, look = f"features of {student_name(probe)}", _probe_look(probe, seen, real.compared, accelerator.device)
        elif seen is not None:
            look = _look(seen, real.compared)
        results, coreset_rows = [], real.shared_coresets(look)
    coreset_rows |= real.scored_coresets()
    cases = [*map(equal, own), *real.baselines(coreset_rows)]
    results += trainer.measure(cases + unaugmented_cases(cases) if bare else cases)
    context = {"coresets": real.chosen_by(by, network)} if coreset_rows else {}
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
        own: The images of the distilled set, and their classes on the CPU.
        scores: What experts say of all of them, if any are asked.
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
    own: tuple[Pool, Tensor]
    scores: Difficulty | None = None

    @property
    def scored(self) -> list[str]:
        """The names of the subsets that go by the scores of experts."""
        return [name for name in self.names if name in SCORED and self.scores is not None]

    @property
    def compared(self) -> list[str]:
        """The names of the subsets that look at images."""
        return [name for name in self.names if name != "random" and name not in self.scored]

    def coresets(
        self, look: Callable[[Tensor], tuple[Tensor, Tensor]] | Probe | None, classes: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """The rows (N,) of the subsets that look at images, by what `look` gives of them, else by pixels."""
        some = {"own": self.own, "seed": self.trainer.seed, "classes": classes}
        return coresets(self.train, self.pool, self.counts, self.compared, look, **some)

    def shared_coresets(self, look: Callable[[Tensor], tuple[Tensor, Tensor]] | None) -> dict[str, Tensor]:
        """As `coresets`; all processes call it, and each looks at the images of some classes."""
        accelerator = self.trainer.accelerator
        mine = range(len(self.counts))[accelerator.process_index :: accelerator.num_processes]
        chosen: dict[str, list[int]] = {name: [] for name in self.compared}
        for part in gather_object([{name: rows.tolist() for name, rows in self.coresets(look, mine).items()}]):
            for name, rows in part.items():
                chosen[name] += rows
        rows_of = {name: torch.tensor(rows, dtype=torch.long) for name, rows in chosen.items()}
        # Class by class, whoever looked at them.
        return {name: rows[self.train.labels[rows].argsort(stable=True)] for name, rows in rows_of.items()}

    def scored_coresets(self) -> dict[str, Tensor]:
        """The rows (N,) of the subsets that go by the scores of experts."""
        known = {"difficulty": self.scores, "seed": self.trainer.seed}
        return coresets(self.train, self.pool, self.counts, self.scored, None, **known)

    def chosen_by(self, compared: str, network: str) -> dict[str, str]:
        """In words, by the names of all subsets but random ones, what they were chosen by.

        Args:
            compared: What those go by that compare images: features of a network, or pixels.
            network: Whose errors the others go by.
        """
        words = {name: compared if name in COMPARING else f"errors of {network}" for name in self.compared}
        return words | {name: self.scores.words(name) for name in self.scored if self.scores is not None}

    def full_data(self, guide: StudentSpec) -> tuple[list[Result], dict[str, Tensor]]:
        """The results of all real images, and the `coresets` by the first network `guide` that learned them."""
        everything = torch.arange(len(self.train))
        protocol = self.protocol.for_full_data()
        rows = everything.expand(self.num_seeds, -1)
        cases = self._cases("full data", rows, everything, protocol, protocol.full_data_epochs)
        tested = self.trainer.accuracy_on(self.trainer.test)
        asked = [(i, tested) for i in range(len(cases))]
        reported = len(cases)
        if self.compared:
            guiding = next((i for i, case in enumerate(cases) if (case.spec, case.labels) == (guide, "hard")), reported)
            if guiding == reported:  # a network for the features alone
                only, classes = everything.expand(1, -1), self.pool.labels
                length = {"epochs": protocol.full_data_epochs, "protocol": protocol}  # of no row, and so of no budget
                cases.append(replace(cases[0], labels="hard", spec=guide, targets=classes, rows=only, **length))
            about: dict[str, Any] = {"coresets": self.compared, "counts": list(self.counts)}
            if "neighbour" in self.compared and self.trainer.kept is not None:
                about["of"] = self.trainer.kept.images(self.own[0])
            asked.append((guiding, Question(about, self._chosen, self._may_be_chosen, first=True)))
        lrs = self.trainer.choose(cases)
        answers = self.trainer.train(
            [cases[i] for i, _ in asked], [lrs[i] for i, _ in asked], [question for _, question in asked]
        )
        chosen = answers[-1][0] if self.compared else {}
        results = [Result(cases[i], lrs[i], answers[i]) for i in range(reported)]
        return results, {name: torch.tensor(rows) for name, rows in chosen.items()}

    def _chosen(self, number: int, model: nn.Module) -> dict[str, list[int]]:
        """The rows of train that a network lets the subsets take which look at images."""
        look = model if isinstance(model, Probe) else partial(features_and_logits, model)
        return {name: rows.tolist() for name, rows in self.coresets(look).items()}

    def _may_be_chosen(self, number: int, answer: Any) -> bool:
        """True for rows of train for each of these subsets."""
        if not isinstance(answer, dict) or [*answer] != self.compared:
            return False
        return all(
            isinstance(rows, list)
            and len(rows) == sum(self.counts)
            and all(is_whole(row, 0, len(self.train) - 1) for row in rows)
            for rows in answer.values()
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


def _guide(
    distilled: DistilledSet, guide: Teacher | None, experts: ExpertTrajectories | None, device: torch.device
) -> Teacher | LabelProjector | None:
    """The network that images are compared by, on `device`: `guide`, else what labels the set, else the first of the
    experts; None without any.

    Raises:
        ValueError: It is for other classes or another preprocessing than the set.
    """
    source, labelled = distilled.teacher, _is_labelled(distilled)
    if guide is None and not labelled and experts is not None and _know_images(experts):
        guide = Teacher.from_expert(experts, 0)
    if guide is not None:
        source = NetworkLabels(guide)
        source.check_fits(distilled.class_names, distilled.preprocessing)
    if isinstance(source, NetworkLabels):
        source.ready(device)
        return source.teacher
    if not isinstance(source, TeacherLabels) or not labelled:
        return None
    network = source.model.load(source.thetas[0])
    return Teacher(network, source.spec, distilled.class_names, distilled.preprocessing).to(device)


def _look(network: Teacher | LabelProjector, names: Sequence[str]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Gives what `network` has of images before its logits, and the logits where baselines need them."""
    if isinstance(network, Teacher):
        return partial(features_and_logits, network.model)
    if not set(names) & LOGITS:  # one pass, where a projector takes two
        return lambda images: (network.features(images),) * 2
    return lambda images: (network.features(images), network.logits(images))


def _probe_look(
    probe: ProbeSpec, network: Teacher | LabelProjector | None, names: Sequence[str], device: torch.device
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Gives what the backbone of `probe` has of images, and the logits of `network` where baselines need them."""
    probe.backbone.to(device)
    if network is None or not set(names) & LOGITS:
        return lambda images: (probe.seen(images),) * 2
    asked = network
    return lambda images: (probe.seen(images), asked.logits(images))


def _is_labelled(distilled: DistilledSet) -> bool:
    """True where a network labels the set that knows an image alone."""
    source = distilled.teacher
    return isinstance(source, NetworkLabels) or (isinstance(source, TeacherLabels) and not source.model.sees_batches)


def _know_images(experts: ExpertTrajectories) -> bool:
    """True where experts know an image alone: with BatchNorm their rows lack running statistics."""
    return not experts.flat_model().sees_batches


def _lacking(
    distilled: DistilledSet, full_data: bool, guide: Teacher | None, experts: ExpertTrajectories | None
) -> dict[str, str]:
    """The baselines that cannot be made with what is there, and what each of them lacks."""
    usable = experts is not None and _know_images(experts)
    lacking: dict[str, str] = {}
    if not usable:
        there = "none are given" if experts is None else "those given have BatchNorm, whose statistics are not stored"
        lacking["forgetting"] = f"experts (--experts), and {there}"
    if not (usable or full_data or guide is not None or _is_labelled(distilled)):
        network = "a network: experts (--experts), a teacher (--teacher), or --full_data"
        lacking |= dict.fromkeys(LOGITS, network)
    return lacking


def validation_accuracy(
    distilled: DistilledSet,
    held_out: RealImages | Pool,
    protocol: TrainingProtocol,
    num_nets: int,
    seed: int,
    accelerator: Accelerator,
    students: Sequence[StudentSpec] | None = None,
) -> float:
    """Mean accuracy in [0, 1] on held-out images of fresh students of the set; all processes call it and get it.

    They are the first of `students`, if given, else the students that the set is made for, with its own labels and its
    learned learning rate, else the first of the protocol; a protocol of views takes its own. Whoever calls it again and
    again gives `real_pool(distilled, held_out, accelerator)`, so that the images are read once.

    Raises:
        ValueError: The configuration of the set names no student.
    """
    pool = held_out if isinstance(held_out, Pool) else real_pool(distilled, held_out, accelerator)
    # Streams of their own: the students that select a step are not those that report on it.
    trainer = Trainer(accelerator, derive_seed(seed, "validation"), pool, held_out=None, disable_tqdm=True)
    own = _distilled_cases(distilled, student_specs(distilled, students), protocol, num_nets, accelerator.device)
    (result,) = trainer.measure(own[:1])
    return sum(result.accuracies) / num_nets


def student_specs(distilled: DistilledSet, students: Sequence[str | StudentSpec] | None) -> list[StudentSpec]:
    """What `evaluate` trains for such `students`; a `ValueError` if nothing names any, or there is no such backbone."""
    own = None if students is not None and _backbone(distilled) is not None else made_for(distilled)
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
        elif student.startswith(PREFIX):
            spec = _named_probe(distilled, student)
        else:
            spec = StudentSpec(student, distilled.num_classes, channels, (height, width))
        if spec not in specs:
            specs.append(spec)
    return specs


def real_pool(distilled: DistilledSet, real: RealImages, accelerator: Accelerator, keep: Keep = "pixels") -> Pool:
    """Real images as the students of `distilled` see them."""
    return Pool(real, real.labels, preprocessing=distilled.preprocessing, device=accelerator.device, keep=keep)


def baselines_for(
    distilled: DistilledSet,
    baselines: Sequence[str] | None = None,
    *,
    full_data: bool | None = None,
    guide: Teacher | None = None,
    experts: ExpertTrajectories | None = None,
) -> list[str]:
    """The baselines of an evaluation by name, for what `evaluate` takes.

    Of "all" of them, and of those of the distillation, those are left out that cannot be made; a warning says which.

    Raises:
        ValueError: There is no such baseline, one that is named cannot be made, or `guide` is for other classes or
            another preprocessing than the set.
    """
    made_with = distilled.config.get("hyperparameters") or {}
    recorded = made_with.get("eval_baselines")
    _check_list("baselines", baselines)
    for name in baselines or []:
        check_choice("baselines", name, (*BASELINES, ALL))
    wanted = list(baselines if baselines is not None else recorded if isinstance(recorded, list) else USUAL)
    named = baselines is not None and ALL not in wanted
    chosen = list(dict.fromkeys(wanted)) if named else [name for name in BASELINES if ALL in wanted or name in wanted]
    if full_data is None:
        full_data = made_with.get("eval_full_data") is not False
    lacking = _lacking(distilled, full_data, guide, experts) if set(chosen) - set(USUAL) else {}
    absent = {name: lacking[name] for name in chosen if name in lacking}
    if absent and named:
        name, needed = next(iter(absent.items()))
        raise ValueError(f"--baselines has {name}, which needs {needed}; give that, or leave {name} out")
    if absent:
        reasons = ", ".join(f"{name} (needs {needed})" for name, needed in absent.items())
        logger.warning("baselines that are left out: %s", reasons)
    made = [name for name in chosen if name not in absent]
    if guide is not None and not full_data and set(made) - {"random"}:
        NetworkLabels(guide).check_fits(distilled.class_names, distilled.preprocessing)
    return made


def _say_sizes(specs: Sequence[StudentSpec]) -> None:
    """Say where backbones see images larger than they are."""
    for spec in specs:
        if isinstance(spec, ProbeSpec) and any(map(int.__lt__, spec.img_size, spec.backbone.size)):
            own, seen = ("x".join(map(str, size)) for size in (spec.img_size, spec.backbone.size))
            logger.warning("%s sees images of %s pixels enlarged to %s", student_name(spec), own, seen)


def _check_list(name: str, several: Sequence[Any] | None) -> None:
    if isinstance(several, str):
        raise ValueError(f"{name} is {several!r}; expected a list, such as [{several!r}]")


def check_evaluation(
    distilled: DistilledSet,
    train: Outline,
    students: Sequence[str | StudentSpec] | None = None,
    baselines: Sequence[str] = (),
    experts: ExpertTrajectories | None = None,
) -> list[StudentSpec]:
    """The students of an evaluation; raises a `ValueError` for what `evaluate` would refuse, as far as it is known
    before an image is decoded.

    Args:
        distilled: The set.
        train: What is known of the images that it was made of, without those that are held out.
        students: As for `evaluate`.
        baselines: As `baselines_for` gives them.
        experts: As for `evaluate`.
    """
    _check_list("students", students)
    specs = student_specs(distilled, students)
    for spec in specs:
        check_student(spec)
    check_data(distilled, train)
    if experts is not None:
        experts.check_matches(train)
    if baselines:
        needed = distilled.labels.bincount(minlength=distilled.num_classes).tolist()
        hint = "leave them out of the distilled set, hold out less of train, or evaluate without baselines"
        train.require(needed, "baselines take as many images as the set has", hint)
    return specs


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
    learned = learned_rates(distilled, protocol)
    own_way = labels is None and not distilled.config.get("changes") and protocol.name == _own_protocol(distilled)
    rows = torch.arange(len(distilled))
    cases = []
    for spec in specs:
        for kind, target in targets.items():
            # Where everything is as in the distillation, the learned rate is part of the result and not to be tuned.
            as_made = learned and own_way and kind == own and spec == made_for(distilled)
            lrs = learned if as_made else (*learned, *protocol.lrs)
            every = rows.expand(num_seeds, -1)
            cases.append(Case("distilled", kind, spec, pool, target, every, rows, lrs, protocol.epochs, protocol))
    return cases


def own_cases(
    distilled: DistilledSet,
    protocol: TrainingProtocol,
    num_seeds: int,
    device: torch.device,
    students: Sequence[StudentSpec] | None = None,
) -> list[Case]:
    """The rows of a set: for each student its own labels first, then hard ones."""
    return _distilled_cases(distilled, student_specs(distilled, students), protocol, num_seeds, device)


def unaugmented_cases(cases: Sequence[Case]) -> list[Case]:
    """The cases of the set with its own labels, which come first, and of random images with such, unaugmented.

    A learned rate was learned with the augmentation of the distillation, and has to stand beside the others here.
    """
    return [
        replace(
            case,
            lrs=tuple(dict.fromkeys((*case.lrs, *case.protocol.lrs))),
            protocol=case.protocol.without_augmentation(),
        )
        for case in cases
        if case.set in ("distilled", "random") and case.labels == cases[0].labels
    ]


def wants_unaugmented(
    distilled: DistilledSet,
    protocol: TrainingProtocol,
    baselines: Sequence[str],
    labels: LabelSource | None,
    wanted: bool | None,
) -> bool:
    """True where students without augmentation are trained too: as `wanted`, else as at the distillation.

    They are left out, with a warning, where the protocol augments nothing, and where the distillation alone wanted them
    and they cannot be.

    Raises:
        ValueError: They are `wanted`, and no augmentation robust score can be made of what is asked for.
    """
    recorded = (distilled.config.get("hyperparameters") or {}).get("eval_unaugmented") is True
    if not (recorded if wanted is None else wanted):
        return False
    lacking = None
    if "random" not in baselines:
        lacking = "compares with random images; add random to the baselines"
    elif labels is not None:
        lacking = (
            "is for the set's own labels, and those given are of augmented views, or of this set alone; leave --labels "
            "or --unaugmented out"
        )
    elif distilled.label_source.kind != HardLabels.kind and distilled.teacher is None:
        lacking = (
            "compares with random images, for which the set's own labels are not known without a teacher; leave it out"
        )
    if lacking and wanted:
        raise ValueError(f"--unaugmented {lacking}")
    if not lacking and not protocol.augments:
        lacking = f"has nothing to leave out: the protocol {protocol.name} augments nothing"
    if lacking:
        logger.warning("no rows without augmentation: --unaugmented %s", lacking)
    return not lacking


def check_labels(labels: LabelSource, distilled: DistilledSet, pool: Pool, protocol: TrainingProtocol) -> None:
    """Raise a one-line `ValueError` unless these label the images of a set; those of views, for a protocol of views."""
    for source in labels.sources if isinstance(labels, MeanLabels) else [labels]:
        if isinstance(source, NetworkLabels):
            source.check_fits(distilled.class_names, distilled.preprocessing)
    check_views([protocol], labels)
    if isinstance(labels, EpochLabels):
        labels.check_matches(pool, distilled.class_names)
        if labels.class_names is None and changes_classes(distilled.config.get("changes")):
            raise ValueError(
                f"the labels in {labels.folder} do not name their classes, and those of the set were chosen or put in "
                "another order since it was made; label the set as it is now (recipes/relabel.py)"
            )


def _report(
    results: Sequence[Result],
    costs: Sequence[RowCost],
    trainer: Trainer,
    split: str,
    labels: EpochLabels | ProjectorLabels | None,
    context: dict[str, Any],
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
        if isinstance(case.spec, ProbeSpec):
            about["backbone"] = case.spec.to_dict()["probe"]
        about = report.meta.setdefault(f"{protocol.title}, {student}", about)
        row = f"{case.set}, {case.labels} labels"
        about["learning_rates"][row], about["epochs"][row] = lr, case.epochs
    return report
