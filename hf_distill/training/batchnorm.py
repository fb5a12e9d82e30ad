"""BatchNorm whose batch is that of all processes, so that a network does not depend on how many share it."""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

__all__ = ["share_statistics"]


def share_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with every BatchNorm2d, timm's with an activation too, taking the statistics of all processes' images.

    Parameters and buffers are the same ones under the same names. A model that is one such layer is another afterwards;
    in any other the layers are replaced.

    Args:
        model: On any device.
        device: Where it will be trained: accelerators have torch's SyncBatchNorm, which CPUs have not.
    """
    return _replaced(model) if device.type == "cpu" else convert_sync_batchnorm(model)


def _replaced(module: nn.Module) -> nn.Module:
    if type(module) is nn.BatchNorm2d:
        return _SharedBatchNorm(module.num_features).take(module)
    if type(module) is BatchNormAct2d:
        shared = _SharedBatchNormAct(module.num_features).take(module)
        shared.drop, shared.act = module.drop, module.act
        return shared
    for name, child in module.named_children():
        module.add_module(name, _replaced(child))
    return module


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum over processes of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class _SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the images of all processes, on CPUs."""

    def take(self, layer: nn.BatchNorm2d) -> "_SharedBatchNorm":
        """This layer with the settings of another, and with its very parameters and buffers."""
        self.eps, self.momentum, self.training = layer.eps, layer.momentum, layer.training
        self.affine, self.track_running_stats = layer.affine, layer.track_running_stats
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        return self

    def normalised(self, x: Tensor) -> Tensor:  # (n, C, H, W) -> (n, C, H, W)
        """The output before any activation."""
        if not self.training:
            return nn.BatchNorm2d.forward(self, x)
        kind, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        mean, var, count = mean.double(), var.double(), x.numel() // x.shape[1]  # of squares, floats lose too much
        ones = torch.ones_like(mean)
        total, mean, squares = _Sum.apply(torch.stack([ones, mean, var + mean**2]) * count)
        mean, squares = mean / total, squares / total
        var = (squares - mean**2).clamp(min=0)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                unbiased = var * total / (total - 1)
                for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
                    running.copy_(running + momentum * (batch.to(running.dtype) - running))
        scale = (var + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return (x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]).to(kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(x)


class _SharedBatchNormAct(_SharedBatchNorm, BatchNormAct2d):
    """The same for timm's BatchNorm with an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.normalised(x)))
