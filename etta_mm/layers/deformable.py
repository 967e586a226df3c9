"""Deformable attention with tuners.

Parent: mmcv's ``MultiScaleDeformableAttention``, whose forward (CUDA op or
CPU fallback, 2- or 4-coordinate reference points) is called as it is, but for
what stands in the place of its ``output_proj``. Deformable attention has no keys,
so there is no softmax mass λ to share, and the paper gives no formula for it.
Ours: a prefix always takes the parallel composition, its queries are query +
query_pos split into heads, and its result is added before ``output_proj``, as
in a softmax attention:

    output_proj(Deform(q) + s * Attn(q, P_k, P_v))

Adapters join behind the sublayer's own dropout, which is part of the parent's
forward; in a softmax attention, before it.
"""
import inspect
from typing import Any, Callable, Optional

from mmcv.ops import MultiScaleDeformableAttention
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..tuners import LoRA, ScaledPrefix
from .linear import add_lora
from .sublayer import ADAPTERS, TunedSublayer


@MODELS.register_module()
class ETMultiScaleDeformableAttention(TunedSublayer,
                                      MultiScaleDeformableAttention):
    """mmcv's ``MultiScaleDeformableAttention`` plus tuners.

    Args:
        tuning (dict | list[dict], optional): Tuners of the sublayer.
            Defaults to None.
        *args, **kwargs: Those of ``mmcv.ops.MultiScaleDeformableAttention``.

    Raises:
        ValueError: If a prefix meets ``value_proj_ratio != 1``: its values
            would not have the heads' width.
    """

    site = 'attn'
    #: Called with what stands in for the module, so that it must not be bound;
    #: without mmcv's decorator, which inspects its signature in every call.
    parent_forward = staticmethod(
        inspect.unwrap(MultiScaleDeformableAttention.forward))

    def add_tuner(self, cls: type, cfg: dict) -> None:
        if issubclass(cls, LoRA):
            add_lora(self.value_proj, cfg)
            add_lora(self.output_proj, cfg)
            return
        if (issubclass(cls, ScaledPrefix)
                and self.output_proj.in_features != self.embed_dims):
            raise ValueError(
                'a prefix cannot stand at a deformable attention with '
                'value_proj_ratio != 1; leave it out with where=')
        super().add_tuner(cls, cfg)

    def forward(self,
                query: Tensor,
                key: Optional[Tensor] = None,
                value: Optional[Tensor] = None,
                identity: Optional[Tensor] = None,
                query_pos: Optional[Tensor] = None,
                **kwargs) -> Tensor:
        """As the parent's.

        Args:
            query (Tensor): (bs, num_queries, embed_dims) if batch_first, else
                (num_queries, bs, embed_dims).
            key (Tensor, optional): Unused, as in the parent.
            value (Tensor, optional): Likewise with num_keys. Defaults to
                query.
            identity (Tensor, optional): The residual. Defaults to query.
            query_pos (Tensor, optional): Added to query; shape of query.
            **kwargs: ``key_padding_mask`` (bs, num_keys; True: hidden),
                ``reference_points`` (bs, num_queries, num_levels, 2 or 4; as
                (x, y) or (cx, cy, w, h), in [0, 1] of the padded image),
                ``spatial_shapes`` (num_levels, 2; as (h, w)) and
                ``level_start_index`` (num_levels, ).

        Returns:
            Tensor: Shape of query.
        """
        x = query if query_pos is None else query + query_pos
        rows = x if self.batch_first else x.transpose(0, 1)
        if identity is None:  # the older name is mmcv's, too
            identity = kwargs.pop('residual', query)
        has_adapter = self.has_tuner(*ADAPTERS)
        h = self.parent_forward(
            _Projecting(
                self, lambda h: self.output_proj(self.add_prefix(rows, h))),
            x,
            key=key,
            value=query if value is None else value,
            # Behind an adapter the residual comes last.
            identity=query.new_zeros(()) if has_adapter else identity,
            **kwargs)
        return self.adapt(x, h) + identity if has_adapter else h

    def add_prefix(self, x: Tensor, h: Tensor) -> Tensor:
        """Add what the prefix learned to what was sampled.

        Args:
            x (Tensor): query + query_pos, (bs, num_queries, embed_dims).
            h (Tensor): The sampled values before ``output_proj``, same shape.

        Returns:
            Tensor: Same shape.
        """
        if self.tuning_enabled and 'prefix' in self.tuners:
            h = h + self.tuners['prefix'](x)
        return h


class _Projecting:
    """A deformable attention to read from, with another ``output_proj``.

    The module itself stays as it is, whoever else runs it at the same time.
    """

    def __init__(self, module: nn.Module, output_proj: Callable) -> None:
        self.module = module
        self.output_proj = output_proj

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)
