"""Peak memory and work of an iteration of TESLA on a device, by its tensors: nothing is allocated or computed.

    python benchmarks/memory.py --output memory.json                    # ImageNet-1K at 64x64, 50 images per class
    python benchmarks/memory.py --micro_batch_size 25 --processes 1 8
    python benchmarks/memory.py --shard_steps --processes 8             # a batch shared by the devices

What `--plan` rehearses, alone: a step of the trainer on tensors of the meta device, which have shapes and no values
(`hf_distill/runs/rehearsal.py`). Of several processes one is looked at: pixels and momentum are on every device, each
has draws of its own, the rows that any process takes have a gradient on all of them, and `Accelerator.reduce` clones
what it sums. Operations, their FLOP and the bytes that they take and give are as they are written.
"""

from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from floor import Count, Counter
from machine import describe

import hf_distill as hd
from hf_distill.config import HfArg, check_at_least, check_choice, parse_args
from hf_distill.data.images import Outline
from hf_distill.hub.files import save_json
from hf_distill.networks.architectures import CONVNETS
from hf_distill.runs.rehearsal import Elsewhere, Ledger, unseen


@dataclass
class BenchmarkArguments:
    """What to count."""

    processes: list[int] = HfArg(default_factory=lambda: [1, 8], help="Numbers of devices, each with a process.")
    shard_steps: bool = HfArg(default=False, help="Share the images of a step among them.")
    classes: int = HfArg(default=1000, help="Classes.")
    ipc: int = HfArg(default=50, help="Images per class.")
    resolution: int = HfArg(default=64, help="Height and width in pixels.")
    student: str = HfArg(default="convnet_d4", help="A convnet.")
    width: int = HfArg(default=128, help="Channels of each of its convolutions.")
    syn_steps: int = HfArg(default=10, help="Steps of the student (T).")
    batch_syn: int | None = HfArg(default=100, help="Images of a step.")
    micro_batch_size: int | None = HfArg(default=None, help="Images in memory at once inside a step.")
    label: str = HfArg(default="expert", help="As for recipes/tesla.py.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")

    def __post_init__(self) -> None:
        check_choice("student", self.student, CONVNETS)
        for flag in ("classes", "ipc", "resolution", "width", "syn_steps", "batch_syn", "micro_batch_size"):
            check_at_least(flag, getattr(self, flag), 1)
        if not self.processes or min(self.processes) < 1:
            raise ValueError(f"--processes is {self.processes}; expected numbers from 1")
        if self.shard_steps and 1 in self.processes:
            raise ValueError("--shard_steps shares the images of a step among processes; leave 1 out of --processes")


def iteration(args: BenchmarkArguments, count: int) -> tuple[dict[str, int], Count]:
    """The bytes of one of `count` devices at the peak of an iteration, by what they are; and its work."""
    names = [str(number) for number in range(args.classes)]
    train = unseen(Outline((3, args.resolution, args.resolution), names, [args.ipc] * args.classes, whitened=False))
    config = hd.TESLAConfig(
        ipc=args.ipc,
        init="noise",
        syn_steps=args.syn_steps,
        batch_syn=args.batch_syn,
        micro_batch_size=args.micro_batch_size,
        shard_steps=args.shard_steps,
        label=args.label,
        expert_epochs=1,
        max_start_epoch=1,
        select="last",
        output_dir=".",
        disable_tqdm=True,
    )
    elsewhere = Elsewhere(Accelerator(cpu=True), processes=count)
    experts = hd.ExpertConfig(student=args.student, student_width=args.width)
    having = hd.Preparation(train, None, config, [experts], elsewhere)
    with Ledger() as ledger, Counter() as counter:
        run = hd.TESLA(config, train, **hd.TESLA.untrained(having), accelerator=elsewhere)
        (stage,) = run.rehearse(ledger, train.subset([]), train.subset([]))
        before = counter.count
        run.rehearse_step()
        return stage.memory, counter.count - before


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    rows = []
    for count in args.processes:
        found, work = iteration(args, count)
        total = sum(found.values())
        print(f"\n{count} device(s), each: {total / 1e9:.2f} GB")
        for name, size in found.items():
            print(f"  {name:42}{size / 1e9:8.3f} GB")
        print(f"  {work.operations:,} operations: {work.flop / 1e12:.2f} TFLOP, {work.bytes / 1e9:.0f} GB in and out")
        rows.append({"processes": count, "peak_bytes": total, "of_it": found, **asdict(work)})
    if args.output is not None:
        save_json(args.output, {**describe(args, torch.device("cpu")), "rows": rows})


if __name__ == "__main__":
    main()
