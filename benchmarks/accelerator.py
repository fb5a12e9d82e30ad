"""All that is to be run on an accelerator, for a visit of minutes: `python benchmarks/accelerator.py --help`.

    python benchmarks/accelerator.py --minutes 9 --output visit
    python benchmarks/accelerator.py --minutes 9 --output visit --cifar10 data/cifar10    # goes on where that one ended
    python benchmarks/accelerator.py --minutes 2 --output toy --device cpu                # the same parts at toy size

In order, with what all parts of a group are given together:

    tests, recipes  the tests marked `gpu`; two steps of every recipe on scikit-learn's digits          1.5 minutes
    matching        TESLA and MTT: exact, truncated, full unroll; as written, with the library's norm,
                    in bf16, compiled, captured; at the shapes of CIFAR-100 and ImageNet-1K; DM; LGM and
                    CLP-DD, with a ViT-B in bf16                                                         2.5 minutes
    recovery        recover, as the paper and in bf16 and compiled, and in FADRM's stages; relabel and
                    train students                                                                       1.5 minutes
    apm             an iteration of APM beside one of TESLA                                              1 minute
    throughput      experts side by side; training a projector, and students with its labels             1 minute
    plan            demos on the digits, each beside what `--plan` says of it                            1 minute
    cifar10         where a folder of CIFAR-10 that `load_dataset` reads is given: experts, TESLA with the
                    exact gradient and the truncated one, MTT, APM, students of three architectures      the rest

All but these two, the tests and the recipes take random data, and print what their work takes at least, by its
arithmetic and by its bytes, before they measure it.

What each part is believed to take is printed first, and compared with what it took at the end. A part that does not fit
into the minutes that are left is not begun; one whose time box ends is stopped, and the next begins. Each leaves
`<output>/<part>.json` when it ends. A second call with the same --output skips what is done, and tries again what was
stopped or failed. The exit status is 0 where all parts that were begun went well.

Scripts run in forks of one process that imported what they share, so that a visit is not spent on imports; a recipe
under `accelerate launch` and the tests have interpreters of their own. The network is not used. The package need not be
installed. "peak_device_bytes" is all that the device had in use, looked at every two seconds.
"""

import argparse
import importlib.util
import json
import os
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visit import LOG, Command, Part, Visit, device_memory, in_a_fork

ROOT = Path(__file__).resolve().parents[1]
RECIPES, BENCHMARKS = ROOT / "recipes", ROOT / "benchmarks"
GROUPS = ("tests", "recipes", "matching", "recovery", "apm", "throughput", "plan", "cifar10")
RESULT = "result.json"
SEED = 0
END = f"--output_dir out --disable_tqdm true --seed {SEED}"


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    minutes: float
    output: str
    only: list[str]
    device: str
    cifar10: str | None


def parse() -> Arguments:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9, help="How long the visit lasts.")
    parser.add_argument("--output", required=True, metavar="DIR", help="Folder for the JSON files and all else.")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help=f"Parts, or all of {', '.join(GROUPS)}.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: everything at toy size.")
    parser.add_argument("--cifar10", metavar="FOLDER", help="CIFAR-10 as a folder that `load_dataset` reads.")
    args = Arguments(**vars(parser.parse_args()))
    if not args.minutes > 0:
        parser.error(f"--minutes is {args.minutes}; expected a number above 0")
    return args


# Parts. Estimates and time boxes are (on an accelerator, on a CPU at toy size), in seconds.


def gpu_tests(toy: bool) -> Part:
    def commands(folder: Path) -> Iterator[Command]:
        words = f"-m pytest -q -m gpu -p no:cacheprovider --rootdir {ROOT} -c {ROOT / 'pyproject.toml'} --junitxml"
        spread = "-n 8 --dist loadfile" if importlib.util.find_spec("xdist") is not None and not toy else ""
        # Without an accelerator all are skipped, and to import them all takes half a minute.
        tests = ROOT / "tests" / "augmentation" / "test_dsa.py" if toy else ROOT / "tests"
        yield Command([*words.split(), RESULT, *spread.split(), str(tests)])

    def figures(folder: Path) -> dict[str, Any]:
        if not (folder / RESULT).is_file():
            return {}
        (suite,) = ElementTree.parse(folder / RESULT).getroot().iter("testsuite")
        counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
        unwell = [
            {"test": f"{case.get('classname')}::{case.get('name')}", "message": trouble.get("message", "")[:500]}
            for case in suite.iter("testcase")
            for trouble in (*case.findall("failure"), *case.findall("error"))
        ]
        return {**counts, "unwell": unwell}

    return Part("tests", "tests", commands, *((15, 60) if toy else (50, 90)), figures=figures)


# A run of two steps, and as little else as each recipe allows.
EXPERTS = "--student convnet_d1 --student_width 8 --num_experts 2 --expert_train_epochs 2 --experts_at_once 2"
TEACHER = "--student convnet_d1 --student_width 8 --teacher_epochs 2"
TRAJECTORY = f"{EXPERTS} --ipc 1 --max_steps 2 --save_steps 1 --syn_steps 3 --expert_epochs 1 --max_start_epoch 2"
HEADS = f"{TEACHER} --ipc 1 --max_steps 2 --level_steps 1 --real_views 1"
TINY = {
    "tesla": TRAJECTORY,
    "datm": TRAJECTORY,
    "mtt": TRAJECTORY,
    "sre2l": f"{TEACHER} --ipc 1 --max_steps 2",
    "cda": f"{TEACHER} --ipc 1 --max_steps 2",
    "fadrm": f"{TEACHER} --ipc 1 --max_steps 4",
    "rded": f"{TEACHER} --ipc 1",
    "hello": f"{TEACHER} --ipc 1 --weak_teachers 1 --prior_epochs 1 --projector_epochs 1 --adapt_epochs 1 "
    "--update_steps 2 --compare_labels pruned",
    "apm": f"{TEACHER} --ipc 1 --max_steps 2 --num_students 2 --student_epochs 3",
    "dm": "--student convnet_d1 --student_width 8 --ipc 1 --max_steps 2",
    "lgm": f"{HEADS} --augmentations 2 --batch_real 20",
    "clpdd": HEADS,
}
LEAST = "--max_train_samples 200 --max_test_samples 50 --disable_tqdm true"
LEAST_TABLE = "--eval_seeds 1 --eval_full_data false --eval_baselines random"


def recipe_parts(toy: bool, output: Path) -> Iterator[Part]:
    estimate, box = (4, 60) if toy else (3, 30)

    def part(
        recipe: str, words: str, needs: str | None = None, launcher: str = "", result: str = "results.json"
    ) -> Part:
        def commands(folder: Path) -> Iterator[Command]:
            yield Command([*launcher.split(), str(RECIPES / f"{recipe}.py"), *words.split(), "--output_dir", "out"])

        def figures(folder: Path) -> dict[str, Any]:
            return read(folder / "out" / result)

        name, extra = f"recipe-{recipe}", 12 if launcher else 0  # an interpreter that imports everything again, twice
        return Part(
            name, "recipes", commands, estimate + extra, box + 6 * extra, figures=figures, needs=needs, seed=SEED
        )

    # One of them as users start it.
    launcher = f"-m accelerate.commands.launch --num_processes 1 {'--cpu' if toy else '--mixed_precision bf16'}"
    for recipe, words in TINY.items():
        words = f"{words} {LEAST} {LEAST_TABLE} --seed {SEED}"
        yield part(recipe, words, launcher=launcher if recipe == "tesla" else "")
    made = output / "recipe-tesla" / "out"
    words = f"--distilled_dataset {made} {LEAST} --num_seeds 1 --full_data false --baselines random --seed {SEED}"
    yield part("evaluate", words, needs="recipe-tesla")
    made = output / "recipe-cda" / "out"
    words = f"--distilled_dataset {made} --label_epochs 2 --disable_tqdm true --seed {SEED}"
    yield part("relabel", words, needs="recipe-cda", result="labels_config.json")


# As `accelerate launch --mixed_precision bf16 --dynamo_backend inductor` says to what it starts.
BF16, COMPILED = {"ACCELERATE_MIXED_PRECISION": "bf16"}, {"ACCELERATE_DYNAMO_BACKEND": "inductor"}


def benchmark_parts(toy: bool) -> Iterator[Part]:
    """Each benchmark on random data; on a CPU all are small."""
    device = f"--device {'cpu' if toy else 'cuda'}"
    unroll = f"{device} --repeats 2 --how eager norm bf16 captured"
    recover = "--network resnet18 --resolution 224 --batch 100 --steps 20 --rounds 2"
    projector = "--images 256 --rounds 2"
    # Group, seconds, flags, and what the launcher says.
    parts: dict[str, tuple[str, float, str, dict[str, str]]] = {
        "unroll-cifar100": ("matching", 140, f"{unroll} compiled --classes 100 --ipc 10 --syn_steps 5 20", {}),
        "unroll-imagenet1k": (
            *("matching", 65),
            f"{unroll} --classes 1000 --ipc 50 --batch_syn 100 --resolution 64 --student convnet_d4 --syn_steps 10",
            {},
        ),
        "dm-cifar100": ("matching", 20, f"{device} --classes 100 --micro_batch_size 256 1024 4096", {}),
        "heads-vit-224": (
            *("matching", 40),
            f"{device} --backbone vit_base_patch16_224 --resolution 224 --side 224 --classes 100 --augmentations 3 "
            "--micro_batch_size 50 --precision bf16 --repeats 2",
            {},
        ),
        "recover-imagenet1k": ("recovery", 8, recover, {}),
        "recover-imagenet1k-bf16": ("recovery", 6, recover, BF16),
        "recover-imagenet1k-compiled": ("recovery", 30, recover, BF16 | COMPILED),
        "recover-fadrm-imagenet1k": ("recovery", 12, f"{recover} --stage_sizes 200 224 200 224", {}),
        "relabel-imagenet1k": (
            *("recovery", 25),
            "--images 1000 --resolution 224 --classes 1000 --network resnet18 --batch_size 128 --num_workers 16 "
            "--rounds 2",
            {},
        ),
        "apm-imagenet1k": ("apm", 60, f"{device} --segment_size 100 500 --epochs 2 --repeats 2", {}),
        "experts-cifar10": (
            *("throughput", 10),
            "--random_images 2000 --resolution 32 --sizes 1 4 8 16 32 --rounds 2",
            {},
        ),
        "projector-step": ("throughput", 20, f"--parts step --batch 64 {projector}", BF16 | COMPILED),
        "projector-labels": ("throughput", 20, f"--parts labels {projector}", BF16),
        "plan-digits": ("plan", 60, "--methods SRe2L RDED DM CLPDD", {}),
    }
    if toy:
        small = "--classes 3 --resolution 16"
        unroll = f"{device} {small} --how eager norm bf16 --student convnet_d1 --width 4 --syn_steps 2 --repeats 1"
        recover = "--network test_resnet --resolution 16 --batch 4 --steps 1 --rounds 1"
        projector = (
            "--network test_vit --resolution 32 --student convnet_d1 --classes 3 --lora_head_r 2 --weak_teachers 1 "
            "--batch 2 --steps 1 --images 4 --student_batch 2 --rounds 1"
        )
        flags = {
            "unroll": unroll,
            "experts": "--random_images 30 --resolution 8 --student convnet_d1 --student_width 4 --sizes 1 2 "
            "--rounds 1 --steps 1 --batch_train 8",
            "recover": recover,
            "heads": f"{device} --backbone test_vit --resolution 32 --side 32 --classes 3 --augmentations 2 "
            "--batch_real 4 --micro_batch_size 4 --repeats 1",
            "relabel": f"{small} --images 8 --network convnet_d1 --width 4 --batch_size 4 --epochs 1 --num_workers 1 "
            "--rounds 1",
            "projector": projector,
            "dm": f"{device} {small} --ipc 2 --student convnet_d1 --width 4 --batch_real 4 --micro_batch_size 4 100 "
            "--repeats 1",
            "apm": f"{device} {small} --ipc 1 --student convnet_d1 --width 4 --batch_syn 3 --batch_tesla 3 "
            "--segment_size 3 --num_students 2 --student_epochs 2 --syn_steps 2",
            "plan": "--methods RDED",
        }
        parts = {name: (group, 2, flags[name.partition("-")[0]], {}) for name, (group, *_) in parts.items()}

    def part(name: str, group: str, estimate: float, words: str, launcher: dict[str, str]) -> Part:
        def commands(folder: Path) -> Iterator[Command]:
            script = str(BENCHMARKS / f"{name.partition('-')[0]}.py")
            yield Command([script, *words.split(), "--output", RESULT], environment=launcher)

        box = 60 if toy else 2 * estimate
        return Part(name, group, commands, estimate, box, figures=lambda folder: read(folder / RESULT), seed=SEED)

    yield from (part(name, *settings) for name, settings in parts.items())


@dataclass(frozen=True)
class Scale:
    """How much of CIFAR-10's experiment: all of it, or what a test waits for."""

    network: str
    normalization: str
    experts: int
    expert_epochs: int
    seconds: float  # of each run of TESLA
    syn_steps: dict[int, int]  # by images per class
    lr_init: dict[int, float]
    apm: str
    save_steps: int
    students: str
    protocol: str
    seeds: int


FULL = Scale(
    network="--student convnet_d3 --student_width 128 --batch_train 256",
    normalization="zca",
    experts=20,
    expert_epochs=21,
    seconds=90,
    syn_steps={1: 50, 10: 30, 50: 30},
    lr_init={1: 0.01, 10: 0.001, 50: 0.001},
    apm="--max_steps 60 --student_epochs 100 --eval_protocol apm-600",
    save_steps=10,
    students="convnet_d3 resnet18 test_vit",
    protocol="mtt",
    seeds=3,
)
TOY = Scale(
    network="--student convnet_d1 --student_width 4 --batch_train 8",
    normalization="mean_std",
    experts=2,
    expert_epochs=3,
    seconds=8,
    syn_steps={1: 2, 10: 2, 50: 2},
    lr_init={1: 0.01, 10: 0.01, 50: 0.01},
    apm="--max_steps 2 --student_epochs 5 --eval_protocol apm-quick",
    save_steps=1,
    students="convnet_d1 convnet_d2 convnet_d3",
    protocol="quick",
    seeds=1,
)


def cifar10_parts(toy: bool, output: Path, cifar10: str | None) -> Iterator[Part]:
    scale = TOY if toy else FULL
    lacks = None
    if cifar10 is None:
        lacks = "no folder of CIFAR-10 is given (--cifar10)"
    elif not Path(cifar10).is_dir():
        lacks = f"{cifar10} is no folder (--cifar10)"
    source = Path(cifar10 or ".").resolve()
    images = f"--dataset_name {source} --normalization {scale.normalization}"
    data = f"{images} {scale.network} --disable_tqdm true --seed {SEED}"
    experts = output / "cifar10-experts" / "out"

    def train(folder: Path) -> Iterator[Command]:
        words = f"{data} --num_experts {scale.experts} --expert_train_epochs {scale.expert_epochs} --output_dir out"
        yield Command([str(RECIPES / "experts.py"), *words.split()])

    times = (5, 60) if toy else (150, 300)
    yield Part("cifar10-experts", "cifar10", train, *times, lacks=lacks, continues=True, seed=SEED)

    def matching(name: str, method: str, ipc: int) -> Part:
        start = scale.expert_epochs - 1
        words = (
            f"{RECIPES / method} {data} --experts {experts} --output_dir out --ipc {ipc} "
            f"--syn_steps {scale.syn_steps[ipc]} --lr_init {scale.lr_init[ipc]} --expert_epochs 2 "
            f"--max_start_epoch {start} --save_steps {scale.save_steps} --save_total_limit 100000 --select last "
            f"--eval_steps 1000000 --eval_protocol {scale.protocol} {LEAST_TABLE}"
        )

        def commands(folder: Path) -> Iterator[Command]:
            yield Command([*words.split(), "--max_steps", "1000000"], scale.seconds)
            steps = checkpoints(folder)
            if not steps:
                raise ValueError(f"no checkpoint after {scale.seconds:g} seconds; see {folder / LOG}")
            yield Command([*words.split(), "--max_steps", str(max(steps)), "--resume_from_checkpoint", "latest"])

        def figures(folder: Path) -> dict[str, Any]:
            written = checkpoints(folder)
            first, last = min(written, default=0), max(written, default=0)
            figures: dict[str, Any] = {"steps": last, "within_seconds": scale.seconds}
            if last > first:
                figures["seconds_per_step"] = (written[last] - written[first]) / (last - first)
            return {**figures, **read(folder / "out" / "results.json")}

        times = (scale.seconds + 4, 60) if toy else (scale.seconds + 30, scale.seconds + 90)
        return Part(name, "cifar10", commands, *times, figures=figures, needs="cifar10-experts", lacks=lacks, seed=SEED)

    yield matching("cifar10-tesla-exact-ipc10", "tesla.py --label hard --curvature 1", 10)
    yield matching("cifar10-tesla-truncated-ipc10", "tesla.py --label hard --curvature 0", 10)
    yield matching("cifar10-tesla-exact-ipc1", "tesla.py --label hard --curvature 1", 1)
    yield matching("cifar10-tesla-exact-ipc50", "tesla.py --label hard --curvature 1", 50)
    yield matching("cifar10-mtt-ipc10", "mtt.py", 10)

    def adversarial(folder: Path) -> Iterator[Command]:
        words = f"{images} --experts {experts} --ipc 50 {scale.apm}"
        yield Command([str(RECIPES / "apm.py"), *words.split(), *LEAST_TABLE.split(), *END.split()])

    yield Part(
        "cifar10-apm-ipc50",
        "cifar10",
        adversarial,
        *((8, 60) if toy else (150, 300)),
        figures=lambda folder: read(folder / "out" / "results.json"),
        needs="cifar10-experts",
        lacks=lacks,
        seed=SEED,
    )

    def students(folder: Path) -> Iterator[Command]:
        words = (
            f"{RECIPES / 'evaluate.py'} --distilled_dataset {output / 'cifar10-tesla-exact-ipc10' / 'out'} "
            f"--dataset_name {source} --student {scale.students} --num_seeds {scale.seeds} --full_data false "
            f"--baselines random --output_dir out --disable_tqdm true --seed {SEED}"
        )
        yield Command(words.split())

    yield Part(
        "cifar10-students",
        "cifar10",
        students,
        *((8, 60) if toy else (120, 240)),
        figures=lambda folder: read(folder / "out" / "results.json"),
        needs="cifar10-tesla-exact-ipc10",
        lacks=lacks,
        seed=SEED,
    )


def all_parts(toy: bool, output: Path, cifar10: str | None) -> list[Part]:
    """In the order in which they run."""
    return [
        gpu_tests(toy),
        *recipe_parts(toy, output),
        *benchmark_parts(toy),
        *cifar10_parts(toy, output, cifar10),
    ]


def chosen(parts: list[Part], only: list[str]) -> list[Part]:
    """The parts that `--only` names, by their own name or their group's; all without it.

    Raises:
        ValueError: A word is neither.
    """
    known = {part.name for part in parts} | {part.group for part in parts}
    for word in only:
        if word not in known:
            raise ValueError(f"--only {word} is no part; expected one of {', '.join(sorted(known))}")
    return [part for part in parts if not only or {part.name, part.group} & set(only)]


def read(path: Path) -> dict[str, Any]:
    """A JSON file; nothing where it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def checkpoints(folder: Path) -> dict[int, float]:
    """When each checkpoint of a part's run was written, by its step."""
    states = (folder / "out").glob("checkpoint-*/trainer_state.json")
    return {int(path.parent.name.partition("-")[2]): path.stat().st_mtime for path in states}


def prepare_environment(args: Arguments, output: Path) -> None:
    """For this process, before it imports what reads these variables, and so for all that it starts."""
    os.environ.update(
        HF_HOME=str(output / "home"),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        # Counting GPUs through the driver would leave this process unfit to be forked.
        PYTORCH_NVML_BASED_CUDA_CHECK="1",
    )
    os.environ.pop("ACCELERATE_USE_CPU", None)
    if args.device == "cpu":
        os.environ.update(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))


def import_what_scripts_share() -> None:
    import accelerate  # noqa: F401
    import open_clip  # noqa: F401
    import peft  # noqa: F401

    # Libraries keep idle threads that hold no lock while this process waits for its children.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)


def describe_machine(args: Arguments) -> Callable[[], dict[str, Any]]:
    def describe() -> dict[str, Any]:
        import torch
        from machine import describe

        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda, and PyTorch sees none; --device cpu runs everything at toy size")
        return {**describe(args, torch.device(args.device)), "python": sys.version.split()[0]}

    return describe


def main() -> int:
    args = parse()
    output = Path(args.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    visit = Visit(output, 60 * args.minutes, memory=device_memory if args.device == "cuda" else lambda: None, warm=True)
    prepare_environment(args, output)
    parts = chosen(all_parts(args.device == "cpu", output, args.cifar10), args.only)
    for part in parts:
        record = visit.record(part)
        if record is not None and record["arguments"]["device"] != args.device:
            raise ValueError(f"{output} has parts of --device {record['arguments']['device']}; give another --output")
    if not all(visit.is_done(part) for part in parts):
        import_what_scripts_share()
        about = in_a_fork(describe_machine(args), output)
        visit.about = {"visit": about.pop("command"), **about}
    return 0 if visit.run(parts) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
