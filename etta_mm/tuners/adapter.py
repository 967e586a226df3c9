"""Adapters: a bottleneck of two matrices, beside a sublayer or behind it."""
import math

from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import Tuner, check_number, check_size
from .scale import Scale


class Adapter(Tuner):
    r"""The bottleneck that both adapters share.

    .. math:: \Delta h(x) = W_{up}\,\mathrm{relu}(W_{down} x + b_{down})
        + b_{up}

    ``W_down`` starts kaiming-uniform (a = √5), all else at zero, so Δh starts
    at zero and the tuned model as the base model.

    Parameters: ``2 * d * b + b + d`` (+ 1 where s is learned), with d =
    ``embed_dims`` and b = ``bottleneck_dims``.
    """

    def __init__(self, embed_dims: int, bottleneck_dims: int, scale: float,
                 learn_scale: bool, dropout: float) -> None:
        super().__init__()
        b = check_size(self, 'bottleneck_dims', bottleneck_dims)
        dropout = check_number(self, 'dropout', dropout)
        if not 0 <= dropout < 1:
            raise ValueError(f'{type(self).__name__}(dropout={dropout}): '
                             'dropout must be in [0, 1)')
        self.down = nn.Linear(embed_dims, b)
        # In place it would write into a view, the output of a linear map,
        # whose backward pass copies whole tensors.
        self.act = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(b, embed_dims)
        self.scale = Scale(check_number(self, 'scale', scale), learn_scale)
        if self.scale.value == 0:
            raise ValueError(
                f'{type(self).__name__}(scale=0): with W_up at zero as well, '
                'no parameter would ever move; start the scale elsewhere')
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.scale.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``s * Δh`` of ``x``, both of shape (..., embed_dims)."""
        return self.scale(self.up(self.dropout(self.act(self.down(x)))))


@MODELS.register_module()
class ParallelAdapter(Adapter):
    """Adapter beside a sublayer: ``h(x) + s * Δh(x)``, before the residual.

    Beside an attention, x is the query with its position encoding.

    Source: He et al., "Towards a Unified View of Parameter-Efficient Transfer
    Learning", ICLR 2022, table 1 ("parallel adapter") and section 4.

    Args:
        embed_dims (int): d, given by the sublayer.
        bottleneck_dims (int): b.
        scale (float): s, or its start. Defaults to 1.
        learn_scale (bool): Whether s is learned. Defaults to False.
        dropout (float): Dropout behind the ReLU. Defaults to 0.

    Raises:
        TypeError: If a size, the scale or the dropout is not a number.
        ValueError: If a size is below 1, the scale is 0, or the dropout is
            not in [0, 1).
    """

    def __init__(self,
                 embed_dims: int,
                 bottleneck_dims: int,
                 scale: float = 1.,
                 learn_scale: bool = False,
                 dropout: float = 0.) -> None:
        super().__init__(embed_dims, bottleneck_dims, scale, learn_scale,
                         dropout)


@MODELS.register_module()
class SerialAdapter(Adapter):
    """Adapter behind a sublayer: ``h + Δh(h)``, before the residual.

    h is what the sublayer gives; with a parallel adapter beside it, the sum.

    Source: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP",
    ICML 2019, section 2.1 (behind attention and FFN); behind the FFN alone it
    is Pfeiffer et al., "AdapterFusion", EACL 2021.

    Args:
        embed_dims (int): d, given by the sublayer.
        bottleneck_dims (int): b.
        dropout (float): Dropout behind the ReLU. Defaults to 0.

    Raises:
        TypeError: If a size or the dropout is not a number.
        ValueError: If a size is below 1, or the dropout is not in [0, 1).
    """

    def __init__(self,
                 embed_dims: int,
                 bottleneck_dims: int,
                 dropout: float = 0.) -> None:
        super().__init__(
            embed_dims,
            bottleneck_dims,
            scale=1.,
            learn_scale=False,
            dropout=dropout)
