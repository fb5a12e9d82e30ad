"""How students are trained, under the names that reports give: `PROTOCOLS`, which `docs/protocols.md` compares with the
papers value by value."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor
from typing_extensions import Self

from ..augmentation.dsa import DEFAULT_STRATEGY, DSA
from ..augmentation.views import Views, ViewSource
from ..config import check_at_least
from ..distilled.labels import LabelSource, StoredLabels
from ..hub.comparisons import UNAUGMENTED
from ..rng import derive_seed

__all__ = [
    "PROTOCOLS",
    "QUICK",
    "Budget",
    "CropProtocol",
    "EvalProtocol",
    "ProbeProtocol",
    "TrainingProtocol",
    "rded_batch",
]


@dataclass(frozen=True)
class Budget:
    """The end of a training whose length follows another one.

    Rates rise and fall at the same shares of it as in the epochs of its protocol, each for its share of the steps.

    Attributes:
        title: What is equal for all that are compared, for people.
        steps: Of the optimizer, which end the training wherever in an epoch they do.
        flop: Of a student and of what labels for it, to which the steps come nearest; None where steps are equal.
    """

    title: str
    steps: int
    flop: int | None = None

    def epoch_at(self, step: int, epochs: int) -> int:
        """The epoch, of a training of `epochs`, in which as large a share of it is over as of this one before `step`.

        Both count from 0. After the last step it stays the last.
        """
        return min(step, self.steps - 1) * epochs // self.steps


@dataclass(frozen=True)
class TrainingProtocol(ABC):
    """What every way to train a student has: `EvalProtocol`, `CropProtocol` and `ProbeProtocol` add the rest.

    Attributes:
        name: What reports call it.
        epochs: Passes over a small set.
        full_data_epochs: Passes over all real images.
        batch_size: Images per step; a smaller set is one batch.
        weight_decay: Of weights, by the optimizer.
        lrs: Learning rates to choose from on held-out images; the first is used where there are none.
        full_data_batch_size: Images per step on all real images; `batch_size` if not given.
        source: Where the numbers come from.
        budget: What ends a training whose length follows another one; None where epochs alone do.
    """

    name: str
    epochs: int
    full_data_epochs: int
    batch_size: int = 256
    weight_decay: float = 5e-4
    lrs: tuple[float, ...] = (0.01,)
    full_data_batch_size: int | None = None
    source: str = ""
    budget: Budget | None = None

    def __post_init__(self) -> None:
        for flag in ("epochs", "full_data_epochs"):
            check_at_least(flag, getattr(self, flag), 1)
        for flag in ("batch_size", "full_data_batch_size"):
            check_at_least(flag, getattr(self, flag), 2)
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"protocol {self.name!r} has the learning rates {self.lrs}; expected some above 0")

    def _check_known(self, field: str, known: tuple[str, ...]) -> None:
        if getattr(self, field) not in known:
            value = getattr(self, field)
            raise ValueError(f"protocol {self.name!r} has {field}={value!r}; expected one of {', '.join(known)}")

    @property
    @abstractmethod
    def per_view(self) -> bool:
        """True where labels are those of each view of an image, and not one for each image."""

    @property
    def title(self) -> str:
        """The name in the rows of reports, with the batches where they are not the same for every set, and with what
        all rows were trained for where that is a budget."""
        return ", ".join([self.name, *self._details(), *([self.budget.title] if self.budget else [])])

    def _details(self) -> list[str]:
        return [] if self.full_data_batch_size is None else [f"batches of {self.batch_size}"]

    def for_set(self, ipc: int, classes: int, factor: int = 1) -> Self:
        """The protocol for a set of `ipc` images of each class, each of `factor` x `factor` tiles: most follow nothing.

        Whoever looks a protocol up by its name asks for this, and the sets that are compared with a set get its own.
        """
        return self

    def for_real_images(self) -> Self:
        """The protocol for images as they were taken, of which none has tiles."""
        return self

    def for_full_data(self) -> Self:
        """The protocol for all real images, with their batches."""
        real = self.for_real_images()
        return real if self.full_data_batch_size is None else replace(real, batch_size=self.full_data_batch_size)

    def with_augmentation(self, dsa_strategy: str) -> Self:
        """The protocol with the DSA that a set was made with, where students see DSA at all."""
        return self

    @property
    @abstractmethod
    def augments(self) -> bool:
        """True where `without_augmentation` is another training: students do not see images as they are."""

    @abstractmethod
    def without_augmentation(self) -> Self:
        """The protocol with images as they are, preprocessed: neither DSA nor crops, flips, mixes and shuffles.

        Its name says so. Everything else stays, the steps too; labels of views are those of whole images then.
        """
        return replace(self, name=self.name + UNAUGMENTED)

    def to_config(self) -> dict[str, Any]:
        """The values in use, as JSON types, without the name, the source, and what each row of a report says."""
        apart = ("name", "source", "epochs", "full_data_epochs", "lrs", "budget", "seen_once")
        values = {key: value for key, value in asdict(self).items() if key not in apart and value is not None}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


@dataclass(frozen=True)
class EvalProtocol(TrainingProtocol):
    """The way to train a student on whole images: SGD with momentum and DSA, and a learning rate that drops.

    Example:
        >>> short = hd.EvalProtocol("short", epochs=4, full_data_epochs=1)
        >>> [factor for factor, _ in short.schedule(4)]
        [1.0, 1.0, 1.0, 0.1]

    Attributes:
        momentum: Of SGD.
        dsa_strategy: Augmentation of every batch.
        decay_epochs: Fractions f of training at which the rate drops. Of epochs 0 to E, the last at the full rate is
            number ⌊f·E⌋ + 1 where the momentum is emptied, as in code that makes a new optimizer after it; it is number
            ⌊f·E⌋ where the momentum is kept, as torch's `MultiStepLR([⌊f·E⌋ + 1])` has it.
        decay: Factor of each drop.
        reset_momentum: A drop also empties the momentum.
        loss: With soft labels "ce", the cross-entropy with their softmax, or "l1", the mean distance from the logits
            themselves. With hard labels it is the cross-entropy.
        ema: Decay d of a running mean of the parameters, which is the network that is tested: after step i, from 1, it
            moves by 1 − min(d, (1 + i) / (10 + i)) of its way to them. None tests the parameters themselves.
    """

    momentum: float = 0.9
    dsa_strategy: str = DEFAULT_STRATEGY
    decay_epochs: tuple[float, ...] = (0.5,)
    decay: float = 0.1
    reset_momentum: bool = True
    loss: str = "ce"
    ema: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_known("loss", ("ce", "l1"))
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"protocol {self.name!r} has ema={self.ema}; expected a decay between 0 and 1, or none")

    @property
    def per_view(self) -> bool:
        """Each image has one label."""
        return False

    def with_augmentation(self, dsa_strategy: str) -> Self:
        """The protocol with another `dsa_strategy`; one that augments nothing stays as it is."""
        return replace(self, dsa_strategy=dsa_strategy) if self.augments else self

    @property
    def augments(self) -> bool:
        """As of any: a strategy that is empty, or "none", does not."""
        return bool(DSA(self.dsa_strategy).operations)

    def without_augmentation(self) -> Self:
        """As of any."""
        return replace(super().without_augmentation(), dsa_strategy="")

    def ema_weight(self, step: int) -> float:
        """The share of its way to the parameters that their running mean goes after step number `step`, from 1."""
        return 1.0 if self.ema is None else 1 - min(self.ema, (1 + step) / (10 + step))

    def schedule(self, epochs: int) -> list[tuple[float, bool]]:
        """For each of `epochs` the factor of the learning rate, and whether the momentum is emptied before it."""
        last_full = {math.floor(fraction * (epochs - 1)) + self.reset_momentum for fraction in self.decay_epochs}
        factors = [self.decay ** sum(epoch > last for last in last_full) for epoch in range(epochs)]
        return [(factor, self.reset_momentum and epoch - 1 in last_full) for epoch, factor in enumerate(factors)]


@dataclass(frozen=True)
class CropProtocol(TrainingProtocol):
    """The way of SRe2L, CDA and RDED to train a student: on crops of mixed images, with the labels of these very views.

    Soft labels are logits: the loss is KL(softmax(z_T / τ) ‖ softmax(z_S / τ)), the mean over a batch. With hard labels
    it is the cross-entropy. Views are mixed where labels are of views, and not where they are of whole images.

    Attributes:
        views: What is seen of each image in each epoch.
        optimizer: "adamw" or "sgd".
        momentum: Of SGD; AdamW has none.
        decay_all: Weight decay acts on biases and normalisation too, and not on weights of two dimensions or more only.
        temperature: τ.
        squared: Multiply the loss by τ², so that gradients keep their size.
        loss: "kl", or "mse": both logits are reduced by their mean over the classes, which a softmax does not see, and
            the squares of their differences averaged over the classes; τ has no part in it.
        ce_weight: β; a mixed view belongs to two classes, each by its share of it.
        warmup_epochs: Of a rate that rises linearly from a hundredth; it then falls along a cosine.
        cosine: Length of half the cosine, in trainings: 1 ends at 0, and 2 at half the rate.
        label_smoothing: Share of every target, hard or soft, that is spread over all classes.
        batchnorm_updates: How often each batch enters the running statistics. Code that looks at a batch once more, in
            training mode, before its step has 2.
        follows_set: Batches, crops and shuffles are functions of the set, as RDED's are: see `for_set`.
        accumulate: Parts of a batch that go through the student one after the other: their gradients are those of the
            whole, and BatchNorm has the statistics of each part. A batch of less than two images for each stays whole.
        falls_from: Images per class from which on `cosine` is 1, as FADRM's follows the set; None where it does not.
    """

    views: Views = Views()
    optimizer: str = "adamw"
    momentum: float | None = None
    decay_all: bool = False
    temperature: float = 20.0
    squared: bool = False
    loss: str = "kl"
    ce_weight: float = 0.0
    warmup_epochs: int = 0
    cosine: float = 1.0
    label_smoothing: float = 0.0
    batchnorm_updates: int = 1
    follows_set: bool = False
    accumulate: int = 1
    falls_from: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_known("optimizer", ("adamw", "sgd"))
        self._check_known("loss", ("kl", "mse"))
        check_at_least("batchnorm_updates", self.batchnorm_updates, 1)
        check_at_least("accumulate", self.accumulate, 1)
        check_at_least("falls_from", self.falls_from, 1)
        if (self.momentum is None) != (self.optimizer == "adamw"):
            has = "takes no momentum" if self.optimizer == "adamw" else "needs a momentum, such as 0.9"
            raise ValueError(f"protocol {self.name!r} has momentum={self.momentum}; {self.optimizer} {has}")

    @property
    def per_view(self) -> bool:
        """Labels are those of each view."""
        return True

    def _details(self) -> list[str]:
        """As of any, with the batches of one that follows the set, and the tiles that are shuffled or, on real images,
        that say how much crops are."""
        batches = [f"batches of {self.batch_size}"] if self.follows_set else super()._details()
        if self.falls_from is not None:
            return [*batches, "rate to 0" if self.cosine == 1 else "rate to a half"]
        if self.views.shuffle > 1:
            return [*batches, f"{self.views.shuffle}x{self.views.shuffle} tiles"]
        if self.follows_set and self.views.crop == "resized":
            factor = round(1 / self.views.scale[0])
            return [*batches, f"crops as of {factor}x{factor} tiles"]
        return batches

    def for_set(self, ipc: int, classes: int, factor: int = 1) -> Self:
        """RDED's and FADRM's, for a set of `ipc` images of each class, each of `factor` x `factor` tiles.

        FADRM's rate falls to 0 for sets of many images and to half of it for small ones, and RDED's batches are
        those of `rded_batch`. Its crops have 1 / factor of the area at least, and tiles are shuffled; an image of one
        tile is neither cropped nor shuffled. Others follow nothing.
        """
        if self.falls_from is not None:
            return replace(self, cosine=1.0) if ipc >= self.falls_from else self
        if not self.follows_set:
            return self
        crop = "resized" if factor > 1 else "none"
        views = replace(self.views, crop=crop, scale=(1 / factor, 1.0), shuffle=factor)
        return replace(self, batch_size=rded_batch(ipc, classes), views=views)

    def for_real_images(self) -> Self:
        """The protocol without a shuffle, which would cut up what is no tile; crops and batches stay."""
        return replace(self, views=self.views.for_real_images())

    @property
    def augments(self) -> bool:
        """As of any."""
        return self.views != self.without_augmentation().views

    def without_augmentation(self) -> Self:
        """As of any."""
        views = replace(self.views, crop="none", flip=0.0, mix="none", shuffle=1)
        return replace(super().without_augmentation(), views=views)

    def to_config(self) -> dict[str, Any]:
        """As of any; the loss "mse" has no use for a temperature."""
        unused = ("falls_from",)  # `cosine` says it
        if self.loss == "mse":
            unused += ("temperature", "squared")
        if self.accumulate == 1:  # earlier reports say nothing of it
            unused += ("accumulate",)
        config = {key: value for key, value in super().to_config().items() if key not in unused}
        return {**config, "views": self.views.to_config()}

    def rate(self, epoch: int, epochs: int) -> float:
        """The factor of the learning rate in `epoch`, from 0."""
        if epoch < self.warmup_epochs:
            return 0.01 + 0.99 * epoch / self.warmup_epochs
        left = (epochs - self.warmup_epochs) * self.cosine
        return (1 + math.cos(math.pi * (epoch - self.warmup_epochs) / left)) / 2

    def views_for(self, targets: Tensor | LabelSource, seed: int) -> ViewSource:
        """The views that a student of `seed` sees: those that stored labels were made for, else views of the protocol.

        They are not mixed where labels are of whole images, as classes and `StoredLabels` are: a mix would have those
        of the first image alone.
        """
        if isinstance(targets, Tensor | StoredLabels):
            return replace(self.views, seed=derive_seed(seed, "views"), mix="none")
        return targets.views or replace(self.views, seed=derive_seed(seed, "views"))


@dataclass(frozen=True)
class ProbeProtocol(TrainingProtocol):
    """The way to train a linear head on a frozen backbone: Adam, a cosine that ends at 0, and flipped crops.

    Images are brought to the size of the backbone, whatever theirs is, and each has one label: classes, or logits of
    which the softmax is learned, both with the cross-entropy. A step of B images has B / `lr_images` of the learning
    rate, where B is the size of a whole batch.

    Attributes:
        scale: Smallest and largest area of a crop, as a share of the image.
        flip: Probability of mirroring.
        lr_images: Images of a step that the learning rates are of.
        seen_once: Features are computed once, of images as they are tested, and no view is drawn: so on all real
            images, whatever `scale` and `flip` say.
    """

    batch_size: int = 100
    weight_decay: float = 0.0
    lrs: tuple[float, ...] = (0.001,)
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    lr_images: int = 256
    seen_once: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("lr_images", self.lr_images, 1)
        low, high = self.scale
        if not (0 < low <= high <= 1 and 0 <= self.flip <= 1):
            raise ValueError(
                f"protocol {self.name!r} has scale={self.scale} and flip={self.flip}; expected shares of an image, the "
                "smallest first, and a probability"
            )

    @property
    def per_view(self) -> bool:
        """Each image has one label."""
        return False

    def for_full_data(self) -> Self:
        """As of any; the features of all real images are computed once."""
        return replace(super().for_full_data(), seen_once=True)

    @property
    def augments(self) -> bool:
        """As of any."""
        return not self.seen_once

    def without_augmentation(self) -> Self:
        """As of any: with images as they are tested, whose features are computed once."""
        return replace(super().without_augmentation(), scale=(1.0, 1.0), flip=0.0, seen_once=True)

    def rate(self, epoch: int, epochs: int) -> float:
        """The factor of the learning rate in `epoch`, from 0."""
        return (1 + math.cos(math.pi * epoch / epochs)) / 2


def rded_batch(ipc: int, classes: int) -> int:
    """Images per step in the code of RDED (arXiv:2312.03526), for `ipc` images of each of `classes`.

    It is 10, 50 and 100 for 1, 10 and 50 images per class of 10 classes, twice that for those of 100 and of 1,000, and
    100 for Tiny-ImageNet; never more than there are images. Its code has no other numbers. Here images per class
    between these take the batch of the next smaller number, other sets of 100 classes or more that of 100 and 1,000,
    smaller ones that of 10; and any set of 200 classes is taken for Tiny-ImageNet, whatever its size in pixels.
    """
    batch = next(size for least, size in ((50, 100), (10, 50), (0, 10)) if ipc >= least)
    if classes == 200:
        batch = 100
    elif classes >= 100:
        batch *= 2
    return max(2, min(batch, ipc * classes))


SRE2L_TINY = CropProtocol(
    "sre2l-tiny",
    epochs=100,
    full_data_epochs=100,
    batch_size=256,
    weight_decay=1e-4,
    lrs=(0.2,),
    views=Views(mix="none"),
    optimizer="sgd",
    momentum=0.9,
    decay_all=True,
    squared=True,
    warmup_epochs=5,
    source="The code of SRe2L for Tiny-ImageNet (github.com/zeyuanyin/tiny-imagenet), and its logs: SGD, five "
    "epochs of warm-up, no mixing.",
)

FADRM = CropProtocol(
    "fadrm",
    epochs=300,
    full_data_epochs=100,
    batch_size=16,
    weight_decay=0.01,
    lrs=(0.001,),
    full_data_batch_size=128,
    cosine=2.0,
    accumulate=2,
    falls_from=50,
    source="The code of FADRM (arXiv:2506.24125) for ImageNet-1K and Tiny-ImageNet: batches of 16 in two halves, "
    "CutMix, temperature 20, a cosine that ends at half the rate below 50 images per class. It reports the best "
    "of its tests, and here the last epoch counts.",
)

MTT = EvalProtocol(
    "mtt",
    epochs=1001,
    full_data_epochs=101,
    lrs=(0.01, 0.003, 0.03, 0.1),
    source="The code of MTT (arXiv:2203.11932) and TESLA (arXiv:2211.10586): epochs 0 to 1000, after 501 a "
    "tenth of the learning rate and a new optimizer. Their learning rate is the learned one; what the other "
    "sets choose from, and the epochs on all real images, are this library's.",
)

QUICK = EvalProtocol(
    "quick",
    epochs=200,
    full_data_epochs=30,
    batch_size=128,
    lrs=(0.03, 0.01, 0.1),
    source="This library's, for small images on a CPU: on all of scikit-learn's digits convnet_d2 of width 32 "
    "reaches 99.0 % in the 3 s of 30 epochs, and with many more, in batches of 256, 99.4 % to 100 %.",
)

PROTOCOLS: dict[str, TrainingProtocol] = {
    protocol.name: protocol
    for protocol in (
        MTT,
        QUICK,
        replace(
            MTT,
            name="datm",
            ema=0.9995,
            source="DATM (arXiv:2310.05773): as mtt, and what is tested is the running mean of a student's parameters, "
            "with a decay of 0.9995. That the decay of step i is at most (1 + i) / (10 + i) is this library's: without "
            "it the mean of a thousand steps is mostly the initialisation; with it 0.9995 is reached at step 17,990.",
        ),
        replace(
            MTT,
            name="datm-995",
            ema=0.995,
            source="As datm, with the decay of 0.995 that its authors give CIFAR-10 at 1 and 50 images per class, and "
            "Tiny-ImageNet at 50.",
        ),
        replace(
            QUICK,
            name="datm-quick",
            ema=0.995,
            source="This library's, for small images on a CPU: as quick, with the running mean of datm-995.",
        ),
        EvalProtocol(
            "dc",
            epochs=1000,
            full_data_epochs=101,
            lrs=(0.01, 0.003, 0.03, 0.1),
            dsa_strategy="none",
            reset_momentum=False,
            source="As DD-Ranking (arXiv:2505.13300) evaluates sets of DC: nothing is augmented, and the rate drops to "
            "a tenth after half of 1,000 epochs. What learning rates are chosen from, and the epochs on all real "
            "images, are this library's.",
        ),
        EvalProtocol(
            "apm",
            epochs=1001,
            full_data_epochs=101,
            lrs=(0.02, 0.01, 0.04, 0.1),
            reset_momentum=False,
            loss="l1",
            source="The code of APM (github.com/mchen725/DD_APM): students learn the logits of one teacher with the L1 "
            "loss, epochs 0 to 1000, from 501 on at a tenth of the learning rate, with the momentum that they have. "
            "Its rate is that of the students while distilling; what the other sets choose from, and the epochs on all "
            "real images, are this library's.",
        ),
        EvalProtocol(
            "apm-600",
            epochs=601,
            full_data_epochs=101,
            lrs=(0.02, 0.01, 0.04, 0.1),
            reset_momentum=False,
            loss="l1",
            source="As apm, with the 600 epochs that its authors give large sets.",
        ),
        EvalProtocol(
            "apm-quick",
            epochs=200,
            full_data_epochs=30,
            batch_size=128,
            lrs=(0.03, 0.01, 0.1),
            reset_momentum=False,
            loss="l1",
            source="This library's, for small images on a CPU: as quick, with the loss and the drop of apm.",
        ),
        CropProtocol(
            "sre2l",
            epochs=300,
            full_data_epochs=100,
            batch_size=1024,
            weight_decay=0.01,
            lrs=(0.001,),
            source="The code of SRe2L (arXiv:2306.13092) for ImageNet-1K: AdamW, cosine, CutMix, temperature 20.",
        ),
        SRE2L_TINY,
        CropProtocol(
            "cda",
            epochs=300,
            full_data_epochs=100,
            batch_size=128,
            weight_decay=0.01,
            lrs=(0.001,),
            source="CDA (arXiv:2311.18838) for ImageNet-1K: as SRe2L, in batches of 128, as its authors confirmed.",
        ),
        replace(
            SRE2L_TINY,
            name="cda-tiny",
            batch_size=64,
            source="As sre2l-tiny, in the batches of 64 that LPLD's reproduction of CDA has.",
        ),
        CropProtocol(
            "cda-cifar",
            epochs=400,
            full_data_epochs=200,
            batch_size=128,
            weight_decay=0.01,
            lrs=(0.001,),
            views=Views(crop="padded", mix="mixup", alpha=0.8),
            decay_all=True,
            temperature=30.0,
            source="The code of SRe2L for CIFAR-100: AdamW, shifts of up to four pixels, Mixup, temperature 30.",
        ),
        CropProtocol(
            "cda-21k",
            epochs=300,
            full_data_epochs=80,
            batch_size=32,
            weight_decay=0.01,
            lrs=(0.002,),
            views=Views(mix="none", flip=0.0),
            label_smoothing=0.2,
            source="LPLD's reproduction of CDA on ImageNet-21K, without its CutOut.",
        ),
        CropProtocol(
            "rded",
            epochs=300,
            full_data_epochs=100,
            batch_size=100,
            full_data_batch_size=100,
            weight_decay=0.01,
            lrs=(0.001,),
            views=Views(scale=(0.5, 1.0), shuffle=2),
            cosine=2.0,
            batchnorm_updates=2,
            follows_set=True,
            source="The code of RDED (arXiv:2312.03526): batches, crops and the shuffle of the tiles follow the set; "
            "CutMix, temperature 20, a cosine that ends at half the rate.",
        ),
        FADRM,
        replace(
            FADRM,
            name="fadrm-cifar",
            epochs=1000,
            source="As fadrm, with the 1,000 epochs of its code for CIFAR-100.",
        ),
        replace(
            FADRM,
            name="fadrm-imagenette",
            batch_size=10,
            lrs=(5e-4,),
            cosine=1.0,
            falls_from=None,
            source="As fadrm, with the batches and the rate of its code for Imagenette at ten images per class; at 1 "
            "and 50 its cosine ends at half the rate.",
        ),
        CropProtocol(
            "hello",
            epochs=300,
            full_data_epochs=100,
            batch_size=100,
            full_data_batch_size=100,
            weight_decay=0.01,
            lrs=(0.001,),
            views=Views(scale=(0.5, 1.0), shuffle=2),
            loss="mse",
            ce_weight=0.025,
            cosine=2.0,
            follows_set=True,
            source="The loss is that of HeLlO (arXiv:2408.08201), the schedule, batches and views are those of RDED "
            "(arXiv:2312.03526), and the weight of the classes that of EDC (arXiv:2404.13733).",
        ),
        CropProtocol(
            "hello-quick",
            epochs=300,
            full_data_epochs=20,
            batch_size=64,
            weight_decay=0.01,
            lrs=(0.005,),
            views=Views(scale=(0.5, 1.0), flip=0.0),
            loss="mse",
            ce_weight=0.025,
            source="This library's, for small gray digits on a CPU: as crops-quick, with the loss of hello.",
        ),
        CropProtocol(
            "crops-quick",
            epochs=150,
            full_data_epochs=20,
            batch_size=64,
            weight_decay=0.01,
            lrs=(0.005,),
            views=Views(scale=(0.5, 1.0), flip=0.0),
            temperature=4.0,
            source="This library's, for small gray digits on a CPU: they are not to be mirrored.",
        ),
        ProbeProtocol(
            "probe",
            epochs=1000,
            full_data_epochs=100,
            source="As LGM (arXiv:2511.16674) evaluates: Adam, 0.001 for 256 images, flipped crops of 8 % at least. "
            "What heads learn of all real images, and that their features are computed once, is this library's.",
        ),
        ProbeProtocol(
            "probe-quick",
            epochs=100,
            full_data_epochs=30,
            lrs=(0.03,),
            scale=(0.5, 1.0),
            flip=0.0,
            source="This library's, for small images and backbones on a CPU, such as digits: they are not to be "
            "mirrored.",
        ),
    )
}
