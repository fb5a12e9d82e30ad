"""A trajectories repository over HTTP: the first usable segment lazily against the whole, a push against a plain one.

    python benchmarks/hub.py --output hub.json                            # 10 experts of 65 MB, loopback
    python benchmarks/hub.py --num_experts 50 --num_params 1000000

The Hub is the one of the tests, on loopback; each action is a process of its own with an empty cache, timed without its
imports, and the actions of a round take turns. On loopback bytes cost next to nothing: what the network of a reader
would add is the bytes that each way moves, divided by its speed.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_distill.config import HfArg, parse_args
from hf_distill.hub.files import package_versions, save_json
from hf_distill.networks.trajectories import EXPERT_FILE, INDEX, METADATA

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.helpers.hub_server import Hub

REPO = "me/experts"
CLOCK = """
import json, sys, time
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download
from hf_distill.networks.trajectories import ExpertTrajectories
folder, repo = sys.argv[1:]
local = ExpertTrajectories.from_pretrained(folder)
start = time.perf_counter()
{}
print(json.dumps(time.perf_counter() - start))
"""
ACTIONS = {
    "segment, lazily": "ExpertTrajectories.from_pretrained(repo).segment(0, 0, 2)",
    "segment, all downloaded first": "ExpertTrajectories.from_pretrained(snapshot_download(repo)).segment(0, 0, 2)",
    "push_to_hub": "local.push_to_hub(repo + '-ours', tag='v1')",
    "upload_folder": (
        "HfApi().create_repo(repo + '-plain'); "
        "HfApi().create_tag(repo + '-plain', tag='v1', "
        "revision=HfApi().upload_folder(repo_id=repo + '-plain', folder_path=folder).oid)"
    ),
    "push_to_hub again": "local.push_to_hub(repo + '-ours', tag='v2')",
}


@dataclass
class BenchmarkArguments:
    """What to measure."""

    num_experts: int = HfArg(default=10, help="Experts in the repository.")
    num_epochs: int = HfArg(default=50, help="Epochs of each.")
    num_params: int = HfArg(default=320_010, help="Parameters; the default is convnet_d3 of width 128 on CIFAR-10.")
    rounds: int = HfArg(default=3, help="Times that each action is measured.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")


def write_experts(folder: Path, args: BenchmarkArguments) -> None:
    """A folder of random trajectories; what they are numbers of does not matter to a network."""
    history = [1.0] * args.num_epochs
    about = {"loss": history, "accuracy": history, "train_accuracy": 0.5, "test_accuracy": 0.5, "experts_at_once": 1}
    for expert in range(args.num_experts):
        params = torch.rand(args.num_epochs + 1, args.num_params, generator=torch.Generator().manual_seed(expert))
        save_file({"params": params}, folder / EXPERT_FILE.format(expert), {METADATA: json.dumps(about)})
    results = {"train_accuracy": [0.5], "test_accuracy": [0.5], "epoch_loss": [history], "epoch_accuracy": [history]}
    config = {
        "format_version": 1,
        "num_experts": args.num_experts,
        "num_epochs": args.num_epochs,
        "num_params": args.num_params,
        "student": {"name": "convnet_d3", "num_classes": 10, "in_chans": 3, "img_size": [32, 32], "kwargs": {}},
        "class_names": [str(label) for label in range(10)],
        "preprocessing": {"channels": 3, "image_size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
        "source": {"name": "random numbers"},
        "training": {},
        "device": "none",
        "versions": package_versions(),
        "results": results,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }
    save_json(folder / INDEX, config)
    (folder / "README.md").write_text("---\nlicense: other\n---\n")


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    rows: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "megabytes": []} for name in ACTIONS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "experts")
        folder.mkdir()
        write_experts(folder, args)
        for number in range(args.rounds):
            with Hub(Path(scratch, f"hub-{number}")) as hub:
                hub.add_user("me", "hf_benchmark")
                hub.put("model", REPO, {path.name: path.read_bytes() for path in folder.iterdir()})
                environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_benchmark", "HF_HUB_OFFLINE": "0"}
                environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
                for name, action in ACTIONS.items():
                    hub.clear()
                    with tempfile.TemporaryDirectory(dir=scratch) as home:
                        command = [sys.executable, "-c", CLOCK.format(action), str(folder), REPO]
                        done = subprocess.run(
                            command, env={**environment, "HF_HOME": home}, check=True, stdout=subprocess.PIPE, text=True
                        )
                    rows[name]["seconds"].append(json.loads(done.stdout.splitlines()[-1]))
                    moved = sum(request.bytes_in + request.bytes_out for request in hub.requests)
                    rows[name]["megabytes"].append(moved / 1e6)
                hub.delete("model", REPO)
    found = {
        name: {"seconds": statistics.median(row["seconds"]), "megabytes": statistics.median(row["megabytes"])}
        for name, row in rows.items()
    }
    print(f"{args.num_experts} experts x {args.num_epochs} epochs x {args.num_params:,} parameters\n")
    print(f"{'action':32s}{'seconds':>10s}{'MB moved':>12s}")
    for name, row in found.items():
        print(f"{name:32s}{row['seconds']:10.2f}{row['megabytes']:12.1f}")
    lazy, whole = found["segment, lazily"], found["segment, all downloaded first"]
    ours, plain = found["push_to_hub"], found["upload_folder"]
    ratios = {
        "bytes of the whole to bytes of the first segment": whole["megabytes"] / lazy["megabytes"],
        "time of the whole to time of the first segment": whole["seconds"] / lazy["seconds"],
        "time of upload_folder to time of push_to_hub": plain["seconds"] / ours["seconds"],
    }
    print()
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    if args.output is not None:
        about = {"command": shlex.join(sys.argv), "versions": package_versions(), "cpus": os.cpu_count()}
        save_json(args.output, {**about, "rounds": rows, "median": found, "ratios": ratios})


if __name__ == "__main__":
    main()
