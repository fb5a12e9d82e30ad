"""TESLA: trajectory matching in constant memory, with soft labels (Cui et al., ICML 2023, arXiv:2211.10586).

The loss is MTT's (see `methods.trajectory`); two things are new:

- ∂L/∂X and ∂L/∂β with the graph of one student step in memory, whatever T is: `methods.adjoint`.
- Soft label assignment: Y = softmax(f(θ*; X)), from the target state of the expert that is being imitated, constant
  with respect to X. Only the images that the T steps take are labelled.

    symbol   name            meaning
    γ        curvature       1: the gradient of the unroll, exactly; 0: the path of the student counts as constant
    Y        targets         (R, K) probabilities, or (R,) classes with `--label hard`
    -        teacher         M experts after their last epoch; the mean of their logits labels what is published

Differs from the authors' code, beside what `methods.trajectory` lists:
- The gradient is exact by default. Theirs drops how a pixel moves the later steps (γ = 0), and their images get half of
  even that: the factor 2 of the formula is applied to the wrong element of a tuple. So their `lr_img` is ours halved.
- Published labels are the mean logits of several experts after their last epoch, made once from the final images.
  Theirs are those of whichever expert was drawn last, one update late.
- `--label teacher` assigns these labels throughout, so that the images are trained on with the labels that they are
  published with. The paper's own assignment is `--label expert`.
- Real images to start from are, with soft labels, some that the teacher classifies correctly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import HfArg, check_at_least, check_choice
from ..distilled.labels import TeacherLabels
from ..hub.cards import Paper
from .adjoint import AdjointConfig, AdjointMatching


@dataclass
class TESLAConfig(AdjointConfig):
    """Hyper-parameters of TESLA.

    Example:
        >>> hd.TESLAConfig(ipc=10, max_start_epoch=20, expert_epochs=2).expert_epochs_needed
        21
    """

    label: str = HfArg(
        default="expert",
        help="Labels while distilling. expert: by the expert that is imitated (the paper's); teacher: those that are "
        "published, by several experts after their last epoch; hard: the classes, and no soft labels are published.",
    )
    label_experts: int = HfArg(default=4, help="Experts whose mean logits are the published soft labels.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("label", self.label, ("expert", "teacher", "hard"))
        check_at_least("label_experts", self.label_experts, 1)


class TESLA(AdjointMatching):
    """Trajectory matching by one adjoint sweep, with soft label assignment.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "num_experts": 1, "expert_train_epochs": 2}
        >>> path = {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "max_steps": 1, "select": "last"}
        >>> distilled = hd.TESLA.distill(train, ipc=1, disable_tqdm=True, **net, **path)
        >>> distilled.pixel_values.shape, distilled.soft_labels.shape
        (torch.Size([10, 1, 8, 8]), torch.Size([10, 10]))
    """

    config_class = TESLAConfig
    config: TESLAConfig
    paper = Paper(
        title="Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory",
        authors="Justin Cui, Ruochen Wang, Si Si, Cho-Jui Hsieh",
        year=2023,
        arxiv_id="2211.10586",
        bibtex="""@inproceedings{cui2023tesla,
  title={Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory},
  author={Cui, Justin and Wang, Ruochen and Si, Si and Hsieh, Cho-Jui},
  booktitle={International Conference on Machine Learning},
  year={2023}
}""",
    )

    def teacher(self) -> TeacherLabels | None:
        """The experts that label the published images."""
        if self.config.label == "hard":
            return None
        return TeacherLabels(self.experts.spec, self.final_states(self.config.label_experts)).to(self.device)

    @torch.no_grad()
    def assign(self, target: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
        """As `AdjointMatching.assign`: probabilities (R, K), or the classes (R,) as they are.

        With `--label expert` the network with θ* gives them.
        """
        if self.config.label == "hard":
            return labels
        if self.config.label == "teacher":
            logits = self.distilled.teacher(pixels, labels, torch.arange(len(labels)))
        else:
            size = self.config.micro_batch_size or self.config.batch_syn or len(pixels)
            logits = torch.cat([self.student.model(target, chunk) for chunk in pixels.split(size)])
        return logits.softmax(dim=1)
