"""Adapter of a feature map: a bottleneck behind a residual block."""
import math

from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import Tuner, check_size


@MODELS.register_module()
class ConvAdapter(Tuner):
    r"""Adapter behind a block of a convolutional backbone: ``h + Δh(h)``.

    .. math:: \Delta h(h) = W_{up} * \mathrm{relu}(W_{depth} *_d
        (W_{down} * h + b_{down}) + b_{depth}) + b_{up}

    with 1x1 convolutions ``W_down`` (d to b) and ``W_up`` (b to d), and
    between them a 3x3 convolution of each channel by itself. The 1x1 ``W_down``
    and ``W_depth`` start kaiming-uniform (a = √5), all else at zero, so Δh
    starts at zero and the tuned model as the base model.

    Parameters: ``2 * d * b + 11 * b + d``, with d = ``embed_dims``, the channels
    of the block's output, and b = ``bottleneck_dims``.

    The tuners of the transformer leave a convolutional backbone as it is. This
    one gives that part a few parameters as well, for the price that the
    backward pass reaches down to the lowest of them.

    Source: after the residual adapters of Rebuffi et al., "Efficient
    parametrization of multi-domain deep neural networks", CVPR 2018, and
    Conv-Adapter, Chen et al., arXiv 2208.07463; the order of the three
    convolutions is ours.

    Args:
        embed_dims (int): d, given by the block.
        bottleneck_dims (int): b.

    Raises:
        TypeError: If the size is not an integer.
        ValueError: If the size is below 1.
    """

    sites = ('conv', )

    def __init__(self, embed_dims: int, bottleneck_dims: int) -> None:
        super().__init__()
        b = check_size(self, 'bottleneck_dims', bottleneck_dims)
        self.down = nn.Conv2d(embed_dims, b, 1)
        self.depth = nn.Conv2d(b, b, 3, padding=1, groups=b)
        self.act = nn.ReLU(inplace=True)
        self.up = nn.Conv2d(b, embed_dims, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv in (self.down, self.depth):
            nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5))
            nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``Δh`` of ``x``, both of shape (bs, embed_dims, h, w)."""
        return self.up(self.act(self.depth(self.down(x))))
