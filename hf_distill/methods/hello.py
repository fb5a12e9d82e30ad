"""HeLlO: images of tiled crops, and a projector that computes their soft labels in place of storing them.

*Heavy Labels Out! Dataset Distillation with Label Space Lightening*, ICCV 2025, arXiv:2408.08201.

    p_k  = crop k of a real image at full size,  p̂_k = up(tile_k),  tile_k begins as down(p_k)        (`patches`)
    tile_k <- clamp(Adam(tile_k, ∂ MSE(E(p_k), E(up(tile_k)))))                        what tiling lost, in CLIP's space
    f    = (W + A_W B_W)ᵀ E_{θ + A B}(x)                                          LoRA on CLIP, as few bytes as it takes
    A, B: MSE(f(x), mean_m g_m(x)) + λ CE(f(x), y) on views x of real images               (`projector_training`)
    φ   <- φ − α ∇(MSE(φ(x), f(x)) + β CE(φ(x), y)) on views x of the tiled images             the student (`protocols`)

    symbol   name             meaning
    E        prior            CLIP's image encoder, which everybody has: its bytes are counted apart
    W        text head        embeddings of the class names: computed again, not stored
    g_m      teachers         weak ones, along one training; the last and best one scores the crops
    T        update_steps     steps of the update in CLIP's space, at learning rate `lr_update`
    λ, β     ce_projector     weights of the classes; β belongs to the protocol of the students

No code of the authors is public, and their paper leaves open: which CLIP (its parameter counts say RN50), how nine
teachers become one target (here their mean), λ, β, the texts, and every budget. What is chosen here is in the configs,
and `recipes/configs/hello` marks each value with where it comes from.

An update without loss of size (`factor` 1) has nothing to mend and is left out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..augmentation.shrinking import take_crops
from ..config import HfArg, PathArg, check_at_least, check_choice
from ..data.images import Outline, RealImages
from ..data.ragged import Ragged
from ..data.resampling import resized
from ..distilled.distilled_set import DistilledSet
from ..distilled.epoch_labels import relabel
from ..distilled.label_costs import LabelCosts, label_costs, stored
from ..distilled.labels import HardLabels, LabelSource, MeanLabels, NetworkLabels, ProjectorLabels, StoredLabels
from ..distilled.targets import targets_of
from ..engine.method import Preparation
from ..evaluation.costs import Costs
from ..evaluation.evaluate import distilled_pool, real_pool, student_specs
from ..evaluation.label_comparison import compare_labels, compared_cases
from ..evaluation.protocols import PROTOCOLS, CropProtocol
from ..hub.cards import Paper
from ..hub.results import EvalReport
from ..networks.compiling import in_precision
from ..networks.priors import Prior
from ..networks.teachers import Teacher
from ..rng import derive_seed
from ..runs.rehearsal import Ledger, Stage, rehearse_labels, rehearse_students
from ..training.projectors import ProjectorConfig, check_can_train, rehearse_projector, train_projector
from ..training.small_clip import PriorArguments, UntrainedPrior, find_prior, rehearse_small_clip
from ..training.teachers import TeacherConfig, find_teachers, untrained_teachers
from .patches import PatchConfig, PatchMethod

SOURCES = ("hard", "one_per_image", "stored", "pruned", "projector", "teacher")
PROJECTOR = "label-projector"  # the folder of a projector in that of the run that trains it
BLOCKS_TO_SHARE = 8
KEPT = 10  # logits of each view in the table of costs


def update_in_prior(
    prior: Prior,
    tiles: Tensor,
    originals: Tensor,
    steps: int,
    lr: float,
    accelerator: Accelerator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles that CLIP sees, enlarged, more as it sees the crops they stand for.

    Args:
        prior: The encoder E.
        tiles: (n, C, h, w) float32 in [0, 1], shrunk crops.
        originals: (n, C, H, W) float32 in [0, 1], the crops at full size.
        steps: Steps of Adam; the tiles do not depend on each other.
        lr: Its learning rate, for values in [0, 1].
        accelerator: Says in what precision the encoder is asked.

    Returns:
        The tiles, in [0, 1], and the mean squared difference of the embeddings of each before and after, both (n,).
    """
    size = (originals.shape[2], originals.shape[3])
    embed = in_precision(prior.embed, accelerator)
    with torch.no_grad():
        embedded = embed(originals)  # (n, d)
    x = tiles.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=lr, fused=x.device.type == "cuda")

    def difference() -> Tensor:
        return (embed(resized(x, size)) - embedded).square().mean(1)

    with torch.no_grad():
        before = difference()
    x.grad = torch.zeros_like(x)  # gradients come in the layout of the network's; a fused Adam wants that of x
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(difference().sum(), x)
        x.grad.copy_(gradient)
        optimizer.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    with torch.no_grad():
        return x.detach(), before, difference()


@dataclass
class HeLlOConfig(ProjectorConfig, PatchConfig):
    """Hyper-parameters of HeLlO; those of the crops are RDED's, the others this library's where the paper is silent.

    Example:
        >>> hd.HeLlOConfig(ipc=10, factor=2).per_class
        40
    """

    teachers: list[str] | None = PathArg(
        default=None,
        help="Networks to imitate, the best one last: folders, repositories, or timm:<name> for pretrained weights. "
        "Without it: --weak_teachers of one training, made here.",
    )
    update_steps: int = HfArg(default=100, help="Steps of the update of the tiles in CLIP's space; 0 for none.")
    lr_update: float = HfArg(default=0.01, help="Learning rate of Adam in that update, for pixels in [0, 1].")
    eval_protocol: str = HfArg(default="hello", help="How students are trained on the set, such as hello or rded.")
    compare_labels: list[str] = HfArg(
        default_factory=lambda: list(SOURCES),
        help=f"Labels that students of the images are compared with: some of {', '.join(SOURCES)}, or none.",
    )
    pruned_share: float = HfArg(default=0.1, help="Share of the epochs that pruned labels are stored for.")

    def __post_init__(self) -> None:
        PatchConfig.__post_init__(self)
        ProjectorConfig.__post_init__(self)
        if self.compare_labels == ["none"]:
            self.compare_labels = []
        for name in self.compare_labels:
            check_choice("compare_labels", name, SOURCES)
        if not 0 < self.pruned_share <= 1:
            raise ValueError(f"--pruned_share is {self.pruned_share}; expected above 0, and at most 1")
        for flag in ("update_steps", "lr_update"):
            check_at_least(flag, getattr(self, flag), 0)


class HeLlO(PatchMethod):
    """Tiled crops, mended in CLIP's space, and the projector that labels what students see of them.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "teacher_epochs": 1, "batch_train": 20}
        >>> labels = {"prior_epochs": 1, "weak_teachers": 1, "projector_epochs": 1, "prompts": ["simple"], "lora_r": 2}
        >>> crops = {"num_crops": 2, "factor": 2, "update_steps": 2}
        >>> distilled = hd.HeLlO.distill(train, test, ipc=1, disable_tqdm=True, **net, **labels, **crops)
        >>> distilled.teacher.kind
        'projector'

    Args:
        config: A `HeLlOConfig`.
        train: The images to distil.
        teachers: What the projector imitates; the last one scores the crops, and is the student's architecture. One of
            more classes than `train` is narrowed to these, for crops and labels alike (see `rded`).
        prior: The CLIP model.
        kwargs: See `Method`; on `test` the projector's accuracy is reported.

    Attributes:
        projector: Once the set is distilled; its folder is `label-projector` in that of the run.

    Raises:
        ValueError: A teacher lacks a class of `train` or takes other images, a class has too few images, or the
            protocol looks at no views.
    """

    learns_from = (TeacherConfig, PriorArguments)
    config_class = HeLlOConfig
    uncompiled = "the scoring of crops and the update of tiles"
    config: HeLlOConfig
    protocol: CropProtocol
    free = frozenset({"compare_labels", "pruned_share", *(field.name for field in fields(ProjectorConfig))})
    paper = Paper(
        title="Heavy Labels Out! Dataset Distillation with Label Space Lightening",
        authors="Ruonan Yu, Songhua Liu, Zigeng Chen, Jingwen Ye, Xinchao Wang",
        year=2025,
        arxiv_id="2408.08201",
        bibtex="""@inproceedings{yu2025heavy,
  title={Heavy Labels Out! Dataset Distillation with Label Space Lightening},
  author={Yu, Ruonan and Liu, Songhua and Chen, Zigeng and Ye, Jingwen and Wang, Xinchao},
  booktitle={Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year={2025}
}""",
    )

    def __init__(
        self,
        config: HeLlOConfig,
        train: RealImages,
        *,
        teachers: Sequence[Teacher],
        prior: Prior,
        **kwargs: Any,
    ) -> None:
        teachers = [teacher.narrowed(train.class_names) for teacher in teachers]
        super().__init__(config, train, teachers=teachers, **kwargs)
        check_can_train(train, prior, teachers, config, self.accelerator)  # now, not after the images
        self.teachers = teachers
        self.prior = prior

    @classmethod
    def check(cls, config: HeLlOConfig, train: Outline, accelerator: Accelerator, networks: Sequence[Any] = ()) -> None:
        """As `PatchMethod.check`; students look at views, which a projector can label, and each class has a word."""
        super().check(config, train, accelerator, networks)
        config.words(train.class_names)
        if not isinstance(PROTOCOLS[config.eval_protocol], CropProtocol):
            raise ValueError(
                f"--eval_protocol {config.eval_protocol} looks at no views of the images, which a projector labels; "
                "use hello, rded or cda"
            )

    @classmethod
    def learn(cls, having: Preparation) -> dict[str, Any]:
        """The CLIP model and the teachers that are named, or else those of these settings."""
        (of_teachers, of_prior), config = having.networks, having.config
        prior = find_prior(of_prior, having.train, **having.options)
        config.check_prior(prior, having.train.class_names)
        weak = config.weak_teachers
        options = {"along": weak, "class_names": config.teacher_class_names, **having.options}
        teachers = find_teachers(config.teachers, having.train, having.test, of_teachers, **options)
        return {"teachers": teachers, "prior": prior}

    @classmethod
    def untrained(cls, having: Preparation) -> dict[str, Any]:
        """As `Method.untrained`: teachers along a training, and CLIP's image tower, read where it is a folder."""
        (settings, of_prior), config = having.networks, having.config
        name = of_prior.model_name_or_path
        there = name is not None and Path(name).is_dir()
        prior = (
            find_prior(of_prior, having.train, **having.options) if there else UntrainedPrior(of_prior, having.train)
        )
        names = config.teachers
        teachers = [
            teacher
            for _ in range(config.weak_teachers if names is None else 1)
            for teacher in untrained_teachers(names, settings, having.train)
        ]
        return {"teachers": teachers, "prior": prior.to(having.accelerator.device)}

    def rehearse_ready(self) -> None:
        """As `PatchMethod.rehearse_ready`; and CLIP's image tower."""
        super().rehearse_ready()
        self.prior.embed(torch.empty((1, *self.train.shape), device=self.device))

    def rehearse(self, ledger: Ledger, held_out: RealImages, tested: RealImages) -> list[Stage]:
        """As `BlockDistiller.rehearse`; and the training of the projector, which labels from then on."""
        stages, settings = super().rehearse(ledger, held_out, tested), (self.train, self.prior, self.teachers)
        views, seed = self.protocol.views, self.config.seed
        projector, self.projector = rehearse_projector(*settings, views, self.config, seed, self.accelerator, ledger)
        self.distilled.label_with(ProjectorLabels(self.projector))
        return [*stages, projector]

    def foreseen_files(self) -> dict[str, int]:
        """As `BlockDistiller.foreseen_files`; and the projector, in its folder and in that of the set."""
        own = self.projector.num_bytes + self.projector.text_head_bytes
        base = self.prior.num_bytes if self.prior.origin is None else 0
        files = {**super().foreseen_files(), "label projector, twice": 2 * (own + base) + 6 * self.projector.num_params}
        labels = stored(len(self.distilled), sum(self._stored_epochs.values()), self.distilled.num_classes)
        return files | ({"stored labels to compare, before compression": labels} if labels else {})

    @property
    def _pruned_epochs(self) -> int:
        return max(1, round(self.config.pruned_share * self.protocol.epochs))

    @property
    def _stored_epochs(self) -> dict[str, int]:
        """How many epochs of labels are stored to be compared, by the names of their sources."""
        known = {"stored": self.protocol.epochs, "pruned": self._pruned_epochs}
        return {name: count for name, count in known.items() if name in self.config.compare_labels}

    def rehearse_comparison(self, ledger: Ledger, held_out: RealImages, tested: RealImages) -> list[Stage]:
        """As `Method.rehearse_comparison`: labels that are stored, and students of labels of each source."""
        config, distilled = self.config, self.distilled
        blank = StoredLabels(torch.empty((len(distilled), distilled.num_classes), device=self.device))
        known: dict[str, LabelSource] = dict.fromkeys(SOURCES, blank)
        known |= {"hard": HardLabels(), "projector": ProjectorLabels(self.projector), "teacher": self.online}
        sources = {name: known[name] for name in reversed(SOURCES) if name in config.compare_labels}
        if not sources:
            return []
        epochs = sum(self._stored_epochs.values())
        stages = [rehearse_labels(self.online, distilled.pixel_values, epochs, ledger)] if epochs else []
        ledger.forget()
        (spec,) = student_specs(distilled, None)
        cases = compared_cases(distilled, sources, spec, self.protocol, config.eval_seeds, self.device)
        shown, name = real_pool(distilled, tested, self.accelerator), "label comparison"
        costs = Costs(self.device)
        return [*stages, rehearse_students(name, [cases], held_out, shown, costs, self.accelerator, ledger)]

    @classmethod
    def rehearse_learning(cls, having: Preparation, ledger: Ledger) -> tuple[list[Stage], dict[str, int]]:
        """As `Method.rehearse_learning`; and a small CLIP model, where none is named."""
        _, of_prior = having.networks
        first, small = rehearse_small_clip(having.train, of_prior, having.config.seed, ledger)
        stages, files = super().rehearse_learning(having, ledger)
        return [*first, *stages], small | files

    def identity(self) -> dict[str, Any]:
        """Beside the data and the teacher that scores, CLIP's weights."""
        return {**super().identity(), "prior": self.prior.digest}

    @property
    def classes_at_once(self) -> int:
        """Classes in a block: as many as have `batch_score` tiles together, where tiles are mended.

        There are `BLOCKS_TO_SHARE` blocks at least, or one for each class: processes share blocks, whose images must
        not depend on how many do.
        """
        if self.config.update_steps == 0 or self.config.factor == 1:
            return 1
        most = math.ceil(self.train.num_classes / BLOCKS_TO_SHARE)
        return max(1, min(most, self.config.batch_score // self.config.per_class))

    def tile(self, images: Tensor | Ragged, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Tiles (n, C, *size) uint8 of boxes, mended where they are smaller than an image."""
        small, full = take_crops(images, boxes, size), (self.train.shape[1], self.train.shape[2])
        if not self.config.update_steps or size == full:
            return small
        original = take_crops(images, boxes, full).float() / 255
        prior, config = self.prior.to(self.device), self.config
        mended, *_ = update_in_prior(
            prior, small.float() / 255, original, config.update_steps, config.lr_update, self.accelerator
        )
        return (mended * 255).round().to(torch.uint8)

    def learned_from(self) -> Sequence[Teacher]:
        """The teachers that the projector imitates."""
        return self.teachers

    def run(self) -> DistilledSet:
        """The set with its projector, which is trained after the images are made. All processes call it.

        Raises:
            DistillationDiverged, ValueError: As `BlockDistiller.run` and `train_projector`.
        """
        distilled = super().run()
        self.projector = train_projector(
            self.train,
            self.test,
            self.prior,
            self.teachers,
            self.protocol.views,
            self.config,
            self.output_dir / PROJECTOR,
            seed=self.config.seed,
            accelerator=self.accelerator,
            synthetic=distilled_pool(distilled, self.device),
            resume_from_checkpoint=self.config.resume_from_checkpoint and "latest",
            overwrite=self.config.overwrite_output_dir,
            disable_tqdm=self.config.disable_tqdm,
            callbacks=self.further_callbacks,
        )
        distilled.label_with(ProjectorLabels(self.projector))
        return distilled

    def costs(self) -> LabelCosts:
        """The costs of labels of each kind for this set and the students of its protocol, by formula."""
        projector, classes = self.projector, self.train.num_classes
        return label_costs(
            self.config.ipc * classes,
            self.protocol.epochs,
            classes,
            share=self.config.pruned_share,
            kept=KEPT if classes > KEPT else None,
            projector_params=projector.num_params,
            text_head_bytes=projector.text_head_bytes,
            prior_bytes=projector.prior_bytes,
            teacher_bytes=self.online.num_bytes,
        )

    @property
    def online(self) -> MeanLabels:
        """The labels that the projector imitates, asked for while students train."""
        return MeanLabels([NetworkLabels(teacher) for teacher in self.teachers])

    def sources(self) -> dict[str, LabelSource]:
        """The label sources that `compare_labels` names, by their names in the report. All processes call it.

        Stored and pruned labels are made here, and kept in `labels-stored` and `labels-pruned` of the run's folder.
        """
        pool, views = distilled_pool(self.distilled, self.device), self.protocol.views
        pruned = self._pruned_epochs

        def kept(name: str, epochs: int) -> LabelSource:
            views_of = replace(views, seed=derive_seed(self.config.seed, "labels", name))
            return relabel(
                self.online,
                pool,
                views_of,
                epochs,
                self.output_dir / f"labels-{name}",
                class_names=self.distilled.class_names,
                source=self.train.provenance,
                accelerator=self.accelerator,
                disable_tqdm=self.config.disable_tqdm,
            )

        makers: dict[str, tuple[str, Callable[[], LabelSource]]] = {
            "hard": ("hard", HardLabels),
            "one_per_image": ("one per image", lambda: StoredLabels(targets_of(pool, self.online))),
            "stored": ("stored", lambda: kept("stored", self.protocol.epochs)),
            "pruned": (f"pruned, {pruned} epochs", lambda: kept("pruned", pruned)),
            "projector": ("projector, CLIP apart", lambda: ProjectorLabels(self.projector)),
            "teacher": ("online teacher", lambda: self.online),
        }
        chosen = [makers[name] for name in SOURCES if name in self.config.compare_labels]
        return {name: make() for name, make in chosen}

    def guide(self) -> Teacher:
        """The teacher that scored the crops."""
        return self.teacher

    def evaluate(self, test: RealImages) -> EvalReport:
        """As `Method.evaluate`, with a comparison of label sources on these images."""
        report = super().evaluate(test)
        sources = self.sources()
        if sources:
            report.labels = compare_labels(
                self.distilled,
                sources,
                test,
                held_out=self.held_out,
                protocol=self.protocol,
                num_seeds=self.config.eval_seeds,
                seed=self.config.seed,
                accelerator=self.accelerator,
                output_dir=self.output_dir,
                disable_tqdm=self.config.disable_tqdm,
            )
        return report

    def assemble(self, images: Tensor, labels: Tensor) -> DistilledSet:
        """The images with their classes; the projector labels them once it is trained."""
        named = [{"network": teacher.spec.name, "digest": teacher.digest} for teacher in self.teachers]
        about = {"student": self.teacher.spec.to_dict(), "teachers": named}
        return DistilledSet(images, labels, self.train.class_names, self.preprocessing, config=about)
