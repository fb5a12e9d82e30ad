# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Distil a dataset with TESLA: trajectory matching in the memory of one student step, with soft labels.

    accelerate launch recipes/tesla.py                                   # scikit-learn's digits, ten images, minutes
    accelerate launch recipes/tesla.py --config recipes/configs/tesla/cifar10-ipc10.yaml
    accelerate launch recipes/tesla.py --dataset_name my/images --resolution 32 --ipc 10 --output_dir outputs/mine
    accelerate launch recipes/tesla.py --push_to_hub --hub_model_id me/digits-ipc1 --hub_tag v1.0.0

Experts are trained first where there are none yet (or give --experts FOLDER_OR_REPO). Go on after an interruption
with the same command line and --resume_from_checkpoint latest.
"""

from pathlib import Path

from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.plan import PlanArguments, print_plan
from hf_distill.methods.tesla import TESLA, TESLAConfig
from hf_distill.runs.finish import finish, run_recipe
from hf_distill.runs.start import start_run
from hf_distill.training.experts import ExpertConfig

DEMO = Path(__file__).parent / "configs" / "tesla" / "digits-ipc1.yaml"


def main() -> None:
    classes = (DataArguments, ExpertConfig, TESLAConfig, HubArguments, PlanArguments)
    data_args, expert_config, config, hub, planning = parse_args(*classes, default_config=DEMO)
    if planning.plan is not None:
        return print_plan(TESLA, planning, data_args, config, (expert_config,))
    config, accelerator = start_run(config, hub, f"tesla-{data_args.short_name}-ipc{config.ipc}")

    networks = (expert_config,)
    train, test = RealImages.train_and_test(
        data_args, check=lambda outline: TESLA.check(config, outline, accelerator, networks)
    )
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    tesla = TESLA.prepare(train, test, config=config, networks=networks, held_out=held_out, accelerator=accelerator)
    finish(tesla.run(), lambda: tesla.evaluate(test), config.output_dir, hub, accelerator)


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on from the last checkpoint")
