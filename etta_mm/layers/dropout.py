"""Dropout whose masks cost little on a CPU.

There torch makes each decision with a draw of its own, on one thread. Here a
draw of 64 bits makes four decisions, and a decision takes a byte until the
backward pass, where torch's takes four. Probabilities are multiples of 2^-16,
and the output is scaled by what they are, so that its expectation is x. The
draws are those of torch's generator: a seed gives the same masks again. On
other devices, and in a compiler's hands, dropout is torch's.
"""
from typing import Optional

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import Dropout
from torch import Tensor, nn

#: Decisions have a resolution of 16 bits.
_LEVELS = 2**16
_PER_DRAW = 4


def packed_dropout(x: Tensor, p: float) -> Tensor:
    """``x * m / (1 - p)`` with m = 0 for a share p of the elements, else 1.

    Args:
        x (Tensor): Of any shape.
        p (float): Probability of a zero, in [0, 1).
    """
    dropped = round(p * _LEVELS)
    if dropped == 0 or not is_packed(x) or dropped == _LEVELS:
        return F.dropout(x, p)
    return (x * _kept(x.shape, dropped)).mul_(_LEVELS / (_LEVELS - dropped))


def is_packed(x: Tensor) -> bool:
    """Whether dropout of ``x`` is that of this module."""
    return x.device.type == 'cpu' and not torch.compiler.is_compiling()


def _kept(shape: torch.Size, dropped: int) -> Tensor:
    """A mask of bytes, 0 with a probability of ``dropped / 2^16``, else 1.

    Comparisons in place, copies and products of these dtypes are vectorized
    on a CPU; those that end or begin with a boolean are not.
    """
    number = shape.numel()
    draws = torch.empty(-(-number // _PER_DRAW), dtype=torch.int64)
    draws.random_(-2**63, None)
    levels = draws.view(torch.int16)[:number]  # from -2^15
    kept = levels.ge_(dropped - _LEVELS // 2)
    return kept.to(torch.uint8).view(shape)


def attention_with_dropout(q: Tensor, k: Tensor, v: Tensor,
                           mask: Optional[Tensor], p: float,
                           scale: Optional[float]) -> Tensor:
    """``dropout(softmax(scale * q k^T + mask)) v``, as torch computes it on a
    CPU where the weights are dropped, which no fused kernel does there.

    Args:
        q (Tensor): (..., num_queries, d_head).
        k (Tensor): (..., num_keys, d_head).
        v (Tensor): Same shape as k.
        mask (Tensor, optional): Broadcastable to (..., num_queries,
            num_keys). Boolean with True where a query sees a key, or a float
            that is added to the logits. A query that sees none attends to
            nothing.
        p (float): Dropout rate of the weights.
        scale (float, optional): Defaults to d_head ** -0.5.

    Returns:
        Tensor: Same shape as q.
    """
    scale = q.size(-1)**-0.5 if scale is None else scale
    logits = (q * scale) @ k.transpose(-2, -1)
    if mask is None:
        return packed_dropout(logits.softmax(-1), p) @ v
    hidden = ~mask if mask.dtype == torch.bool else mask == -torch.inf
    blind = hidden.all(-1, keepdim=True)
    if mask.dtype == torch.bool:
        logits.masked_fill_(hidden & ~blind, -torch.inf)
    else:
        logits += mask.masked_fill(blind, 0.)
    weights = packed_dropout(logits.softmax(-1), p)
    return weights.masked_fill(blind, 0.) @ v if blind.any() else weights @ v


class PackedDropout(nn.Dropout):
    """``nn.Dropout`` by :func:`packed_dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        if not self.training or self.p in (0., 1.):
            return super().forward(x)
        return packed_dropout(x, self.p)


def pack_dropouts(model: nn.Module) -> None:
    """Let every dropout in ``model`` draw its masks in the cheaper way, in
    place, but for those that overwrite their input."""
    for module in model.modules():
        if type(module) in (nn.Dropout, Dropout) and not module.inplace:
            module.__class__ = PackedDropout
