# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Evaluate a distilled set: students trained on it, beside random images, coresets and all images of its source.

    python recipes/evaluate.py --distilled_dataset outputs/tesla
    python recipes/evaluate.py --distilled_dataset outputs/rded --audit
    accelerate launch recipes/evaluate.py --distilled_dataset org/name --student convnet_d3 resnet18 --protocol mtt dc
    accelerate launch recipes/evaluate.py --distilled_dataset outputs/tesla --baselines all --experts outputs/experts
    accelerate launch recipes/evaluate.py --distilled_dataset org/name --student resnet18 --push_to_hub
    accelerate launch recipes/evaluate.py --distilled_dataset org/name --compare_labels hard own org/name-labels
    accelerate launch recipes/evaluate.py --distilled_dataset org/name --budget steps --show_cost
    accelerate launch recipes/evaluate.py --distilled_dataset org/name --protocol probe --baselines random centroid \\
        --student probe:facebook/dinov2-base probe:timm/vit_base_patch16_clip_224.openai
    accelerate launch recipes/evaluate.py --distilled_dataset somebody/images-ipc10 --dataset_name org/images \\
        --protocol rded cda --student resnet18 --output_dir outputs/theirs

A set of another project need not be imported: a dataset with a column of images and one of classes, class folders of
images, or a file of tensors. The real data (--dataset_name) then give class names, preprocessing and size.

The source is read from where `distill_config.json` says; give --dataset_name when that was a local folder. The results
go into `results.json` and the card of a local folder, beside those that are there, or into --output_dir; with
--push_to_hub into those of the repository. In a folder, `students/` keeps what each student reached as soon as it did:
the same command after an interruption, or one with further students, trains those that lack. Remove it to train all
but those of all images, whose results the cache of `datasets` has too, for other sets of the same data.
"""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from accelerate import Accelerator

from hf_distill.config import (
    ALL,
    BASELINES,
    DataArguments,
    HfArg,
    HubArguments,
    PathArg,
    ProcessArguments,
    check_at_least,
    check_choice,
    parse_args,
)
from hf_distill.data.images import Outline, RealImages
from hf_distill.distilled.arranging import changes_classes
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.engine.foreseeing import foresee_evaluation
from hf_distill.engine.plan import PlanArguments, show
from hf_distill.evaluation.audit import audit, check_audit, made_of_any
from hf_distill.evaluation.costs import BUDGETS
from hf_distill.evaluation.evaluate import (
    PROTOCOLS,
    baselines_for,
    check_evaluation,
    check_views,
    evaluate,
    protocols_for,
    student_specs,
)
from hf_distill.evaluation.label_comparison import compare_labels, find_labels, label_sources
from hf_distill.evaluation.students import check_protocol
from hf_distill.hub.audit import audit_text
from hf_distill.hub.checks import is_commit_of_repository
from hf_distill.hub.files import save_json
from hf_distill.hub.making import making_table
from hf_distill.hub.results import EvalReport
from hf_distill.importing import class_order, foreign_set, holds_tensors, import_dataset
from hf_distill.networks.teachers import Teacher
from hf_distill.networks.trajectories import ExpertTrajectories
from hf_distill.runs.claims import claimed, keep_claimed
from hf_distill.runs.finish import run_recipe
from hf_distill.runs.held_out import say_held_out
from hf_distill.runs.processes import make_accelerator
from hf_distill.runs.publishing import prepare_push
from hf_distill.runs.start import disable_progress_bars, source_arguments


@dataclass
class EvaluateArguments(ProcessArguments):
    """The set to evaluate, and the way."""

    distilled_dataset: str | None = PathArg(
        default=None, help="Folder or Hub repository of the distilled set, or anybody's dataset, folder or .pt file."
    )
    distilled_revision: str | None = HfArg(default=None, help="Branch, tag or commit of that repository.")
    distilled_config: str | None = HfArg(default=None, help="Configuration of anybody's dataset, if it has several.")
    distilled_split: str = HfArg(default="train", help="Split of anybody's dataset.")
    distilled_image_column_name: str | None = HfArg(
        default=None, help="Column of the images of anybody's dataset. Without it: the one image column."
    )
    distilled_label_column_name: str | None = HfArg(
        default=None, help="Column of the labels of anybody's dataset. Without it: the one label column."
    )
    student: list[str] | None = HfArg(
        default=None,
        help="timm names, convnet_d1 to convnet_d8 among them; for the protocol probe frozen backbones, probe:NAME or "
        "probe:NAME@REVISION, of folders or repositories. Without it: the student it was made for.",
    )
    protocol: list[str] | None = HfArg(
        default=None,
        help="How students are trained, such as mtt, quick, apm or probe; of several names, each has its rows in the "
        "report. Without it: as at the distillation, else mtt.",
    )
    factor: int | None = HfArg(
        default=None, help="Tiles along a side of each image, for rded and hello. Without it: those of the set, else 1."
    )
    num_seeds: int = HfArg(default=5, help="Students per set and kind of labels.")
    seed: int = HfArg(default=0, help="The one seed; everything random derives from it.")
    full_data: bool | None = HfArg(
        default=None,
        help="Also train on all images, and choose coresets by what that learned; else by the set's teacher, if any. "
        "Without it: as at the distillation, else true.",
    )
    baselines: list[str] | None = HfArg(
        default=None,
        help="Among random, herding, k-center, centroid, neighbour, el2n, forgetting, ccs and bps; or all that can be "
        "made with what is there. Without it: as at the distillation, else the first three.",
    )
    experts: str | None = PathArg(
        default=None,
        help="Folder or repository of experts, whose training el2n, forgetting and ccs go by. Without it: those in a "
        "repository that the set was made with, where these are asked for.",
    )
    teacher: str | None = PathArg(
        default=None,
        help="Folder, repository or timm:<name> of a network that coresets compare images by, without full data. "
        "Without it: what labels the set, else an expert.",
    )
    labels: str | None = PathArg(
        default=None,
        help="Folder or repository of stored labels of its views (recipes/relabel.py), or of a label projector "
        "(recipes/projector.py), for its soft row.",
    )
    unaugmented: bool | None = HfArg(
        default=None,
        help="Also train on the set and on random images without augmentation, for the augmentation robust score. "
        "Without it: as at the distillation, where that can be, else false.",
    )
    compare_labels: list[str] = PathArg(
        default_factory=list,
        help="Labels to compare at these images, accuracy against bytes: `hard`, `own`, and what --labels takes.",
    )
    budget: str | None = HfArg(
        default=None,
        help="`steps` or `flops`: train all rows for those of the set with its own labels. Without it: by epochs.",
    )
    show_cost: bool = HfArg(default=False, help="Show what rows and the making of the set cost, too.")
    audit: bool = HfArg(
        default=False,
        help="Also look for copies of training images, test membership, and measure coverage and diversity. The card "
        "gets a picture with training images, which --push_to_hub publishes.",
    )
    output_dir: str | None = PathArg(default=None, help="Folder for the set with its results. Without it: its own.")
    disable_tqdm: bool = HfArg(default=False, help="No progress bars.")

    def __post_init__(self) -> None:
        if self.distilled_dataset is None:
            raise ValueError("--distilled_dataset is missing; give the folder or repository of a distilled set")
        for name in self.protocol or []:
            check_choice("protocol", name, tuple(PROTOCOLS))
        for name in self.baselines or []:
            check_choice("baselines", name, (*BASELINES, ALL))
        if self.budget is not None:
            check_choice("budget", self.budget, BUDGETS)
        check_at_least("num_seeds", self.num_seeds, 1)


def main() -> None:
    data_args, args, hub, planning = parse_args(DataArguments, EvaluateArguments, HubArguments, PlanArguments)
    if args.disable_tqdm:
        disable_progress_bars()
    accelerator = make_accelerator(**args.for_processes)
    where = {"revision": args.distilled_revision, "token": hub.hub_token}
    ours = DistilledSet.is_at(args.distilled_dataset, **where)
    if not ours:
        check_foreign(args, hub)
    if args.output_dir is not None and planning.plan is None:
        DistilledSet.check_directory(Path(args.output_dir))
        keep_claimed(args.output_dir, accelerator)
    name = args.distilled_dataset
    distilled = DistilledSet.from_pretrained(name, **where) if ours else find_foreign(args, data_args)
    protocols = protocols_for(distilled, args.protocol, args.factor)
    if hub.push_to_hub and hub.hub_model_id is None and distilled.origin is not None:
        hub = replace(hub, hub_model_id=distilled.origin.repo_id)
    if planning.plan is None:
        if hub.push_to_hub:  # before the work: the repository must be there and hold these very images
            distilled.check_published(hub.hub_model_id, token=hub.hub_token)
        prepare_push(hub, DistilledSet, accelerator)
    students = student_specs(distilled, args.student)
    for each in protocols:
        check_protocol(students, each)
    labels = None if args.labels is None else find_labels(args.labels, token=hub.hub_token)
    sources = label_sources(distilled, args.compare_labels, token=hub.hub_token)
    for source in (labels, *sources.values()):
        check_views(protocols, source)
    teacher = None if args.teacher is None else Teacher.start(args.teacher).called(None, args.teacher)
    known = {
        "full_data": args.full_data,
        "guide": None if teacher is None else teacher.narrowed(distilled.class_names),
        "experts": find_experts(distilled, args, hub.hub_token),
    }
    baselines = baselines_for(distilled, args.baselines, **known)
    data_args = source_arguments(distilled, data_args) if ours else data_args
    data_args = replace(data_args, keep_side=None)  # students see the distilled images
    names, changed = distilled.class_names, changes_classes(distilled.config.get("changes"))
    if changed:  # the distillation drew from all classes, in their old order, and held out others than these would give
        recorded = (distilled.config.get("source") or {}).get("arguments") or {}
        data_args = replace(data_args, classes=recorded.get("classes"))
    if planning.plan is not None:
        made_with = distilled.config.get("hyperparameters") or {}
        full = made_with.get("eval_full_data") is not False if args.full_data is None else args.full_data
        table = {"seeds": args.num_seeds, "baselines": baselines, "full_data": full, "unaugmented": args.unaugmented}
        table |= {"budget": args.budget, "labels": labels, "compared": sources}
        table |= {"notes": ["what --audit looks for is not counted"] if args.audit else []}
        outlines = planning.outlines(data_args)
        outlines = outlines.of_classes(names) if changed else outlines
        here = (outlines, accelerator, planning.machine(accelerator, args.output_dir))
        plan = foresee_evaluation(distilled, protocols, students, data_args, *here, **table)
        return show(plan, planning, accelerator)

    def check(outline: Outline) -> None:
        outline = outline.of_classes(names) if changed else outline
        check_evaluation(distilled, outline, students, baselines, known["experts"])

    every, test = RealImages.train_and_test(data_args, check=check, on_demand=changed)
    train, held_out = every.split(data_args.validation_fraction, seed=0)
    if changed:
        every, train, held_out, test = (part.of_classes(names).mapped() for part in (every, train, held_out, test))
    say_held_out(train, held_out, ["choose by, as at the distillation"])
    searched, unseen = (every, None) if made_of_any(distilled) else (train, held_out)
    if args.audit:
        check_audit(distilled, searched, test, unseen, args.num_seeds)

    options = {
        "held_out": held_out,
        "num_seeds": args.num_seeds,
        "seed": args.seed,
        "accelerator": accelerator,
        "output_dir": folder_of(args),
        "disable_tqdm": args.disable_tqdm,
    }
    chosen = {"students": students, "baselines": baselines, "labels": labels, **known}
    chosen |= {"unaugmented": args.unaugmented, "budget": args.budget}
    report = evaluate(distilled, train, test, protocol=protocols, **chosen, **options)
    shown = [report.table(), *([report.costs_table(), making_table(distilled.making)] if args.show_cost else [])]
    try:  # results are saved before anything is shown, for which there may be no terminal any more
        kept = keep(distilled, report, args, accelerator)  # and before a comparison, which can take longer
        if sources:
            for protocol, student in product(protocols, students):
                report.labels += compare_labels(distilled, sources, test, protocol=protocol, student=student, **options)
            shown.append(report.labels_table())
            kept = keep(distilled, report, args, accelerator)
        if args.audit:
            asked = {"protocol": protocols[0], "student": students[0], "factor": args.factor, "guide": known["guide"]}
            report = report.merge(audit(distilled, searched, test, **asked, **{**options, "held_out": unseen}))
            shown.append(audit_text(report.audit))
            kept = keep(distilled, report, args, accelerator)
        if kept is not None:
            folder = folder_of(args)
            shown.append(f'results and card: {folder}   load: DistilledSet.from_pretrained("{folder}")')
        elif not hub.push_to_hub:
            publish = ", or --push_to_hub" if ours else ""
            shown.append(f"Nothing was written: give --output_dir to keep the set with these results{publish}.")
        if hub.push_to_hub and accelerator.is_main_process:
            where = hub.hub_model_id
            try:
                commit = (kept or distilled).push_results(where, report, tag=hub.hub_tag, token=hub.hub_token)
            except (ValueError, OSError) as error:
                save_json("evaluation.json", report.to_json())
                raise ValueError(f"{error}. The results are in evaluation.json") from error
            shown.append(f"added to the card and results.json of {where}: {commit.commit_url}")
    finally:
        accelerator.print("\n\n".join(shown))


def find_experts(
    distilled: DistilledSet, args: EvaluateArguments, token: str | bool | None
) -> ExpertTrajectories | None:
    """The experts that are named, or else those in a repository that the set was made with, where they are needed."""
    if args.experts is not None:
        return ExpertTrajectories.from_pretrained(args.experts, token=token)
    made_with, recorded = distilled.config.get("experts"), distilled.config.get("hyperparameters") or {}
    names = args.baselines if args.baselines is not None else recorded.get("eval_baselines") or []
    if not {*names} & {"el2n", "forgetting", "ccs", ALL} or not isinstance(made_with, dict):
        return None
    repo_id, revision = made_with.get("source"), made_with.get("revision")
    if not is_commit_of_repository({"repo_id": repo_id, "revision": revision}):  # a folder, wherever it is now
        return None
    return ExpertTrajectories.from_pretrained(repo_id, revision=revision, token=token)


def check_foreign(args: EvaluateArguments, hub: HubArguments) -> None:
    """Raise a `ValueError` where something is asked for that takes an artifact of this package."""
    where = args.distilled_dataset
    if args.output_dir is not None and Path(args.output_dir).resolve() == Path(where).resolve():
        raise ValueError(
            f"--output_dir {where} is the folder of the set; expected another one for the set with results"
        )
    if args.student is None:
        raise ValueError(f"{where} does not say what student it was made for; name one with --student")
    if hub.push_to_hub:
        raise ValueError(
            f"{where} was not made here, and its repository has no card for results: leave --push_to_hub out, and give "
            "--output_dir to keep them"
        )


def find_foreign(args: EvaluateArguments, data_args: DataArguments) -> DistilledSet:
    """The set in what is no artifact of this package, which the real data describe.

    Raises:
        ValueError: There is none, or it does not fit the real data.
    """
    where = args.distilled_dataset
    if data_args.dataset_name is None:
        logging.getLogger("hf_distill").warning("without --dataset_name the real data are scikit-learn's digits")
    options = {
        "config": args.distilled_config,
        "revision": args.distilled_revision,
        "split": args.distilled_split,
        "image_column": args.distilled_image_column_name,
        "label_column": args.distilled_label_column_name,
        "original_classes": class_order(replace(data_args, classes=None)) if data_args.classes else None,
    }

    def check(outline: Outline) -> None:
        """Find out what is wrong with a dataset before the real images are decoded."""
        if not holds_tensors(where):
            check_evaluation(import_dataset(where, outline, **options), outline, args.student)

    train, _ = RealImages.train_and_test(replace(data_args, keep_side=None), check=check)
    return foreign_set(where, train, **options)


def folder_of(args: EvaluateArguments) -> Path | None:
    """Where results go: --output_dir, or the set's own folder; None for a repository, and what is no artifact."""
    if args.output_dir is not None:
        return Path(args.output_dir)
    folder = Path(args.distilled_dataset)
    return folder if (folder / DistilledSet.config_name).is_file() else None


def keep(
    distilled: DistilledSet, report: EvalReport, args: EvaluateArguments, accelerator: Accelerator
) -> DistilledSet | None:
    """The set with the results, saved in its own folder or in --output_dir; None without such a folder.

    All processes call it; the main one saves.
    """
    folder, own = folder_of(args), args.output_dir is None
    if folder is None:
        return None
    with claimed(folder, accelerator, wait=True) if own else nullcontext():
        if accelerator.is_main_process:
            if own:
                distilled = distilled.reloaded(folder)  # with the rows that others added meanwhile
            else:
                distilled.keep_results(folder)
            distilled.report = (distilled.report or EvalReport()).merge(report)
            distilled.save_pretrained(folder)
    return distilled


if __name__ == "__main__":
    run_recipe(main, "the same command goes on, by what is in the folder for results; without one it begins anew")
