# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Distil a dataset with DM: images with the mean features of their class, in networks that nothing has trained.

    accelerate launch recipes/dm.py                                   # scikit-learn's digits, ten images, a minute
    accelerate launch recipes/dm.py --config recipes/configs/dm/cifar10-ipc10.yaml
    accelerate launch recipes/dm.py --dataset_name my/images --resolution 32 --ipc 10 --output_dir outputs/mine
    accelerate launch recipes/dm.py --push_to_hub --hub_model_id me/digits-ipc1 --hub_tag v1.0.0

Go on after an interruption with the same command line and --resume_from_checkpoint latest.
"""

from pathlib import Path

from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.plan import PlanArguments, print_plan
from hf_distill.methods.dm import DM, DMConfig
from hf_distill.runs.finish import finish, run_recipe
from hf_distill.runs.start import start_run

DEMO = Path(__file__).parent / "configs" / "dm" / "digits-ipc1.yaml"


def main() -> None:
    data_args, config, hub, planning = parse_args(
        DataArguments, DMConfig, HubArguments, PlanArguments, default_config=DEMO
    )
    if planning.plan is not None:
        return print_plan(DM, planning, data_args, config)
    config, accelerator = start_run(config, hub, f"dm-{data_args.short_name}-ipc{config.ipc}")

    train, test = RealImages.train_and_test(data_args, check=lambda outline: DM.check(config, outline, accelerator))
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    dm = DM.prepare(train, test, config=config, held_out=held_out, accelerator=accelerator)
    finish(dm.run(), lambda: dm.evaluate(test), config.output_dir, hub, accelerator)


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on from the last checkpoint")
