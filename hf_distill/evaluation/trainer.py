"""`Trainer`: the students of many sets, spread over the processes, and what they reach."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.feed import Pool
from ..distilled.labels import LabelSource
from ..networks.architectures import StudentSpec
from ..rng import derive_seed
from .accuracy import accuracy
from .protocols import TrainingProtocol
from .students import student_name, students_at_once, train_students

__all__ = ["Case", "Result", "Trainer"]


@dataclass(frozen=True)
class Case:
    """One row of a report: E students, each on its rows of `pool`.

    What is drawn at random is a function of (`set`, `labels`, student), so cases that share them are pairs.

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


Judge = Callable[[int, int, nn.Module], Any]  # (index of the case, number of the student, student)


@dataclass(frozen=True)
class Trainer:
    """Trains the students of many cases, spread over the processes; every process gets all results.

    Attributes:
        accelerator: Processes, device and precision.
        seed: The one seed.
        test: What accuracies are measured on.
        held_out: What learning rates are chosen on; None takes the first of each case.
        disable_tqdm: No progress bars.
    """

    accelerator: Accelerator
    seed: int
    test: Pool
    held_out: Pool | None
    disable_tqdm: bool

    def measure(self, cases: Sequence[Case]) -> list[Result]:
        """The result of each case: learning rates are chosen, and the students trained and tested."""
        lrs = self.choose(cases)
        accuracies = self.train(cases, lrs, lambda index, number, model: accuracy(model, self.test))
        return [Result(*result) for result in zip(cases, lrs, accuracies, strict=True)]

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
        tried = self._run(trials, lambda index, number, model: accuracy(model, held_out), "learning rates")
        for i, accuracies in zip(undecided, tried, strict=True):
            chosen[i] = cases[i].lrs[accuracies.index(max(accuracies))]
        return chosen

    def train(self, cases: Sequence[Case], lrs: Sequence[float], judge: Judge) -> list[list[Any]]:
        """For each case what `judge` gives for each of its students."""
        jobs = []
        for case, lr in zip(cases, lrs, strict=True):
            path = ("student", case.set, case.labels, student_name(case.spec))
            seeds = [derive_seed(self.seed, *path, number) for number in range(len(case.rows))]
            jobs.append(_Job(case, case.rows, [lr] * len(seeds), seeds))
        return self._run(jobs, judge, "students")

    def _run(self, jobs: Sequence[_Job], judge: Judge, title: str) -> list[list[Any]]:
        parts: list[tuple[int, slice]] = []
        for index, (case, rows, _, seeds) in enumerate(jobs):
            # Who trains side by side depends on the case alone, so that the number of processes changes no result.
            size = students_at_once(case.spec, rows.shape[1], case.protocol, case.pool.device)
            parts += [(index, slice(start, start + size)) for start in range(0, len(seeds), size)]
        mine = parts[self.accelerator.process_index :: self.accelerator.num_processes]
        judged = []
        with tqdm(
            total=sum(len(jobs[index].seeds[part]) for index, part in mine),
            desc=f"evaluate ({title})",
            unit="net",
            leave=False,
            disable=self.disable_tqdm or not self.accelerator.is_main_process,
        ) as bar:
            for index, part in mine:
                students = self._students(jobs[index], part)
                for number, student in enumerate(students, start=part.start):
                    judged.append((index, number, judge(index, number, student)))
                bar.update(len(students))
        results: list[list[Any]] = [[None] * len(job.seeds) for job in jobs]
        for index, number, value in gather_object(judged):
            results[index][number] = value
        return results

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
