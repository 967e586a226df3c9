"""Softmax attentions with tuners: what they share, and mmcv's.

Parents: mmcv's ``MultiheadAttention`` and mmpretrain's (:mod:`.vit_attention`).
Deviations: both go through ``scaled_dot_product_attention``, which does not
form the attention weights (mmcv's parent asks for them and drops them) but
where they have dropout on a CPU; prefixes join between the heads and the output
projection, LoRA at the query and the value projection, adapters before the
residual. mmcv's take this path in a tuned model even where they have no tuner;
mmpretrain's own is fused as it is.
"""
import warnings
from typing import Optional

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..tuners import LoRA, build_tuner
from ..tuners.attend import attend
from .dropout import attention_with_dropout, is_packed
from .sublayer import TunedSublayer


class TunedAttention(TunedSublayer):
    """What the softmax attentions share."""

    site = 'attn'
    #: Whether the parent's attention is one operator, whose products mmengine
    #: does not count.
    is_parent_fused = False

    def add_tuner(self, cls: type, cfg: dict) -> None:
        if issubclass(cls, LoRA):
            for name, in_dims in self.lora_inputs().items():
                self._own(
                    f'lora_{name}',
                    build_tuner(
                        cfg, in_dims=in_dims, out_dims=self.embed_dims))
        else:
            super().add_tuner(cls, cfg)

    def lora_inputs(self) -> dict:
        """Input width of the projections that LoRA updates, by name."""
        raise NotImplementedError

    def _lora(self, name: str, x: Tensor, projected: Tensor) -> Tensor:
        name = f'lora_{name}'
        if self.tuning_enabled and name in self.tuners:
            return projected + self.tuners[name](x)
        return projected

    def attend(self,
               q: Tensor,
               k: Tensor,
               v: Tensor,
               mask: Optional[Tensor],
               dropout: float,
               scale: Optional[float] = None) -> Tensor:
        """Attention of projected queries, with the prefix if there is one.

        Args:
            q (Tensor): (bs, num_queries, embed_dims).
            k (Tensor): (bs, num_keys, embed_dims).
            v (Tensor): Same shape as k.
            mask (Tensor, optional): Broadcastable to (bs, num_heads,
                num_queries, num_keys). Boolean with True where a query sees a
                key, or a float that is added to the logits.
            dropout (float): Dropout rate of the attention weights.
            scale (float, optional): Factor of the logits. Defaults to
                d_head ** -0.5.

        Returns:
            Tensor: (bs, num_queries, embed_dims), the heads put together.
        """
        prefix = None
        if self.tuning_enabled and 'prefix' in self.tuners:
            prefix = self.tuners['prefix']
        # (bs, n, d) -> (bs, num_heads, n, d_head)
        queries, keys, values = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (q, k, v))
        if prefix is not None and prefix.composition == 'concat':
            prefix_keys, prefix_values = prefix.heads(k.size(0), k.dtype)
            keys = torch.cat((prefix_keys, keys), dim=2)
            values = torch.cat((prefix_values, values), dim=2)
            if mask is not None:  # a prefix is visible to every query
                visible = True if mask.dtype == torch.bool else 0.
                mask = F.pad(mask, (prefix.num_prefix, 0), value=visible)
        if dropout and is_packed(queries):
            out = attention_with_dropout(queries, keys, values, mask, dropout,
                                         scale)
        else:
            out = attend(queries, keys, values, mask, dropout, scale,
                         self.is_parent_fused)
        # (bs, num_heads, num_queries, d_head) -> (bs, num_queries, d)
        out = out.transpose(1, 2).flatten(2)
        if prefix is not None and prefix.composition == 'parallel':
            if scale is not None:  # which the prefix does not know
                q = q * (scale * queries.size(-1)**0.5)
            out = out + prefix(q)
        return out


def visible_mask(attn_mask: Optional[Tensor],
                 key_padding_mask: Optional[Tensor], bs: int,
                 dtype: torch.dtype) -> Optional[Tensor]:
    """Merge the two masks of ``nn.MultiheadAttention`` into SDPA's one.

    Args:
        attn_mask (Tensor, optional): (num_queries, num_keys) or (bs *
            num_heads, num_queries, num_keys); non-zero (or True) hides a key,
            a float is added to the logits.
        key_padding_mask (Tensor, optional): (bs, num_keys), likewise.
        bs (int): Batch size.
        dtype (torch.dtype): Type of the queries.

    Returns:
        Tensor, optional: Boolean (True: the query sees the key) or float,
        broadcastable to (bs, num_heads, num_queries, num_keys).
    """
    masks = []
    if attn_mask is not None:
        masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.
                     unflatten(0, (bs, -1)))
    if key_padding_mask is not None:
        masks.append(key_padding_mask[:, None, None])
    if not masks:
        return None
    if not any(mask.is_floating_point() for mask in masks):
        hidden = masks[0].bool()
        for mask in masks[1:]:
            hidden = hidden | mask.bool()
        return ~hidden
    return sum(
        mask.to(dtype) if mask.is_floating_point() else torch.
        zeros_like(mask, dtype=dtype).masked_fill(mask.bool(), -torch.inf)
        for mask in masks)


@MODELS.register_module()
class ETMultiheadAttention(TunedAttention, MultiheadAttention):
    """mmcv's ``MultiheadAttention`` plus tuners.

    Args:
        tuning (dict | list[dict], optional): Tuners of the sublayer.
            Defaults to None.
        *args, **kwargs: Those of
            ``mmcv.cnn.bricks.transformer.MultiheadAttention``.

    Raises:
        ValueError: If the parent's ``add_bias_kv`` or ``add_zero_attn`` is
            set: its additional key has no place in the fused attention.
    """

    def add_tuners(self, tuning) -> None:
        if has_additional_key(self):
            raise ValueError(
                'an attention with add_bias_kv or add_zero_attn cannot be '
                'tuned; leave it out with where=')
        super().add_tuners(tuning)

    def lora_inputs(self) -> dict:
        return dict(q=self.embed_dims, v=self.attn.vdim)

    def forward(self,
                query: Tensor,
                key: Optional[Tensor] = None,
                value: Optional[Tensor] = None,
                identity: Optional[Tensor] = None,
                query_pos: Optional[Tensor] = None,
                key_pos: Optional[Tensor] = None,
                attn_mask: Optional[Tensor] = None,
                key_padding_mask: Optional[Tensor] = None,
                **kwargs) -> Tensor:
        """As the parent's.

        Args:
            query (Tensor): (bs, num_queries, embed_dims) if batch_first, else
                (num_queries, bs, embed_dims); key and value (default: query
                and key) likewise with num_keys.
            identity (Tensor, optional): The residual. Defaults to query.
            query_pos (Tensor, optional): Added to query; shape of query.
            key_pos (Tensor, optional): Added to key. Defaults to query_pos
                where the shapes agree.
            attn_mask (Tensor, optional): (num_queries, num_keys) or (bs *
                num_heads, num_queries, num_keys), True: hidden.
            key_padding_mask (Tensor, optional): (bs, num_keys), True: hidden.
            **kwargs: ``residual`` is the older name of identity; others are
                ignored, as in the parent.

        Returns:
            Tensor: Shape of query.
        """
        if key is None:
            key = query
        if value is None:
            value = key
        if identity is None:
            identity = kwargs.get('residual', query)
        if key_pos is None and query_pos is not None:
            if query_pos.shape == key.shape:
                key_pos = query_pos
            else:
                warnings.warn('position encoding of key is missing in '
                              f'{type(self).__name__}.')
        is_self = key is query and key_pos is query_pos
        if query_pos is not None:
            query = query + query_pos
        if is_self:
            key = query
        elif key_pos is not None:
            key = key + key_pos

        # The rest is batch first: (bs, n, d).
        x, keys, values = query, key, value
        if not self.batch_first:
            x, values = x.transpose(0, 1), values.transpose(0, 1)
            keys = x if is_self else keys.transpose(0, 1)
        q, k, v = self._project(x, keys, values)
        mask = visible_mask(attn_mask, key_padding_mask, x.size(0), q.dtype)
        h = self.attn.out_proj(
            self.attend(
                self._lora('q', x, q), k, self._lora('v', values, v), mask,
                self.attn.dropout if self.training else 0.))
        if not self.batch_first:
            h = h.transpose(0, 1)
        h = self.adapt(query, self.proj_drop(h))
        return identity + self.dropout_layer(h)

    def _project(self, query: Tensor, key: Tensor, value: Tensor):
        """The three projections, each (bs, n, d), in as few products as the
        packed weight allows."""
        attn = self.attn
        if not attn._qkv_same_embed_dim:
            biases = (None, ) * 3 if attn.in_proj_bias is None else (
                attn.in_proj_bias.chunk(3))
            weights = (attn.q_proj_weight, attn.k_proj_weight,
                       attn.v_proj_weight)
            return tuple(
                F.linear(x, weight, bias)
                for x, weight, bias in zip((query, key,
                                            value), weights, biases))
        weight, bias, d = attn.in_proj_weight, attn.in_proj_bias, attn.embed_dim

        def project(x: Tensor, first: int, last: int) -> Tensor:
            rows = slice(first * d, last * d)
            return F.linear(x, weight[rows],
                            None if bias is None else bias[rows])

        if key is not query:
            q = project(query, 0, 1)
            if key is value:
                return (q, *project(key, 1, 3).chunk(2, -1))
            return q, project(key, 1, 2), project(value, 2, 3)
        if value is query:
            return project(query, 0, 3).chunk(3, -1)
        return (*project(query, 0, 2).chunk(2, -1), project(value, 2, 3))


def has_additional_key(module: MultiheadAttention) -> bool:
    """Whether the keys of an attention are more than it is given."""
    return module.attn.bias_k is not None or module.attn.add_zero_attn


def fuse_attentions(model: nn.Module) -> None:
    """Send every attention of mmcv in ``model`` through the fused kernels, in
    place and with no tuner, but for those with a key of their own."""
    for module in list(model.modules()):
        if type(module) is MultiheadAttention and not has_additional_key(
                module):
            module.__class__ = ETMultiheadAttention
            module.add_tuners(None)
