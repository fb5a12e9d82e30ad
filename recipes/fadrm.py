# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Distil a dataset with FADRM: SRe2L in stages that begin with part of the real image; FADRM+ with several teachers.

    accelerate launch recipes/fadrm.py                                   # scikit-learn's digits, minutes on two cores
    accelerate launch --mixed_precision bf16 recipes/fadrm.py --config recipes/configs/fadrm/imagenet1k-ipc10.yaml
    accelerate launch recipes/fadrm.py --dataset_name my/images --resolution 64 --teachers my/resnet my/densenet
    accelerate launch recipes/fadrm.py --push_to_hub --hub_model_id me/digits-fadrm --hub_tag v1.0.0

A teacher is trained first where none is given. Go on after an interruption with the same command line and
--resume_from_checkpoint latest. The table at the end asks the first teacher; the authors' labels are means of all, by
the statistics of batches:

    python recipes/relabel.py --distilled_dataset outputs/fadrm-imagenet1k-ipc10 --batch_statistics 8 \\
        --teachers timm:resnet18.tv_in1k timm:densenet121.tv_in1k timm:mobilenetv2_100.ra_in1k
"""

from pathlib import Path

from hf_distill.config import DataArguments, HubArguments, parse_args
from hf_distill.data.images import RealImages
from hf_distill.engine.plan import PlanArguments, print_plan
from hf_distill.methods.fadrm import FADRM, FADRMConfig
from hf_distill.runs.finish import finish, run_recipe
from hf_distill.runs.start import start_run
from hf_distill.training.teachers import TeacherConfig, framed_by_teacher

DEMO = Path(__file__).parent / "configs" / "fadrm" / "digits-ipc5.yaml"


def main() -> None:
    classes = (DataArguments, TeacherConfig, FADRMConfig, HubArguments, PlanArguments)
    data_args, teacher_config, config, hub, planning = parse_args(*classes, default_config=DEMO)
    if planning.plan is not None:
        return print_plan(FADRM, planning, data_args, config, (teacher_config,))
    config, accelerator = start_run(config, hub, f"fadrm-{data_args.short_name}-ipc{config.ipc}")

    framed = framed_by_teacher(data_args, config.teachers, FADRM.labelled_by)
    networks = (teacher_config,)
    train, test = RealImages.train_and_test(
        framed,
        check=lambda outline: FADRM.check(config, outline, accelerator, networks),
        on_demand=FADRM.looks_once(config),
    )
    train, held_out = train.split(data_args.validation_fraction, seed=0)
    fadrm = FADRM.prepare(train, test, config=config, networks=networks, held_out=held_out, accelerator=accelerator)
    finish(fadrm.run(), lambda: fadrm.evaluate(test), config.output_dir, hub, accelerator)


if __name__ == "__main__":
    run_recipe(main, "the same command with --resume_from_checkpoint latest goes on from what was kept")
