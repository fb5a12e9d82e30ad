"""What a trained network remembers of its data, against what images show it: the BatchNorm statistics of SRe2L and CDA.

For each BatchNorm layer l with input h_l, running mean μ_l and running variance σ²_l,

    R_BN = Σ_l w_l ( ‖σ²_l − Var(h_l)‖ + ‖μ_l − Mean(h_l)‖ )

with mean and biased variance over images and places, plain L2 norms over channels, and w = 10 for the layer that runs
first, 1 for the others (arXiv:2306.13092). The two priors on images beside it:

    R_tv = ‖D→‖ + ‖D↓‖ + ‖D↙‖ + ‖D↘‖      differences of neighbours, each one norm over the whole batch
    R_l2 = mean_i ‖vec(x_i)‖
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..data.upload import upload

BATCH_NORM = (nn.BatchNorm2d, nn.SyncBatchNorm)  # neither is a kind of the other


@dataclass(frozen=True)
class _Record:
    """Mean and variance of the input of one layer, (C,) or (G, C)."""

    name: str
    mean: Tensor
    variance: Tensor


class BatchNormStatistics:
    """R_BN of every forward pass of a network, inside a `with`.

    Each forward pass of the model starts anew; `loss()`, once afterwards, is differentiable in the model's input.
    Reductions are in float32, or float64 for such inputs, also under autocast. What is inside may be compiled, from the
    forward pass to its `loss()`; entering may not.

        with BatchNormStatistics(teacher) as statistics:
            logits = teacher(images)
            loss = statistics.loss()

    Args:
        model: A network in evaluation mode; all its BatchNorm2d and SyncBatchNorm layers count, with timm's that have
            the activation in them (BatchNormAct2d, SyncBatchNormAct).
        groups: Take each batch as this many blocks of equal size, one after the other, that do not see each other:
            what several batches would give, in one pass.

    Raises:
        ValueError: No BatchNorm layer, or one whose statistics were never estimated or are no statistics.
    """

    def __init__(self, model: nn.Module, groups: int | None = None) -> None:
        self.model, self.groups = model, groups
        self.layers = batchnorm_layers(model)
        for name, layer in self.layers.items():
            _check(name, layer)
        self._places = _places([len(layer.running_mean) for layer in self.layers.values()])
        self._records: list[_Record] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "BatchNormStatistics":
        self._places = upload(self._places, next(iter(self.layers.values())).running_mean.device)
        # First: the model may itself be the only layer.
        self._handles.append(self.model.register_forward_pre_hook(self._start))
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._records.clear()

    def loss(self, first_weight: float = 10.0) -> Tensor:
        """R_BN of the last forward pass: a scalar, or (G,) with groups.

        Args:
            first_weight: w of the layer that ran first.

        Raises:
            ValueError: There was no forward pass, or a layer ran twice or not at all in it.
        """
        self._check_order()
        records = {record.name: record for record in self._records}
        in_order = [records[name] for name in self.layers]
        first = list(self.layers).index(self._records[0].name)
        self._records.clear()  # what is kept would be a result of a graph that was compiled
        # All layers at once: to subtract and measure a few hundred numbers takes a device no longer than to be asked.
        layers = self.layers.values()
        remembered = torch.cat([layer.running_mean for layer in layers] + [layer.running_var for layer in layers])
        found = [record.mean for record in in_order] + [record.variance for record in in_order]
        differences = F.pad(remembered - torch.cat(found, dim=-1), (0, 1))  # (..., 2 ΣC + 1), the last one zero
        rows = differences.index_select(-1, self._places.flatten())
        distances = _norm(rows.unflatten(-1, (2, *self._places.shape[1:]))).sum(-2)  # (..., L)
        others = distances[..., :first].sum(-1) + distances[..., first + 1 :].sum(-1)
        return first_weight * distances[..., first] + others

    def _start(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._records.clear()

    def _hook(self, name: str) -> Callable[[nn.BatchNorm2d | nn.SyncBatchNorm, tuple[Tensor, ...]], None]:
        def record(layer: nn.BatchNorm2d | nn.SyncBatchNorm, inputs: tuple[Tensor, ...]) -> None:
            if layer.training:
                raise ValueError(
                    f"layer {name!r} is in training mode and would forget its statistics; call eval() on the network"
                )
            mean, variance = input_statistics(inputs[0], self.groups)
            self._records.append(_Record(name, mean, variance))

        return record

    def _check_order(self) -> None:
        ran = [record.name for record in self._records]
        if not ran:
            raise ValueError("no forward pass to take statistics from; call the network inside `with`, before loss()")
        for name in self.layers:
            if ran.count(name) != 1:
                raise ValueError(
                    f"layer {name!r} ran {ran.count(name)} times in one forward pass; expected each BatchNorm layer "
                    "to run once: take a network that neither shares nor skips them"
                )


def _places(channels: Sequence[int]) -> Tensor:
    """Where means and variances of layers of so many channels stand, (2, L, widest), in the row of all of them.

    What a layer has less than the widest is behind that row.
    """
    counts = torch.tensor(channels)
    place, total = torch.arange(int(counts.max())), int(counts.sum())
    starts = (counts.cumsum(0) - counts)[:, None]
    inside = place < counts[:, None]
    return torch.stack([torch.where(inside, starts + place + part * total, 2 * total) for part in (0, 1)])


def batchnorm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that keep statistics, by name; raises a `ValueError` where there is none."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BATCH_NORM)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no BatchNorm2d layer; expected a network with BatchNorm, such as resnet18"
        )
    return layers


def input_statistics(x: Tensor, groups: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of `x` (n, C, H, W), each (C,), or (groups, C) for blocks of images.

    Float32, or float64 of float64. Backward needs `x` itself, which the layer holds anyway, and no copy in float32.
    """
    if groups is None:
        return _Statistics.apply(x)
    if len(x) % groups:
        raise ValueError(f"a batch of {len(x)} images does not split into {groups} groups of one size")
    return _Statistics.apply(x.unflatten(0, (groups, -1)))


class _Statistics(torch.autograd.Function):
    """Mean m and biased variance of (n, C, H, W), or (G, n, C, H, W): ∂m/∂x = 1/places and ∂v/∂x = 2 (x − m)/places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        exact = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(exact, dim=(-4, -2, -1), correction=0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        places = x.shape[-4] * x.shape[-2] * x.shape[-1]
        constant, mean, slope = (
            it.unsqueeze(-2)[..., None, None] for it in (of_mean / places, mean, of_variance * (2 / places))
        )
        return torch.addcmul(constant, x - mean, slope).to(x.dtype)


def total_variation(x: Tensor) -> Tensor:
    """R_tv of images (n, C, H, W), a scalar: the norms of the steps right, down, down left and down right."""
    steps = (
        x[:, :, :, 1:] - x[:, :, :, :-1],
        x[:, :, 1:] - x[:, :, :-1],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
        x[:, :, 1:, 1:] - x[:, :, :-1, :-1],
    )
    return torch.stack([torch.linalg.vector_norm(step) for step in steps]).sum()


def mean_norm(x: Tensor) -> Tensor:
    """R_l2 of images (n, C, H, W), a scalar: the mean L2 norm of an image."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).mean()


def _norm(x: Tensor) -> Tensor:
    """Over channels; its gradient at zero is zero."""
    return torch.linalg.vector_norm(x, dim=-1)


def _check(name: str, layer: nn.BatchNorm2d | nn.SyncBatchNorm) -> None:
    mean, variance = layer.running_mean, layer.running_var
    if mean is None or variance is None:
        raise ValueError(
            f"layer {name!r} keeps no running statistics; expected a network trained with track_running_stats=True"
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(variance).all() and (variance >= 0).all()):
        raise ValueError(
            f"layer {name!r} has running statistics that are NaN, infinite or negative variances; "
            "expected those of a trained network: check how it was trained or loaded"
        )
    # Weights from other frameworks have statistics, but no count of batches.
    if not mean.any() and (variance == 1).all():
        raise ValueError(
            f"layer {name!r} has never seen data: its mean is 0 and its variance 1; expected a trained network, "
            "with its weights loaded"
        )
