"""Plan beside reality: what `--plan` foresees of each method's demo, and what the run took.

    python benchmarks/plan.py --output plan.json                                # all demos, on scikit-learn's digits
    python benchmarks/plan.py --methods DM TESLA
    python benchmarks/plan.py --methods TESLA --preset cifar10-ipc10            # real shapes, where a GPU is at hand

Seconds are those of distilling, and of the experts or the teacher that were trained for it. Planned are FLOP at the
rate of one network in training, and what its operations take beside. Memory is what the allocator of a GPU gave out at
its peak; on a CPU nobody tells, and `tests/engine/test_plan.py` counts it. Disk is what the run's folder holds in the
end, and planned is the worst moment, when checkpoints are written.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from machine import describe

import hf_distill as hd
from hf_distill.config import HfArg, configure, load_yaml, parse_args, presets
from hf_distill.hub.files import save_json
from hf_distill.hub.making import Work


@dataclass
class BenchmarkArguments:
    """What to plan, and to run."""

    methods: list[str] | None = HfArg(default=None, help="Names such as TESLA; all if not given.")
    preset: str | None = HfArg(default=None, help="Of each of them; the demo on the digits if not given.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")


def beside(method: type[hd.Method], preset: str, accelerator: Accelerator) -> dict[str, Any]:
    """The plan of a method's preset beside its run, in an empty folder."""
    values = load_yaml(presets(method.__name__.lower())[preset])
    known = vars(hd.DataArguments()).keys()
    (data,) = configure(hd.DataArguments, values={k: v for k, v in values.items() if k in known}, source=preset)
    train, test = hd.RealImages.train_and_test(data)
    plan = method.plan(train, preset=preset, accelerator=accelerator)
    stages = {stage.name: stage for stage in plan.stages}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    distilled = method.distill(train, test, preset=preset, output_dir="run", disable_tqdm=True)
    held = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    making: dict[str, Work | None] = distilled.making
    kind = "experts" if "experts" in stages else "teacher"
    rows: dict[str, Any] = {"method": method.__name__, "preset": preset}
    for name, work in (("distillation", making.get("distillation")), (kind, making.get(kind))):
        if name in stages and work is not None:
            rows[name] = {"seconds": work.seconds, "planned": plan.seconds(stages[name])}
    used = sum(path.stat().st_size for path in Path("run").rglob("*") if path.is_file())
    own = ("checkpoints", "images in the making", "label projector", "the set")
    planned = sum(size for name, size in plan.disk.items() if name.startswith(own))
    rows["disk"] = {"bytes": used, "planned": planned}
    largest = max(stage.peak for name, stage in stages.items() if name not in ("evaluation",))
    rows["memory"] = {"bytes": held, "planned": largest}
    return rows


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    accelerator, rows = Accelerator(), []
    for method in hd.METHODS:
        if args.methods is not None and method.__name__ not in args.methods:
            continue
        names = presets(method.__name__.lower())
        preset = args.preset or next(name for name in names if name.startswith("digits"))
        with tempfile.TemporaryDirectory() as folder:
            home = Path.cwd()
            os.chdir(folder)
            try:
                rows.append(beside(method, preset, accelerator))
            finally:
                os.chdir(home)
        told = [f"{key}: {value}" for key, value in rows[-1].items() if isinstance(value, dict)]
        print(f"{method.__name__} {preset}\n  " + "\n  ".join(told), flush=True)
    if args.output is not None:
        save_json(args.output, {**describe(args, accelerator.device), "rows": rows})


if __name__ == "__main__":
    main()
