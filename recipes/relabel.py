# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Store what the teacher of a set says of every view of its images: students then train without the teacher.

    python recipes/relabel.py --distilled_dataset outputs/cda-digits-ipc5
    accelerate launch recipes/relabel.py --distilled_dataset org/name --label_epochs 300 --kept 10 \\
        --push_to_hub --hub_model_id org/name-labels --hub_tag v1.0.0
    accelerate launch recipes/evaluate.py --distilled_dataset org/name --labels org/name-labels
    python recipes/relabel.py --distilled_dataset outputs/fadrm-mine-ipc10 --teachers a b --batch_statistics 8

The views are those of the set's evaluation protocol. What an interrupted run stored is kept when it is started again.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hf_distill.config import HfArg, HubArguments, PathArg, ProcessArguments, check_at_least, check_choice, parse_args
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.epoch_labels import Codec, EpochLabels, relabel
from hf_distill.distilled.labels import BatchLabels, MeanLabels, NetworkLabels, TeacherLabels
from hf_distill.engine.foreseeing import foresee_labels
from hf_distill.engine.plan import PlanArguments, show
from hf_distill.evaluation.evaluate import crop_protocol_for, distilled_pool
from hf_distill.evaluation.protocols import PROTOCOLS, CropProtocol
from hf_distill.runs.claims import keep_claimed
from hf_distill.runs.finish import run_recipe
from hf_distill.runs.processes import make_accelerator
from hf_distill.runs.publishing import prepare_push, push
from hf_distill.runs.rehearsal import META
from hf_distill.runs.start import disable_progress_bars
from hf_distill.training.teachers import NamedTeachers, named_teachers


@dataclass
class RelabelArguments(ProcessArguments, NamedTeachers):
    """The set to label, who labels it, and how much of the labels to keep."""

    distilled_dataset: str | None = PathArg(default=None, help="Folder or Hub repository of a set with a teacher.")
    distilled_revision: str | None = HfArg(default=None, help="Branch, tag or commit of that repository.")
    teachers: list[str] | None = PathArg(
        default=None,
        help="Trained networks whose mean logits label: folders, repositories, or timm:<name>. Without it: the teacher "
        "of the set.",
    )
    batch_statistics: int | None = HfArg(
        default=None,
        help="Let BatchNorm have the statistics of so many views at a time, as FADRM's labels; nobody can ask for such "
        "labels again. Without it: running statistics.",
    )
    protocol: str | None = HfArg(default=None, help="Whose views to label. Without it: that of the set.")
    factor: int | None = HfArg(
        default=None, help="Tiles along a side of each image, for rded and hello. Without it: those of the set, else 1."
    )
    label_epochs: int | None = HfArg(default=None, help="Epochs to store. Without it: those of the protocol.")
    kept: int | None = HfArg(default=None, help="Largest logits to keep of each label, with the mass of the rest.")
    seed: int = HfArg(default=0, help="Of the views.")
    output_dir: str | None = PathArg(
        default=None,
        help="Folder of the labels, where finished ones of other labellers are replaced. Without it: "
        "outputs/labels-<set>, with -<number>teachers and -batch<views> where these are given.",
    )
    disable_tqdm: bool = HfArg(default=False, help="No progress bars.")

    def __post_init__(self) -> None:
        if self.distilled_dataset is None:
            raise ValueError("--distilled_dataset is missing; give the folder or repository of a distilled set")
        if self.protocol is not None:
            views = [name for name, protocol in PROTOCOLS.items() if isinstance(protocol, CropProtocol)]
            check_choice("protocol", self.protocol, views)
        check_at_least("label_epochs", self.label_epochs, 1)
        check_at_least("batch_statistics", self.batch_statistics, 2)

    @property
    def folder(self) -> Path:
        """Where the labels go."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        teachers = f"-{len(self.teachers)}teachers" if self.teachers else ""
        statistics = f"-batch{self.batch_statistics}" if self.batch_statistics else ""
        return Path("outputs", f"labels-{Path(str(self.distilled_dataset)).name}{teachers}{statistics}")


def labeller(
    args: RelabelArguments, distilled: DistilledSet, device: torch.device
) -> NetworkLabels | TeacherLabels | MeanLabels | BatchLabels:
    """Whose labels are stored: those of the set's own teacher, or the mean of those that are named."""
    named = [
        NetworkLabels(teacher.narrowed(distilled.class_names)).to(device)
        for teacher in named_teachers(args.teachers, args.teacher_class_names)
    ]
    for source in named:
        source.check_fits(distilled.class_names, distilled.preprocessing)
    if not named and distilled.teacher is None:
        raise ValueError(
            f"{args.distilled_dataset} has no teacher, so nobody can label its views; give another set, or --teachers"
        )
    own = None if distilled.teacher is None else distilled.teacher.to(device)
    if args.batch_statistics is not None:
        return BatchLabels(named or [own], args.batch_statistics)
    return MeanLabels(named) if named else own


def main() -> None:
    args, hub, planning = parse_args(RelabelArguments, HubArguments, PlanArguments)
    if args.disable_tqdm:
        disable_progress_bars()
    accelerator = make_accelerator(**args.for_processes)
    if planning.plan is None:
        keep_claimed(args.folder, accelerator)
        prepare_push(hub, EpochLabels, accelerator)

    distilled = DistilledSet.from_pretrained(
        args.distilled_dataset, revision=args.distilled_revision, token=hub.hub_token
    )
    protocol = crop_protocol_for(distilled, args.protocol, args.factor)
    if planning.plan is not None:
        source, epochs = labeller(args, distilled, META), args.label_epochs or protocol.epochs
        machine = planning.machine(accelerator, args.folder)
        plan = foresee_labels(distilled, source, epochs, args.kept, accelerator, machine)
        return show(plan, planning, accelerator)
    labels = relabel(
        labeller(args, distilled, accelerator.device),
        distilled_pool(distilled, accelerator.device),
        replace(protocol.views, seed=args.seed),
        args.label_epochs or protocol.epochs,
        args.folder,
        codec=Codec(kept=args.kept),
        class_names=distilled.class_names,
        source=distilled.config.get("source"),
        accelerator=accelerator,
        disable_tqdm=args.disable_tqdm,
    )
    if accelerator.is_main_process:
        print(f'{labels.num_bytes:,} bytes in {labels.folder}   load: EpochLabels.from_pretrained("{labels.folder}")')
        if hub.push_to_hub:
            print(push(labels, hub, labels.folder))


if __name__ == "__main__":
    run_recipe(main, "the same command goes on with the next file of labels")
