"""Training a label projector: LoRA matrices on CLIP learn what weak teachers say of the views that students will see.

HeLlO, arXiv:2408.08201. For views x of real images with classes y, and teachers g_1 to g_M:

    L = MSE(f(x), (g_1(x) + ... + g_M(x)) / M) + λ CE(f(x), y)

    symbol   name              meaning
    f        projector         CLIP's image tower and text head; only the LoRA matrices are trained
    M        weak_teachers     networks along one training; with `teacher_target` "one" each step asks one of them
    λ        ce_projector      weight of the classes; a mixed view belongs to two, each by its share of it

Both logits are centred, that is, reduced by their mean over the classes: a softmax does not see it, and CLIP's cosines
share a large one. `projector_loss` "plain" leaves it in.

A view is mixed with the image behind it in the batch, the last one with the first, as the authors of SRe2L and CDA mix
within a batch: so every image is read and cropped once. The order of an epoch is drawn anew, so anyone is as likely.

Processes share every batch and average their gradients, and a view is a function of (seed, epoch, row, partner): so the
projector is the same with any number of processes, up to the rounding of sums. An epoch is whole batches.
"""

import dataclasses
import hashlib
import json
import logging
import math
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ..augmentation.views import Views
from ..config import HfArg, PathArg, check_at_least, check_choice
from ..data.feed import Pool, upload
from ..data.images import RealImages
from ..data.precision import precision_of
from ..evaluation.accuracy import accuracy
from ..evaluation.crop_students import classes_loss, matching_loss
from ..hub.checks import WORDS, are_words
from ..networks.batches import images_at_once
from ..networks.compiling import backend_of, compiled, forward, in_precision, refuse_fp16
from ..networks.priors import Prior
from ..networks.projector import INDEX, LabelProjector, Lora, check_targets
from ..networks.teachers import Teacher
from ..rng import derive_seed, generator
from ..runs.callbacks import Callback, ProgressBar
from ..runs.claims import claimed
from ..runs.folder import describe_images, where_to_start
from ..runs.processes import on_main
from ..runs.rehearsal import STEPS, Elsewhere, Ledger, Stage
from .epochs import EpochTraining

__all__ = ["ProjectorConfig", "ProjectorStep", "fidelity", "train_projector"]

logger = logging.getLogger(__name__)

PARTNERS = "of the batch"  # whom views are mixed with: a part of what a projector is


@dataclass
class ProjectorConfig:
    """The matrices that adapt CLIP, and how they are trained."""

    prompts: str = HfArg(default="openai", help="Texts that name a class: openai (CLIP's 80), or simple (one).")
    class_words: str | None = PathArg(
        default=None,
        help="What stands for the classes in them: `imagenet` (CLIP's words for the 1,000, in the usual order), or a "
        "JSON file with a list, or with an object by class name. Without it: the class names.",
    )
    lora_r: int = HfArg(default=8, help="Rank of the matrices in the image tower.")
    lora_alpha: int | None = HfArg(default=None, help="Their scale, over the rank. Without it: twice the rank.")
    lora_head_r: int | None = HfArg(
        default=None, help="Rank in the head. Without it: 128, or as many as classes or dimensions allow."
    )
    lora_target_modules: str | None = HfArg(
        default=None, help="Pattern (regular expression) of the modules to adapt. Without it: those known to work."
    )
    projector_epochs: int = HfArg(default=10, help="Passes over the real images.")
    adapt_epochs: int = HfArg(default=0, help="Further passes over the synthetic images that will be asked about.")
    batch_projector: int = HfArg(default=1024, help="Images per step, of all processes together.")
    lr_projector: float = HfArg(default=1e-3, help="Largest learning rate of AdamW.")
    warmup_projector: float = HfArg(default=0.1, help="Share of the steps in which it grows; then half a cosine.")
    ce_projector: float = HfArg(default=0.1, help="Weight of the cross-entropy with the classes.")
    projector_loss: str = HfArg(default="centred", help="Logits are compared centred, or plain (the paper's).")
    weak_teachers: int = HfArg(default=9, help="Teachers, at evenly spaced epochs of one training.")
    teacher_target: str = HfArg(default="mean", help="Imitate the mean of all teachers, or one of them in each step.")

    def __post_init__(self) -> None:
        check_choice("prompts", self.prompts, ("openai", "simple"))
        check_choice("projector_loss", self.projector_loss, ("centred", "plain"))
        check_choice("teacher_target", self.teacher_target, ("mean", "one"))
        for flag in ("lora_r", "projector_epochs", "weak_teachers"):
            check_at_least(flag, getattr(self, flag), 1)
        for flag in ("lora_alpha", "lora_head_r"):
            if getattr(self, flag) is not None:
                check_at_least(flag, getattr(self, flag), 1)
        check_at_least("batch_projector", self.batch_projector, 2)
        for flag in ("adapt_epochs", "lr_projector", "warmup_projector", "ce_projector"):
            check_at_least(flag, getattr(self, flag), 0)
        if self.warmup_projector >= 1:
            raise ValueError(f"--warmup_projector is {self.warmup_projector}; expected 0 up to, not including, 1")

    def words(self, class_names: Sequence[str]) -> list[str] | None:
        """The words that stand for the classes in the prompts; None for their names.

        Raises:
            ValueError: There is no such file, or it does not say a word for each class.
        """
        if self.class_words is None:
            return None
        if self.class_words == "imagenet":
            from open_clip import IMAGENET_CLASSNAMES

            words: Any = list(IMAGENET_CLASSNAMES)
        else:
            try:
                words = json.loads(Path(self.class_words).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"--class_words {self.class_words} cannot be read ({reason}); expected `imagenet` or a JSON file"
                ) from error
        if isinstance(words, dict):
            missing = [name for name in class_names if name not in words]
            if missing:
                raise ValueError(f"--class_words {self.class_words} has no word for the class {missing[0]!r}; add it")
            words = [words[name] for name in class_names]
        if not isinstance(words, list) or len(words) != len(class_names):
            count = len(words) if isinstance(words, list) else "no list of"
            raise ValueError(
                f"--class_words {self.class_words} has {count} words, and there are {len(class_names)} classes; "
                "expected one for each, in order"
            )
        if not are_words(words):
            raise ValueError(f"--class_words {self.class_words} has {reprlib.repr(words)}; expected {WORDS}")
        return words

    def check_prior(self, prior: Prior, class_names: Sequence[str]) -> None:
        """Raise a `ValueError` where the words, the ranks or the prior cannot be: before anything is trained."""
        self.words(class_names)
        lora = self.lora().fitted(len(class_names), prior.dim, self.lora_target_modules or prior.default_targets)
        check_targets(prior.visual, str(lora.target_modules))

    def lora(self) -> Lora:
        """The adapter that the flags describe."""
        return Lora(
            r=self.lora_r,
            alpha=self.lora_alpha or 2 * self.lora_r,
            head_r=self.lora_head_r,
            target_modules=self.lora_target_modules,
        )

    def lr(self, step: int, steps: int) -> float:
        """The learning rate of step number `step`, from 0, of `steps`: a line up to the largest, half a cosine down."""
        warmup = self.warmup_projector * steps
        if step < warmup:
            return self.lr_projector * (step + 1) / (math.floor(warmup) + 1)
        return self.lr_projector * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def describe(
    real: RealImages,
    prior: Prior,
    teachers: Sequence[Teacher],
    views: Views,
    config: ProjectorConfig,
    seed: int,
    accelerator: Accelerator,
    synthetic: Pool | None = None,
) -> dict[str, Any]:
    """Everything that decides what a projector becomes, as JSON types."""
    images = None
    if synthetic is not None:  # that the fidelity is measured on, and perhaps adapted to
        source = synthetic.source
        pixels = source if isinstance(source, Tensor) else source.uint8(range(len(source)))
        images = hashlib.sha256(pixels.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    described = {
        "prior": prior.sha256,
        "teachers": [teacher.digest for teacher in teachers],
        **describe_images(real),
        "views": views.to_config(),
        "seed": seed,
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(ProjectorConfig)},
        "words": config.words(real.class_names),
        "synthetic": images,
        "partners": PARTNERS,
        **precision_of(accelerator),
        "compiled": backend_of(accelerator),  # other last bits
    }
    return json.loads(json.dumps(described))


def check_can_train(
    real: RealImages, prior: Prior, teachers: Sequence[Teacher], config: ProjectorConfig, accelerator: Accelerator
) -> None:
    """Raise a `ValueError` where `train_projector` would, as far as it is known before there are synthetic images."""
    refuse_fp16(accelerator, "projector training")
    if not teachers:
        raise ValueError("there are no teachers for the projector to imitate; expected one or more")
    for teacher in teachers:
        teacher.check_matches(real)
        if teacher.preprocessing.fingerprint() != real.preprocessing.fingerprint():
            raise ValueError(
                f"the teacher {teacher.spec.name} ({teacher.digest}) sees images through another preprocessing than "
                f"these; give its --mean {list(teacher.preprocessing.mean)} and --std {list(teacher.preprocessing.std)}"
            )
    config.check_prior(prior, real.class_names)


def train_projector(
    real: RealImages,
    test: RealImages | None,
    prior: Prior,
    teachers: Sequence[Teacher],
    views: Views,
    config: ProjectorConfig,
    directory: str | Path,
    *,
    seed: int,
    accelerator: Accelerator,
    synthetic: Pool | None = None,
    resume_from_checkpoint: str | None = None,
    overwrite: bool = False,
    disable_tqdm: bool = False,
    callbacks: Sequence[Callback] = (),
) -> LabelProjector:
    """The projector of these settings, trained, saved in `directory` and loaded from there. All processes call it.

    A checkpoint is written after every epoch, and after the step in which a recipe is asked to stop; the last one
    stays. On CPUs an interrupted run that is continued gives the bits that it would have given.

    Args:
        real: The images to train on, whose preprocessing the teachers share.
        test: Images to report accuracy on.
        prior: The CLIP model to adapt.
        teachers: What the projector imitates, the best one last.
        views: What students see of the synthetic images: what the projector will be asked about. The seed is another,
            and real images are seen without the shuffle of tiles, which they do not have.
        config: The settings.
        directory: On storage that the processes share.
        seed: The one seed.
        accelerator: Processes, device and precision.
        synthetic: Images of the distilled set: to adapt to, and to report the fidelity on. Real ones if not given.
        resume_from_checkpoint: `latest` or a checkpoint folder; a projector that is there already is only loaded.
        overwrite: Replace what `directory` holds.
        disable_tqdm: No progress bars.
        callbacks: Look on; see `EpochTraining`.

    Raises:
        ValueError: `directory` holds another run, or one that is neither to be resumed nor replaced; a teacher is for
            other images or classes, or says something that is no number; the loss stops being finite.
        OSError: A checkpoint could not be written; those before it are whole.
    """
    check_can_train(real, prior, teachers, config, accelerator)
    if config.adapt_epochs and synthetic is None:
        raise ValueError(f"--adapt_epochs is {config.adapt_epochs} and there is no distilled set to adapt to; use 0")
    folder = Path(directory)
    training = describe(real, prior, teachers, views, config, seed, accelerator, synthetic)
    with claimed(folder, accelerator):
        start = on_main(
            accelerator,
            lambda: where_to_start(
                folder,
                INDEX,
                training,
                # What was finished before partners were of the batch serves; what was begun is not gone on with.
                lambda index: {"partners": PARTNERS, **(index.get("training") or {})},
                what="projector",
                resume=resume_from_checkpoint,
                overwrite=overwrite,
            ),
        )
        if start == INDEX:
            return LabelProjector.from_pretrained(folder, prior=prior).to(accelerator.device)
        run = _ProjectorTraining(
            real,
            test,
            prior,
            teachers,
            views,
            config,
            synthetic,
            folder=folder,
            training=training,
            seed=seed,
            accelerator=accelerator,
            callbacks=[ProgressBar(disable_tqdm), *callbacks],
        )
        if start:
            run.resume(Path(start))
        results = run.train()
        projector, device = run.projector, accelerator.device
        projector.making = run.making
        projector.config |= {
            "source": real.provenance,
            "training": training,
            "teachers": [_named(teacher) for teacher in teachers],
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": accelerator.num_processes,
            "results": results,
        }
        on_main(accelerator, lambda: str(projector.save_pretrained(folder)))
        return LabelProjector.from_pretrained(folder, prior=prior).to(device)


def rehearse_projector(
    real: RealImages,
    prior: Prior,
    teachers: Sequence[Teacher],
    views: Views,
    config: ProjectorConfig,
    seed: int,
    accelerator: Accelerator,
    ledger: Ledger,
) -> tuple[Stage, LabelProjector]:
    """What the training of a projector holds and computes on the meta device, and the projector."""
    world = accelerator.num_processes
    run = _ProjectorTraining(
        real,
        None,
        prior,
        teachers,
        views,
        dataclasses.replace(config, batch_projector=max(2, config.batch_projector // world)),
        None,
        folder=Path("untrained"),
        training={},
        seed=seed,
        accelerator=Elsewhere(accelerator, processes=1),
        callbacks=[],
    )
    batch, counts = run.batches[0], []
    ledger.forget()
    steps = run.epoch(0, 0, torch.arange(batch).expand(STEPS, -1), slice(0, batch), generator(seed, "rehearsal"))
    for _ in steps:
        counts.append(ledger.flop)
    each = (counts[-1] - counts[-2]) / batch
    stage = ledger.stage("projector", each * config.projector_epochs * len(real), f"{config.projector_epochs} epochs")
    return stage, run.projector.eval()


def _named(teacher: Teacher) -> dict[str, Any]:
    origin = teacher.origin
    where = {} if origin is None else {"repo_id": origin.repo_id, "revision": origin.revision}
    measured = {"test_accuracy": teacher.results.get("test_accuracy"), "epoch": teacher.config.get("epoch")}
    return {"network": teacher.spec.name, "digest": teacher.digest, **measured, **where}


@torch.no_grad()
def fidelity(
    projector: LabelProjector,
    teachers: Sequence[Teacher],
    pool: Pool,
    views: Views,
    *,
    epochs: int = 1,
    accelerator: Accelerator,
    batch_size: int = 256,
) -> dict[str, float]:
    """The likeness of a projector to the mean of its teachers on views of a pool. All processes call it and get it.

    Args:
        projector: What is asked.
        teachers: What it imitates.
        pool: The images.
        views: What is seen of them.
        epochs: Views of each image.
        batch_size: Images at once.

    Returns:
        "agreement", the share of views in [0, 1] whose largest logit is the same class; "kl", the mean of
        KL(softmax(g) ‖ softmax(f)) in nats; "views", how many.
    """
    sums = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
    mine = torch.arange(len(pool)).tensor_split(accelerator.num_processes)[accelerator.process_index]
    answer = in_precision(forward, accelerator)
    for epoch in range(epochs):
        for rows in mine.split(batch_size):
            x = _laid_out(views(pool.images, rows, epoch, len(pool), pool.black))
            ours, theirs = answer(projector, x), _mean(teachers, x, answer)
            kl = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="sum")
            sums += torch.stack([(ours.argmax(1) == theirs.argmax(1)).sum(), kl]).double()
    agreement, kl = (accelerator.reduce(sums) / (epochs * len(pool))).tolist()
    return {"agreement": agreement, "kl": kl, "views": epochs * len(pool)}


def _mean(teachers: Sequence[Teacher], x: Tensor, answer: Callable[..., Tensor]) -> Tensor:
    """The mean logits (n, K) float32 of `teachers`."""
    return torch.stack([answer(teacher.folded, x) for teacher in teachers]).mean(0)


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cuda" else x


class ProjectorStep:
    """One step of training on views that are there: LoRA's gradients, summed over the processes, and AdamW.

    Args:
        projector: What learns; in training mode, on the device.
        config: The loss and the optimizer.
        accelerator: Processes and precision; and whether the forward passes are compiled.

    Attributes:
        parameters: What is trained.
        optimizer: What trains it.
    """

    def __init__(self, projector: LabelProjector, config: ProjectorConfig, accelerator: Accelerator) -> None:
        self.projector, self.config, self.accelerator = projector, config, accelerator
        self.parameters = projector.parameters_to_train()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr_projector, weight_decay=0.0, foreach=accelerator.device.type == "cuda"
        )
        self._answer = in_precision(compiled(forward, accelerator), accelerator)

    def losses(
        self, x: Tensor, teachers: Sequence[Teacher], classes: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The losses of views, and whether the projector's largest logit is that of the teachers, both (n,).

        Args:
            x: (n, C, H, W), on the device.
            teachers: The mean of whose logits is imitated.
            classes: (n,) each, on the device: the classes of the images, those of their partners, and the share of
                each view that is its own image's.
        """
        with torch.no_grad():
            theirs = _mean(teachers, x, self._answer)
        ours = self._answer(self.projector, x)
        losses = matching_loss(ours, theirs, self.config.projector_loss == "centred")
        if self.config.ce_projector:
            losses = losses + self.config.ce_projector * classes_loss(ours, *classes)
        return losses, ours.detach().argmax(1) == theirs.argmax(1)

    def __call__(
        self, x: Tensor, teachers: Sequence[Teacher], classes: tuple[Tensor, Tensor, Tensor], lr: float, size: int
    ) -> Tensor:
        """Take the step. All processes call it.

        Args:
            x, teachers, classes: As in `losses`; the views of this process.
            lr: Learning rate.
            size: Views of all processes.

        Returns:
            (2,) float64: the sum of the losses before the step, and how often projector and teachers agreed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses, agreed = self.losses(x, teachers, classes)
        self._take(torch.autograd.grad(losses.sum() / size, self.parameters))
        self.optimizer.step()
        return torch.stack([losses.detach().sum(), agreed.sum()]).double()

    def _take(self, gradients: Sequence[Tensor]) -> None:
        """Give the parameters the sum of all processes' gradients, no longer than 1."""
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        if self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(flat)
        flat = flat * (1 / flat.norm().clamp(min=1))
        for parameter, part in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = part.view_as(parameter)


class _ProjectorTraining(EpochTraining):
    """One training of a projector.

    Args:
        real: The images to train on.
        test: Images to report accuracy on.
        prior: The CLIP model to adapt.
        teachers: What the projector imitates, the best one last.
        views: What students will see.
        config: The settings.
        synthetic: Images of the distilled set, or None.
        folder, training, seed, accelerator, callbacks: As in `EpochTraining`.
    """

    measures: ClassVar = {"loss": "losses", "agreement": "agreements"}

    def __init__(
        self,
        real: RealImages,
        test: RealImages | None,
        prior: Prior,
        teachers: Sequence[Teacher],
        views: Views,
        config: ProjectorConfig,
        synthetic: Pool | None,
        *,
        folder: Path,
        training: dict[str, Any],
        seed: int,
        accelerator: Accelerator,
        callbacks: Sequence[Callback],
    ) -> None:
        device = accelerator.device
        self.config, self.test, self.synthetic = config, test, synthetic
        self.real = Pool(real, real.labels, preprocessing=real.preprocessing, device=device)
        self.pools = [self.real] * config.projector_epochs  # what each epoch looks at
        if synthetic is not None:
            self.pools += [synthetic] * config.adapt_epochs
        sizes = [len(pool) for pool in self.pools]
        super().__init__("projector", sizes, config.batch_projector, folder, training, seed, accelerator, callbacks)
        self.views = dataclasses.replace(views, seed=derive_seed(seed, "projector", "views"))
        self.teachers = [teacher.to(device) for teacher in teachers]
        names, sentences = real.class_names, {"templates": config.prompts, "words": config.words(real.class_names)}
        seeds = derive_seed(seed, "projector", "init")
        self.network = self.projector = LabelProjector(
            prior, names, real.preprocessing, **sentences, lora=config.lora(), seed=seeds
        ).to(device)
        self.step = ProjectorStep(self.projector, config, accelerator)
        self.optimizer = self.step.optimizer
        for batch in self.batches:
            if batch < accelerator.num_processes:
                raise ValueError(
                    f"batches of {batch} images for {accelerator.num_processes} processes; raise --batch_projector, "
                    "or start fewer processes"
                )

    def epoch(self, epoch: int, first: int, batches: Tensor, part: slice, draw: torch.Generator) -> Iterator[Tensor]:
        pool, config, background = self.pools[epoch], self.config, self.pools[epoch].black
        asked = torch.randint(len(self.teachers), (len(batches),), generator=draw).tolist()
        views, device = self._views(pool), self.accelerator.device
        around = torch.arange(part.start, part.stop + 1) % batches.shape[1]  # and the partner of the last one
        before, total = sum(self.steps[:epoch]), sum(self.steps)
        self.projector.train()
        for step in range(first, len(batches)):
            rows = batches[step, around]
            for following in batches[step + 1 : step + 2, around]:
                pool.expect(following)
            x, share = views.in_a_row(pool.images, rows, epoch, background)
            labels = pool.labels[upload(rows, device)]
            classes = (labels[:-1], labels[1:], upload(share, device))
            teachers = self.teachers if config.teacher_target == "mean" else [self.teachers[asked[step]]]
            lr = config.lr(before + step, total)
            yield self.step(_laid_out(x), teachers, classes, lr, batches.shape[1])

    def network_tensors(self) -> dict[str, Tensor]:
        return {f"model.{index}": parameter.detach() for index, parameter in enumerate(self.step.parameters)}

    def load_network(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for index, parameter in enumerate(self.step.parameters):
                parameter.copy_(tensors[str(index)])

    def advice(self) -> str:
        return (
            ": a teacher's logits are not, or the learning rate is too high; check the teachers, or lower "
            f"--lr_projector {self.config.lr_projector:g}"
        )

    def _views(self, pool: Pool) -> Views:
        """What is seen of real images, or of those of the distilled set."""
        return self.views.for_real_images() if pool is self.real else self.views

    def results(self) -> dict[str, Any]:
        """Accuracies in [0, 1] on test images, and the fidelity on views that it was not trained on."""
        self.projector.round_parameters()
        pool = self.synthetic or self.real
        views = dataclasses.replace(self._views(pool), seed=derive_seed(self.seed, "projector", "fidelity"))
        options = {"accelerator": self.accelerator, "batch_size": self.config.batch_projector}
        measured: dict[str, Any] = fidelity(self.projector, self.teachers, pool, views, **options)
        measured["asked_about"] = "real images" if self.synthetic is None else "distilled images"
        if self.test is not None:
            measured |= self._accuracies(self.test)
        return {**measured, "epoch_loss": self.curves["loss"], "epoch_agreement": self.curves["agreement"]}

    def _accuracies(self, test: RealImages) -> dict[str, float]:
        """Those on test images of the projector, of the last teacher, and of CLIP as it came."""
        shown = Pool(test, test.labels, preprocessing=self.projector.preprocessing, device=self.accelerator.device)
        return on_main(
            self.accelerator,
            lambda: {
                "test_accuracy": accuracy(self.projector, shown),
                "teacher_accuracy": accuracy(self.teachers[-1].folded, shown),
                "zero_shot_accuracy": self._zero_shot(shown),
            },
        )

    @torch.no_grad()
    def _zero_shot(self, pool: Pool) -> float:
        right = [
            (self.projector.zero_shot(images).argmax(1) == pool.labels[rows.to(pool.labels.device)]).sum()
            for rows, images in pool.batches(images_at_once(self.projector, pool))
        ]
        return torch.stack(right).sum().item() / len(pool)
