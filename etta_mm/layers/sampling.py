"""What deformable attention samples, computed faster on a CPU.

Without a GPU, mmcv samples with ``grid_sample``, one level after the other,
and keeps every sampled vector for the backward pass. The result is one sum for
each query and head,

    out = Σ_k a_k Σ_c u_kc V[i_kc],

over the points k of all levels with their attention a, and the four pixels c
around each with their bilinear share u (0 outside of the map). That is a sum of
rows of V with weights ``a u``: ``torch.nn.functional.embedding_bag``, which
reads a row of channels at a time and keeps none. So does the gradient of V,
with the parts of queries and pixels changed. This module is used only if a
config asks for it, see :mod:`etta_mm.fast_cpu`.
"""
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from mmcv.ops import multi_scale_deform_attn as mmcv_module
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

#: Sums whose rows are looked at once in the backward pass; they fit the cache.
CHUNK = 128
#: mmcv's own.
fallback = mmcv_module.multi_scale_deformable_attn_pytorch


class _Sample(Function):

    @staticmethod
    def forward(ctx, value: Tensor, shapes: Tensor, locations: Tensor,
                attention: Tensor) -> Tensor:
        bs, num_keys, num_heads, dims = value.shape
        num_queries, num_points = locations.shape[1], locations.shape[4]
        number = bs * num_queries * num_heads  # of the sums
        # Of each point of each level: size (x, y) and the level's first key.
        size = shapes.flip(1).repeat_interleave(num_points, 0).t()
        first = shapes.prod(1).cumsum(0) - shapes.prod(1)
        first = first.repeat_interleave(num_points)
        last = size - 1
        # (number, 2, points): axis x, y
        where = (locations.reshape(number, -1, 2).transpose(1, 2) * size - 0.5)
        low = where.floor()
        part = where.sub_(low)
        # (number, 2, 2, points): axis, lower and upper neighbour
        inside = torch.stack([(low >= 0) & (low <= last),
                              (low >= -1) & (low < last)], 2)
        share = torch.stack([1 - part, part], 2).mul_(inside)
        large = bs * num_keys * num_heads >= 2**31
        integer = torch.int64 if large else torch.int32
        at = torch.stack([low, low + 1], 2).to(integer).clamp_(min=0)
        at = torch.minimum(at, last[:, None].to(integer))
        # The row of V that holds (image, key, head).
        image = torch.arange(bs).view(bs, 1, 1) * num_keys * num_heads
        image = image + torch.arange(num_heads)
        row = at[:, 1] * (size[0] * num_heads).to(integer)
        row += (first * num_heads).to(integer)
        row += image.expand(bs, num_queries, -1).reshape(-1, 1, 1).to(integer)
        column = at[:, 0] * num_heads
        # (number, 2, 2, points): y, x
        index = (row[:, :, None] + column[:, None]).view(number, -1)
        attention = attention.reshape(number, 1, -1)
        weight = ((share[:, 1] * attention)[:, :, None]
                  * share[:, 0][:, None]).view(number, -1)
        table = value.reshape(-1, dims)
        ctx.save_for_backward(table, index, weight, share, inside, attention,
                              size)
        ctx.shapes = value.shape, locations.shape
        out = F.embedding_bag(
            index, table, mode='sum', per_sample_weights=weight)
        return out.view(bs, num_queries, num_heads * dims)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        table, index, weight, share, inside, attention, size = \
            ctx.saved_tensors
        value_shape, locations_shape = ctx.shapes
        grad = grad.reshape(len(index), -1)
        of_value = of_locations = of_attention = None
        if ctx.needs_input_grad[0]:
            of_value = _gradient_of_table(grad, index, weight, len(table))
            of_value = of_value.view(value_shape)
        if any(ctx.needs_input_grad[2:]):
            of_weight = _gradient_of_weight(grad, index, table)
            of_weight = of_weight.view(len(index), 2, 2, -1)  # y, x
            of_y = (of_weight * share[:, 0][:, None]).sum(2)
            of_x = (of_weight * share[:, 1][:, :, None]).sum(1)
            of_attention = (of_y * share[:, 1]).sum(1).view(
                locations_shape[:-1])
            of_share = torch.stack([of_x, of_y], 1).mul_(inside)
            of_share *= attention[:, None]
            of_locations = (of_share[:, :, 1] - of_share[:, :, 0]) * size
            of_locations = of_locations.transpose(1, 2).reshape(
                locations_shape)
        return of_value, None, of_locations, of_attention


def _gradient_of_table(grad: Tensor, index: Tensor, weight: Tensor,
                       num_rows: int) -> Tensor:
    """A row's is the weighted sum of those of the sums that it is part of."""
    rows, order = index.view(-1).sort()
    counts = torch.bincount(rows, minlength=num_rows)
    return F.embedding_bag(
        order // index.size(1),
        grad,
        counts.cumsum(0) - counts,
        mode='sum',
        per_sample_weights=weight.view(-1).index_select(0, order))


def _gradient_of_weight(grad: Tensor, index: Tensor, table: Tensor) -> Tensor:
    """A weight's is the product of its row and the gradient of its sum."""
    out = torch.empty(index.shape, dtype=grad.dtype)
    for start in range(0, len(index), CHUNK):
        part = slice(start, start + CHUNK)
        rows = table.index_select(0, index[part].reshape(-1))
        rows = rows.view(-1, index.size(1), table.size(1))
        torch.sum(rows.mul_(grad[part, None]), -1, out=out[part])
    return out


def can_sample(value: Tensor, locations: Tensor, attention: Tensor) -> bool:
    """Whether :func:`sample` can do the work: on a CPU, all in one of single
    and double precision, in no trace and no compilation."""
    return (value.device.type == 'cpu'
            and value.dtype in (torch.float32, torch.float64)
            and value.dtype == locations.dtype == attention.dtype
            and not torch.compiler.is_compiling() and not torch.jit.is_tracing())


def sample(value: Tensor, value_spatial_shapes: Tensor,
           sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """As ``mmcv.ops.multi_scale_deform_attn.
    multi_scale_deformable_attn_pytorch``; gradients can be taken once.

    Args:
        value (Tensor): (bs, num_keys, num_heads, dims).
        value_spatial_shapes (Tensor): (num_levels, 2), as (h, w).
        sampling_locations (Tensor): (bs, num_queries, num_heads, num_levels,
            num_points, 2), as (x, y), in [0, 1] of the map.
        attention_weights (Tensor): The same without the last dimension.

    Returns:
        Tensor: (bs, num_queries, num_heads * dims).
    """
    return _Sample.apply(value, value_spatial_shapes, sampling_locations,
                         attention_weights)


def sample_if_possible(value, value_spatial_shapes, sampling_locations,
                       attention_weights):
    """:func:`sample`, or mmcv's function where that cannot do the work."""
    function = fallback
    # The exported models' sizes are plain numbers.
    if torch.is_tensor(value_spatial_shapes) and can_sample(
            value, sampling_locations, attention_weights):
        function = sample
    return function(value, value_spatial_shapes, sampling_locations,
                    attention_weights)


def use_fast_sampling() -> None:
    """From now on mmcv's deformable attention samples this way on a CPU."""
    mmcv_module.multi_scale_deformable_attn_pytorch = sample_if_possible


@contextmanager
def fast_sampling():
    """The same for the forward passes within; their backward passes may be
    anywhere."""
    before = mmcv_module.multi_scale_deformable_attn_pytorch
    use_fast_sampling()
    try:
        yield
    finally:
        mmcv_module.multi_scale_deformable_attn_pytorch = before
