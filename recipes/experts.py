# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Train experts: networks trained on the real images, with their parameters kept at the start and after every epoch.

    python recipes/experts.py                            # scikit-learn's digits, a minute on two cores
    accelerate launch recipes/experts.py --dataset_name uoft-cs/cifar10 --normalization zca \
        --num_experts 100 --expert_train_epochs 50       # the set-up of the trajectory-matching papers
    python recipes/experts.py --push_to_hub --hub_model_id me/digits-experts --hub_tag v1.0.0

A run that was interrupted continues when it is started again with the same flags, and a finished one when it is started
again with more experts or more epochs.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_distill.config import DataArguments, HfArg, HubArguments, PathArg, ProcessArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.foreseeing import foresee_network
from hf_distill.engine.plan import PlanArguments, show
from hf_distill.networks.trajectories import ExpertTrajectories
from hf_distill.runs.finish import run_recipe
from hf_distill.runs.held_out import say_held_out
from hf_distill.runs.processes import make_accelerator
from hf_distill.runs.publishing import prepare_push, push
from hf_distill.runs.start import disable_progress_bars
from hf_distill.training.experts import ExpertConfig, check_experts, train_experts


@dataclass
class RunArguments(ProcessArguments):
    """The folder and the seed of the experts."""

    output_dir: str = PathArg(default="outputs/experts", help="Folder of the experts; what it holds is continued.")
    seed: int = HfArg(default=0, help="The one seed; everything random derives from it.")
    disable_tqdm: bool = HfArg(default=False, help="No progress bars.")


def main() -> None:
    demo = Path(__file__).parent / "configs" / "experts" / "digits.yaml"
    classes = (DataArguments, ExpertConfig, RunArguments, HubArguments, PlanArguments)
    data_args, config, run, hub, planning = parse_args(*classes, default_config=demo)
    if data_args.keep_side is not None:
        raise ValueError(f"--keep_side {data_args.keep_side} is for random crops, and experts cut none; leave it out")
    if run.disable_tqdm:
        disable_progress_bars()
    accelerator = make_accelerator(**run.for_processes)
    if planning.plan is not None:
        machine = planning.machine(accelerator, run.output_dir)
        known = planning.outlines(data_args)
        plan = foresee_network(config, data_args, known, accelerator, machine, seed=run.seed)
        return show(plan, planning, accelerator)
    prepare_push(hub, ExpertTrajectories, accelerator)

    train, test = RealImages.train_and_test(
        data_args, check=lambda outline: check_experts(config, outline, accelerator)
    )
    # The held-out part selects distilled images later on, so no expert may see it.
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    say_held_out(train, held_out, ["choose among sets that are distilled with these experts"])
    experts = train_experts(
        train,
        config,
        run.output_dir,
        epochs=config.expert_train_epochs or 50,
        seed=run.seed,
        accelerator=accelerator,
        disable_tqdm=run.disable_tqdm,
        test=test,
    )
    accelerator.print(f"{experts.summary()}\n{experts.folder}   load: {experts.load_call}")
    if hub.push_to_hub and accelerator.is_main_process:
        print(push(experts, hub, experts.folder))


if __name__ == "__main__":
    run_recipe(main, "the same command goes on from what was kept")
