"""The scalar ``s`` of ``h + s * Δh``."""
import torch
from mmengine.model import BaseModule
from torch import Tensor, nn


class Scale(BaseModule):
    """Multiply by a scalar, fixed or learned.

    .. math:: y = s x

    Parameters: 1 where ``learn`` is set, else none (a fixed ``s`` is a number
    of the configuration, not a weight).

    Args:
        value (float): ``s``, or the start of it.
        learn (bool): Whether ``s`` is learned.
    """

    def __init__(self, value: float, learn: bool) -> None:
        super().__init__()
        self.value = value
        self.learn = learn
        if learn:
            self.weight = nn.Parameter(torch.empty(()))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.learn:
            nn.init.constant_(self.weight, self.value)

    def forward(self, x: Tensor) -> Tensor:
        """Scale a tensor of any shape."""
        if self.learn:
            return x * self.weight
        return x if self.value == 1 else x * self.value

    def extra_repr(self) -> str:
        return f'value={self.value}, learn={self.learn}'
