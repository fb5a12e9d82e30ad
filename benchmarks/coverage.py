"""How often the interval of a report holds the truth: random images beside random images, report after report.

    python benchmarks/coverage.py --reports 100 --output_dir outputs/coverage --output coverage.json

Nothing is gained over random images by other random images, so the true difference is 0, and an interval of 95 % is to
hold it in 90 to 99 of 100 reports (which 100 draws of a coin of 0.95 do in 98 % of the cases). In a report number i of
both sets start alike, as in any; the images of both are drawn anew for each of them, and everything for each report.
With an `--output_dir` what students reach lies in its `students/`: an interrupted run goes on with the same command.
"""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from machine import describe

from hf_distill.config import DataArguments, HfArg, PathArg, check_at_least, parse_args
from hf_distill.data.feed import Pool
from hf_distill.data.images import RealImages
from hf_distill.evaluation.coresets import random_rows
from hf_distill.evaluation.protocols import EvalProtocol
from hf_distill.evaluation.student_results import StudentResults
from hf_distill.evaluation.students import student_name
from hf_distill.evaluation.trainer import Case, Trainer
from hf_distill.hub.files import save_json
from hf_distill.hub.results import EvalReport, EvalRow
from hf_distill.networks.architectures import StudentSpec
from hf_distill.rng import derive_seed

SETS = ("distilled", "random")  # what the first is called stands for a set that its method made anew for each student


@dataclass
class CoverageArguments:
    """What to repeat."""

    reports: int = HfArg(default=100, help="Reports, each with students and images of its own.")
    num_seeds: int = HfArg(default=5, help="Students of each of the two sets of a report.")
    ipc: int = HfArg(default=1, help="Random images per class.")
    epochs: int = HfArg(default=100, help="Passes over them.")
    student: str = HfArg(default="convnet_d1", help="timm name, convnet_d1 to convnet_d8 among them.")
    width: int = HfArg(default=16, help="Channels of a convnet_d.")
    seed: int = HfArg(default=0, help="The one seed; everything random derives from it.")
    output_dir: str | None = PathArg(default=None, help="Folder of what students reach, to go on with.")
    output: str | None = PathArg(default=None, help="JSON file for the numbers.")
    disable_tqdm: bool = HfArg(default=False, help="No progress bars.")

    def __post_init__(self) -> None:
        for flag in ("reports", "num_seeds", "ipc", "epochs"):
            check_at_least(flag, getattr(self, flag), 2 if flag == "num_seeds" else 1)


def report_number(
    number: int, args: CoverageArguments, train: RealImages, pool: Pool, trainer: Trainer, spec: StudentSpec
) -> EvalReport:
    """A report whose two sets are both random images, new ones for each student."""
    counts, cases = [args.ipc] * len(train.class_names), []
    protocol = EvalProtocol("short", epochs=args.epochs, full_data_epochs=1, lrs=(0.03,))
    for name in SETS:
        draws = [random_rows(train, counts, trainer.seed, name, student) for student in range(args.num_seeds)]
        rows = torch.stack(draws)
        lrs, epochs = protocol.lrs, protocol.epochs
        cases.append(Case(name, "hard", spec, pool, pool.labels, rows, rows[0], lrs, epochs, protocol))
    images, student, device = args.ipc * len(counts), student_name(spec), pool.device.type
    return EvalReport(
        [
            EvalRow(case.set, "hard", student, protocol.title, images, accuracies, device)
            for case, _, accuracies in trainer.measure(cases)
        ],
        {"report": number},
    )


def main() -> None:
    data_args, args = parse_args(DataArguments, CoverageArguments)
    accelerator = Accelerator()
    train, test = RealImages.train_and_test(data_args)
    seen = {"preprocessing": train.preprocessing, "device": accelerator.device}
    pool, tested = (Pool(real, real.labels, **seen) for real in (train, test))
    kept = None if args.output_dir is None else StudentResults(args.output_dir, accelerator)
    options = {"width": args.width} if args.student.startswith("convnet_d") else {}
    channels, *size = train.shape
    spec = StudentSpec(args.student, len(train.class_names), channels, tuple(size), options)
    found = []
    for number in range(args.reports):
        trainer = Trainer(accelerator, derive_seed(args.seed, "report", number), tested, None, args.disable_tqdm, kept)
        (comparison,) = report_number(number, args, train, pool, trainer, spec).differences
        found.append(comparison.difference)
    intervals = [difference.interval for difference in found]
    held = sum(interval is None or interval[0] <= 0 <= interval[1] for interval in intervals)
    verdicts = [difference.verdict for difference in found]
    print(f"{held} of {args.reports} intervals of 95 % hold 0, where nothing is gained")
    if args.output is not None and accelerator.is_main_process:
        about = describe(args, accelerator.device)
        counts = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
        found_json = [difference.to_json() for difference in found]
        save_json(args.output, {**about, "held": held, "verdicts": counts, "differences": found_json})


if __name__ == "__main__":
    main()
