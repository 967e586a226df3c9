"""LoRA: a low-rank update of a linear map."""
import math

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import Tuner, check_number, check_size


@MODELS.register_module()
class LoRA(Tuner):
    r"""Low-rank update of one frozen linear map.

    .. math:: \Delta h(x) = \frac{\alpha}{r}\, B A x

    A starts kaiming-uniform (a = √5), B at zero. In an attention the query
    and value projections are updated, in an FFN every linear layer, in a
    deformable attention (which has no query projection) the value and the
    output projection. The first self-attention of a DETR's decoder, whose
    values are computed from zeros, has no update of the value projection.

    Parameters of one map: ``r * (in_dims + out_dims)``.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
    ICLR 2022, equation 3 and section 4.2.

    Args:
        in_dims (int): Input width, given by the layer.
        out_dims (int): Output width, given by the layer.
        rank (int): r.
        alpha (float, optional): α. Defaults to r, a factor of 1.

    Raises:
        TypeError: If the rank is no integer or alpha no number.
        ValueError: If the rank is below 1 or alpha is 0.
    """

    def __init__(self,
                 in_dims: int,
                 out_dims: int,
                 rank: int,
                 alpha: float = None) -> None:
        super().__init__()
        self.rank = check_size(self, 'rank', rank)
        self.alpha = check_number(self, 'alpha',
                                  self.rank if alpha is None else alpha)
        if self.alpha == 0:
            raise ValueError('LoRA(alpha=0): nothing would ever move; leave '
                             'alpha out for a factor of 1')
        self.down = nn.Parameter(torch.empty(self.rank, in_dims))  # A
        self.up = nn.Parameter(torch.empty(out_dims, self.rank))  # B
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.zeros_(self.up)

    def forward(self, x: Tensor) -> Tensor:
        """Δh of ``x``: (..., in_dims) -> (..., out_dims)."""
        update = F.linear(F.linear(x, self.down), self.up)
        factor = self.alpha / self.rank
        return update if factor == 1 else update * factor

    def extra_repr(self) -> str:
        return (f'in_dims={self.down.size(1)}, out_dims={self.up.size(0)}, '
                f'rank={self.rank}, alpha={self.alpha}')
