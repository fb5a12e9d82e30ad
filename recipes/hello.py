"""Distil a dataset with HeLlO: tiled crops of real images, and a projector that computes their soft labels.

    accelerate launch recipes/hello.py                       # scikit-learn's digits and a CLIP of their own, in minutes
    accelerate launch --mixed_precision bf16 recipes/hello.py --config recipes/configs/hello/imagenet1k-rn50-ipc10.yaml
    accelerate launch recipes/hello.py --model_name_or_path openai/clip-vit-base-patch32 --dataset_name my/images \
        --resolution 224 --ipc 10 --teachers my/teacher
    accelerate launch recipes/hello.py --push_to_hub --hub_model_id me/digits-hello --hub_tag v1.0.0

The last one publishes the projector as me/digits-hello-projector, and a set that names it. Teachers are trained first
where none are given, and so is a small CLIP. Go on after an interruption with the same command line and
--resume_from_checkpoint latest.
"""

import sys
from pathlib import Path

from hf_distill import RealImages
from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.engine.method import DistillationDiverged
from hf_distill.methods import HeLlO, HeLlOConfig
from hf_distill.methods.hello import PROJECTOR
from hf_distill.runs.start import push_with_projector, start_run
from hf_distill.training.small_clip import PriorArguments, find_prior
from hf_distill.training.teachers import TeacherConfig, find_teachers

DEMO = Path(__file__).parent / "configs" / "hello" / "digits-ipc20.yaml"


def main() -> None:
    classes = (DataArguments, TeacherConfig, PriorArguments, HeLlOConfig, HubArguments)
    data_args, teacher_config, prior_args, config, hub = parse_args(*classes, default_config=DEMO)
    config, accelerator = start_run(config, hub, f"hello-{data_args.short_name}-ipc{config.ipc}", projector=True)

    train, test = RealImages.train_and_test(data_args)
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    train.require_per_class(config.ipc)
    config.check_fits(train)  # before anything is trained
    options = {"seed": config.seed, "accelerator": accelerator, "disable_tqdm": config.disable_tqdm}
    prior = find_prior(prior_args, train, **options)
    config.check_prior(prior, train.class_names)
    teachers = find_teachers(config.teachers, train, test, teacher_config, along=config.weak_teachers, **options)
    hello = HeLlO(config, train, teachers, prior, test=test, held_out=held_out, accelerator=accelerator)
    distilled = hello.distill()
    accelerator.print(f"\n{hello.projector.summary()}\n\n{hello.costs().table()}\n")
    if accelerator.is_main_process:
        distilled.save_pretrained(config.output_dir)  # before the tables, which can take longer than the distillation
    report = hello.evaluate(test)
    if accelerator.is_main_process:
        folder = distilled.save_pretrained(config.output_dir)
        print(f"\n{report.table()}\n\n{report.labels_table()}\n")
        print(f"The pictures: {folder}/assets/grid.png and labels.png. Load the images, and what labels them, with:")
        print(f'  datasets.load_dataset("{folder}", split="train")\n  DistilledSet.from_pretrained("{folder}").teacher')
        if hub.push_to_hub:
            print(push_with_projector(distilled, hello.projector, hub, folder, folder / PROJECTOR))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, DistillationDiverged) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command with --resume_from_checkpoint latest goes on where it was")
