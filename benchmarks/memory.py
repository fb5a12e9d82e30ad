"""Peak memory and work of an iteration of TESLA on a device, by its tensors: nothing is allocated or computed.

    python benchmarks/memory.py --output memory.json                    # ImageNet-1K at 64x64, 50 images per class
    python benchmarks/memory.py --micro_batch_size 25 --processes 1 8
    python benchmarks/memory.py --shard_steps --processes 8             # a batch shared by the devices

The trainer takes two steps on tensors of PyTorch's meta device, which have shapes and no values; what it reads of them
is 0. Every storage counts from the operation that makes it until nobody holds it. Of several processes one is looked
at: pixels and momentum are on every device, each has draws of its own, the rows that any process takes have a gradient
on all of them, and `Accelerator.reduce` clones what it sums. Not counted: workspaces of convolutions, what an operation
takes within itself, and the device's own context; only a device tells these.

Operations, their FLOP and the bytes that they take and give are those of the second step, as they are written.
"""

import contextlib
import sys
import traceback
import weakref
from collections import Counter as Sums
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from floor import Count, Counter
from machine import describe
from recover import MEAN, STD, NoImages
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hf_distill as hd
from hf_distill.config import HfArg, check_at_least, check_choice, parse_args
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.hub.files import save_json
from hf_distill.methods import trajectory
from hf_distill.networks.architectures import CONVNETS, FlatModel, StudentSpec
from hf_distill.rng import generator

PACKAGE = str(Path(hd.__file__).parent)
# What a storage is called, by where in the library it is made: (file, function), or all of a file.
NAMES = {
    ("engine/rows.py", "begin"): "gradient of the rows that a step takes",
    ("engine/rows.py", "_start"): "momentum",
    ("engine/rows.py", None): "rows in a step of the optimizer",
    ("distilled/distilled_set.py", None): "pixels",
    ("distilled/labels.py", None): "experts that make the published labels",
    ("methods/trajectory.py", "step"): "images of the draw",
    ("data/upload.py", None): "sent: parameters, rows, augmentation",
    ("augmentation/dsa.py", None): "augmented images",
    ("augmentation/sampling.py", None): "augmented images",
    ("methods/tesla.py", None): "labels",
    ("methods/trajectory.py", None): "labels",
    ("networks/norms.py", None): "graph of a step",
    ("networks/convnets.py", None): "graph of a step",
    ("networks/architectures.py", None): "graph of a step",
    ("methods/unroll.py", "products"): "graph of a step",
    ("methods/unroll.py", "gradient"): "graph of a step",
    ("methods/unroll.py", None): "states, adjoint, gradients of images",
}


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


@dataclass
class _Storage:
    name: str
    bytes: int


@dataclass
class Live(TorchDispatchMode):
    """The bytes of all storages of the meta device that are alive, by where they were made, as a context.

    Attributes:
        now: Bytes by name.
        peak: The same when their sum was largest, since `forget` was called last.
    """

    now: Sums[str] = field(default_factory=Sums)
    peak: Sums[str] = field(default_factory=Sums)

    def __post_init__(self) -> None:
        super().__init__()
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, _Storage] = weakref.WeakKeyDictionary()

    def forget(self) -> None:
        """Begin with what is alive."""
        self.peak = Sums(self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = func.overloadpacket.__name__, kwargs or {}
        given = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        if given and given[0].is_meta:
            if name == "_local_scalar_dense":
                return 0
            if name == "_to_copy" and options.get("device", given[0].device).type == "cpu":
                return torch.zeros(given[0].shape, dtype=options.get("dtype") or given[0].dtype)
        found = func(*args, **options)
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._see(tensor.untyped_storage())
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        made = self._known[storage] = _Storage(_name_of_what_is_made(), storage.nbytes())
        weakref.finalize(storage, self._gone, made)
        self.now[made.name] += made.bytes
        if self.now.total() > self.peak.total():
            self.peak = Sums(self.now)

    def _gone(self, made: _Storage) -> None:
        self.now[made.name] -= made.bytes


def _name_of_what_is_made() -> str:
    """By the innermost function of the library that is being run."""
    for frame, _ in traceback.walk_stack(sys._getframe(1)):
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE):
            place = str(Path(path).relative_to(PACKAGE))
            return NAMES.get((place, frame.f_code.co_name)) or NAMES.get((place, None)) or place
    return "elsewhere"


class Experts:
    """Experts of random numbers, as far as TESLA asks."""

    origin, folder, num_experts, num_epochs = None, Path("random"), 4, 1

    def __init__(self, spec: StudentSpec) -> None:
        self.spec, self.config = spec, {"training": {"dsa_strategy": hd.ExpertConfig().dsa_strategy}}

    def check_matches(self, train: hd.RealImages) -> None:
        """They do."""

    def flat_model(self) -> FlatModel:
        return FlatModel.from_spec(self.spec)

    def row(self, expert: int, epoch: int) -> Tensor:
        return torch.randn(self.spec.num_params(), generator=generator(0, expert, epoch))

    def segment(self, expert: int, start: int, length: int) -> tuple[Tensor, Tensor]:
        return self.row(expert, start), self.row(expert, start + length)


class Enough(Exception):
    """Two steps are done."""


class Watch(hd.Callback):
    """Forgets what came before the first step, and ends the run after the second, whose work is counted."""

    def __init__(self, live: Live, counter: Counter) -> None:
        self.live, self.counter = live, counter
        self.work = Count()

    def on_begin(self, state: hd.RunState) -> None:
        self.live.forget()

    def on_step(self, state: hd.RunState) -> None:
        self.work = self.counter.count - self.work
        if state.step == 2:
            raise Enough


class OnMeta(hd.TESLA):
    """TESLA from images that are not there."""

    def initial_images(self, label: int, teacher: Any) -> Tensor:
        return torch.empty(self.config.ipc, *self.train.shape, device="meta")


@contextlib.contextmanager
def processes(count: int) -> Iterator[None]:
    """Accelerators are on the meta device, the first of so many; what they reduce they clone, and do nothing else."""
    values = {
        "device": property(lambda self: torch.device("meta")),
        "num_processes": property(lambda self: count),
        "reduce": lambda self, tensor, reduction="sum", scale=1.0: tensor.clone(),
    }
    with contextlib.ExitStack() as held:
        for name, value in values.items():
            held.enter_context(mock.patch.object(Accelerator, name, value))
        # There is no autocast of meta tensors, and none is asked for.
        held.enter_context(mock.patch.object(trajectory, "in_precision", lambda function, accelerator: function))
        held.enter_context(mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()))
        yield


def iteration(args: BenchmarkArguments, count: int) -> tuple[Sums[str], Count]:
    """The bytes of one of `count` devices at the peak of an iteration, by what they are; and its work."""
    size, names = (args.resolution, args.resolution), [str(number) for number in range(args.classes)]
    spec = StudentSpec(args.student, args.classes, 3, size, {"width": args.width})
    config = hd.TESLAConfig(
        ipc=args.ipc,
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
    train = NoImages(names, Preprocessing(3, size, MEAN, STD))
    train.labels, train.provenance = train.labels.repeat_interleave(args.ipc), {}
    with processes(count), Live() as live, Counter() as counter, contextlib.suppress(Enough):
        watch = Watch(live, counter)
        OnMeta(config, train, experts=Experts(spec), accelerator=Accelerator(cpu=True), callbacks=[watch]).run()
    return +live.peak, watch.work


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    rows = []
    for count in args.processes:
        found, work = iteration(args, count)
        print(f"\n{count} device(s), each: {found.total() / 1e9:.2f} GB")
        for name, size in found.most_common():
            print(f"  {name:42}{size / 1e9:8.3f} GB")
        print(f"  {work.operations:,} operations: {work.flop / 1e12:.2f} TFLOP, {work.bytes / 1e9:.0f} GB in and out")
        rows.append(
            {"processes": count, "peak_bytes": found.total(), "of_it": dict(found.most_common()), **asdict(work)}
        )
    if args.output is not None:
        save_json(args.output, {**describe(args, torch.device("cpu")), "rows": rows})


if __name__ == "__main__":
    main()
