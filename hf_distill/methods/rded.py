"""RDED: crops of real images that a trained network recognises best, tiled.

Sun, Shi, Yu and Lin, CVPR 2024, arXiv:2312.03526. For each class y:

    ξ_ij  = resize(crop_j(x_i), S / f)                                          m crops of each of M real images
    s_ij  = -CE(φ(pad(ξ_ij)), y)                                                     realism: higher is better
    ξ_i*  = ξ_ij with j = argmax_j s_ij                                                 one crop of each image
    x̃     = tile(the n f² crops ξ_i* with the highest s_i*)                               f x f of them an image

`patches` has the code, which HeLlO shares: `boxes`, `crop_losses`, `choose`, `tiled`, in this order.

    symbol   name             meaning
    ξ, s, x̃  -                a crop, its score, a distilled image
    φ        teacher          trained network, frozen; it also labels the views that students see
    M        num_candidates   images of a class that are looked at, at random; all of them where it has fewer
    m        num_crops        crops of each
    f        factor           crops along a side of a distilled image; each is 1/f of its size
    n        ipc              distilled images of a class
    S        -                size of an image, as the teacher takes it

A crop has the shape of a distilled image and 0.08 (`min_scale`) to 1 of the area of x_i, and is not mirrored. With
`--keep_side` x_i is the image itself, of any shape, as the authors have it; else its centre, already brought to S. The
teacher sees a crop in the middle of an image of the usual size, with the mean colour (zeros, after standardisation)
around it. Tile k of image number i is the crop ranked k n + i, so that each image has some of the best. A side S that f
does not divide has its first tiles one pixel longer. Nothing is optimised.

A teacher of more classes than the data is narrowed to these, so s_ij is over them alone, as the authors' code narrows
the classifier: crops are parts of real images of their class, and no other class need be kept out of them.

Differs from the authors' code:
- A class with fewer than n f² images gives second-best crops as well, after the best of each image, then third-best
  ones; theirs stops.
- Crops are rounded to bytes, and what the teacher scores are these bytes. Theirs are cut off to bytes and saved as JPEG
  files.
- Tiles of uneven size are resized straight from the crop's box; theirs are stretched from other tiles, pixel by pixel.
- Every draw is a function of (seed, class) or of (seed, image): neither other classes nor processes change it.

The defaults are those of their scripts, M = 300, m = 5 and f = 2; for images of 64 pixels and fewer they have f = 1.
The protocol of their students (`rded`) takes its batches from n, and its crops and its shuffle of the tiles from f.
"""

from dataclasses import dataclass

from torch import Tensor

from ..config import HfArg, PathArg
from ..distilled.distilled_set import DistilledSet
from ..distilled.labels import NetworkLabels
from ..hub.cards import Paper
from .patches import PatchConfig, PatchMethod


@dataclass
class RDEDConfig(PatchConfig):
    """Hyper-parameters of RDED; the defaults are those of its ImageNet-1K run.

    Example:
        >>> hd.RDEDConfig(ipc=10, factor=2).per_class
        40
    """

    teachers: list[str] | None = PathArg(
        default=None,
        help="The trained network that scores and labels: a folder, a repository, or timm:<name> for pretrained "
        "weights. Without it: one that is trained here.",
    )
    eval_protocol: str = HfArg(default="rded", help="How students are trained on the set, such as rded, sre2l or cda.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teachers is not None and len(self.teachers) != 1:
            raise ValueError(f"--teachers names {len(self.teachers)} networks; expected the one that scores and labels")


class RDED(PatchMethod):
    """Crops (by chance), scored (by the teacher), tiled, relabelled (the teacher again, view by view).

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "teacher_epochs": 1, "batch_train": 20}
        >>> distilled = hd.RDED.distill(train, ipc=1, factor=2, num_crops=3, disable_tqdm=True, **net)
        >>> distilled.pixel_values.shape, distilled.pixel_values.dtype
        (torch.Size([10, 1, 8, 8]), torch.uint8)

    Args:
        config: An `RDEDConfig`.
        train: The images to distil.
        teachers: The network that knows their classes; one of more classes is narrowed to these.
        kwargs: See `Method`.

    Raises:
        ValueError: The teacher lacks a class of `train` or takes other images, or a class has too few images.
    """

    config_class = RDEDConfig
    config: RDEDConfig
    paper = Paper(
        title="On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm",
        authors="Peng Sun, Bei Shi, Daiwei Yu, Tao Lin",
        year=2024,
        arxiv_id="2312.03526",
        bibtex="""@inproceedings{sun2024diversity,
  title={On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm},
  author={Sun, Peng and Shi, Bei and Yu, Daiwei and Lin, Tao},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2024}
}""",
    )

    def assemble(self, images: Tensor, labels: Tensor) -> DistilledSet:
        """The set with the teacher, which labels its views."""
        teacher, origin = self.teacher, self.teacher.origin
        where = {} if origin is None else {"repo_id": origin.repo_id, "revision": origin.revision}
        named = {"network": teacher.spec.name, "digest": teacher.digest, **where}
        return DistilledSet(
            images,
            labels,
            self.train.class_names,
            self.preprocessing,
            teacher=NetworkLabels(teacher),
            config={"student": teacher.spec.to_dict(), "teachers": [named]},
        )
