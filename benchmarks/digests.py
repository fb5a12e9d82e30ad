"""The SHA-256 of what every recipe's tiny run leaves: equal lines before and after a change mean equal results.

    python benchmarks/digests.py --output after.txt
    python benchmarks/digests.py --package ../parent --output before.txt && diff before.txt after.txt

Each line is `sha256  run/path` of a table or a safetensors file, of artifacts and of checkpoints, or of the rows of a
`results.json`. Recipes run one after the other, each in a process of one thread, on the digits and the CPU. Only files
of one machine can be compared: another processor sums in another order.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg, HfArgumentParser

ROOT = Path(__file__).resolve().parents[1]

DATA = "--max_train_samples 200 --max_test_samples 50"
NETWORK = "--student convnet_d1 --student_width 8 --batch_train 50 --disable_tqdm true"
EXPERTS = f"{DATA} {NETWORK} --num_experts 2 --expert_train_epochs 3 --experts_at_once 2 --lr_teacher 0.03"
TEACHER = f"{DATA} {NETWORK} --student_norm batch --teacher_epochs 3"
TABLE = "--eval_seeds 1 --eval_baselines random --eval_full_data false"
LOOP = (
    f"{DATA} --student convnet_d1 --student_width 8 --num_experts 2 --expert_train_epochs 3 --experts_at_once 2 "
    "--ipc 1 --max_steps 6 --save_steps 3 --eval_steps 3 --eval_nets 1 --syn_steps 3 --expert_epochs 1 "
    "--max_start_epoch 2 --lr_img 1 --eval_protocol quick --eval_seeds 1 --disable_tqdm true"
)
APM = (
    f"{DATA} --teachers teacher --student convnet_d1 --student_width 8 --student_norm batch --ipc 2 --batch_syn 10 "
    "--max_steps 6 --save_steps 3 --num_students 2 --student_epochs 4 --eval_protocol apm-quick "
    f"{TABLE} --disable_tqdm true"
)
BLOCKS = f"{TEACHER} --teachers teacher --ipc 2 --max_steps 6 --batch_classes 5 --jitter 1 --eval_protocol crops-quick"
HEADS = (
    f"{TEACHER} --ipc 1 --max_steps 6 --save_steps 3 --eval_steps 3 --eval_nets 1 --level_steps 2 --real_views 1 "
    f"--eval_protocol probe-quick {TABLE}"
)
PATCHES = f"{TEACHER} --num_candidates 10 --num_crops 2"
PRIOR = "--prior_epochs 1 --prompts simple --lora_r 2 --weak_teachers 2 --projector_epochs 2 --batch_projector 50"

# What artifacts are exported to, for imports of other projects' files.
EXPORT = """
import torch
from hf_distill import DistilledSet, ExpertTrajectories
DistilledSet.from_pretrained("tesla").export_pt("export.pt")
experts = ExpertTrajectories.from_pretrained("experts")
shapes = [(8, 1, 3, 3), (8,), (8,), (8,), (10, 128), (10,)]
sizes = [torch.Size(shape).numel() for shape in shapes]
rows = [[experts.row(expert, epoch) for epoch in range(4)] for expert in range(2)]
parts = [[[p.reshape(s).clone() for p, s in zip(row.split(sizes), shapes)] for row in path] for path in rows]
torch.save(parts, "replay_buffer_0.pt")
"""


@dataclass(frozen=True)
class Run:
    """One run of a recipe, which leaves the folder of its name.

    Attributes:
        recipe: Name of the recipe.
        flags: Its command line, but for the output folder.
        needs: Runs whose folders it reads.
        before: Python text that is run first.
    """

    recipe: str
    flags: str
    needs: tuple[str, ...] = ()
    before: str = ""


RUNS = {
    "experts": Run("experts", EXPERTS),
    "teacher": Run("teacher", TEACHER),
    "tesla": Run("tesla", f"{LOOP} --experts experts", ("experts",)),
    "tesla-micro": Run(
        "tesla",
        f"{LOOP} --normalization zca --label hard --curvature 0.5 --micro_batch_size 5 --theta_every 2 --max_steps 3 "
        "--batch_train 50",
    ),
    "mtt": Run("mtt", f"{LOOP} --experts experts", ("experts",)),
    "datm": Run("datm", f"{LOOP} --experts experts", ("experts",)),
    "dm": Run(
        "dm",
        f"{DATA} --student convnet_d1 --student_width 8 --batch_real 10 --ipc 1 --max_steps 6 --save_steps 3 "
        f"--eval_steps 3 --eval_nets 1 --eval_protocol quick {TABLE} --disable_tqdm true",
    ),
    "lgm": Run("lgm", f"{HEADS} --augmentations 2 --batch_real 20"),
    "clpdd": Run("clpdd", HEADS),
    "apm": Run("apm", APM, ("teacher",)),
    "apm-1of2": Run("apm", f"{APM} --shard 1/2", ("teacher",)),
    "apm-2of2": Run("apm", f"{APM} --shard 2/2", ("teacher",)),
    "join": Run("join", "--shards apm-1of2 apm-2of2", ("apm-1of2", "apm-2of2")),
    "sre2l": Run("sre2l", f"{BLOCKS} {TABLE}", ("teacher",)),
    "cda": Run("cda", f"{BLOCKS} {TABLE} --compat vila", ("teacher",)),
    "fadrm": Run("fadrm", f"{BLOCKS} {TABLE}", ("teacher",)),
    "rded": Run("rded", f"{PATCHES} --teachers teacher --ipc 2 --eval_protocol crops-quick {TABLE}", ("teacher",)),
    "hello": Run("hello", f"{PATCHES} {PRIOR} --ipc 2 --factor 2 --adapt_epochs 1 --update_steps 3 {TABLE}"),
    "projector": Run("projector", f"--distilled_dataset rded {TEACHER} {PRIOR}", ("rded",)),
    "relabel": Run("relabel", "--distilled_dataset cda --label_epochs 2 --kept 4 --disable_tqdm true", ("cda",)),
    "evaluate": Run(
        "evaluate",
        f"--distilled_dataset tesla {DATA} --student convnet_d1 convnet_d2 --num_seeds 2 --full_data false "
        "--disable_tqdm true",
        ("tesla",),
    ),
    "evaluate-labels": Run(
        "evaluate",
        f"--distilled_dataset cda {DATA} --labels relabel --num_seeds 1 --full_data false --baselines random "
        "--compare_labels hard relabel --disable_tqdm true",
        ("cda", "relabel"),
    ),
    "import": Run("import", "--images export.pt", ("tesla", "experts"), before=EXPORT),
    "import-trajectories": Run(
        "import",
        f"--trajectories replay_buffer_0.pt {DATA} --student convnet_d1 --student_width 8 --disable_tqdm true",
        ("tesla", "experts"),
        before=EXPORT,
    ),
}


@dataclass
class DigestArguments:
    """Whose recipes to run, and which."""

    package: str = HfArg(default=str(ROOT), help="Checkout whose package and recipes are run.")
    only: list[str] = HfArg(default_factory=list, help=f"Some of {', '.join(RUNS)}. Without it: all.")
    output: str | None = HfArg(default=None, help="Text file for the lines.")

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in RUNS]
        if unknown:
            raise ValueError(f"--only names {unknown[0]!r}; expected some of {', '.join(RUNS)}")


def with_needs(names: list[str]) -> list[str]:
    """These runs and those they read, each after what it needs."""
    ordered: list[str] = []
    for name in names:
        ordered += [run for run in (*with_needs(list(RUNS[name].needs)), name) if run not in ordered]
    return ordered


def python(words: list[str], package: Path, folder: Path) -> None:
    """Run Python with the package of a checkout, in one thread on the CPU and without the network.

    Raises:
        ValueError: It fails; with the last line of what it wrote.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "HF_"))}
    environment |= {"PYTHONPATH": str(package), "PYTHONSAFEPATH": "1", "HF_HOME": str(folder / "home")}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ValueError(f"python {' '.join(words)[:200]} ended with status {done.returncode}: {last}")


def digests(folder: Path) -> Iterator[tuple[str, str]]:
    """SHA-256 and path of each table and safetensors file below a folder, and of the rows of its results."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder.parent).as_posix()
        if path.suffix in (".parquet", ".safetensors"):
            yield hashlib.sha256(path.read_bytes()).hexdigest(), name
        elif path.name == "results.json":
            results = json.loads(path.read_text(encoding="utf-8"))
            for part in ("rows", "labels"):
                if results.get(part):
                    text = json.dumps(results[part], sort_keys=True)
                    yield hashlib.sha256(text.encode()).hexdigest(), f"{name}#{part}"


def main() -> None:
    try:
        (args,) = HfArgumentParser(DigestArguments).parse_args_into_dataclasses()
    except ValueError as error:
        sys.exit(f"error: {error}")
    package, lines = Path(args.package).resolve(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in with_needs(args.only or list(RUNS)):
            run = RUNS[name]
            if run.before:
                python(["-c", run.before], package, folder)
            words = [str(package / "recipes" / f"{run.recipe}.py"), *run.flags.split(), "--output_dir", name]
            python(words, package, folder)
            for digest, path in digests(folder / name):
                if not args.only or name in args.only:
                    lines.append(f"{digest}  {path}")
                    print(lines[-1], flush=True)
    if args.output is not None:
        Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
