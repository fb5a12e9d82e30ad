# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Distil a dataset with CDA: SRe2L whose crops begin as the whole image and get smaller.

    accelerate launch recipes/cda.py                                   # scikit-learn's digits, minutes on two cores
    accelerate launch --mixed_precision bf16 recipes/cda.py --config recipes/configs/cda/imagenet1k-ipc50.yaml
    accelerate launch recipes/cda.py --dataset_name my/images --resolution 64 --ipc 10 --teachers my/teacher
    accelerate launch recipes/cda.py --push_to_hub --hub_model_id me/digits-cda --hub_tag v1.0.0

A teacher is trained first where none is given. Go on after an interruption with the same command line and
--resume_from_checkpoint latest.
"""

from pathlib import Path

from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.plan import PlanArguments, print_plan
from hf_distill.methods.sre2l import CDA, CDAConfig
from hf_distill.runs.finish import finish, run_recipe
from hf_distill.runs.start import start_run
from hf_distill.training.teachers import TeacherConfig, framed_by_teacher

DEMO = Path(__file__).parent / "configs" / "cda" / "digits-ipc5.yaml"


def main() -> None:
    classes = (DataArguments, TeacherConfig, CDAConfig, HubArguments, PlanArguments)
    data_args, teacher_config, config, hub, planning = parse_args(*classes, default_config=DEMO)
    if planning.plan is not None:
        return print_plan(CDA, planning, data_args, config, (teacher_config,))
    config, accelerator = start_run(config, hub, f"cda-{data_args.short_name}-ipc{config.ipc}")

    framed = framed_by_teacher(data_args, config.teachers, CDA.labelled_by)
    networks = (teacher_config,)
    train, test = RealImages.train_and_test(
        framed,
        check=lambda outline: CDA.check(config, outline, accelerator, networks),
        on_demand=CDA.looks_once(config),
    )
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    cda = CDA.prepare(train, test, config=config, networks=networks, held_out=held_out, accelerator=accelerator)
    finish(cda.run(), lambda: cda.evaluate(test), config.output_dir, hub, accelerator)


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on from what was kept")
