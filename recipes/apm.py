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

import sys
from pathlib import Path

from hf_distill import RealImages
from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.engine.method import DistillationDiverged
from hf_distill.methods import APM, APMConfig
from hf_distill.networks.teachers import expert_teachers
from hf_distill.runs.start import push, start_run
from hf_distill.training.teachers import TeacherConfig, find_teachers

DEMO = Path(__file__).parent / "configs" / "apm" / "digits-ipc5.yaml"


def main() -> None:
    classes = (DataArguments, TeacherConfig, APMConfig, HubArguments)
    data_args, teacher_config, config, hub = parse_args(*classes, default_config=DEMO)
    if config.shard is not None and hub.push_to_hub:
        raise ValueError(f"--push_to_hub with --shard {config.shard} would publish a part; publish what join.py makes")
    if config.shard is not None and config.teachers is None and config.experts is None:
        raise ValueError(
            f"--shard {config.shard} without --teachers: all shards need one teacher; train it with recipes/teacher.py "
            "and the same --config, and give its folder or repository to each of them"
        )
    shard = "" if config.shard is None else f"-shard{config.shard.replace('/', 'of')}"
    config, accelerator = start_run(config, hub, f"apm-{data_args.short_name}-ipc{config.ipc}{shard}")

    train, test = RealImages.train_and_test(data_args)
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    APM.check(config, train, accelerator)
    options = {"seed": config.seed, "accelerator": accelerator, "disable_tqdm": config.disable_tqdm}
    if config.experts is None:
        teachers = find_teachers(config.teachers, train, test, teacher_config, **options)
    else:
        teachers = expert_teachers(config.experts)
    strategy = teacher_config.dsa_strategy
    apm = APM(config, train, teachers, dsa_strategy=strategy, held_out=held_out, accelerator=accelerator)
    distilled = apm.distill()
    if accelerator.is_main_process:
        distilled.save_pretrained(config.output_dir)  # before the table, which can take longer than the distillation
    if config.shard is not None:
        accelerator.print(f"\nshard {config.shard}: {config.output_dir}. Put all of them together with recipes/join.py")
        return
    report = apm.evaluate(test)
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
        sys.exit("interrupted: the same command with --resume_from_checkpoint latest goes on from what was kept")
