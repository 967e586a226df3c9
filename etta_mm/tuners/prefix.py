"""Prefixes: learned keys and values in an attention."""
from functools import lru_cache
from typing import Optional, Tuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .attend import attend
from .base import Tuner, check_number, check_size
from .scale import Scale

COMPOSITIONS = ('parallel', 'concat')
#: Queries that one block of the backward pass goes through on a GPU, where the
#: fused attention shares that pass out by image and head alone: where there are
#: more queries than MAX_QUERIES to an image (the encoder of a DETR), they are
#: divided into blocks, of one length from MIN_CHUNK to CHUNK if there is one.
MAX_QUERIES, MIN_CHUNK, CHUNK = 1024, 64, 512


@MODELS.register_module()
class ScaledPrefix(Tuner):
    r"""Few learned key and value vectors in an attention, scaled by s.

    With queries q over keys K and values V, and learned P_k, P_v of shape
    (num_prefix, embed_dims), all split into heads:

    - ``composition='parallel'``

      .. math:: \mathrm{Attn}(q, K, V) + s\,\mathrm{Attn}(q, P_k, P_v)

      P_v starts at zero: the tuned attention starts as the frozen one.
    - ``composition='concat'``: attention over ``[P_k; K]`` with the values
      ``[s P_v; V]``, which is

      .. math:: (1 - λ)\,\mathrm{Attn}(q, K, V)
          + s λ\,\mathrm{Attn}(q, P_k, P_v)

      with λ the softmax mass on the prefix. It takes mass from the frozen
      attention from the first step on, so it is not the identity at the start.

    P_k starts at N(0, key_std²), in 'concat' P_v at N(0, 0.02²). Never both s
    and P_v at zero: nothing would ever move. Dropout of attention weights drops
    those of a concatenated prefix with the others, and none of a parallel one.

    Parameters: ``2 * l * d`` (+ 1 where s is learned), with l =
    ``num_prefix`` and d = ``embed_dims``.

    Source: prefix, Li and Liang, "Prefix-Tuning", ACL 2021; the gated form of
    'concat', He et al., ICLR 2022, equation 5; 'parallel' and the learned s
    are this project's reading of ETTA's "tunable scalar multiplier".

    Args:
        embed_dims (int): d, given by the attention.
        num_heads (int): Heads, given by the attention.
        num_prefix (int): l.
        scale (float): s, or its start. Defaults to 1.
        learn_scale (bool): Whether s is learned. Defaults to True.
        composition (str): 'parallel' or 'concat'. Defaults to 'parallel'.
        key_std (float): Standard deviation of P_k at the start. Defaults to 1.

    Raises:
        TypeError: If a size, the scale or ``key_std`` is not a number.
        ValueError: If a size is below 1, the scale is 0, ``key_std`` is
            negative, or the composition is neither of the two.
    """

    sites = ('attn', )

    def __init__(self,
                 embed_dims: int,
                 num_heads: int,
                 num_prefix: int,
                 scale: float = 1.,
                 learn_scale: bool = True,
                 composition: str = 'parallel',
                 key_std: float = 1.) -> None:
        super().__init__()
        if composition not in COMPOSITIONS:
            raise ValueError(
                f'{type(self).__name__}(composition={composition!r}): '
                f'composition is one of {", ".join(COMPOSITIONS)}')
        self.num_heads = num_heads
        self.num_prefix = check_size(self, 'num_prefix', num_prefix)
        self.composition = composition
        self.key_std = check_number(self, 'key_std', key_std)
        if self.key_std < 0:
            raise ValueError(f'{type(self).__name__}(key_std={key_std}): it is '
                             'a standard deviation, so it cannot be negative')
        self.key = nn.Parameter(torch.empty(num_prefix, embed_dims))
        self.value = nn.Parameter(torch.empty(num_prefix, embed_dims))
        self.scale = Scale(check_number(self, 'scale', scale), learn_scale)
        if self.scale.value == 0:
            raise ValueError(
                f'{type(self).__name__}(scale=0): the values start at zero or '
                'near it, so nothing would move; start the scale elsewhere')
        self.reset_parameters()

    @property
    def is_identity_at_start(self) -> bool:
        return self.composition == 'parallel'

    def reset_parameters(self) -> None:
        nn.init.normal_(self.key, std=self.key_std)
        if self.composition == 'parallel':
            nn.init.zeros_(self.value)
        else:
            nn.init.normal_(self.value, std=0.02)
        self.scale.reset_parameters()

    def heads(self, number: int, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
        """P_k and s·P_v for each of so many images, without a copy: (number,
        num_heads, num_prefix, d_head) of the type ``dtype``."""
        # Expanded before the transpose, so that the gradients' sum over the
        # images lies in memory as the parameter does.
        return tuple(
            t.to(dtype).unflatten(-1, (self.num_heads, -1)).expand(
                number, -1, -1, -1).transpose(1, 2)
            for t in (self.key, self.scale(self.value)))

    def forward(self, query: Tensor) -> Tensor:
        """``s * Attn(q, P_k, P_v)``, what 'parallel' adds.

        The queries of the whole batch attend to the same few keys, of which
        no image gets a copy.

        Args:
            query (Tensor): (bs, num_queries, embed_dims), projected, before
                the split into heads.

        Returns:
            Tensor: (bs, num_queries, embed_dims), the heads put together.
        """
        if query.device.type == 'cpu':
            # One block: each has a gradient of the prefix to itself, and to
            # fill and sum those of a batch can take longer than the attention.
            return self._attend(query.flatten(0, 1)[None]).view(query.shape)
        will_learn = self.training and torch.is_grad_enabled()
        if not will_learn or query.size(1) <= MAX_QUERIES:
            return self._attend(query)
        return self._attend_in_chunks(query)

    def _attend_in_chunks(self, query: Tensor) -> Tensor:
        rows = query.flatten(0, 1)  # (bs * num_queries, embed_dims)
        # Compiled, the number of rows may be a symbol.
        length = (None if torch.compiler.is_compiling() else _divisor(
            len(rows), MIN_CHUNK, CHUNK))
        if length:
            blocks = rows.unflatten(0, (-1, length))
            return self._attend(blocks).reshape(query.shape)
        whole = len(rows) // CHUNK * CHUNK
        blocks = [rows[:whole].unflatten(0, (-1, CHUNK))]
        if whole < len(rows):
            blocks.append(rows[None, whole:])
        out = torch.cat([self._attend(b).flatten(0, 1) for b in blocks])
        return out.view(query.shape)

    def _attend(self, query: Tensor) -> Tensor:
        """As :meth:`forward`, each block of (blocks, length, embed_dims) by
        itself."""
        # (blocks, length, d) -> (blocks, num_heads, length, d_head)
        queries = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.heads(query.size(0), query.dtype)
        out = attend(queries, key, value)
        return out.transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        return (f'num_prefix={self.num_prefix}, num_heads={self.num_heads}, '
                f'composition={self.composition!r}')


@lru_cache(maxsize=None)
def _divisor(rows: int, least: int, most: int) -> Optional[int]:
    """The largest length of blocks that leaves no rest, which would be an
    attention of its own and a copy of all."""
    return next((length for length in range(most, least - 1, -1)
                 if rows % length == 0), None)


@MODELS.register_module()
class Prefix(ScaledPrefix):
    """Standard prefix tuning: the scaled prefix by concatenation with s = 1.

    P_k and P_v start at N(0, 0.02²).

    Parameters: ``2 * l * d``, with l = ``num_prefix`` and d =
    ``embed_dims``.

    Source: Li and Liang, "Prefix-Tuning", ACL 2021, without their
    reparameterisation.

    Args:
        embed_dims (int): d, given by the attention.
        num_heads (int): Heads, given by the attention.
        num_prefix (int): l.

    Raises:
        TypeError: If ``num_prefix`` is not an integer.
        ValueError: If ``num_prefix`` is below 1.
    """

    def __init__(self, embed_dims: int, num_heads: int,
                 num_prefix: int) -> None:
        super().__init__(
            embed_dims,
            num_heads,
            num_prefix,
            scale=1.,
            learn_scale=False,
            composition='concat',
            key_std=0.02)
