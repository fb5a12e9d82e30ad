"""SRe2L and CDA: images that a trained network recognises, and whose BatchNorm statistics are those it remembers.

SRe2L: Yin, Xing and Shen, NeurIPS 2023, arXiv:2306.13092. CDA: Yin and Shen, TMLR 2024, arXiv:2311.18838.

    x'  = roll(flip(resize(crop(x))))                       one box, one coin and one offset for the whole block
    L   = CE(φ(x'), y) + α_BN R_BN(x') + α_tv R_tv(x') + α_l2 R_l2(x')                          (`statistics`)
    x  <- clamp(Adam(x, ∂L/∂x)),   η_t = η ½ (1 + cos(π t / T))

    symbol   name             meaning
    φ        teacher          network with running statistics, frozen
    B        batch_classes    classes of a block; a block has one image of each of so many consecutive classes
    T        max_steps        iterations of a block
    η        lr_img           of Adam(0.5, 0.9)
    α_BN     r_bn             weight of the statistics; the first layer counts `first_bn_multiplier` times
    -        jitter           pixels by which the images are rolled at most
    -        curriculum       CDA: how the smallest box falls from the whole image to 0.08 of it (`crops.min_scale`)

A block starts from N(0, 1) and ends with its last iterate. CDA is SRe2L with a curriculum of crops.

CE is over all classes of the teacher, also where it has more than the data (an ImageNet-1K network for ten of its
classes): a softmax over the ten alone is content with what is the likeliest of them, though it be seen as another one
of the thousand. The labels of the set are those of the teacher narrowed to the data's classes.

Differs from the authors' code:
- A block is always on one device: they split it, and the statistics of one part of it win.
- Images are kept as they are, rounded to bytes; theirs are cut off to bytes and saved as JPEG files of quality 75
  (`--compat vila` does that to the bytes).
- Nothing depends on processes or on the order of blocks; several teachers can take turns (`--teachers`).
- Crop, resize, flip and roll are two matrices, for rows and for columns: the same pixels as theirs, and a gradient that
  is the same on every run.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..augmentation.crops import min_scale
from ..config import HfArg, check_at_least, check_choice
from ..hub.cards import Paper
from .recovering import Recovering, RecoveringConfig


@dataclass
class SRe2LConfig(RecoveringConfig):
    """Hyper-parameters of SRe2L; the defaults are those of its ImageNet-1K run.

    Example:
        >>> hd.SRe2LConfig(ipc=10).max_steps
        4000
    """

    r_tv: float = HfArg(default=0.0, help="Weight of the total variation.")
    r_l2: float = HfArg(default=0.0, help="Weight of the norm of the images.")
    curriculum: str = HfArg(default="none", help="Smallest box: none (0.08), step, linear or cosine.")
    milestone: float = HfArg(default=1.0, help="Share of the iterations in which the curriculum runs.")
    compat: str = HfArg(default="none", help="none, or vila: bytes cut off, and through a JPEG file of quality 75.")
    eval_protocol: str = HfArg(default="sre2l", help="How students are trained on the set, such as sre2l, cda or rded.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("curriculum", self.curriculum, ("none", "step", "linear", "cosine"))
        check_choice("compat", self.compat, ("none", "vila"))
        for flag in ("r_tv", "r_l2"):
            check_at_least(flag, getattr(self, flag), 0)
        self._check_share("milestone")

    @property
    def weights(self) -> dict[str, float]:
        """Those of the terms of L beside the cross-entropy."""
        return {"bn": self.r_bn, "tv": self.r_tv, "l2": self.r_l2}  # without super(), which is not compiled


@dataclass
class CDAConfig(SRe2LConfig):
    """Hyper-parameters of CDA; the defaults are those of its ImageNet-1K run.

    Example:
        >>> hd.CDAConfig().curriculum, hd.SRe2LConfig().curriculum
        ('cosine', 'none')
    """

    curriculum: str = HfArg(default="cosine", help="Smallest box: none (0.08), step, linear or cosine.")
    eval_protocol: str = HfArg(default="cda", help="How students are trained on the set, such as sre2l, cda or rded.")


class SRe2L(Recovering):
    """Squeeze (the teacher), recover (here), relabel (the teacher again, view by view).

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "teacher_epochs": 1, "batch_train": 20}
        >>> distilled = hd.SRe2L.distill(train, ipc=1, max_steps=2, jitter=1, disable_tqdm=True, **net)
        >>> distilled.pixel_values.dtype, distilled.teacher.kind
        (torch.uint8, 'teacher')

    Args:
        config: A `SRe2LConfig`.
        train: The images to distil.
        teachers: Networks that know their classes, and perhaps others; one at least has BatchNorm. The first one
            labels.
        kwargs: See `Method`.

    Raises:
        ValueError: A teacher lacks a class of `train` or takes other images, or none has BatchNorm; or as `check`.
    """

    config_class = SRe2LConfig
    config: SRe2LConfig
    paper = Paper(
        title="Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective",
        authors="Zeyuan Yin, Eric Xing, Zhiqiang Shen",
        year=2023,
        arxiv_id="2306.13092",
        bibtex="""@inproceedings{yin2023squeeze,
  title={Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective},
  author={Yin, Zeyuan and Xing, Eric and Shen, Zhiqiang},
  booktitle={Advances in Neural Information Processing Systems},
  year={2023}
}""",
    )

    def smallest_box(self, t: int) -> float:
        """That of the curriculum."""
        config = self.config
        return min_scale(t, config.milestone * config.max_steps, config.curriculum)

    def finished(self, x: Tensor) -> Tensor:
        """The bytes of recovered images (B, C, H, W)."""
        if self.config.compat == "none":
            return super().finished(x)
        cut_off = (self.preprocessing.inverse(x).clamp(0, 1) * 255).to(torch.uint8).cpu()
        return torch.stack([_through_jpeg(image) for image in cut_off])


class CDA(SRe2L):
    """SRe2L whose crops begin as the whole image and get smaller.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "teacher_epochs": 1, "batch_train": 20}
        >>> hd.CDA.distill(train, ipc=1, max_steps=2, jitter=1, disable_tqdm=True, **net).config["method"]
        'cda'
    """

    config_class = CDAConfig
    config: CDAConfig
    paper = Paper(
        title="Dataset Distillation via Curriculum Data Synthesis in Large Data Era",
        authors="Zeyuan Yin, Zhiqiang Shen",
        year=2024,
        arxiv_id="2311.18838",
        bibtex="""@article{yin2024cda,
  title={Dataset Distillation via Curriculum Data Synthesis in Large Data Era},
  author={Yin, Zeyuan and Shen, Zhiqiang},
  journal={Transactions on Machine Learning Research},
  year={2024}
}""",
    )


def _through_jpeg(image: Tensor) -> Tensor:
    """A picture (C, H, W) uint8 as a JPEG file of quality 75 keeps it."""
    array = image.permute(1, 2, 0).numpy()
    buffer = BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, "JPEG", quality=75)
    read = np.array(Image.open(buffer))
    return torch.from_numpy(read.reshape(array.shape)).permute(2, 0, 1)
