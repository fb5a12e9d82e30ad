"""Every recipe with settings by which it takes seconds, and the inputs that some of them need.

python -m tests.faults.short tesla --output_dir run     # a recipe that knows the short protocols of the tests
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
DATA = "--max_train_samples 200 --max_test_samples 50 --validation_fraction 0.2 --disable_tqdm=true"
NETWORK = "--student convnet_d1 --student_width 8 --batch_train 50"
EXPERTS = f"{NETWORK} --num_experts 2 --expert_train_epochs 4 --experts_at_once 1"
TEACHER = f"{NETWORK} --student_norm batch --teacher_epochs 4 --teacher_augment none"
TABLE = "--ipc 2 --eval_seeds 1 --eval_baselines random --eval_full_data false"
LOOP = "--max_steps 12 --save_steps 4 --eval_steps 6 --eval_nets 1 --syn_steps 2 --expert_epochs 1 --max_start_epoch 2"
RECOVER = "--max_steps 30 --batch_classes 4 --jitter 1"
PRIOR = "--prior_epochs 1 --lora_r 2 --lora_head_r 1 --projector_epochs 3 --batch_projector 50"
HEADS = f"{DATA} {TEACHER} {TABLE} --max_steps 12 --save_steps 4 --eval_steps 6 --eval_nets 1 --level_steps 2"
APM = f"{DATA} {TEACHER} {TABLE} --eval_protocol tiny --max_steps 6 --batch_syn 10 --num_students 2 --student_epochs 3"
# In the folder of a run, with what `inputs` made in `../inputs`.
FLAGS = {
    "mtt": f"{DATA} {EXPERTS} {TABLE} {LOOP} --eval_protocol tiny --output_dir run",
    "tesla": f"{DATA} {EXPERTS} {TABLE} {LOOP} --eval_protocol tiny --output_dir run",
    "datm": f"{DATA} {EXPERTS} {TABLE} {LOOP} --eval_protocol tiny --output_dir run",
    "dm": f"{DATA} --student convnet_d1 --student_width 8 {TABLE} --batch_real 10 --max_steps 12 --save_steps 4 "
    "--eval_steps 6 --eval_nets 1 --eval_protocol tiny --output_dir run",
    "lgm": f"{HEADS} --real_views 1 --augmentations 2 --batch_real 20 --eval_protocol probe-tiny --output_dir run",
    "clpdd": f"{HEADS} --real_views 1 --eval_protocol probe-tiny --output_dir run",
    "apm": f"{APM} --output_dir run",
    "sre2l": f"{DATA} {TEACHER} {TABLE} {RECOVER} --eval_protocol crops-tiny --output_dir run",
    "fadrm": f"{DATA} {TEACHER} {TABLE} {RECOVER} --eval_protocol crops-tiny --output_dir run",
    "cda": f"{DATA} {TEACHER} {TABLE} {RECOVER} --eval_protocol crops-tiny --output_dir run",
    "rded": f"{DATA} {TEACHER} {TABLE} --eval_protocol crops-tiny --output_dir run",
    "hello": f"{DATA} {TEACHER} {TABLE} --weak_teachers 1 {PRIOR} --adapt_epochs 1 --compare_labels none "
    "--eval_protocol crops-tiny --output_dir run",
    "experts": f"{DATA} {EXPERTS} --output_dir run",
    "teacher": f"{DATA} {TEACHER} --output_dir run",
    "projector": f"--distilled_dataset ../inputs/set {TEACHER} --weak_teachers 1 {PRIOR} --disable_tqdm=true "
    "--output_dir run --labelled_output_dir labelled",
    "relabel": "--distilled_dataset ../inputs/set --protocol crops-tiny --label_epochs 6 --disable_tqdm=true "
    "--output_dir run",
    "evaluate": "--distilled_dataset ../inputs/set --protocol crops-tiny --num_seeds 2 --full_data false "
    "--baselines random --disable_tqdm=true --output_dir run",
    "join": "--shards ../inputs/shard-1 ../inputs/shard-2 --output_dir run",
    "import": "--images ../inputs/images.pt --class_names 0 1 2 3 4 5 6 7 8 9 --mean 0.5 --std 0.5 --output_dir run",
}
RESUMED = FLAGS.keys() - {"experts", "relabel", "evaluate", "join", "import"}


def command(recipe: str, launcher: str = "python", processes: int = 1, *, resume: bool = False) -> list[str]:
    """The words that start a recipe in a folder of its own."""
    words = [recipe, *FLAGS[recipe].split(), "--cpu_threads", "1"]  # as many as the launcher leaves: other roundings
    if resume and recipe in RESUMED:
        words += ["--resume_from_checkpoint", "latest"]
    if resume and recipe == "join":
        words += ["--overwrite_output_dir"]
    module = ["-m", "tests.faults.short", *words]
    if launcher == "accelerate":
        options = ["--cpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        return [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *options,
            "--num_processes",
            str(processes),
            *module,
        ]
    if processes > 1:
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *module]
    return [sys.executable, *module]


def inputs(folder: Path) -> None:
    """Make `inputs` in a folder: what recipes are given that make nothing of real images."""
    _run("teacher", FLAGS["teacher"].replace("--output_dir run", "--output_dir inputs/teacher"), folder)
    for shard in (1, 2):
        flags = f"{APM} --teachers inputs/teacher --shard {shard}/2 --output_dir inputs/shard-{shard}"
        _run("apm", flags, folder)
    flags = FLAGS["rded"].replace("--output_dir run", "--teachers inputs/teacher --output_dir inputs/set")
    _run("rded", flags, folder)
    import torch

    images = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save({"images": images, "labels": torch.arange(20) % 10}, folder / "inputs" / "images.pt")


def _run(recipe: str, flags: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.short", recipe, *flags.split()],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{recipe} ended with {done.returncode}: {done.stderr}")


def main() -> None:
    from tests.helpers.protocols import know_short_protocols

    know_short_protocols()
    recipe = sys.argv.pop(1)
    sys.argv[0] = str(ROOT / "recipes" / f"{recipe}.py")
    sys.path[0] = str(ROOT / "recipes")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
