"""MTT: dataset distillation by matching training trajectories (Cazenavette et al., CVPR 2022, arXiv:2203.11932).

    min over X, β of  L = ‖θ_T − θ*‖² / ‖θ_0 − θ*‖²,   θ_{i+1} = θ_i − β ∇_θ ℓ(f(θ_i; A(X[I_i])), Y[I_i])

Symbols and schedule are in `methods.trajectory`. The gradient is autograd's, through all T steps at once, so memory
grows with T: this is the baseline. TESLA gives the same gradient in the memory of one step.

Differs from the authors' code, beside what `methods.trajectory` lists: nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..hub.cards import Paper
from .trajectory import TrajectoryConfig, TrajectoryMatching
from .unroll import MatchingGradient, StudentStep, full_unroll


@dataclass
class MTTConfig(TrajectoryConfig):
    """Hyper-parameters of MTT.

    Example:
        >>> hd.MTTConfig(ipc=10, syn_steps=30).lr_img
        100.0
    """


class MTT(TrajectoryMatching):
    """Trajectory matching through the full unroll, with hard labels.

    Example:
        >>> net = {"student": "convnet_d1", "student_width": 8, "num_experts": 1, "expert_train_epochs": 2}
        >>> path = {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1, "max_steps": 1, "select": "last"}
        >>> distilled = hd.MTT.distill(train, ipc=1, disable_tqdm=True, **net, **path)
        >>> distilled.labels.tolist(), distilled.soft_labels
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], None)
    """

    config_class = MTTConfig
    uncompiled = "the unroll of MTT (that of TESLA, which has the same gradient, it does)"
    paper = Paper(
        title="Dataset Distillation by Matching Training Trajectories",
        authors="George Cazenavette, Tongzhou Wang, Antonio Torralba, Alexei A. Efros, Jun-Yan Zhu",
        year=2022,
        arxiv_id="2203.11932",
        bibtex="""@inproceedings{cazenavette2022mtt,
  title={Dataset Distillation by Matching Training Trajectories},
  author={Cazenavette, George and Wang, Tongzhou and Torralba, Antonio and Efros, Alexei A. and Zhu, Jun-Yan},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2022}
}""",
    )

    def matching_gradient(
        self,
        start: Tensor,
        target: Tensor,
        pixels: Tensor,
        labels: Tensor,
        steps: Sequence[StudentStep],
        lr: Tensor,
    ) -> MatchingGradient:
        """Autograd through the T steps."""
        return full_unroll(self.student, start, target, pixels, labels, steps, lr)
