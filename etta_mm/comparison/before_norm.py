"""Adapters before the LayerNorm: for one row of a comparison, not for use.

In a pre-norm transformer the parallel adapter sees what the FFN sees, behind
the LayerNorm. Here it sees the residual stream.
"""
from mmpretrain.registry import MODELS

from ..layers.ffn import ETFFN
from ..models import ETVisionTransformer


class FFNBeforeNorm(ETFFN):
    """``x + FFN(LN(x)) + s * Δh(x)``; ``identity`` is what LN was given."""

    def forward(self, x, identity):
        return identity + self.dropout_layer(
            self.adapt(identity, self.gamma2(self.layers(x))))


@MODELS.register_module()
class ETVisionTransformerBeforeNorm(ETVisionTransformer):
    """ET-ViT with every FFN a :class:`FFNBeforeNorm`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if type(module) is ETFFN:
                module.__class__ = FFNBeforeNorm
