# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_distill"]
#
# [tool.uv.sources]
# hf_distill = { path = "..", editable = true }
# ///
"""Put the shards of a distilled set together: what runs with --shard 1/3, 2/3 and 3/3 left becomes one set.

    python recipes/join.py --shards outputs/apm-1of3 outputs/apm-2of3 outputs/apm-3of3 --output_dir outputs/apm
    python recipes/evaluate.py --distilled_dataset outputs/apm

The result is that of one run without --shard.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_distill.config import HfArg, HubArguments, PathArg, ProcessArguments, parse_args
from hf_distill.distilled.distilled_set import DistilledSet
from hf_distill.engine.shards import join_shards
from hf_distill.networks.compiling import say_uncompiled
from hf_distill.runs.claims import keep_claimed
from hf_distill.runs.finish import run_recipe
from hf_distill.runs.processes import make_accelerator
from hf_distill.runs.publishing import prepare_push, push


@dataclass
class JoinArguments(ProcessArguments):
    """Which shards, and where the set goes."""

    shards: list[str] = PathArg(default_factory=list, help="Folders or repositories of all shards, in any order.")
    output_dir: str = PathArg(default="outputs/joined", help="Folder of the set.")
    overwrite_output_dir: bool = HfArg(default=False, help="Replace the set that the output folder holds.")


def main() -> None:
    args, hub = parse_args(JoinArguments, HubArguments)
    accelerator = make_accelerator(**args.for_processes)
    say_uncompiled(accelerator, "the joining of shards")
    folder = Path(args.output_dir)
    if folder.resolve() in [Path(shard).resolve() for shard in args.shards]:
        raise ValueError(f"--output_dir {folder} is one of the shards; expected another folder")
    keep_claimed(folder, accelerator)
    if (folder / DistilledSet.config_name).exists() and not args.overwrite_output_dir:
        raise ValueError(
            f"--output_dir {folder} already holds a set; use --overwrite_output_dir to replace it, or another folder"
        )
    prepare_push(hub, DistilledSet, accelerator)
    distilled = join_shards(args.shards)
    distilled.save_pretrained(folder)
    print(f"{len(distilled):,} images of {len(args.shards)} shards: {folder}. Compare them with:")
    print(f"  python recipes/evaluate.py --distilled_dataset {folder}")
    if hub.push_to_hub:
        print(push(distilled, hub, folder))


if __name__ == "__main__":
    run_recipe(main, "the same command begins anew")
