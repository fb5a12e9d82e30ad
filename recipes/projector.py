# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Train a label projector for a distilled set of any method: CLIP with LoRA that labels what its students see.

    python recipes/projector.py --distilled_dataset outputs/rded-digits-ipc5     # with a CLIP and teachers of its own
    accelerate launch recipes/projector.py --distilled_dataset org/name --teachers my/teacher \\
        --model_name_or_path openai/clip-vit-base-patch32 --labelled_output_dir outputs/name-projected
    accelerate launch recipes/projector.py --distilled_dataset org/name --push_to_hub --hub_model_id me/name

The last one publishes the projector as me/name-projector, and the set with it as its labels as me/name. The source is
read from where the set says; the views are those of its evaluation protocol. Go on after an interruption with the same
command line and --resume_from_checkpoint latest.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_distill.config import DataArguments, HfArg, HubArguments, PathArg, ProcessArguments, check_choice, parse_args
from hf_distill.data.images import Outline, RealImages
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.distilled.label_costs import label_costs
from hf_distill.distilled.labels import ProjectorLabels
from hf_distill.engine.foreseeing import foresee_projector
from hf_distill.engine.plan import PlanArguments, show
from hf_distill.evaluation.evaluate import check_data, crop_protocol_for, distilled_pool
from hf_distill.evaluation.protocols import PROTOCOLS, CropProtocol
from hf_distill.runs.claims import keep_claimed
from hf_distill.runs.finish import run_recipe
from hf_distill.runs.held_out import say_held_out
from hf_distill.runs.processes import make_accelerator
from hf_distill.runs.publishing import prepare_push, push_with_projector
from hf_distill.runs.start import disable_progress_bars, source_arguments
from hf_distill.training.projectors import ProjectorConfig, train_projector
from hf_distill.training.small_clip import PriorArguments, find_prior
from hf_distill.training.teachers import NamedTeachers, TeacherConfig, check_teachers, find_teachers


@dataclass
class ProjectArguments(NamedTeachers, ProcessArguments):
    """Which images the projector is for, what it imitates, and where it goes."""

    distilled_dataset: str | None = PathArg(default=None, help="Folder or Hub repository of the distilled set.")
    distilled_revision: str | None = HfArg(default=None, help="Branch, tag or commit of that repository.")
    protocol: str | None = HfArg(default=None, help="Whose views it will be asked about. Without it: that of the set.")
    factor: int | None = HfArg(
        default=None, help="Tiles along a side of each image, for rded and hello. Without it: those of the set, else 1."
    )
    teachers: list[str] | None = PathArg(
        default=None,
        help="Networks to imitate, the best one last: folders, repositories, or timm:<name>. Without it: "
        "--weak_teachers of one training, made here.",
    )
    output_dir: str | None = PathArg(default=None, help="Folder of the projector. Without it: outputs/projector-<set>.")
    labelled_output_dir: str | None = PathArg(
        default=None, help="Folder of the set with the projector as its labels. Without it: <output_dir>-set."
    )
    overwrite_output_dir: bool = HfArg(default=False, help="Replace the projector that the output folder holds.")
    resume_from_checkpoint: str | None = PathArg(
        default=None, help="`latest`, or the path of a checkpoint folder; a finished projector is only loaded."
    )
    seed: int = HfArg(default=0, help="The one seed; everything random derives from it.")
    disable_tqdm: bool = HfArg(default=False, help="No progress bars.")

    def __post_init__(self) -> None:
        if self.distilled_dataset is None:
            raise ValueError("--distilled_dataset is missing; give the folder or repository of a distilled set")
        if self.protocol is not None:
            views = [name for name, protocol in PROTOCOLS.items() if isinstance(protocol, CropProtocol)]
            check_choice("protocol", self.protocol, views)
        if self.output_dir is None:
            self.output_dir = str(Path("outputs", f"projector-{Path(self.distilled_dataset).name}"))
        if self.labelled_output_dir is None:
            self.labelled_output_dir = f"{self.output_dir}-set"


def main() -> None:
    classes = (
        DataArguments,
        TeacherConfig,
        PriorArguments,
        ProjectorConfig,
        ProjectArguments,
        HubArguments,
        PlanArguments,
    )
    data_args, teacher_config, prior_args, config, args, hub, planning = parse_args(*classes)
    if args.disable_tqdm:
        disable_progress_bars()
    accelerator = make_accelerator(**args.for_processes)
    if planning.plan is None:
        keep_claimed(args.labelled_output_dir, accelerator)  # that of the projector is claimed by its training
        prepare_push(hub, DistilledSet, accelerator, projector=True)

    where = {"revision": args.distilled_revision, "token": hub.hub_token}
    distilled = DistilledSet.from_pretrained(args.distilled_dataset, **where)
    protocol = crop_protocol_for(distilled, args.protocol, args.factor)
    data_args = source_arguments(distilled, data_args)
    if planning.plan is not None:
        here = (planning.outlines(data_args), accelerator, planning.machine(accelerator, args.output_dir))
        asked = (prior_args, config, teacher_config, args.teachers, data_args)
        plan = foresee_projector(distilled, protocol.views, *asked, *here, seed=args.seed)
        return show(plan, planning, accelerator)

    def check(outline: Outline) -> None:
        check_data(distilled, outline)
        check_teachers(args, outline, accelerator, [teacher_config])

    train, test = RealImages.train_and_test(data_args, check=check)
    train, test = (images.seen_through(distilled.preprocessing) for images in (train, test))
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    say_held_out(train, held_out, ["choose by, as at the distillation"])

    options = {"seed": args.seed, "accelerator": accelerator, "disable_tqdm": args.disable_tqdm}
    prior = find_prior(prior_args, train, **options)
    config.check_prior(prior, train.class_names)  # before anything is trained
    named = {"along": config.weak_teachers, "class_names": args.teacher_class_names}
    teachers = [
        teacher.narrowed(train.class_names)
        for teacher in find_teachers(args.teachers, train, test, teacher_config, **named, **options)
    ]
    kept = {"resume_from_checkpoint": args.resume_from_checkpoint, "overwrite": args.overwrite_output_dir}
    asked = {"views": protocol.views, "synthetic": distilled_pool(distilled, accelerator.device)}
    projector = train_projector(
        train, test, prior, teachers, config=config, directory=args.output_dir, **asked, **options, **kept
    )
    distilled.label_with(ProjectorLabels(projector))
    if accelerator.is_main_process:
        costs = label_costs(
            len(distilled),
            protocol.epochs,
            distilled.num_classes,
            projector_params=projector.num_params,
            text_head_bytes=projector.text_head_bytes,
            prior_bytes=projector.prior_bytes,
            teacher_bytes=sum(teacher.num_bytes for teacher in teachers),
        )
        folder = distilled.save_pretrained(args.labelled_output_dir)
        print(f"\n{projector.summary()}\n{distilled.fidelity()}\n\n{costs.table()}\n")
        print(f'{args.output_dir}   load: LabelProjector.from_pretrained("{args.output_dir}")')
        print(f'{folder}   load: DistilledSet.from_pretrained("{folder}").teacher')
        if hub.push_to_hub:
            print(push_with_projector(distilled, projector, hub, folder, args.output_dir))


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on from the last checkpoint")
