"""From a share of the parameters to the bottleneck that spends it.

The number of trained parameters is linear in the bottleneck b and in the prefix
length l, so one count of one model says it for all of them:

    trained(b, l) = head + fixed + per_bottleneck * b + per_prefix * l
"""
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Union

from mmengine.config import Config
from torch import nn

from ..tuners import ParallelAdapter, ScaledPrefix, Tuner
from .meta_model import build_on_meta

#: What a percentage is of, and its words.
WHOLES = dict(total='base + added', base='the base alone')
#: Of a bottleneck, against the rounding of floats.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Budget:
    """What a model's tuning costs, whatever its sizes.

    Every parallel adapter has the same b, every prefix the same l.

    Attributes:
        base (int): Parameters of the base model.
        head (int): Those of them that are trained.
        fixed (int): The tuners' parameters that depend on neither b nor l,
            those of the prefixes excepted.
        fixed_of_prefixes (int): The same of the prefixes.
        per_bottleneck (int): Parameters that one more b costs.
        per_prefix (int): Parameters that one more l costs.
    """
    base: int
    head: int
    fixed: int
    fixed_of_prefixes: int
    per_bottleneck: int
    per_prefix: int

    @classmethod
    def of(cls, model: Union[nn.Module, Config]) -> 'Budget':
        """Count a tuned model, or that of a config (on the meta device).

        Raises:
            TypeError: If ``model`` is neither.
            ValueError: If it has no parallel adapter.
        """
        if isinstance(model, Config):
            model = build_on_meta(model)
        if not isinstance(model, nn.Module):
            raise TypeError('a budget is that of an nn.Module or of an '
                            f'mmengine Config, not {type(model).__name__}')
        added = per_bottleneck = per_prefix = of_adapters = of_prefixes = 0
        ours = set()
        for tuner in model.modules():
            if not isinstance(tuner, Tuner):
                continue
            size = sum(p.numel() for p in tuner.parameters())
            ours.update(id(p) for p in tuner.parameters())
            added += size
            if isinstance(tuner, ParallelAdapter):
                b = tuner.down.out_features
                varying = (
                    tuner.down.weight.numel() + tuner.down.bias.numel() +
                    tuner.up.weight.numel())
                per_bottleneck += varying // b
                of_adapters += varying
            elif isinstance(tuner, ScaledPrefix):
                varying = tuner.key.numel() + tuner.value.numel()
                per_prefix += varying // tuner.num_prefix
                of_prefixes += size
        if not per_bottleneck:
            raise ValueError(
                f'{type(model).__name__} has no ParallelAdapter whose '
                'bottleneck could be sized; give a model or config whose '
                "tuning has ffn=dict(type='ParallelAdapter', ...)")
        base = [p for p in model.parameters() if id(p) not in ours]
        return cls(
            base=sum(p.numel() for p in base),
            head=sum(p.numel() for p in base if p.requires_grad),
            fixed=added - of_adapters - of_prefixes,
            fixed_of_prefixes=sum(
                p.numel() for m in model.modules()
                if isinstance(m, ScaledPrefix) for p in m.scale.parameters()),
            per_bottleneck=per_bottleneck,
            per_prefix=per_prefix)

    def added(self, bottleneck_dims: int, num_prefix: int) -> int:
        """The tuners' parameters; ``num_prefix=0`` is without prefixes."""
        added = self.fixed + self.per_bottleneck * bottleneck_dims
        if num_prefix:
            added += self.fixed_of_prefixes + self.per_prefix * num_prefix
        return added

    def trained(self, bottleneck_dims: int, num_prefix: int) -> int:
        """The trained parameters: the tuners' and the head's."""
        return self.head + self.added(bottleneck_dims, num_prefix)

    def percent(self, bottleneck_dims: int, num_prefix: int,
                of: str = 'total') -> float:
        """Trained share in percent of base + added ('total') or of the base
        alone ('base')."""
        whole = self.base
        if _check_of(of) == 'total':
            whole += self.added(bottleneck_dims, num_prefix)
        return 100 * self.trained(bottleneck_dims, num_prefix) / whole

    def bottleneck(self, percent: float, num_prefix: int,
                   of: str = 'total') -> int:
        """The largest b that trains no more than ``percent``; see
        :func:`solve_bottleneck`."""
        share = _check_percent(percent) / 100
        self._check_num_prefix(num_prefix)
        if _check_of(of) == 'base':
            allowed = share * self.base
        else:  # allowed = share * (base + allowed - head)
            allowed = share * (self.base - self.head) / (1 - share)
        spent = self.trained(0, num_prefix)
        b = math.floor((allowed - spent) / self.per_bottleneck + TOLERANCE)
        if b < 1:
            raise ValueError(
                f'{percent} % of {WHOLES[of]} cannot be met with num_prefix='
                f'{num_prefix}: what is trained without the adapters\' '
                f'matrices has {spent:,} parameters ({self.head:,} of them in '
                'full), and with the smallest adapters (b = 1) the least '
                f'possible is {self.least(num_prefix, of):.2f} %. Ask for that '
                'or more, shorten the prefix, or train less in full')
        return b

    def least(self, num_prefix: int, of: str = 'total') -> float:
        """The least possible percentage, that of b = 1, rounded up to two
        decimals so that it can be asked for."""
        return math.ceil(100 * self.percent(1, num_prefix, of)) / 100

    def _check_num_prefix(self, num_prefix: int) -> None:
        if isinstance(num_prefix, bool) or not isinstance(
                num_prefix, Integral):
            raise TypeError(f'num_prefix={num_prefix!r} must be an integer, '
                            f'not {type(num_prefix).__name__}')
        if num_prefix < 0:
            raise ValueError(f'num_prefix={num_prefix} must be at least 0; 0 '
                             'is without prefixes')
        if num_prefix and not self.per_prefix:
            raise ValueError(
                f'num_prefix={num_prefix}, but the model has no prefix; give '
                'num_prefix=0, or a tuning with '
                "attn=dict(type='ScaledPrefix', ...)")


def solve_bottleneck(model: Union[nn.Module, Config],
                     percent: float,
                     num_prefix: int,
                     of: str = 'total') -> int:
    r"""The ``bottleneck_dims`` with which a tuning meets its budget.

    With B parameters of the base, H of them trained (the head), and
    T(b, l) = H + the tuners', it is the largest b with

    .. math:: T(b, l) \le \frac{percent}{100} (B + T(b, l) - H)

    for ``of='total'``, and with B alone in brackets for ``of='base'``.

    Args:
        model (nn.Module | Config): A model tuned with parallel adapters, or
            the config of one, which is built on the meta device. The sizes
            that it has do not matter.
        percent (float): Trained share in percent, between 0 and 100.
        num_prefix (int): l, the length of its prefixes; 0 is without.
        of (str): 'total', percent of base + added, as
            :attr:`ParameterReport.percent` has it, or 'base', of the base
            alone. Defaults to 'total'.

    Returns:
        int: b, the same for every parallel adapter.

    Raises:
        TypeError: If a number is none, or ``model`` neither of the two.
        ValueError: If the model has no parallel adapter, or no b meets the
            percentage: what train names and the prefixes are above it.
    """
    return Budget.of(model).bottleneck(percent, num_prefix, of)


def _check_of(of: str) -> str:
    if of not in WHOLES:
        raise ValueError(f'of={of!r}: a percentage is of ' + ' or of '.join(
            f'{name!r} ({words})' for name, words in WHOLES.items()))
    return of


def _check_percent(percent: float) -> float:
    if isinstance(percent, bool) or not isinstance(percent, Real):
        raise TypeError(f'percent={percent!r} must be a number, not '
                        f'{type(percent).__name__}')
    if not 0 < percent < 100:
        raise ValueError(f'percent={percent!r} must be between 0 and 100: 5.6 '
                         'is 5.6 %')
    return float(percent)
