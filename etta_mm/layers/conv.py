"""Residual blocks of a convolutional backbone with tuners.

Parents: mmdet's ``BasicBlock`` and ``Bottleneck`` (ResNet). Deviation: an
adapter joins behind the block, ``h(x) + Δh(h(x))``.
"""
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor

from .sublayer import TunedSublayer


class TunedBlock(TunedSublayer):
    """What the residual blocks share."""

    site = 'conv'

    @property
    def embed_dims(self) -> int:
        """Channels of the output."""
        last = 'conv3' if hasattr(self, 'conv3') else 'conv2'
        return getattr(self, last).out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(bs, c, h, w) -> (bs, embed_dims, h', w')."""
        return self.adapt(x, super().forward(x))


class ETBasicBlock(TunedBlock, BasicBlock):
    """mmdet's ``BasicBlock`` plus tuners."""


class ETBottleneck(TunedBlock, Bottleneck):
    """mmdet's ``Bottleneck`` plus tuners."""
