# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Distil a dataset with APM: images on which students of the images still disagree with a trained teacher.

    accelerate launch recipes/apm.py                                   # scikit-learn's digits, minutes on two cores
    accelerate launch recipes/apm.py --config recipes/configs/apm/cifar10-ipc50.yaml
    accelerate launch recipes/apm.py --config recipes/configs/apm/imagenet1k-64-ipc10.yaml --memory_budget 6GB
    accelerate launch recipes/apm.py --config recipes/configs/apm/imagenet1k-64-ipc10.yaml --shard 1/4 --teachers me/net
    accelerate launch recipes/apm.py --push_to_hub --hub_model_id me/digits-apm --hub_tag v1.0.0

A teacher is trained first where none is given. Shards need the same one: recipes/teacher.py trains it, with the same
--config, and recipes/join.py puts them together. Go on after an interruption with the same command line and
--resume_from_checkpoint latest.
"""

from pathlib import Path

from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.plan import PlanArguments, print_plan
from hf_distill.methods.apm import APM, APMConfig
from hf_distill.runs.finish import finish, run_recipe
from hf_distill.runs.start import start_run
from hf_distill.training.teachers import TeacherConfig, framed_by_teacher

DEMO = Path(__file__).parent / "configs" / "apm" / "digits-ipc5.yaml"


def main() -> None:
    classes = (DataArguments, TeacherConfig, APMConfig, HubArguments, PlanArguments)
    data_args, teacher_config, config, hub, planning = parse_args(*classes, default_config=DEMO)
    if config.shard is not None and hub.push_to_hub:
        raise ValueError(f"--push_to_hub with --shard {config.shard} would publish a part; publish what join.py makes")
    config.check_shard()
    shard = "" if config.shard is None else f"-shard{config.shard.replace('/', 'of')}"
    if planning.plan is not None:
        return print_plan(APM, planning, data_args, config, (teacher_config,))
    config, accelerator = start_run(config, hub, f"apm-{data_args.short_name}-ipc{config.ipc}{shard}")

    framed = framed_by_teacher(data_args, config.teachers, APM.labelled_by)
    networks = (teacher_config,)
    train, test = RealImages.train_and_test(
        framed, check=lambda outline: APM.check(config, outline, accelerator, networks)
    )
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    apm = APM.prepare(train, test, config=config, networks=networks, held_out=held_out, accelerator=accelerator)
    distilled = apm.run()
    if config.shard is not None:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            distilled.save_pretrained(config.output_dir)
        accelerator.print(f"\nshard {config.shard}: {config.output_dir}. Put all of them together with recipes/join.py")
        return
    finish(distilled, lambda: apm.evaluate(test), config.output_dir, hub, accelerator)


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on from what was kept")
