"""Feed-forward networks with tuners.

Parents: mmcv's ``FFN`` and mmpretrain's ``SwiGLUFFN``. Deviations: adapters
join before ``dropout_layer`` and the residual; LoRA updates every linear
layer.
"""
from typing import Optional

import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmengine.registry import MODELS
from mmpretrain.models.utils import SwiGLUFFN
from torch import Tensor, nn

from ..tuners import LoRA
from .linear import add_lora
from .sublayer import TunedSublayer


class TunedFFN(TunedSublayer):
    """What the feed-forward networks share."""

    site = 'ffn'

    def add_tuner(self, cls: type, cfg: dict) -> None:
        if issubclass(cls, LoRA):
            for name, child in self.named_children():
                for module in child.modules() if name != 'tuners' else ():
                    if isinstance(module, nn.Linear):
                        add_lora(module, cfg)
        else:
            super().add_tuner(cls, cfg)


def keep_inputs_of_relus(model: nn.Module) -> None:
    """Have no ReLU of a feed-forward network in ``model`` overwrite its input.

    That is the output of a linear map, to autograd a view, and the backward
    pass of a write into a view copies whole tensors. The values are the same,
    and no more is kept for the backward pass.
    """
    for ffn in model.modules():
        if isinstance(ffn, FFN):
            for module in ffn.layers.modules():
                if type(module) is nn.ReLU:
                    module.inplace = False


@MODELS.register_module()
class ETFFN(TunedFFN, FFN):
    """mmcv's ``FFN`` plus tuners: ``x + FFN(x) + s * Δh(x)``.

    Args:
        tuning (dict | list[dict], optional): Tuners of the sublayer.
            Defaults to None.
        *args, **kwargs: Those of ``mmcv.cnn.bricks.transformer.FFN``.
    """

    def forward(self,
                x: Tensor,
                identity: Optional[Tensor] = None,
                residual: Optional[Tensor] = None) -> Tensor:
        """x, identity (default: x) and residual, which is its older name in
        mmcv, of shape (..., embed_dims)."""
        if identity is None:
            identity = x if residual is None else residual
        h = self.adapt(x, self.gamma2(self.layers(x)))
        h = self.dropout_layer(h)
        if not self.add_identity:
            return h
        return identity + h


class ETSwiGLUFFN(TunedFFN, SwiGLUFFN):
    """mmpretrain's ``SwiGLUFFN`` (and its ``Fused`` form) plus tuners."""

    def add_tuners(self, tuning) -> None:
        if tuning and self.out_dims != self.embed_dims:
            raise ValueError(
                f'a SwiGLUFFN from {self.embed_dims} to {self.out_dims} '
                'dimensions has no residual that a tuner could join; leave '
                'it out with where=')
        super().add_tuners(tuning)

    def forward(self, x: Tensor, identity: Optional[Tensor] = None) -> Tensor:
        """x and identity (default: x) of shape (..., embed_dims)."""
        gate, up = self.w12(x).chunk(2, dim=-1)
        h = self.gamma2(self.w3(self.norm(F.silu(gate) * up)))
        h = self.dropout_layer(self.adapt(x, h))
        if not self.add_identity:
            return h
        return (x if identity is None else identity) + h
