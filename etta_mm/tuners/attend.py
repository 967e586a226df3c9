"""Attention through torch's fused kernels, but for cuDNN's where they err.

On a Hopper GPU torch 2.11 prefers cuDNN's kernels for half precision, the only one
they know. With a mask their backward pass can give NaN (pytorch#196678), their dropout
knows multiples of 1/16 only (pytorch#174245), and keys without a batch of their own, as
those of a prefix, may be refused (pytorch#175764). mmdet's attentions, which ask for
weights, never meet them; those that are fused here would.
"""
import threading
from contextlib import contextmanager
from typing import Iterator, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

NOT_CUDNN = [
    SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
]
#: Which kernels torch may take is one setting for all threads.
_SETTING = threading.RLock()


def attend(q: Tensor,
           k: Tensor,
           v: Tensor,
           mask: Optional[Tensor] = None,
           dropout: float = 0.,
           scale: Optional[float] = None,
           fused_in_trace: bool = False) -> Tensor:
    """``dropout(softmax(scale * q k^T + mask)) v``.

    In a trace of ``torch.jit`` it is the plain equation: mmengine counts the
    operations of a model in one, and knows no fused attention.

    Args:
        q (Tensor): (bs, num_heads, num_queries, d_head).
        k (Tensor): (bs, num_heads, num_keys, d_head).
        v (Tensor): Same shape as k.
        mask (Tensor, optional): Broadcastable to (bs, num_heads, num_queries,
            num_keys). Boolean with True where a query sees a key, or a float
            that is added to the logits.
        dropout (float): Dropout rate of the weights. Defaults to 0.
        scale (float, optional): Defaults to d_head ** -0.5.
        fused_in_trace (bool): Whether it stays fused there. Defaults to False.

    Returns:
        Tensor: Same shape as q.
    """
    if torch.jit.is_tracing() and not fused_in_trace:
        logits = q * (q.size(-1)**-0.5 if scale is None else scale)
        logits = logits @ k.transpose(-2, -1)
        if mask is not None:
            logits = (
                logits.masked_fill(~mask, -torch.inf)
                if mask.dtype == torch.bool else logits + mask)
        return F.dropout(logits.softmax(-1), dropout) @ v
    given = dict(attn_mask=mask, dropout_p=dropout, scale=scale)
    if q.is_cuda and _may_be_half(q) and (mask is not None or dropout
                                          or k.stride(0) == 0):
        with _without_cudnn():
            return F.scaled_dot_product_attention(q, k, v, **given)
    return F.scaled_dot_product_attention(q, k, v, **given)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Leave cuDNN out, and of the others those that are switched off."""
    if torch.compiler.is_compiling():  # which knows this switch
        with sdpa_kernel(NOT_CUDNN):
            yield
        return
    with _SETTING:
        # Where cuDNN alone is let, there is nothing else to take.
        was = cuda.cudnn_sdp_enabled()
        others = (cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled()
                  or cuda.math_sdp_enabled())
        cuda.enable_cudnn_sdp(was and not others)
        try:
            yield
        finally:
            cuda.enable_cudnn_sdp(was)


def _may_be_half(q: Tensor) -> bool:
    """Whether the kernel will compute in half precision."""
    return q.element_size() < 4 or torch.is_autocast_enabled('cuda')
