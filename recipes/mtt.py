"""Distil a dataset with MTT: trajectory matching through the full unroll, with hard labels.

    accelerate launch recipes/mtt.py                                   # scikit-learn's digits, ten images, minutes
    accelerate launch recipes/mtt.py --config recipes/configs/mtt/cifar10-ipc1.yaml
    accelerate launch recipes/mtt.py --dataset_name my/images --resolution 32 --ipc 10 --output_dir outputs/mine
    accelerate launch recipes/mtt.py --push_to_hub --hub_model_id me/digits-ipc1 --hub_tag v1.0.0

Experts are trained first where there are none yet (or give --experts FOLDER_OR_REPO). Go on after an interruption
with the same command line and --resume_from_checkpoint latest.
"""

import sys
from pathlib import Path

from hf_distill import RealImages
from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.engine.method import DistillationDiverged
from hf_distill.methods import MTT, MTTConfig
from hf_distill.runs.start import push, start_run
from hf_distill.training.experts import ExpertConfig, experts_folder, train_experts

DEMO = Path(__file__).parent / "configs" / "mtt" / "digits-ipc1.yaml"


def main() -> None:
    classes = (DataArguments, ExpertConfig, MTTConfig, HubArguments)
    data_args, expert_config, config, hub = parse_args(*classes, default_config=DEMO)
    config, accelerator = start_run(config, hub, f"mtt-{data_args.short_name}-ipc{config.ipc}")

    train, test = RealImages.train_and_test(data_args)
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    train.require_per_class(config.ipc)
    experts = train_experts(
        train,
        expert_config,
        experts_folder(train, expert_config, config.seed),
        epochs=expert_config.expert_train_epochs or config.expert_epochs_needed,
        seed=config.seed,
        accelerator=accelerator,
        disable_tqdm=config.disable_tqdm,
        test=test,
    )
    mtt = MTT(config, train, experts, held_out=held_out, accelerator=accelerator)
    distilled = mtt.distill()
    if accelerator.is_main_process:
        distilled.save_pretrained(config.output_dir)  # before the table, which can take longer than the distillation
    report = mtt.evaluate(test)
    if accelerator.is_main_process:
        folder = distilled.save_pretrained(config.output_dir)
        print(f"\n{report.table()}\n\nThe picture: {folder}/assets/grid.png. Load the images with:")
        print(f'  datasets.load_dataset("{folder}", split="train")')
        if hub.push_to_hub:
            print(push(distilled, hub, folder))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, DistillationDiverged) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command with --resume_from_checkpoint latest goes on from the last checkpoint")
