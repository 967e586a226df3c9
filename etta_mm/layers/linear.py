"""A linear layer with a low-rank update."""
from mmcv.cnn.bricks.wrappers import Linear
from torch import Tensor, nn

from ..tuners import build_tuner
from .sublayer import TunedSublayer


class ETLinear(TunedSublayer, nn.Linear):
    """Frozen linear layer plus LoRA: ``W x + b + α/r B A x``."""

    site = 'linear'

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self.adapt(x, nn.Linear.forward(self, x))

    def adapt(self, x: Tensor, h: Tensor) -> Tensor:
        for tuner in self.active_tuners:
            h = h + tuner(x)
        return h


#: Layers that LoRA can update. Exact types: a subclass may compute something else.
LINEARS = (nn.Linear, Linear, ETLinear)


def add_lora(linear: nn.Linear, cfg: dict) -> None:
    """Give ``linear`` the low-rank update of ``cfg``, in place.

    It takes the place of no module: the layer changes its class, and what
    calls it notices nothing.

    Raises:
        ValueError: If the layer is of a class that may compute something else.
    """
    if type(linear) not in LINEARS:
        raise ValueError(
            f'LoRA updates nn.Linear, not {type(linear).__name__}, which may '
            'compute something else; '
            'leave it out with where=')
    if not isinstance(linear, ETLinear):
        linear.__class__ = ETLinear
        linear.add_tuners(None)
    linear._own(
        'lora',
        build_tuner(
            cfg, in_dims=linear.in_features, out_dims=linear.out_features))
