# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Distil a dataset with CLP-DD: images from which ridge regression learns a linear head on a frozen backbone.

    accelerate launch recipes/clpdd.py                                   # scikit-learn's digits, minutes on two cores
    accelerate launch --mixed_precision bf16 recipes/clpdd.py --config recipes/configs/clpdd/imagenet1k-dinov2-ipc1.yaml
    accelerate launch recipes/clpdd.py --dataset_name my/images --resolution 256 --backbone facebook/dinov2-base
    accelerate launch recipes/clpdd.py --push_to_hub --hub_model_id me/digits-clpdd --hub_tag v1.0.0

Without --backbone a teacher is trained first, whose features before its logits are learned from. Go on after an
interruption with the same command line and --resume_from_checkpoint latest.
"""

from pathlib import Path

from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.plan import PlanArguments, print_plan
from hf_distill.methods.lgm import CLPDD, CLPDDConfig
from hf_distill.runs.finish import finish, run_recipe
from hf_distill.runs.start import start_run
from hf_distill.training.teachers import TeacherConfig

DEMO = Path(__file__).parent / "configs" / "clpdd" / "digits-ipc1.yaml"


def main() -> None:
    classes = (DataArguments, TeacherConfig, CLPDDConfig, HubArguments, PlanArguments)
    data_args, teacher_config, config, hub, planning = parse_args(*classes, default_config=DEMO)
    if planning.plan is not None:
        return print_plan(CLPDD, planning, data_args, config, (teacher_config,))
    config, accelerator = start_run(config, hub, f"clpdd-{data_args.short_name}-ipc{config.ipc}")

    networks = (teacher_config,)
    train, test = RealImages.train_and_test(
        data_args, check=lambda outline: CLPDD.check(config, outline, accelerator, networks)
    )
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    clpdd = CLPDD.prepare(train, test, config=config, networks=networks, held_out=held_out, accelerator=accelerator)
    finish(clpdd.run(), lambda: clpdd.evaluate(test), config.output_dir, hub, accelerator)


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on where it was")
