"""Beside loops that are written from the papers as simply as they can be: seconds of ours for one of theirs.

    python benchmarks/plain.py --output plain.json                       # two threads, about four minutes
    python benchmarks/plain.py --parts tesla-ipc1 mtt --repeats 7
    python benchmarks/plain.py --parts expert --images 50000 --repeats 1

    part         what is timed
    tesla-ipc1   an iteration of TESLA, exact gradient, CIFAR-10's shapes, one image per class
    tesla-ipc10  the same with ten
    mtt          an iteration of MTT, one image per class
    apm          as many iterations of APM as one student serves, and its training
    recover      iterations of SRe2L on a block
    expert       an epoch of an expert
    evaluate     a student that is trained on ten images per class, and tested

Ours is what users run, with its optimizers, checks, logs and files: `run` of the methods, `make` of their blocks,
`train_experts` and `evaluate`. A plain loop has PyTorch's layers and optimizers, all images and experts in memory, no
gradients of frozen weights, `torch.autograd.grad` where gradients are not accumulated, and nothing else. It draws the
same random numbers and takes the same steps. What both come to is compared first ("difference": of the way that pixels
or parameters went, the part in which they differ; of pictures and accuracies the difference itself).

Both take turns in one process, the one first that was last before; a ratio is that of a turn, and the median counts.
"""

import copy
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from experts import random_images
from machine import describe
from recover import MEAN, STD, NoImages, PlainLoop, untrained
from torch import Tensor, nn

import hf_distill as hd
from hf_distill.augmentation.crops import CROP_DRAWS, draw_crops, draw_roll, uniform
from hf_distill.augmentation.dsa import DSA, DsaParams
from hf_distill.config import DataArguments, HfArg, check_at_least, check_choice, parse_args
from hf_distill.data.preprocessing import Preprocessing
from hf_distill.engine.blocks import Block
from hf_distill.evaluation.students import student_name
from hf_distill.hub.files import save_json
from hf_distill.methods.apm import kept_epochs
from hf_distill.methods.recovering import CROP, ROLL
from hf_distill.methods.trajectory import TrajectoryConfig, TrajectoryMatching
from hf_distill.networks.architectures import StudentSpec
from hf_distill.rng import derive_seed, generator

SEED = 0
Seconds = tuple[float, float]  # ours, plain
Network = Callable[[Tensor], Tensor]


@dataclass
class BenchmarkArguments:
    """What to measure, and how large it is."""

    parts: list[str] | None = HfArg(default=None, help="Which parts; all if not given.")
    repeats: int = HfArg(default=3, help="Turns that count, after one for the comparison.")
    threads: int = HfArg(default=2, help="Threads of PyTorch.")
    depth: int = HfArg(default=3, help="Blocks of the ConvNet.")
    width: int = HfArg(default=128, help="Channels of each of its convolutions.")
    resolution: int = HfArg(default=32, help="Height and width of its images.")
    syn_steps: list[int] = HfArg(
        default_factory=lambda: [10, 2], help="T: with one image per class, and with ten (TESLA alone)."
    )
    images: int = HfArg(default=1536, help="Of an expert's epoch.")
    batch_train: int = HfArg(default=256, help="Images per step of an expert.")
    num_students: int = HfArg(default=5, help="APM: K.")
    student_epochs: int = HfArg(default=10, help="APM: last epoch of a student, from 0.")
    epochs: int = HfArg(default=8, help="Of the student that is evaluated.")
    test_images: int = HfArg(default=1000, help="It is tested on.")
    teacher: str = HfArg(default="resnet18", help="timm name of the network that recover looks at; it needs BatchNorm.")
    teacher_resolution: int = HfArg(default=64, help="Height and width of its images.")
    batch_recover: int = HfArg(default=16, help="Images of a block.")
    recover_steps: int = HfArg(default=8, help="Iterations of a turn.")
    output: str | None = HfArg(default=None, help="JSON file for the numbers.")

    def __post_init__(self) -> None:
        for part in self.parts or []:
            check_choice("parts", part, PARTS)
        for flag, value in vars(self).items():
            if isinstance(value, int):
                check_at_least(flag, value, 1)
        if len(self.syn_steps) != 2 or min(self.syn_steps) < 1:
            raise ValueError(f"--syn_steps is {self.syn_steps}; expected two numbers from 1")

    @property
    def spec(self) -> StudentSpec:
        """The ConvNet."""
        size = (self.resolution, self.resolution)
        return StudentSpec(f"convnet_d{self.depth}", 10, 3, size, {"width": self.width, "norm": "instance"})

    @property
    def network(self) -> dict[str, str | int]:
        """The same, as settings of experts."""
        return {"student": self.spec.name, "student_width": self.width}


@dataclass(frozen=True)
class Found:
    """What a part came to.

    Attributes:
        difference: Between the two results.
        seconds: Of ours and of the plain loop, turn by turn.
    """

    difference: float
    seconds: list[Seconds]

    @property
    def ratio(self) -> float:
        """Seconds of ours for one of the plain loop."""
        return statistics.median(ours / plain for ours, plain in self.seconds)


# Networks and augmentation, as any script has them


def convnet(spec: StudentSpec) -> nn.Sequential:
    """The ConvNet of the papers, as a plain module; its parameters come in the order of the library's."""
    width, (side, _) = spec.kwargs["width"], spec.img_size
    depth = int(spec.name.removeprefix("convnet_d"))
    layers: list[nn.Module] = []
    for block in range(depth):
        layers += [nn.Conv2d(width if block else spec.in_chans, width, 3, padding=1), nn.GroupNorm(width, width)]
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (side >> depth) ** 2, spec.num_classes))


@torch.no_grad()
def with_values_of(network: nn.Module, values: nn.Module) -> nn.Module:
    """`network` with the parameters of another that is built alike."""
    for own, value in zip(network.parameters(), values.parameters(), strict=True):
        own.copy_(value)
    return network


class Flat:
    """Logits of a ConvNet for a vector of all its parameters."""

    def __init__(self, spec: StudentSpec) -> None:
        self.module = convnet(spec)
        self.names, parameters = zip(*self.module.named_parameters(), strict=True)
        self.shapes, self.sizes = [p.shape for p in parameters], [p.numel() for p in parameters]

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        pieces = zip(self.names, theta.split(self.sizes), self.shapes, strict=True)
        return torch.func.functional_call(self.module, {name: piece.view(shape) for name, piece, shape in pieces}, (x,))


def augment(x: Tensor, drawn: DsaParams) -> Tensor:
    """DSA of a batch (n, C, H, W), square images, with what was drawn for it."""
    n, channels, side, _ = x.shape
    values, one = drawn.values, (n, 1, 1, 1)
    if drawn.operation == "color":
        x = x + (values["brightness"].view(one) - 0.5)
        gray = x.mean(dim=1, keepdim=True)
        x = (x - gray) * (values["saturation"].view(one) * 2) + gray
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        return (x - mean) * (values["contrast"].view(one) + 0.5) + mean
    if drawn.operation == "crop":
        reach = int(side * 0.125 + 0.5)
        rows = torch.arange(reach, reach + side) + values["down"][:, None]
        columns = torch.arange(reach, reach + side) + values["right"][:, None]
        places = (rows[:, :, None] * (side + 2 * reach) + columns[:, None, :]).view(n, 1, -1)
        return F.pad(x, [reach] * 4).flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(x)
    if drawn.operation == "cutout":
        box = int(side * 0.5 + 0.5)
        rows, columns = (torch.arange(side) - (values[name][:, None] - box // 2) for name in ("row", "column"))
        inside = [(offset >= 0) & (offset < box) for offset in (rows, columns)]
        return x * (~(inside[0][:, :, None] & inside[1][:, None, :]))[:, None].float()
    if drawn.operation == "flip":
        return torch.where(values["flip"].view(one), x.flip(3), x)
    nothing = torch.zeros(n)
    if drawn.operation == "scale":
        theta = [values["horizontal"], nothing, nothing, nothing, values["vertical"], nothing]
    else:
        cosine, sine = values["angle"].cos(), values["angle"].sin()
        theta = [cosine, -sine, nothing, sine, cosine, nothing]
    grid = F.affine_grid(torch.stack(theta, dim=1).view(n, 2, 3), list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, align_corners=True)


# Taking turns


class Turns(hd.Callback):
    """Looks on while a run of ours goes, and takes each of its steps by a plain loop as well.

    Two steps of either side follow one another: ours, plain, plain, ours, ours, plain, plain, and so on.

    Args:
        begin: Given what the run begins with.
        step: Takes a step, by its number from 0.
        total: Steps of the run.
    """

    def __init__(self, begin: Callable[[hd.RunState], None], step: Callable[[int], None], total: int) -> None:
        self.begin, self.step, self.total = begin, step, total
        self.ours: list[float] = []
        self.plain: list[float] = []

    def on_begin(self, state: hd.RunState) -> None:
        self.begin(state)
        self.since = time.perf_counter()

    def on_step(self, state: hd.RunState) -> None:
        self.ours.append(time.perf_counter() - self.since)
        if len(self.ours) % 2:
            for number in range(len(self.plain), min(len(self.plain) + 2, self.total)):
                begin = time.perf_counter()
                self.step(number)
                self.plain.append(time.perf_counter() - begin)
        self.since = time.perf_counter()

    def seconds(self) -> list[Seconds]:
        """Of all steps but the first, which pays for beginnings."""
        return list(zip(self.ours, self.plain, strict=True))[1:]


def in_turns(ours: Callable[[], object], plain: Callable[[], object], repeats: int) -> list[Seconds]:
    """Seconds of both, in turns."""
    seconds = []
    for repeat in range(repeats):
        taken = {}
        for work in (ours, plain) if repeat % 2 else (plain, ours):
            begin = time.perf_counter()
            work()
            taken[work] = time.perf_counter() - begin
        seconds.append((taken[ours], taken[plain]))
    return seconds


def difference(ours: Tensor, plain: Tensor, start: Tensor) -> float:
    """The distance of two ends, beside the way to the second."""
    return float((ours - plain).norm() / (plain - start).norm())


# The parts


class Matching:
    """TESLA's exact iteration and MTT's, on pixels of their own."""

    def __init__(self, config: TrajectoryConfig, experts: hd.ExpertTrajectories, spec: StudentSpec) -> None:
        self.config, self.student, self.dsa = config, Flat(spec), DSA()
        self.expert = [experts.row(0, epoch) for epoch in range(experts.num_epochs + 1)]
        self.exact = isinstance(config, hd.TESLAConfig)

    def begin(self, state: hd.RunState) -> None:
        distilled, config = state.artifact, self.config
        self.start = distilled.pixel_values.detach().clone()
        self.pixels, self.labels = self.start.clone().requires_grad_(), distilled.labels.clone()
        self.lr = torch.tensor(config.lr_init, requires_grad=True)
        self.optimizers = [
            torch.optim.SGD([self.pixels], lr=config.lr_img, momentum=config.mom_img),
            torch.optim.SGD([self.lr], lr=config.lr_lr, momentum=config.mom_img),
        ]

    def draw(self, number: int) -> tuple[Tensor, Tensor, list[Tensor], list[DsaParams]]:
        """Where the student starts from and should arrive, and the images and augmentation of each step."""
        config, count = self.config, len(self.pixels)
        epoch = int(torch.randint(config.max_start_epoch, (1,), generator=generator(SEED, "start", number)))
        random, blocks = generator(SEED, "schedule", number), []
        while len(blocks) < config.syn_steps:
            blocks += torch.randperm(count, generator=random).split(config.batch_syn or count)
        blocks = blocks[: config.syn_steps]
        size = self.pixels.shape[2:]
        drawn = [self.dsa.sample(len(b), generator(SEED, "dsa", number, i), size) for i, b in enumerate(blocks)]
        return self.expert[epoch], self.expert[epoch + config.expert_epochs], blocks, drawn

    def step(self, number: int) -> None:
        drawn = self.draw(number)
        self.pixels.grad, self.lr.grad = self.adjoint(*drawn) if self.exact else self.unrolled(*drawn)
        for optimizer in self.optimizers:
            optimizer.step()

    def adjoint(
        self, start: Tensor, target: Tensor, blocks: list[Tensor], drawn: list[DsaParams]
    ) -> tuple[Tensor, Tensor]:
        """The gradients by a sweep back over the student's states, one graph at a time."""
        student, pixels, lr = self.student, self.pixels.detach(), self.lr.detach()
        with torch.no_grad():
            labels = student(target, pixels).softmax(dim=1)
        states = [start]
        for rows, own in zip(blocks, drawn, strict=True):
            theta = states[-1].requires_grad_()
            loss = F.cross_entropy(student(theta, augment(pixels[rows], own)), labels[rows])
            (g,) = torch.autograd.grad(loss, theta)
            states.append(theta.detach() - lr * g)
        adjoint = 2 * (states.pop() - target) / (start.detach() - target).square().sum()
        of_pixels, of_lr = torch.zeros_like(pixels), torch.zeros_like(lr)
        for i in reversed(range(len(blocks))):
            theta, x = states.pop().detach().requires_grad_(), pixels[blocks[i]].requires_grad_()
            loss = F.cross_entropy(student(theta, augment(x, drawn[i])), labels[blocks[i]])
            (g,) = torch.autograd.grad(loss, theta, create_graph=True)
            of_lr -= adjoint @ g.detach()
            inputs = (x, theta) if i else (x,)
            of_x, *of_theta = torch.autograd.grad(g, inputs, -lr * adjoint)
            of_pixels.index_add_(0, blocks[i], of_x)
            for hessian_r in of_theta:
                adjoint = adjoint + hessian_r
        return of_pixels, of_lr

    def unrolled(
        self, start: Tensor, target: Tensor, blocks: list[Tensor], drawn: list[DsaParams]
    ) -> tuple[Tensor, Tensor]:
        """The gradients by autograd, through all steps at once."""
        theta = start.detach().requires_grad_()
        for rows, own in zip(blocks, drawn, strict=True):
            loss = F.cross_entropy(self.student(theta, augment(self.pixels[rows], own)), self.labels[rows])
            (g,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - self.lr * g
        loss = (theta - target).square().sum() / (start - target).square().sum()
        return torch.autograd.grad(loss, (self.pixels, self.lr))


def matching(
    args: BenchmarkArguments, folder: Path, method: type[TrajectoryMatching], ipc: int, syn_steps: int
) -> Found:
    train = images(args, 10 * max(ipc, 8))
    network = hd.ExpertConfig(**args.network, num_experts=1, batch_train=len(train) // 2, experts_at_once="1")
    experts = hd.train_experts(train, network, folder / "experts", epochs=2, disable_tqdm=True)
    config = method.config_class(
        ipc=ipc,
        syn_steps=syn_steps,
        expert_epochs=1,
        max_start_epoch=2,
        max_steps=args.repeats + 1,
        lr_img=0.1,
        lr_lr=1e-8,
        select="last",
        output_dir=str(folder / "run"),
        disable_tqdm=True,
        seed=SEED,
    )
    plain = Matching(config, experts, args.spec)
    turns = Turns(plain.begin, plain.step, config.max_steps)
    distilled = method(config, train, experts=experts, accelerator=Accelerator(cpu=True), callbacks=[turns]).run()
    apart = difference(distilled.pixel_values.detach(), plain.pixels.detach(), plain.start)
    rates = difference(distilled.lr.detach(), plain.lr.detach(), torch.tensor(0.0))
    return Found(max(apart, rates), turns.seconds())


class Adversarial:
    """APM on one group."""

    def __init__(self, method: hd.APM, block: Block, spec: StudentSpec) -> None:
        self.config, self.spec, self.dsa, self.number = method.config, spec, DSA(), block.number
        self.start, self.labels = method.initial(block), block.labels
        self.teacher = with_values_of(convnet(spec), method.teachers[0].model).requires_grad_(False)

    def students(self, x: Tensor, seed: int) -> list[Network]:
        config = self.config
        with torch.no_grad():
            targets = self.teacher(x)
        model = with_values_of(convnet(self.spec), self.spec.build(derive_seed(seed, "init")))
        optimizer = torch.optim.SGD(model.parameters(), lr=config.lr_net, momentum=0.9, weight_decay=5e-4)
        random, kept = generator(seed, "train"), []
        for epoch in range(config.student_epochs + 1):
            if epoch == config.student_epochs // 2 + 1:
                optimizer.param_groups[0]["lr"] = 0.1 * config.lr_net
            loss = F.l1_loss(model(augment(x, self.dsa.sample(len(x), random, x.shape[2:]))), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if epoch + 1 in kept_epochs(config.student_epochs, config.num_students):
                kept.append(copy.deepcopy(model).requires_grad_(False))
        return kept

    def __call__(self) -> Tensor:
        config = self.config
        x = self.start.clone().requires_grad_()
        optimizer = torch.optim.SGD([x], lr=config.lr_img, momentum=config.mom_img)
        for t in range(config.max_steps):
            if t % config.refresh_every == 0:
                students = self.students(x.detach(), derive_seed(SEED, "student", self.number, t))
            if 2 * t >= config.max_steps:
                optimizer.param_groups[0]["lr"] = 0.3 * config.lr_img
            logits = self.teacher(x)
            loss = config.alpha * F.cross_entropy(logits, self.labels)
            loss = loss - sum(F.l1_loss(student(x), logits) for student in students)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return x.detach()


def adversarial(args: BenchmarkArguments, folder: Path) -> Found:
    train = images(args, 50)
    teacher = hd.Teacher(args.spec.build(1), args.spec, train.class_names, train.preprocessing)
    config = hd.APMConfig(
        ipc=3,
        max_steps=3,
        num_students=args.num_students,
        student_epochs=args.student_epochs,
        teachers=["given"],
        output_dir=str(folder),
        disable_tqdm=True,
        seed=SEED,
    )
    method = hd.APM(config, train, teachers=[teacher], accelerator=Accelerator(cpu=True))
    (block,) = method.blocks()
    plain = Adversarial(method, block, args.spec)

    def ours() -> Tensor:
        return method.make(block, lambda iteration, values: None)

    apart = difference(ours(), plain(), plain.start)
    return Found(apart, in_turns(ours, plain, args.repeats))


def recovered(args: BenchmarkArguments, folder: Path) -> Found:
    count, side = args.batch_recover, args.teacher_resolution
    names, preprocessing = [str(number) for number in range(max(count, 10))], Preprocessing(3, (side, side), MEAN, STD)
    spec = StudentSpec(args.teacher, len(names), 3, (side, side))
    settings = {"max_steps": args.recover_steps, "jitter": min(32, side - 1), "teachers": ["given"], "seed": SEED}
    config = hd.SRe2LConfig(**settings, output_dir=str(folder), disable_tqdm=True)
    teacher = hd.Teacher(untrained(spec), spec, names, preprocessing)
    method = hd.SRe2L(config, NoImages(names, preprocessing), teachers=[teacher], accelerator=Accelerator(cpu=True))
    block = Block(0, torch.arange(count), torch.arange(count))

    def draw(t: int) -> tuple[tuple[int, int, int, int], bool, tuple[int, int]]:
        path = derive_seed(SEED, "views", block.number)
        crops = uniform(path, (CROP,), torch.tensor([t]), CROP_DRAWS)
        drawn = draw_crops(crops, (side, side), (0.08, 1.0), flip=config.random_flip)
        rolls = draw_roll(uniform(path, (ROLL,), torch.tensor([t]), 2), config.jitter)
        return drawn.boxes[0].tolist(), bool(drawn.flip[0]), tuple(rolls[0].tolist())

    loop = PlainLoop(untrained(spec).requires_grad_(False), config, torch.device("cpu"), draw)

    def ours() -> Tensor:
        return method.make(block, lambda iteration, values: None)

    def plain() -> Tensor:
        return preprocessing.to_uint8(loop(method.initial(block), args.recover_steps))

    apart = (ours().float() - plain().float()).abs().mean() / 255
    return Found(float(apart), in_turns(ours, plain, args.repeats))


def expert(args: BenchmarkArguments, folder: Path) -> Found:
    train, spec, size = images(args, args.images), args.spec, (args.resolution, args.resolution)
    config = hd.ExpertConfig(**args.network, num_experts=1, batch_train=args.batch_train, experts_at_once="1")
    x, y = train.preprocessing(train.uint8(torch.arange(len(train)))), train.labels
    model = with_values_of(convnet(spec), spec.build(derive_seed(SEED, "expert", 0, "init")))
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer, dsa = torch.optim.SGD(model.parameters(), lr=config.lr_teacher), DSA()

    def epoch(number: int) -> None:
        stream = (SEED, "expert", 0)
        order = torch.randperm(len(x), generator=generator(*stream, "order", number + 1))
        random = generator(*stream, "dsa", number + 1)
        total = right = torch.zeros(())
        for rows in order.split(config.batch_train):
            logits = model(augment(x[rows], dsa.sample(len(rows), random, size)))
            loss = F.cross_entropy(logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total = total + loss.detach() * len(rows)
            right = right + (logits.detach().argmax(dim=1) == y[rows]).sum()
        total.item(), right.item()

    turns = Turns(lambda state: None, epoch, args.repeats + 1)
    options = {"epochs": turns.total, "seed": SEED, "accelerator": Accelerator(cpu=True), "disable_tqdm": True}
    experts = hd.train_experts(train, config, folder / "experts", callbacks=[turns], **options)
    end = nn.utils.parameters_to_vector(model.parameters()).detach()
    return Found(difference(experts.row(0, turns.total), end, start), turns.seconds())


def evaluated(args: BenchmarkArguments, folder: Path) -> Found:
    train, spec = images(args, 100), args.spec
    test = images(args, args.test_images)
    distilled = hd.DistilledSet(
        *(train.preprocessing(train.uint8(torch.arange(100))), train.labels, train.class_names, train.preprocessing),
        config={"student": spec.to_dict()},
    )
    protocol = hd.EvalProtocol("plain", epochs=args.epochs, full_data_epochs=1)
    x, y = distilled.pixel_values.detach().clone(), distilled.labels
    test_x, test_y, dsa = train.preprocessing(test.uint8(torch.arange(len(test)))), test.labels, DSA()
    seed = derive_seed(SEED, "student", "distilled", "hard", student_name(spec), 0)

    def ours() -> float:
        options = {"held_out": train.subset([]), "baselines": [], "full_data": False, "num_seeds": 1, "seed": SEED}
        options |= {"protocol": protocol, "accelerator": Accelerator(cpu=True), "disable_tqdm": True}
        return hd.evaluate(distilled, train, test, **options).rows[0].accuracies[0]

    def plain() -> float:
        model = with_values_of(convnet(spec), spec.build(derive_seed(seed, "init")))
        random, lr = generator(seed, "train"), 0.01
        for epoch in range(protocol.epochs):
            if epoch in (0, (protocol.epochs - 1) // 2 + 2):
                rate = lr if epoch == 0 else 0.1 * lr
                optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
            logits = model(augment(x, dsa.sample(len(x), random, x.shape[2:])))
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            optimizer.step()
        with torch.no_grad():
            parts = zip(test_x.split(256), test_y.split(256), strict=True)
            right = sum((model(part).argmax(dim=1) == labels).sum() for part, labels in parts)
        return float(right / len(test_y))

    apart = abs(ours() - plain())
    return Found(apart, in_turns(ours, plain, args.repeats))


def images(args: BenchmarkArguments, count: int) -> hd.RealImages:
    """Random ones."""
    return random_images(DataArguments(resolution=[args.resolution]), count, 10)


PARTS: dict[str, Callable[[BenchmarkArguments, Path], Found]] = {
    "tesla-ipc1": lambda args, folder: matching(args, folder, hd.TESLA, 1, args.syn_steps[0]),
    "tesla-ipc10": lambda args, folder: matching(args, folder, hd.TESLA, 10, args.syn_steps[1]),
    "mtt": lambda args, folder: matching(args, folder, hd.MTT, 1, args.syn_steps[0]),
    "apm": adversarial,
    "recover": recovered,
    "expert": expert,
    "evaluate": evaluated,
}


def main() -> None:
    (args,) = parse_args(BenchmarkArguments)
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    about = describe(args, torch.device("cpu"))
    print(f"{args.spec}, {about['device']}, {args.threads} threads\n")
    print(f"{'part':14}{'ours s':>9}{'plain s':>9}{'ratio':>8}   {'of each turn':24}{'difference':>12}")
    rows = []
    for name in args.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[name](args, Path(folder))
        ours, plain = (statistics.median(side) for side in zip(*found.seconds, strict=True))
        each = " ".join(f"{a / b:.3f}" for a, b in found.seconds)
        print(f"{name:14}{ours:9.3f}{plain:9.3f}{found.ratio:8.3f}   {each:24}{found.difference:12.1e}", flush=True)
        rows.append({"part": name, "ratio": found.ratio, "difference": found.difference, "seconds": found.seconds})
    if args.output is not None:
        save_json(args.output, {**about, "rows": rows})


if __name__ == "__main__":
    main()
