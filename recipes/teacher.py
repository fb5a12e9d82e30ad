# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Train a teacher: one network on all real images, with its running statistics. Methods distil from what it knows.

    python recipes/teacher.py                            # scikit-learn's digits, half a minute on one core
    accelerate launch --mixed_precision bf16 recipes/teacher.py --config recipes/configs/teacher/cifar100.yaml
    accelerate launch recipes/teacher.py --config recipes/configs/apm/cifar10-ipc50.yaml    # the teacher of that preset
    accelerate launch recipes/teacher.py --dataset_name my/images --resolution 64 --student resnet50_small
    accelerate launch recipes/teacher.py --dataset_name my/images --resolution 224 --student resnet18 \
        --pretrained_weights timm:resnet18.tv_in1k       # fine-tuning
    python recipes/teacher.py --push_to_hub --hub_model_id me/digits-teacher --hub_tag v1.0.0

A method's preset serves too: what it says of other things than the data and the teacher is passed over. Several
processes share every batch. Go on after an interruption with the same command line and
--resume_from_checkpoint latest.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_distill.config import DataArguments, HfArg, HubArguments, PathArg, ProcessArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.foreseeing import foresee_network
from hf_distill.engine.method import warn_of_keeping
from hf_distill.engine.plan import PlanArguments, show
from hf_distill.methods import METHODS
from hf_distill.networks.teachers import Teacher
from hf_distill.runs.finish import run_recipe
from hf_distill.runs.held_out import say_held_out
from hf_distill.runs.processes import make_accelerator
from hf_distill.runs.publishing import prepare_push, push
from hf_distill.training.teachers import TeacherConfig, check_teacher, train_teacher

DEMO = Path(__file__).parent / "configs" / "teacher" / "digits.yaml"


@dataclass
class RunArguments(ProcessArguments):
    """The folder and the seed of the teacher."""

    output_dir: str = PathArg(default="outputs/teacher", help="Folder of the teacher and its checkpoint.")
    overwrite_output_dir: bool = HfArg(default=False, help="Replace the teacher that the output folder holds.")
    resume_from_checkpoint: str | None = PathArg(
        default=None, help="`latest`, or the path of a checkpoint folder; a finished teacher is only loaded."
    )
    seed: int = HfArg(default=0, help="The one seed; everything random derives from it.")
    disable_tqdm: bool = HfArg(default=False, help="No progress bars.")


def main() -> None:
    classes = (DataArguments, TeacherConfig, RunArguments, HubArguments, PlanArguments)
    methods = [method.config_class for method in METHODS]
    data_args, config, run, hub, planning = parse_args(*classes, default_config=DEMO, passed_over=methods)
    accelerator = make_accelerator(**run.for_processes)
    if planning.plan is not None:
        machine = planning.machine(accelerator, run.output_dir)
        known = planning.outlines(data_args)
        plan = foresee_network(config, data_args, known, accelerator, machine, seed=run.seed)
        return show(plan, planning, accelerator)
    prepare_push(hub, Teacher, accelerator)

    train, test = RealImages.train_and_test(
        data_args, check=lambda outline: check_teacher(config, outline, accelerator)
    )
    # The held-out part selects distilled images later on, so no teacher may see it.
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    warn_of_keeping(train, config.teacher_augment == "rrc")
    say_held_out(train, held_out, ["choose among sets that are distilled with this teacher"])
    teacher = train_teacher(
        train,
        test,
        config,
        run.output_dir,
        seed=run.seed,
        accelerator=accelerator,
        resume_from_checkpoint=run.resume_from_checkpoint,
        overwrite=run.overwrite_output_dir,
        disable_tqdm=run.disable_tqdm,
    )
    accelerator.print(f'{teacher.summary()}\n{run.output_dir}   load: Teacher.from_pretrained("{run.output_dir}")')
    if hub.push_to_hub and accelerator.is_main_process:
        print(push(teacher, hub, run.output_dir))


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on from the last checkpoint")
