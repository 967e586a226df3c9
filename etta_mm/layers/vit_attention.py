"""mmpretrain's softmax attention with tuners, see :mod:`.attention`."""
from typing import Optional

from mmpretrain.models.utils import MultiheadAttention as ViTAttention
from torch import Tensor

from ..tuners import ParallelAdapter
from .attention import TunedAttention


class ETViTAttention(TunedAttention, ViTAttention):
    """mmpretrain's ``MultiheadAttention`` plus tuners."""

    is_parent_fused = True

    def add_tuner(self, cls: type, cfg: dict) -> None:
        if (issubclass(cls, ParallelAdapter)
                and self.input_dims != self.embed_dims):
            raise ValueError(
                f'{cls.__name__} cannot stand beside an attention from '
                f'{self.input_dims} to {self.embed_dims} dimensions; leave it '
                'out with where=')
        super().add_tuner(cls, cfg)

    def lora_inputs(self) -> dict:
        return dict(q=self.input_dims, v=self.input_dims)

    def _logit_scale(self) -> Optional[float]:
        """Where qk_scale is set, the parent has a function of its own, which
        divides the logits by its scale."""
        divisor = getattr(self.scaled_dot_product_attention, 'keywords',
                          {}).get('scale')
        return None if divisor is None else 1 / divisor

    def forward(self, x: Tensor) -> Tensor:
        """(bs, num_tokens, input_dims) -> (bs, num_tokens, embed_dims)."""
        q, k, v = self.qkv(x).chunk(3, -1)
        v = self._lora('v', x, v)
        h = self.attend(
            self._lora('q', x, q), k, v, None,
            self.attn_drop if self.training else 0., self._logit_scale())
        h = self.adapt(x, self.gamma1(self.proj_drop(self.proj(h))))
        h = self.out_drop(h)
        if self.v_shortcut:
            # The parent's shortcut is made for a single head.
            h = v.unflatten(-1, (self.num_heads, -1)).transpose(
                1, 2).squeeze(1) + h
        return h
