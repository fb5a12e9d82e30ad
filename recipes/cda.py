"""Distil a dataset with CDA: SRe2L whose crops begin as the whole image and get smaller.

    accelerate launch recipes/cda.py                                   # scikit-learn's digits, minutes on two cores
    accelerate launch --mixed_precision bf16 recipes/cda.py --config recipes/configs/cda/imagenet1k-ipc50.yaml
    accelerate launch recipes/cda.py --dataset_name my/images --resolution 64 --ipc 10 --teachers my/teacher
    accelerate launch recipes/cda.py --push_to_hub --hub_model_id me/digits-cda --hub_tag v1.0.0

A teacher is trained first where none is given. Go on after an interruption with the same command line and
--resume_from_checkpoint latest.
"""

import sys
from pathlib import Path

from hf_distill import RealImages
from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.engine.method import DistillationDiverged
from hf_distill.methods import CDA, CDAConfig
from hf_distill.runs.start import push, start_run
from hf_distill.training.teachers import TeacherConfig, find_teachers

DEMO = Path(__file__).parent / "configs" / "cda" / "digits-ipc5.yaml"


def main() -> None:
    classes = (DataArguments, TeacherConfig, CDAConfig, HubArguments)
    data_args, teacher_config, config, hub = parse_args(*classes, default_config=DEMO)
    config, accelerator = start_run(config, hub, f"cda-{data_args.short_name}-ipc{config.ipc}")

    train, test = RealImages.train_and_test(data_args)
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    train.require_per_class(config.ipc)
    options = {"seed": config.seed, "accelerator": accelerator, "disable_tqdm": config.disable_tqdm}
    teachers = find_teachers(config.teachers, train, test, teacher_config, **options)
    cda = CDA(config, train, teachers, held_out=held_out, accelerator=accelerator)
    distilled = cda.distill()
    if accelerator.is_main_process:
        distilled.save_pretrained(config.output_dir)  # before the table, which can take longer than the distillation
    report = cda.evaluate(test)
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
        sys.exit("interrupted: the same command with --resume_from_checkpoint latest goes on with the next block")
