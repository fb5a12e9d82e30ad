"""What autograd would go through, by name."""

import re

from torch import Tensor

# Those that `torch.use_deterministic_algorithms` says an accelerator adds up in any order.
UNORDERED = re.compile(
    "GridSampler|Upsample|(Reflection|Replication)Pad|Adaptive(Avg|Max)Pool|(Avg|Max|Fractional)Pool3|MaxPool|MaxUnpool|"
    "Scatter|IndexAdd|IndexSelect|Gather|Embedding|Cumsum|RepeatInterleave|NllLoss2D|Ctc|Put(?!Backward)"
)
# The same among what is computed, whoever asked for it; what only gathers has no sum.
UNORDERED_OPERATION = re.compile(
    "grid_sampler.*_backward|upsample.*_backward|(reflection|replication)_pad.*_backward|adaptive.*pool.*_backward|"
    "(avg|max|fractional)_pool3d.*_backward|max_pool2d.*_backward|max_unpool|scatter_(add|reduce)|index_(add|reduce)|"
    "_?embedding.*_backward|cumsum|nll_loss2d|ctc_loss|^put"
)


def nodes(tensor: Tensor) -> set[str]:
    """The names of everything from `tensor` back to what it was made of."""
    seen, names, waiting = set(), set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(node.name())
            waiting += [before for before, _ in node.next_functions]
    return names
