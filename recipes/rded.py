# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Distil a dataset with RDED: crops of real images that a trained network recognises best, tiled.

    accelerate launch recipes/rded.py                                   # scikit-learn's digits, minutes on two cores
    accelerate launch --mixed_precision bf16 recipes/rded.py --config recipes/configs/rded/imagenet1k-ipc10.yaml
    accelerate launch recipes/rded.py --dataset_name my/images --resolution 64 --ipc 10 --teachers my/teacher
    accelerate launch recipes/rded.py --push_to_hub --hub_model_id me/digits-rded --hub_tag v1.0.0

A teacher is trained first where none is given. Go on after an interruption with the same command line and
--resume_from_checkpoint latest.
"""

from pathlib import Path

from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.plan import PlanArguments, print_plan
from hf_distill.methods.rded import RDED, RDEDConfig
from hf_distill.runs.finish import finish, run_recipe
from hf_distill.runs.start import start_run
from hf_distill.training.teachers import TeacherConfig, framed_by_teacher

DEMO = Path(__file__).parent / "configs" / "rded" / "digits-ipc5.yaml"


def main() -> None:
    classes = (DataArguments, TeacherConfig, RDEDConfig, HubArguments, PlanArguments)
    data_args, teacher_config, config, hub, planning = parse_args(*classes, default_config=DEMO)
    if planning.plan is not None:
        return print_plan(RDED, planning, data_args, config, (teacher_config,))
    config, accelerator = start_run(config, hub, f"rded-{data_args.short_name}-ipc{config.ipc}")

    framed = framed_by_teacher(data_args, config.teachers, RDED.labelled_by)
    networks = (teacher_config,)
    train, test = RealImages.train_and_test(
        framed, check=lambda outline: RDED.check(config, outline, accelerator, networks)
    )
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    rded = RDED.prepare(train, test, config=config, networks=networks, held_out=held_out, accelerator=accelerator)
    finish(rded.run(), lambda: rded.evaluate(test), config.output_dir, hub, accelerator)


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on with the next block")
