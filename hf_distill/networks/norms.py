"""Group normalisation whose second derivative is a closed form.

PyTorch writes the derivative of its GroupNorm out in small operations as soon as it is to be differentiated again, and
then differentiates each of them: most of what an unrolled student computes. Here the first derivative is PyTorch's own
operation in any case, and the second is done by hand. With g = w·dy, and ⟨·⟩ the mean over a group,

    x̂    = (x − μ)·s,  s = (var + ε)^-½            y  = w·x̂ + b
    P(h) = s·(h − ⟨h⟩ − x̂·⟨h·x̂⟩)                  what a gradient h of x̂ is for x
    dx   = P(g),  dw = Σ dy·x̂,  db = Σ dy

Gradients u, p, q of dx, dw, db are, with U = ⟨u·x̂⟩ and c = ⟨g·x̂⟩,

    of dy    w·P(u) + p·x̂ + q
    of w     Σ dy·P(u)
    of x     P(p·dy − s·(c·u + U·g)) − s²·(⟨u·g⟩ − ⟨u⟩·⟨g⟩ − U·c)·x̂

Five sums over the pixels of each channel, and linear combinations of u, dy and x̂: plain operations, which a compiler
makes a few kernels of.
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GroupNorm", "with_closed_norms"]


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with weights: the same values and first derivative, and a second one in fewer operations.

    For what autograd differentiates twice: otherwise PyTorch's own takes less time. The transforms of `torch.func` do
    not go through it. What comes in half precision leaves in it, under autocast too; statistics are float32. A third
    derivative is refused.
    """

    def forward(self, x: Tensor) -> Tensor:  # (N, C, ...) -> (N, C, ...)
        return _Normalised.apply(x, self.weight, self.bias, self.num_groups, self.eps)


def with_closed_norms(module: nn.Module) -> nn.Module:
    """`module` itself, in which each GroupNorm of PyTorch's with weights has become one of this module."""
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.GroupNorm and layer.affine:
                closed = GroupNorm(layer.num_groups, layer.num_channels, layer.eps)
                closed.weight, closed.bias = layer.weight, layer.bias
                setattr(parent, name, closed.train(layer.training))
    return module


def _wide(x: Tensor) -> Tensor:
    """(N, C, ...) as (N, C, pixels), in float32 or more, and contiguous, as PyTorch's operations want it."""
    x = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    return x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


class _Normalised(torch.autograd.Function):
    """y (N, C, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, groups: int, eps: float) -> Tensor:
        wide = _wide(x)
        weights = w.to(wide.dtype), b.to(wide.dtype)
        # A tensor of its own and no view, so that an activation may be written into it.
        y, mu, s = torch.native_group_norm(wide.view(x.shape), *weights, *wide.shape, groups, eps)
        ctx.save_for_backward(x, w, mu, s)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_First.apply(dy, *ctx.saved_tensors), None, None


class _First(torch.autograd.Function):
    """dx, dw and db; no gradient comes through μ and s (N, groups), for that of x counts them."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, w: Tensor, mu: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(dy, x, w, mu, s)
        wide = _wide(x)
        dx, dw, db = torch.ops.aten.native_group_norm_backward(
            _wide(dy), wide, mu, s, w.to(wide.dtype), *wide.shape, mu.shape[1], [True, True, True]
        )
        return dx.to(x.dtype).view(x.shape), dw.to(w.dtype), db.to(w.dtype)

    @staticmethod
    def backward(ctx: Any, u: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor | None, ...]:
        return *_Second.apply(u, p, q, *ctx.saved_tensors), None, None


class _Second(torch.autograd.Function):
    """What u, p and q are for dy, x and w."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, p: Tensor, q: Tensor, dy: Tensor, x: Tensor, w: Tensor, mu: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape, dtype, groups = x.shape, x.dtype, mu.shape[1]
        # (N, groups, channels of a group, pixels), and what groups and channels have as it broadcasts to that.
        u, dy, x = (_wide(tensor).unflatten(1, (groups, -1)) for tensor in (u, dy, x))
        p, q, wide = (tensor.to(x.dtype).view(groups, -1, 1) for tensor in (p, q, w))
        mu, s = mu[:, :, None, None], s[:, :, None, None]
        normal = (x - mu).mul_(s)

        def mean(values: Tensor) -> Tensor:  # over the pixels of each channel
            return values.mean(dim=3, keepdim=True)

        def average(means: Tensor) -> Tensor:  # of these over the group
            return means.mean(dim=2, keepdim=True) if means.shape[2] > 1 else means

        of_u, of_dy, of_un, of_dn, of_ud = mean(u), mean(dy), mean(u * normal), mean(dy * normal), mean(u * dy)
        mean_u, big_u, c = average(of_u), average(of_un), average(wide * of_dn)
        along = of_ud.addcmul(mean_u, of_dy, value=-1).addcmul(big_u, of_dn, value=-1)  # mean of dy·P(u)/s
        scaled, sc = s * wide, s * c
        alpha = p.addcmul(scaled, big_u, value=-1)  # P is taken of h = alpha·dy − s·c·u
        mean_h = average(alpha * of_dy).addcmul(sc, mean_u, value=-1)
        slope = average(alpha * of_dn).addcmul(sc, big_u, value=-1).addcmul(s, average(wide * along))
        for_dy = q.addcmul(scaled, mean_u, value=-1).addcmul(normal, alpha).addcmul_(u, scaled)
        for_x = (-s * mean_h).addcmul(dy, s * alpha).addcmul_(u, s * sc, value=-1).addcmul_(normal, s * slope, value=-1)
        for_w = (s * along).sum(dim=0) * x.shape[3]
        return for_dy.to(dtype).view(shape), for_x.to(dtype).view(shape), for_w.to(w.dtype).view(w.shape)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("this GroupNorm has no third derivative; use torch.nn.GroupNorm")
