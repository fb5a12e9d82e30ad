# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
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

from pathlib import Path

from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.plan import PlanArguments, print_plan
from hf_distill.methods.hello import PROJECTOR, HeLlO, HeLlOConfig
from hf_distill.runs.finish import finish, run_recipe
from hf_distill.runs.publishing import push_with_projector
from hf_distill.runs.start import start_run
from hf_distill.training.small_clip import PriorArguments
from hf_distill.training.teachers import TeacherConfig, framed_by_teacher

DEMO = Path(__file__).parent / "configs" / "hello" / "digits-ipc20.yaml"


def main() -> None:
    classes = (DataArguments, TeacherConfig, PriorArguments, HeLlOConfig, HubArguments, PlanArguments)
    data_args, teacher_config, prior_args, config, hub, planning = parse_args(*classes, default_config=DEMO)
    if planning.plan is not None:
        return print_plan(HeLlO, planning, data_args, config, (teacher_config, prior_args))
    config, accelerator = start_run(config, hub, f"hello-{data_args.short_name}-ipc{config.ipc}", projector=True)

    framed = framed_by_teacher(data_args, config.teachers, HeLlO.labelled_by)
    networks = (teacher_config, prior_args)
    train, test = RealImages.train_and_test(
        framed, check=lambda outline: HeLlO.check(config, outline, accelerator, networks)
    )
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    hello = HeLlO.prepare(train, test, config=config, networks=networks, held_out=held_out, accelerator=accelerator)
    distilled, folder = hello.run(), config.output_dir
    accelerator.print(f"\n{hello.projector.summary()}\n\n{hello.costs().table()}\n")
    finish(
        distilled,
        lambda: hello.evaluate(test),
        folder,
        hub,
        accelerator,
        publish=lambda: push_with_projector(distilled, hello.projector, hub, folder, Path(folder) / PROJECTOR),
        more=f'  DistilledSet.from_pretrained("{folder}").teacher     what labels them; labels.png compares labels',
    )


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on where it was")
