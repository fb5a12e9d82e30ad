"""Training a teacher: the squeeze step, from all real images into one network with running statistics.

Processes share every batch, and BatchNorm takes the statistics of the whole batch, not of a process's part of it: so
the network is the same with any number of them, up to the rounding of sums (and but for dropout, which each process
draws for itself). What happens to an image is a function of (seed, epoch, row). An epoch is whole batches; the few
images that are left over wait for the next one. The last epoch is kept: nothing is chosen by an accuracy on test.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..augmentation.crops import CROP_DRAWS, crop_resize, draw_crops, uniform
from ..augmentation.dsa import DEFAULT_STRATEGY, DSA
from ..augmentation.randaugment import DRAWS as RANDAUGMENT_DRAWS
from ..augmentation.randaugment import cutout_randaugment
from ..augmentation.shrinking import take_crops
from ..config import MOST_RESIZED, DataArguments, HfArg, PathArg, check_at_least, check_choice
from ..data.feed import Keep, Pool, upload
from ..data.images import Outline, RealImages
from ..data.pixels import Frame
from ..data.precision import precision_of
from ..evaluation.costs import student_flop
from ..evaluation.students import check_student
from ..networks.architectures import NORMS, StudentSpec, layout_for, timm_with_ours
from ..networks.batches import images_at_once
from ..networks.class_names import read_class_names
from ..networks.compiling import backend_of, refuse_fp16
from ..networks.teachers import INDEX, Teacher, check_alike, classifiers
from ..rng import derive_seed, generator
from ..runs.callbacks import Callback, ProgressBar
from ..runs.checkpoints import pack_optimizers
from ..runs.claims import claimed
from ..runs.folder import describe_images, where_to_start
from ..runs.processes import make_accelerator, on_main
from ..runs.rehearsal import STEPS, Elsewhere, Ledger, Stage
from .epochs import EpochTraining

logger = logging.getLogger(__name__)

TIMM = "timm:"  # before the name of pretrained weights that timm knows
PAD = 4  # black pixels around an image before a crop of its own size
WARMUP_FROM = 0.01  # of the learning rate, in the first epoch of a warm-up
ONE_CYCLE = {"pct_start": 0.1, "div_factor": 20.0, "final_div_factor": 1e4}
OPTIMIZERS = ("sgd", "adam", "adamw")
AUGMENTATIONS = ("crop_flip", "rrc", "cutout_randaugment", "dsa", "none")
START = "pretrained_revision"
ALONG = "along/epoch-{:04d}"  # folder of a teacher on the way to the last one
PARTS = ("student", "class_names", "preprocessing")  # of a teacher, which its file has beside the settings of training


@dataclass
class NamedTeachers:
    """How the classes of teachers that are at hand are called, for settings that name such teachers."""

    teacher_class_names: str | None = PathArg(
        default=None,
        help="File with the names of the logits of --teachers, in order, for those that name none, or as many: one on "
        "each line, or JSON.",
    )


@dataclass
class TeacherConfig:
    """The network that learns from all images, and how.

    Example:
        >>> hd.TeacherConfig(student="resnet18_small").student_spec(train).in_chans
        1
    """

    student: str = HfArg(default="resnet18_small", help="The teacher's network: any timm name, or convnet_d1 to d8.")
    student_width: int = HfArg(default=128, help="Channels of each convolution of a convnet.")
    student_norm: str = HfArg(
        default="batch", help="Normalisation of a convnet: batch, instance or none. Some methods need batch."
    )
    pretrained_weights: str | None = PathArg(
        default=None,
        help="Start the teacher's training from pretrained weights: timm:<name>, a folder or a repository. The "
        "classifier is new unless the classes are the same.",
    )
    teacher_epochs: int = HfArg(default=200, help="Passes over the training images.")
    warmup_epochs: int = HfArg(default=0, help="Of these, epochs in which the learning rate of cosine grows.")
    batch_train: int = HfArg(default=128, help="Images per step, of all processes together.")
    teacher_optimizer: str = HfArg(default="sgd", help="sgd, adam or adamw.")
    teacher_schedule: str = HfArg(default="cosine", help="Learning rate: cosine or step (by epoch), or onecycle.")
    lr_teacher: float = HfArg(default=0.1, help="Highest learning rate of the teacher.")
    mom_teacher: float = HfArg(default=0.9, help="Momentum of sgd.")
    l2_teacher: float = HfArg(default=5e-4, help="Weight decay; adam and adamw spare biases and normalisation.")
    label_smoothing: float = HfArg(default=0.0, help="Share of the target that is spread over all classes.")
    teacher_augment: str = HfArg(
        default="crop_flip",
        help="crop_flip (shift by up to 4 pixels, mirror), rrc (random resized crop, mirror), cutout_randaugment (that "
        "of ImageNet-21K-P), dsa or none.",
    )
    dsa_strategy: str = HfArg(default=DEFAULT_STRATEGY, help="Augmentations of dsa, joined by underscores.")

    def __post_init__(self) -> None:
        check_choice("student_norm", self.student_norm, NORMS)
        check_choice("teacher_optimizer", self.teacher_optimizer, OPTIMIZERS)
        check_choice("teacher_schedule", self.teacher_schedule, ("cosine", "step", "onecycle"))
        check_choice("teacher_augment", self.teacher_augment, AUGMENTATIONS)
        check_at_least("student_width", self.student_width, 1)
        check_at_least("teacher_epochs", self.teacher_epochs, 1)
        check_at_least("batch_train", self.batch_train, 2)
        for flag in ("warmup_epochs", "lr_teacher", "mom_teacher", "l2_teacher", "label_smoothing"):
            check_at_least(flag, getattr(self, flag), 0)
        if self.label_smoothing >= 1:
            raise ValueError(f"--label_smoothing is {self.label_smoothing}; expected 0 up to, not including, 1")
        if self.warmup_epochs >= self.teacher_epochs:
            raise ValueError(
                f"--warmup_epochs is {self.warmup_epochs} of {self.teacher_epochs} --teacher_epochs; expected fewer"
            )
        if self.warmup_epochs and self.teacher_schedule != "cosine":
            raise ValueError("--warmup_epochs is for --teacher_schedule cosine; onecycle has a warm-up of its own")
        DSA(self.dsa_strategy)

    def student_spec(self, real: Outline | RealImages) -> StudentSpec:
        """The network for the classes, channels and size of `real`."""
        options = {"width": self.student_width, "norm": self.student_norm}
        return StudentSpec.for_images(self.student, real.num_classes, real.shape, **options)

    def lr(self, step: int, steps: int) -> float:
        """The learning rate of step number `step`, from 0, where an epoch has `steps` of them.

        Cosine: η ½ (1 + cos(π e / E)) in epoch e of the E after the warm-up, in which it grows linearly from η/100.
        Step: η in the first half of the epochs, η/10 in the second.
        One cycle: from η/20 up to η in a tenth of all steps and down to η/200,000 in the others, each half a cosine.
        """
        if self.teacher_schedule == "onecycle":
            last = self.teacher_epochs * steps - 1
            top = max(ONE_CYCLE["pct_start"] * (last + 1) - 1, 0.0)
            low = self.lr_teacher / ONE_CYCLE["div_factor"]
            if step <= top:
                return _half_cosine(low, self.lr_teacher, step / top if top else 1.0)
            return _half_cosine(self.lr_teacher, low / ONE_CYCLE["final_div_factor"], (step - top) / (last - top))
        epoch, rest = step // steps, self.teacher_epochs - self.warmup_epochs
        if self.teacher_schedule == "step":
            return self.lr_teacher * (1 if 2 * epoch < self.teacher_epochs else 0.1)
        if epoch < self.warmup_epochs:
            return self.lr_teacher * (WARMUP_FROM + (1 - WARMUP_FROM) * epoch / self.warmup_epochs)
        return _half_cosine(self.lr_teacher, 0.0, (epoch - self.warmup_epochs) / rest)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of all parameters of `model`."""
        parameters = list(model.parameters())
        if self.teacher_optimizer == "sgd":
            return torch.optim.SGD(parameters, self.lr_teacher, momentum=self.mom_teacher, weight_decay=self.l2_teacher)
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": self.l2_teacher}, {"params": others, "weight_decay": 0.0}]
        kind = torch.optim.Adam if self.teacher_optimizer == "adam" else torch.optim.AdamW
        return kind([group for group in groups if group["params"]], lr=self.lr_teacher)


def _half_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


# Images


def crop_flip(images: Tensor, u: Tensor) -> Tensor:
    """Each image moved by up to `PAD` pixels, black beyond its border, and mirrored in half the cases.

    Args:
        images: (n, C, H, W) uint8.
        u: (n, 3) numbers in [0, 1): down, right, mirrored.
    """
    count, _, height, width = images.shape
    down, right = (u[:, :2] * (2 * PAD + 1)).long().unbind(1)
    rows = down[:, None] + torch.arange(height, device=u.device)  # (n, H)
    columns = right[:, None] + torch.arange(width, device=u.device)  # (n, W)
    columns = torch.where(u[:, 2:] < 0.5, columns.flip(1), columns)
    which = torch.arange(count, device=u.device)[:, None, None]
    padded = F.pad(images, (PAD,) * 4).permute(0, 2, 3, 1)
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class _Augmented:
    """The images of a pool as the network in training is shown them."""

    layout = torch.contiguous_format

    def __init__(self, pool: Pool, config: TeacherConfig, seed: int) -> None:
        self.pool, self.config = pool, config
        self.seed, self.dsa = derive_seed(seed, "teacher", "augment"), DSA(config.dsa_strategy)

    def __len__(self) -> int:
        return len(self.pool)

    def augmented(self, rows: Tensor, part: slice, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The `part` of a batch `rows` (B,) in `epoch`, (n, C, H, W) float32, and its labels (n,).

        Args:
            rows: On the CPU.
            part: The share of this process.
            epoch, step: From 0; what happens to an image depends on the epoch, and DSA's on the step too.
        """
        pool, mine, kind = self.pool, rows[part], self.config.teacher_augment
        size = pool.shape[1:]
        if kind in ("none", "dsa"):
            images, labels = pool.take(mine)
            if kind == "dsa":  # one operation for the whole batch
                draw = generator(self.seed, "dsa", epoch, step)
                images = DSA.apply(images, self.dsa.sample(len(rows), draw, size)[part])
            return images.contiguous(memory_format=self.layout), labels
        if kind == "cutout_randaugment":
            pixels = cutout_randaugment(pool.pixels(mine), uniform(self.seed, (epoch,), mine, RANDAUGMENT_DRAWS))
        elif kind == "crop_flip":
            pixels = crop_flip(pool.pixels(mine), uniform(self.seed, (epoch,), mine, 3, pool.device))
        else:
            pixels = self._resized_crops(mine, epoch)
        images = pool.preprocessing(pixels).contiguous(memory_format=self.layout)
        return images, pool.labels[upload(mine, pool.device)]

    def expect(self, rows: Tensor, part: slice) -> None:
        """Read the images of a batch that will be asked for soon, which is where they are not in memory."""
        self.pool.expect(rows[part], kept=self.config.teacher_augment == "rrc")

    def _resized_crops(self, rows: Tensor, epoch: int) -> Tensor:
        """Random boxes of `rows` (n,) resized and mirrored, (n, C, H, W): uint8 out of images at their own shapes."""
        pool, size = self.pool, self.pool.shape[1:]
        kept = pool.kept(rows)
        if kept is None:
            crops = draw_crops(uniform(self.seed, (epoch,), rows, CROP_DRAWS, pool.device), size)
            return crop_resize(pool.pixels(rows), crops, size)
        crops = draw_crops(uniform(self.seed, (epoch,), rows, CROP_DRAWS), kept.sizes)
        pixels, flip = take_crops(kept, crops.boxes, size), upload(crops.flip, pool.device)
        return torch.where(flip[:, None, None, None], pixels.flip(3), pixels)


def _pool(real: RealImages, device: torch.device, keep: Keep = "pixels") -> Pool:
    """All of `real`, as pixels: most augmentations come before the preprocessing."""
    return Pool(real, real.labels, preprocessing=real.preprocessing, device=device, keep=keep)


# Pretrained weights


def find_start(
    real: RealImages, config: TeacherConfig, accelerator: Accelerator
) -> tuple[dict[str, Tensor], str | None]:
    """Tensors that a new network takes from `--pretrained_weights`, and their commit, or digest where in a folder.

    All processes call it: the main one fetches, and the others find the same commit in the cache. Nothing where the
    network starts afresh.

    Raises:
        ValueError, OSError: As `Teacher.start`; or they are those of another network.
    """
    name = config.pretrained_weights
    if name is None:
        return {}, None
    spec, fetched = config.student_spec(real), []

    def fetch() -> str:
        start = Teacher.start(name)
        fetched.append(starting_tensors(start, spec, real.class_names))
        return start.digest if start.origin is None else str(start.origin.revision)

    version = on_main(accelerator, fetch)
    if not fetched:
        start = Teacher.start(name, None if Path(name).is_dir() else version)
        fetched.append(starting_tensors(start, spec, real.class_names))
    return fetched[0], version


def starting_tensors(start: Teacher, spec: StudentSpec, class_names: Sequence[str]) -> dict[str, Tensor]:
    """The parameters and running statistics of `start` for a network `spec`; its classifier only for its own classes.

    Raises:
        ValueError: They do not match by name and shape.
    """
    with torch.device("meta"):
        model = spec.build(0)
    fresh = [] if list(class_names) == start.class_names else [f"{name}." for name in classifiers(model)]
    given, needed = (
        {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(tuple(fresh))}
        for network in (start.model, model)
    )
    for name in sorted(given.keys() | needed.keys()):
        has, needs = (tuple(tensors[name].shape) if name in tensors else "nothing" for tensors in (given, needed))
        if has != needs:
            raise ValueError(
                f"--pretrained_weights are of {start.spec.name} and have {has} for {name}, where --student "
                f"{spec.name} for {spec.in_chans}x{spec.img_size[0]}x{spec.img_size[1]} images has {needs}; expected "
                "weights of the same network"
            )
    return given


# Training


def describe(
    real: RealImages, config: TeacherConfig, seed: int, accelerator: Accelerator, start: str | None = None
) -> dict[str, Any]:
    """Everything that decides what a teacher becomes, the coarsest first, as JSON types.

    Args:
        start: The version of `--pretrained_weights`, as `find_start` gives it.
    """
    described = {
        "student": config.student_spec(real).to_dict(),
        **describe_images(real),
        "seed": seed,
        **{name: value for name, value in vars(config).items() if not name.startswith("student")},
        **precision_of(accelerator),
        **({"compiled": backend} if (backend := backend_of(accelerator)) else {}),  # other last bits
        **({START: start} if start else {}),
    }
    return json.loads(json.dumps(described))


def teacher_folder(real: RealImages, config: TeacherConfig, seed: int, accelerator: Accelerator) -> Path:
    """The folder that the teacher of these settings has unless it is given another one. All processes call it."""
    _, start = find_start(real, config, accelerator)
    described = json.dumps(describe(real, config, seed, accelerator, start), sort_keys=True)
    name = Path(str(real.provenance["name"])).name
    return Path("outputs", f"teacher-{name}-{config.student}-{hashlib.sha256(described.encode()).hexdigest()[:8]}")


def _folder_along(real: RealImages, config: TeacherConfig, seed: int, accelerator: Accelerator, along: int) -> Path:
    """That of `teacher_folder`, or where teachers on the way are kept too one beside it: the other one keeps none."""
    folder = teacher_folder(real, config, seed, accelerator)
    return folder if along == 1 else folder.with_name(f"{folder.name}-along{along}")


def check_teacher(config: TeacherConfig, train: Outline, accelerator: Accelerator) -> nn.Module:
    """The network of a teacher, untrained; raises a `ValueError` where it cannot be trained on such images."""
    refuse_fp16(accelerator, "teacher training")
    return check_student(config.student_spec(train))


def check_teachers(config: Any, train: Outline, accelerator: Accelerator, networks: Sequence[Any]) -> list[nn.Module]:
    """Raise a `ValueError` for what `find_teachers` would refuse, as far as it is known before an image is decoded.

    Args:
        config: `NamedTeachers`, with `teachers`.
        train: What is known of the images.
        accelerator: Processes and device.
        networks: Settings of the networks to train, those of a teacher among them.

    Returns:
        The networks that are named, or the one that is to be trained, before that.
    """
    _check_named(config.teachers, config.teacher_class_names)
    settings = [each for each in networks if isinstance(each, TeacherConfig)]
    if config.teachers is None or not settings:
        return [check_teacher(each, train, accelerator) for each in settings]
    teachers = named_teachers(config.teachers, config.teacher_class_names)
    for teacher in teachers:
        teacher.check_input(train)
        teacher.rows_of(train.class_names)
    check_alike(teachers)
    return [teacher.model for teacher in teachers]


def _check_named(names: Sequence[str] | None, class_names: str | None) -> None:
    if names is None and class_names is not None:
        raise ValueError(f"--teacher_class_names is {class_names} without --teachers, whose logits it names; give them")


def named_teachers(names: Sequence[str] | None, class_names: str | None) -> list[Teacher]:
    """The teachers of these names, if any, for `find_teachers` and for whoever labels with them; see there."""
    _check_named(names, class_names)
    if names is None:
        return []
    teachers = [Teacher.start(name) for name in names]
    given = None if class_names is None else read_class_names(class_names)
    own = [bool(teacher.class_names) and teacher.spec.num_classes != len(given or ()) for teacher in teachers]
    return [
        teacher.called(None if keeps and not all(own) else class_names, name)
        for teacher, keeps, name in zip(teachers, own, names, strict=True)
    ]


def find_teachers(
    names: Sequence[str] | None,
    train: RealImages,
    test: RealImages | None,
    config: TeacherConfig,
    *,
    seed: int,
    accelerator: Accelerator,
    along: int = 1,
    class_names: str | None = None,
    disable_tqdm: bool = False,
    callbacks: Sequence[Callback] = (),
) -> list[Teacher]:
    """The teachers that are named; without names the one of these settings, trained where there is none yet.

    All processes call it. Those that are named have all their classes, of which the images may have a part.

    Args:
        names: Folders, repositories, or `timm:<name>` for pretrained weights that timm knows.
        train: What the teacher is trained on.
        test: See `train_teacher`.
        config: The settings of the one that is trained.
        along: How many to take of that training, at evenly spaced epochs; the last one is the finished one.
        class_names: A file with names of logits (`--teacher_class_names`), for those that name none; and for those
            that name as many, whose own names must not be in other places there.
        callbacks: Look on while it is trained.

    Raises:
        ValueError: As `train_teacher`, `Teacher.from_pretrained` and `Teacher.from_timm`; or there are names of logits,
            and no teacher is named.
    """
    _check_named(names, class_names)
    if names is None:
        epochs, folder = _along(config, along), _folder_along(train, config, seed, accelerator, along)
        begun = "latest" if folder.exists() else None
        latest: dict[str, Any] = {"along": along, "resume_from_checkpoint": begun, "disable_tqdm": disable_tqdm}
        latest["callbacks"] = callbacks
        last = train_teacher(train, test, config, folder, seed=seed, accelerator=accelerator, **latest)
        return [*(Teacher.from_pretrained(folder / ALONG.format(epoch)) for epoch in epochs[:-1]), last]
    return named_teachers(names, class_names)


def untrained_teacher(spec: StudentSpec, real: RealImages) -> Teacher:
    """A teacher that nobody has trained, on the meta device, whose first classes are those of `real`."""
    names = [*real.class_names, *(f"another {number}" for number in range(spec.num_classes - real.num_classes))]
    with torch.device("meta"):
        model = spec.build(0)
    return Teacher(model, spec, names[: spec.num_classes], real.preprocessing)


def untrained_teachers(names: Sequence[str] | None, config: TeacherConfig, real: RealImages) -> list[Teacher]:
    """As `find_teachers`, without a training or a download: what they are is known, and no values.

    A repository does not say what it is before it is asked: it is taken for the network of these settings.
    """
    spec = config.student_spec(real)
    if names is None:
        return [untrained_teacher(spec, real)]
    teachers = []
    for name in names:
        known = spec
        if Path(name).is_dir():
            known = Teacher.from_pretrained(name).spec
        if name.startswith(TIMM):
            network = name.removeprefix(TIMM)
            cfg = timm_with_ours().get_pretrained_cfg(network)
            if cfg is None:
                raise ValueError(
                    f"--teachers {name}: timm knows no such network; expected such as timm:resnet18.tv_in1k"
                )
            classes = max(real.num_classes, cfg.num_classes or 0)
            known = replace(spec, name=network.split(".")[0], num_classes=classes, kwargs={})
        teachers.append(untrained_teacher(known, real))
    return teachers


def rehearse_teacher(
    real: RealImages, config: TeacherConfig, seed: int, accelerator: Accelerator, ledger: Ledger
) -> tuple[list[Stage], dict[str, int]]:
    """What the training of a teacher holds and computes on the meta device, and the bytes of its files."""
    spec, world = config.student_spec(real), accelerator.num_processes
    share = replace(config, batch_train=max(2, config.batch_train // world))
    run = _TeacherTraining(
        real,
        spec,
        share,
        start={},
        along={},
        test=None,
        folder=Path("untrained"),
        training={},
        seed=seed,
        accelerator=Elsewhere(accelerator, processes=1),
        callbacks=[],
    )
    ledger.forget()
    rows = torch.arange(run.batch).expand(STEPS, -1)
    for _ in run.epoch(0, 0, rows, slice(0, run.batch), generator(seed, "rehearsal")):
        pass
    flop = config.teacher_epochs * len(real) * student_flop(spec)
    stage = ledger.stage("teacher", flop, f"{config.teacher_epochs:,} epochs of {spec.name}")
    weights = sum(tensor.nbytes for tensor in run.network.state_dict().values())
    state = sum(tensor.nbytes for tensor in pack_optimizers([run.optimizer]).values())
    return [stage], {"teacher, with its checkpoint": 2 * weights + state}


def framed_by_teacher(args: DataArguments, names: Sequence[str] | None, labelled_by: int) -> DataArguments:
    """The arguments of data whose test images are framed as those of a teacher were.

    Only what no flag says is taken from it, and nothing where images have no --resolution to be brought to, or one that
    does not fit into its frame: the teacher itself says then which size it takes. Its filter becomes that of all
    images, for there is one.

    Args:
        names: As `--teachers` has them.
        labelled_by: The place of the one that counts among them: `Method.labelled_by`.

    Raises:
        ValueError, OSError: As `Teacher.from_pretrained` and `Teacher.from_timm`.
    """
    if not names or args.resolution is None or None not in (args.resize, args.interpolation):
        return args
    frame, smallest = Teacher.frame_of(names[labelled_by]), min(args.resolution)
    if frame == Frame() or not smallest <= (frame.side or smallest) <= MOST_RESIZED * smallest:
        return args
    framed = replace(args, resize=args.resize or frame.side, interpolation=args.interpolation or frame.interpolation)
    logger.info(
        "test images have a shorter side of %s pixels before the crop, and all images, those of train too, are resized "
        "by a %s filter, as %s says; --resize and --interpolation win",
        framed.resize or smallest,
        framed.interpolation,
        names[labelled_by],
    )
    return framed


def train_teacher(
    real: RealImages,
    test: RealImages | None = None,
    config: TeacherConfig | None = None,
    directory: str | Path | None = None,
    *,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    along: int = 1,
    resume_from_checkpoint: str | None = None,
    overwrite: bool = False,
    disable_tqdm: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Teacher:
    """The teacher of these settings, trained, saved in `directory` and loaded from there. All processes call it.

    A checkpoint is written after every epoch, and after the step in which a recipe is asked to stop; the last one
    stays. On CPUs an interrupted run that is continued gives the bits that it would have given; what it started from is
    not looked at again.

    Args:
        real: The images to train on.
        test: Images to report accuracy on.
        config: The network, and how it learns. Without it: 200 epochs of a small ResNet-18.
        directory: On storage that the processes share. Without it: that of `teacher_folder`, which is of these settings
            alone, so that what is there is loaded or gone on with.
        seed: The one seed.
        accelerator: Processes and device; those of the launcher if not given.
        along: How many teachers to keep, at evenly spaced epochs; the last one is the one that is given, and the others
            are in `along/epoch-<number>` of `directory`.
        resume_from_checkpoint: `latest` or a checkpoint folder; a teacher that is there already is only loaded.
        overwrite: Replace what `directory` holds.
        disable_tqdm: No progress bar.
        callbacks: Look on; see `EpochTraining`.

    Raises:
        ValueError: `directory` holds another run, or one that is neither to be resumed nor replaced; the network cannot
            take such images; `--pretrained_weights` are of another network; the loss stops being finite.
        OSError: The Hub does not answer, or a checkpoint could not be written (a full disk); those before it are whole.

    Example:
        >>> import hf_distill as hd
        >>> train, test = hd.RealImages.train_and_test(hd.DataArguments(max_train_samples=200, max_test_samples=50))
        >>> config = hd.TeacherConfig(student="convnet_d1", student_width=8, teacher_epochs=2)
        >>> teacher = hd.train_teacher(train, test, config, disable_tqdm=True)
        >>> teacher.logits(test.images([0, 1])).shape
        torch.Size([2, 10])
    """
    accelerator, config = accelerator or make_accelerator(), config or TeacherConfig()
    refuse_fp16(accelerator, "teacher training")
    shared = directory is None  # by all that need such a teacher
    if directory is None:
        directory = _folder_along(real, config, seed, accelerator, along)
        resume_from_checkpoint = resume_from_checkpoint or (None if overwrite else "latest")
    folder, training, spec = Path(directory), describe(real, config, seed, accelerator), config.student_spec(real)

    with claimed(folder, accelerator, wait=shared):

        def prepare() -> str:
            check_student(spec)
            return where_to_start(
                folder, INDEX, training, _recorded, what="teacher", resume=resume_from_checkpoint, overwrite=overwrite
            )

        begin = on_main(accelerator, prepare)
        if begin == INDEX:
            return Teacher.from_pretrained(folder)
        start: dict[str, Tensor] = {}
        if not begin:
            start, version = find_start(real, config, accelerator)
            training = describe(real, config, seed, accelerator, version)
        run = _TeacherTraining(
            real,
            spec,
            config,
            start=start,
            along={epoch: folder / ALONG.format(epoch) for epoch in _along(config, along)[:-1]},
            test=test,
            folder=folder,
            training=training,
            seed=seed,
            accelerator=accelerator,
            callbacks=[ProgressBar(disable_tqdm), *callbacks],
        )
        if begin:
            run.resume(Path(begin))
        results = run.train()
        teacher = run.teacher()
        teacher.config["results"] = results
        _warn_of_chance(teacher, real)
        on_main(accelerator, lambda: str(teacher.save_pretrained(folder)))
        return Teacher.from_pretrained(folder)


def _warn_of_chance(teacher: Teacher, real: RealImages) -> None:
    """Say so on the main process where the teacher has learned next to nothing: it would teach as little."""
    accuracy = teacher.results["train_accuracy"]
    chance = real.labels.bincount().max().item() / len(real)  # of always naming the most frequent class
    if accuracy < chance + min(chance, (1 - chance) / 10):
        logger.warning(
            "the teacher is right on %.1f %% of its training images, and always naming the most frequent class on "
            "%.1f %%: it has learned next to nothing to distil; train it longer (--teacher_epochs) or with another "
            "--lr_teacher",
            100 * accuracy,
            100 * chance,
        )


@torch.no_grad()
def _accuracy(teacher: Teacher, pool: Pool, accelerator: Accelerator) -> float:
    """Top-1 accuracy in [0, 1] on images as they are; the processes share the work."""
    rows, size = torch.arange(len(pool)), images_at_once(teacher.model, pool)
    right = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    mine = rows.tensor_split(accelerator.num_processes)[accelerator.process_index]
    for part, images in pool.each(mine.split(size)):
        right += (teacher.logits(images).argmax(1) == pool.labels[upload(part, pool.device)]).sum()
    return accelerator.reduce(right).item() / len(rows)


def _recorded(about: dict[str, Any]) -> dict[str, Any]:
    """The training that the file of a finished teacher tells of."""
    return {**{name: about.get(name) for name in PARTS}, **(about.get("training") or {})}


def _along(config: TeacherConfig, count: int) -> list[int]:
    """Epochs after which `count` teachers are taken, evenly spaced; the last one is the end."""
    if count > config.teacher_epochs:
        raise ValueError(
            f"{count} teachers along {config.teacher_epochs} --teacher_epochs; expected no more teachers than epochs"
        )
    return [round(config.teacher_epochs * (number + 1) / count) for number in range(count)]


class _TeacherTraining(EpochTraining):
    """One training of a teacher.

    Args:
        real: The images.
        spec: The network.
        config: How it learns.
        start: What it takes over before the first step.
        along: Where to keep the network as it is after some epochs.
        folder, training, seed, accelerator, callbacks: As in `EpochTraining`.
    """

    measures: ClassVar = {"loss": "losses", "accuracy": "accuracies"}

    def __init__(
        self,
        real: RealImages,
        spec: StudentSpec,
        config: TeacherConfig,
        *,
        start: dict[str, Tensor],
        along: Mapping[int, Path],
        test: RealImages | None,
        folder: Path,
        training: dict[str, Any],
        seed: int,
        accelerator: Accelerator,
        callbacks: Sequence[Callback],
    ) -> None:
        sizes = [len(real)] * config.teacher_epochs
        super().__init__("teacher", sizes, config.batch_train, folder, training, seed, accelerator, callbacks)
        self.config, self.real, self.spec, self.along, self.test = config, real, spec, along, test
        device = accelerator.device
        from_kept = config.teacher_augment == "rrc" and real.keep_side is not None
        self.images = _Augmented(_pool(real, device, "nothing" if from_kept else "pixels"), config, seed)
        self.batch = min(config.batch_train, len(real))
        if self.batch < 2 * accelerator.num_processes:
            raise ValueError(
                f"batches of {self.batch} images for {accelerator.num_processes} processes; expected two for each: "
                "raise --batch_train, or start fewer processes"
            )
        self.network = spec.build(derive_seed(seed, "teacher", "init"))
        self.network.load_state_dict(start, strict=False)  # a classifier may be missing, and nothing else
        if accelerator.num_processes > 1:
            from .batchnorm import share_statistics  # here, for it takes timm, and that seconds

            self.network = share_statistics(self.network, device)
        self.images.layout = layout_for(self.network, device)
        self.network.to(device, memory_format=self.images.layout)
        self.prepared = accelerator.prepare_model(self.network)
        self.optimizer = config.optimizer(self.network)

    def teacher(self) -> Teacher:
        """The network as it is now, without what processes and mixed precision added to it."""
        model, device = self.spec.build(0), self.accelerator.device
        model.load_state_dict(self.network.state_dict())
        about = {
            "source": self.real.provenance,
            "training": {name: value for name, value in self.training.items() if name not in PARTS},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": self.accelerator.num_processes,
            "test_frame": asdict(self.real.test_frame),
        }
        teacher = Teacher(model, self.spec, self.real.class_names, self.real.preprocessing, about).to(device)
        teacher.making = self.making
        return teacher

    def flop(self) -> int:
        seen = [steps * batch for steps, batch in zip(self.steps, self.batches, strict=True)]
        return (sum(seen[: self.done]) + self.behind * self.batch) * student_flop(self.spec)

    def epoch(self, epoch: int, first: int, batches: Tensor, part: slice, draw: torch.Generator) -> Iterator[Tensor]:
        accelerator, config = self.accelerator, self.config
        self.prepared.train()
        for step in range(first, len(batches)):
            rows = batches[step]
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr(epoch * len(batches) + step, len(batches))
            for following in batches[step + 1 : step + 2]:
                self.images.expect(following, part)
            images, labels = self.images.augmented(rows, part, epoch, step)
            logits = self.prepared(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing, reduction="sum")
            self.optimizer.zero_grad()
            # Processes average their gradients: the mean over the whole batch, however it was shared out.
            accelerator.backward(loss * (accelerator.num_processes / len(rows)))
            self.optimizer.step()
            yield torch.stack([loss.detach(), (logits.detach().argmax(1) == labels).sum()])

    def network_tensors(self) -> dict[str, Tensor]:
        return {f"model.{name}": value for name, value in self.network.state_dict().items()}

    def load_network(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(tensors)

    def advice(self) -> str:
        return "; lower --lr_teacher, or raise --warmup_epochs"

    def save(self) -> Path:
        if self.done in self.along and not self.behind:  # before the checkpoint, so that none is missing behind it
            on_main(self.accelerator, lambda: str(self.teacher().save_pretrained(self.along[self.done])))
        return super().save()

    def results(self) -> dict[str, Any]:
        teacher, test, device = self.teacher(), self.test, self.accelerator.device
        return {
            "train_accuracy": _accuracy(teacher, self.images.pool, self.accelerator),
            "test_accuracy": None if test is None else _accuracy(teacher, _pool(test, device), self.accelerator),
            "epoch_loss": self.curves["loss"],
            "epoch_accuracy": self.curves["accuracy"],
        }
