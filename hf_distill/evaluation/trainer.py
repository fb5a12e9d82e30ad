"""`Trainer`: the students of many sets, spread over the processes, and what they reach."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.feed import Pool, upload
from ..distilled.labels import LabelSource
from ..hub.checks import is_share
from ..networks.architectures import StudentSpec, sha256_of
from ..rng import derive_seed
from .accuracy import accuracy
from .protocols import CropProtocol, EvalProtocol, ProbeProtocol, TrainingProtocol
from .steps import Epoch
from .student_results import StudentResults
from .students import student_name, students_at_once, train_students

__all__ = ["Case", "Question", "Result", "Trainer"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One row of a report: E students, each on its rows of `pool`.

    What is drawn at random is a function of (`labels`, student), so cases that share them are pairs, whatever their
    sets: students of one number start from the same weights, and see the images in the same places of their sets in
    the same order, in the same way.

    Attributes:
        set: The name of the set.
        labels: The kind of labels.
        spec: The architecture of the students.
        pool: Images, the set's among them.
        targets: What students learn: classes (R,) on the device, or what labels the images.
        rows: (E, N), the images of each student.
        trial: (N,), the images that learning rates are tried on.
        lrs: The learning rates to choose from.
        epochs: Passes over the images.
        protocol: The schedule, for a set like this.
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
    protocol: TrainingProtocol

    @property
    def full_data(self) -> bool:
        """True where students are trained on all real images, which many sets share."""
        return self.set == "full data"


def _without_idle_budget(case: Case) -> TrainingProtocol:
    """The protocol of a case, without a budget that neither ends it nor moves its rates."""
    protocol = case.protocol
    steps = Epoch.of(case.rows.shape[1], case.spec, protocol).steps * case.epochs
    idle = protocol.budget is not None and (steps, case.epochs) == (protocol.budget.steps, protocol.epochs)
    return replace(protocol, budget=None) if idle else protocol


class Result(NamedTuple):
    """The accuracies, in [0, 1], of the students of a case, and the learning rate that they were trained with."""

    case: Case
    lr: float
    accuracies: list[float]


class _Job(NamedTuple):
    """E students of a case: the rows (E, N), the learning rate and the seed of each."""

    case: Case
    rows: Tensor
    lrs: Sequence[float]
    seeds: Sequence[int]


class Question(NamedTuple):
    """What is asked of each student of a case.

    Attributes:
        about: All that decides the answer beside the student, as JSON types.
        ask: Gives the answer, in JSON types, by the number of the student and the student.
        may_be: True for what a student of that number may have answered.
        first: Asked of the first student alone, number 0.
    """

    about: dict[str, Any]
    ask: Callable[[int, nn.Module], Any]
    may_be: Callable[[int, Any], bool]
    first: bool = False

    def numbers(self, part: slice) -> range:
        """The students of a part of the case that are asked."""
        return range(part.start, part.start + 1 if self.first else part.stop)

    def may_all_be(self, part: slice, answers: list[Any]) -> bool:
        """True for what the students of a part of the case may have answered."""
        numbers = self.numbers(part)
        return len(answers) == len(numbers) and all(map(self.may_be, numbers, answers))


@dataclass(frozen=True)
class Trainer:
    """Trains the students of many cases, spread over the processes; every process gets all results.

    Attributes:
        accelerator: Processes, device and precision.
        seed: The one seed.
        test: What accuracies are measured on.
        held_out: What learning rates are chosen on; None takes the first of each case.
        disable_tqdm: No progress bars.
        kept: Where answers are written down, and those that are there are taken from; None trains every student.
    """

    accelerator: Accelerator
    seed: int
    test: Pool
    held_out: Pool | None
    disable_tqdm: bool
    kept: StudentResults | None = None

    def measure(self, cases: Sequence[Case]) -> list[Result]:
        """The result of each case: learning rates are chosen, and the students trained and tested."""
        lrs = self.choose(cases)
        accuracies = self.train(cases, lrs, [self.accuracy_on(self.test)] * len(cases))
        return [Result(*result) for result in zip(cases, lrs, accuracies, strict=True)]

    def accuracy_on(self, pool: Pool) -> Question:
        """The accuracy in [0, 1] on the images of `pool`."""
        about = {} if self.kept is None else {"accuracy": self.kept.images(pool)}
        return Question(about, lambda number, model: accuracy(model, pool), lambda number, answer: is_share(answer))

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
            seed = derive_seed(self.seed, "trial", *self._path(case))
            rows = case.trial.expand(len(case.lrs), -1)
            trials.append(_Job(case, rows, case.lrs, [seed] * len(case.lrs)))
        tried = self._run(trials, [self.accuracy_on(held_out)] * len(trials), "learning rates")
        for i, accuracies in zip(undecided, tried, strict=True):
            chosen[i] = cases[i].lrs[accuracies.index(max(accuracies))]
        return chosen

    def train(self, cases: Sequence[Case], lrs: Sequence[float], questions: Sequence[Question]) -> list[list[Any]]:
        """For each case the answers of its students to its question; those of a case that is there twice, with another
        question, are trained once."""
        jobs = []
        for case, lr in zip(cases, lrs, strict=True):
            seeds = [derive_seed(self.seed, "student", *self._path(case), number) for number in range(len(case.rows))]
            jobs.append(_Job(case, case.rows, [lr] * len(seeds), seeds))
        return self._run(jobs, questions, "students")

    @staticmethod
    def _path(case: Case) -> tuple[str, str, str]:
        """The stream of a case, without its set; each had one of its own once, and all now have the distilled one's."""
        return "distilled", case.labels, student_name(case.spec)

    def _run(self, jobs: Sequence[_Job], questions: Sequence[Question], title: str) -> list[list[Any]]:
        parts: list[tuple[int, slice]] = []
        for index, (case, rows, _, seeds) in enumerate(jobs):
            # Who trains side by side depends on the case alone, so that the number of processes changes no result.
            size = students_at_once(case.spec, rows.shape[1], case.protocol, case.pool.device)
            starts = range(0, 1 if questions[index].first else len(seeds), size)
            parts += [(index, slice(start, min(start + size, len(seeds)))) for start in starts]
        about, found = self._known(
            [partial(self._about, jobs[index], part, questions[index]) for index, part in parts],
            [partial(questions[index].may_all_be, part) for index, part in parts],
            [jobs[index].case.full_data for index, _ in parts],
        )
        same: dict[Any, list[int]] = {}  # the places in `parts` of students of whom several questions are asked
        for place, (index, part) in enumerate(parts):
            job = jobs[index]
            same.setdefault((id(job.case), *job.lrs, *job.seeds, part.start), []).append(place)
        lacking = [places for places in same.values() if any(found[place] is None for place in places)]

        def count(several: Iterable[list[int]]) -> int:
            return sum(len(jobs[index].seeds[part]) for index, part in (parts[places[0]] for places in several))

        if len(lacking) < len(same):
            total = count(same.values())
            known = total - count(lacking)
            logger.info("%d of %d students were there before, and are not trained again", known, total)
        mine = lacking[self.accelerator.process_index :: self.accelerator.num_processes]
        made = []
        with tqdm(
            total=count(mine),
            desc=f"evaluate ({title})",
            unit="net",
            leave=False,
            disable=self.disable_tqdm or not self.accelerator.is_main_process,
        ) as bar:
            for places in mine:
                index, part = parts[places[0]]
                students = self._students(jobs[index], part)
                for place in (place for place in places if found[place] is None):
                    question = questions[parts[place][0]]
                    answers = [question.ask(number, students[number - part.start]) for number in question.numbers(part)]
                    if self.kept is not None and about[place] is not None:
                        self.kept.keep(about[place], answers, jobs[index].case.full_data)
                    made.append((place, answers))
                bar.update(len(students))
        for place, answers in gather_object(made):
            found[place] = answers
        results: list[list[Any]] = [[] for _ in jobs]
        for (index, _), answers in zip(parts, found, strict=True):
            results[index] += answers
        return results

    def _about(self, job: _Job, part: slice, question: Question) -> dict[str, Any] | None:
        """All that decides the answers of students who train side by side; None where they are not to be kept."""
        case, rows, known = job.case, job.rows[part], (EvalProtocol, CropProtocol, ProbeProtocol)
        if self.kept is None or type(case.protocol) not in known:  # another one may have another schedule, unsaid
            return None
        targets = case.targets
        if isinstance(targets, Tensor):
            labels = {"sha256": sha256_of({"targets": targets[upload(rows.unique(), targets.device)]})}
        else:
            labels = targets.identity()
        about = {
            "asked": question.about,
            "images": self.kept.images(case.pool, rows),
            "labels": labels,
            "student": case.spec.to_dict(),
            "protocol": {"kind": type(case.protocol).__name__, **asdict(_without_idle_budget(case))},
            "epochs": case.epochs,
            "lrs": job.lrs[part],
            "seeds": job.seeds[part],
        }
        return None if labels is None else self.kept.complete(about)

    def _known(
        self,
        describe: Sequence[Callable[[], dict[str, Any] | None]],
        may_be: Sequence[Callable[[list[Any]], bool]],
        full_data: Sequence[bool],
    ) -> tuple[list[dict[str, Any] | None], list[list[Any] | None]]:
        """What decides the answers of each part, and those that are kept.

        The main process looks: images are read and summed once, and others may come to see more files than it.
        """
        about: list[dict[str, Any] | None] = [None] * len(describe)
        found: list[list[Any] | None] = [None] * len(describe)
        if self.kept is None:
            return about, found
        if self.accelerator.is_main_process:
            about = [tell() for tell in describe]
            each = zip(about, may_be, full_data, strict=True)
            found = [None if what is None else self.kept.find(what, fits, real) for what, fits, real in each]
        about, found = broadcast_object_list([about, found])
        return about, found

    def _students(self, job: _Job, part: slice) -> list[nn.Module]:
        return train_students(
            job.case.pool,
            job.case.targets,
            job.rows[part],
            job.case.spec,
            job.case.protocol,
            epochs=job.case.epochs,
            lrs=job.lrs[part],
            seeds=job.seeds[part],
            accelerator=self.accelerator,
        )
