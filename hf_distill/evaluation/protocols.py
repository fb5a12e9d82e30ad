"""`EvalProtocol`: how students are trained, under the names that reports give."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ..augmentation.dsa import DEFAULT_STRATEGY
from ..augmentation.views import Views, ViewSource
from ..config import check_at_least
from ..distilled.labels import LabelSource, StoredLabels
from ..rng import derive_seed

__all__ = ["PROTOCOLS", "CropProtocol", "EvalProtocol"]


@dataclass(frozen=True)
class EvalProtocol:
    """The way to train a student: SGD with momentum and DSA, and a learning rate that drops.

    Example:
        >>> short = hd.EvalProtocol("short", epochs=4, full_data_epochs=1)
        >>> [factor for factor, _ in short.schedule(4)]
        [1.0, 1.0, 1.0, 0.1]

    Attributes:
        name: What reports call it.
        epochs: Passes over a small set.
        full_data_epochs: Passes over all real images.
        batch_size: Images per step; a smaller set is one batch.
        momentum: Of SGD.
        weight_decay: L2, of SGD.
        dsa_strategy: Augmentation of every batch.
        decay_epochs: Fractions f of training at which the rate drops: after epoch ⌊f·E⌋ + 1, where epochs are 0 to E.
        decay: Factor of each drop.
        reset_momentum: A drop also empties the momentum.
        loss: With soft labels "ce", the cross-entropy with their softmax, or "l1", the mean distance from the logits
            themselves. With hard labels it is the cross-entropy.
        lrs: Learning rates to choose from on held-out images; the first is used where there are none.
        source: Where the numbers come from.
    """

    name: str
    epochs: int
    full_data_epochs: int
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    dsa_strategy: str = DEFAULT_STRATEGY
    decay_epochs: tuple[float, ...] = (0.5,)
    decay: float = 0.1
    reset_momentum: bool = True
    loss: str = "ce"
    lrs: tuple[float, ...] = (0.01,)
    source: str = ""

    @property
    def per_view(self) -> bool:
        """True where labels are those of each view of an image, and not one for each image."""
        return False

    def __post_init__(self) -> None:
        for flag, value in (("epochs", self.epochs), ("full_data_epochs", self.full_data_epochs)):
            check_at_least(flag, value, 1)
        check_at_least("batch_size", self.batch_size, 2)
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"protocol {self.name!r} has the learning rates {self.lrs}; expected some above 0")

    def schedule(self, epochs: int) -> list[tuple[float, bool]]:
        """For each of `epochs` the factor of the learning rate, and whether the momentum is emptied before it."""
        first_after = {math.floor(fraction * (epochs - 1)) + 2 for fraction in self.decay_epochs}
        factors = [self.decay ** sum(epoch >= drop for drop in first_after) for epoch in range(epochs)]
        return [(factor, self.reset_momentum and epoch in first_after) for epoch, factor in enumerate(factors)]


@dataclass(frozen=True)
class CropProtocol(EvalProtocol):
    """The way of SRe2L, CDA and RDED to train a student: on crops of mixed images, with the labels of these very views.

    Soft labels are logits: the loss is KL(softmax(z_T / τ) ‖ softmax(z_S / τ)), the mean over a batch. With hard labels
    it is the cross-entropy. Views are mixed where labels are of views, and not where they are of whole images.

    Attributes:
        views: What is seen of each image in each epoch.
        optimizer: "adamw", which decays only weights of two dimensions or more, or "sgd" with `momentum`.
        temperature: τ.
        squared: Multiply the loss by τ², so that gradients keep their size.
        loss: "kl", or "mse": both logits are reduced by their mean over the classes, which a softmax does not see, and
            the squares of their differences averaged over the classes; τ has no part in it.
        ce_weight: β; a mixed view belongs to two classes, each by its share of it.
        warmup_epochs: Of a rate that rises linearly from a hundredth; it then falls along a cosine.
        cosine: Length of half the cosine, in trainings: 1 ends at 0, and 2 at half the rate.
        label_smoothing: Share of every target, hard or soft, that is spread over all classes.
    """

    views: Views = Views()
    optimizer: str = "adamw"
    temperature: float = 20.0
    squared: bool = False
    loss: str = "kl"
    ce_weight: float = 0.0
    warmup_epochs: int = 0
    cosine: float = 1.0
    label_smoothing: float = 0.0

    @property
    def per_view(self) -> bool:
        """Labels are those of each view."""
        return True

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


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        EvalProtocol(
            "mtt",
            epochs=1001,
            full_data_epochs=101,
            lrs=(0.01, 0.003, 0.03, 0.1),
            source="The code of MTT (arXiv:2203.11932) and TESLA (arXiv:2211.10586): epochs 0 to 1000, after 501 a "
            "tenth of the learning rate and a new optimizer. Their learning rate is the learned one; what the other "
            "sets choose from, and the epochs on all real images, are this library's.",
        ),
        EvalProtocol(
            "quick",
            epochs=200,
            full_data_epochs=30,
            batch_size=128,
            lrs=(0.03, 0.01, 0.1),
            source="This library's, for small images on a CPU: on all of scikit-learn's digits convnet_d2 of width 32 "
            "reaches 99.0 % in the 3 s of 30 epochs, and with many more, in batches of 256, 99.4 % to 100 %.",
        ),
        EvalProtocol(
            "apm",
            epochs=1001,
            full_data_epochs=101,
            loss="l1",
            lrs=(0.02, 0.01, 0.04, 0.1),
            source="The code of APM (github.com/mchen725/DD_APM): students learn the logits of one teacher with the L1 "
            "loss, epochs 0 to 1000, after 501 a tenth of the learning rate. Its rate is that of the students while "
            "distilling; what the other sets choose from, and the epochs on all real images, are this library's.",
        ),
        EvalProtocol(
            "apm-600",
            epochs=601,
            full_data_epochs=101,
            loss="l1",
            lrs=(0.02, 0.01, 0.04, 0.1),
            source="As apm, with the 600 epochs that its authors give large sets.",
        ),
        EvalProtocol(
            "apm-quick",
            epochs=200,
            full_data_epochs=30,
            batch_size=128,
            loss="l1",
            lrs=(0.03, 0.01, 0.1),
            source="This library's, for small images on a CPU: as quick, with the loss of apm.",
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
        CropProtocol(
            "cda",
            epochs=300,
            full_data_epochs=100,
            batch_size=128,
            weight_decay=0.01,
            lrs=(0.001,),
            source="CDA (arXiv:2311.18838) for ImageNet-1K: as SRe2L, in batches of 128, as its authors confirmed.",
        ),
        CropProtocol(
            "cda-tiny",
            epochs=100,
            full_data_epochs=100,
            batch_size=64,
            weight_decay=1e-4,
            lrs=(0.2,),
            optimizer="sgd",
            views=Views(mix="none"),
            squared=True,
            warmup_epochs=5,
            source="The code of SRe2L and CDA for Tiny-ImageNet: SGD, five epochs of warm-up, no mixing; batches of 64 "
            "are those of LPLD's reproduction, where the code has 256.",
        ),
        CropProtocol(
            "cda-cifar",
            epochs=400,
            full_data_epochs=200,
            batch_size=128,
            weight_decay=0.01,
            lrs=(0.001,),
            views=Views(crop="padded", mix="mixup", alpha=0.8),
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
            views=Views(mix="none"),
            label_smoothing=0.2,
            source="LPLD's reproduction of CDA on ImageNet-21K, without its CutOut.",
        ),
        CropProtocol(
            "rded",
            epochs=300,
            full_data_epochs=100,
            batch_size=100,
            weight_decay=0.01,
            lrs=(0.001,),
            views=Views(scale=(0.5, 1.0)),
            source="RDED (arXiv:2312.03526) for ImageNet-1K: boxes of at least half the area, CutMix, temperature 20; "
            "its shuffle of the patches is left out.",
        ),
        CropProtocol(
            "hello",
            epochs=300,
            full_data_epochs=100,
            batch_size=100,
            weight_decay=0.01,
            lrs=(0.001,),
            views=Views(scale=(0.5, 1.0)),
            loss="mse",
            ce_weight=0.025,
            cosine=2.0,
            source="The loss is that of HeLlO (arXiv:2408.08201), the schedule that of RDED (arXiv:2312.03526), ending "
            "at half the rate, and the weight of the classes that of EDC (arXiv:2404.13733).",
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
    )
}
