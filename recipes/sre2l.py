# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Distil a dataset with SRe2L: images that a trained network recognises, with the statistics it remembers.

    accelerate launch recipes/sre2l.py                                   # scikit-learn's digits, minutes on two cores
    accelerate launch --mixed_precision bf16 recipes/sre2l.py --config recipes/configs/sre2l/imagenet1k-ipc50.yaml
    accelerate launch recipes/sre2l.py --dataset_name my/images --resolution 64 --ipc 10 --teachers my/teacher
    accelerate launch recipes/sre2l.py --push_to_hub --hub_model_id me/digits-sre2l --hub_tag v1.0.0

A teacher is trained first where none is given. Go on after an interruption with the same command line and
--resume_from_checkpoint latest.
"""

from pathlib import Path

from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.plan import PlanArguments, print_plan
from hf_distill.methods.sre2l import SRe2L, SRe2LConfig
from hf_distill.runs.finish import finish, run_recipe
from hf_distill.runs.start import start_run
from hf_distill.training.teachers import TeacherConfig, framed_by_teacher

DEMO = Path(__file__).parent / "configs" / "sre2l" / "digits-ipc5.yaml"


def main() -> None:
    classes = (DataArguments, TeacherConfig, SRe2LConfig, HubArguments, PlanArguments)
    data_args, teacher_config, config, hub, planning = parse_args(*classes, default_config=DEMO)
    if planning.plan is not None:
        return print_plan(SRe2L, planning, data_args, config, (teacher_config,))
    config, accelerator = start_run(config, hub, f"sre2l-{data_args.short_name}-ipc{config.ipc}")

    framed = framed_by_teacher(data_args, config.teachers, SRe2L.labelled_by)
    networks = (teacher_config,)
    train, test = RealImages.train_and_test(
        framed,
        check=lambda outline: SRe2L.check(config, outline, accelerator, networks),
        on_demand=SRe2L.looks_once(config),
    )
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    sre2l = SRe2L.prepare(train, test, config=config, networks=networks, held_out=held_out, accelerator=accelerator)
    finish(sre2l.run(), lambda: sre2l.evaluate(test), config.output_dir, hub, accelerator)


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on from what was kept")
