"""What every tuner has in common."""
import math
from abc import abstractmethod
from numbers import Integral, Real

from mmengine.model import BaseModule


class Tuner(BaseModule):
    """A small trainable module that changes what a frozen sublayer computes.

    The output of a tuned sublayer is ``h + s * Δh``: the frozen sublayer's
    ``h`` plus the tuner's scaled ``Δh``. A subclass learns Δh; *where* it
    joins the sublayer is the business of :mod:`etta_mm.layers`.

    Ownership is by this type: whatever parameter lies below a ``Tuner`` was
    added by tuning, every other parameter is the base model's.

    Attributes:
        sites (tuple[str]): The sublayers at which the tuner can stand, of
            'ffn', 'attn' and 'conv'.
        is_identity_at_start (bool): Whether the tuned sublayer's output
            equals the frozen one's until the first step.
    """

    sites = ('ffn', 'attn')
    is_identity_at_start = True

    @abstractmethod
    def reset_parameters(self) -> None:
        """Set every parameter to its start."""

    def init_weights(self) -> None:
        """Start over, as mmengine's initialisation asks every module to.

        Hosts initialise all matrices below their encoder and decoder, ours
        included (e.g. ``mmdet.models.DETR.init_weights``), after their
        children; so a tuned host calls this once more, as the last.
        """
        self.reset_parameters()
        self._is_init = True


def check_size(tuner: Tuner, name: str, value) -> int:
    """Return ``value`` if it is a positive integer.

    Raises:
        TypeError: If it is no integer (a bool or a float is none).
        ValueError: If it is less than 1.
    """
    where = f'{type(tuner).__name__}({name}={value!r})'
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{where}: {name} must be an integer of at least 1, '
                        f'not {type(value).__name__}')
    if value < 1:
        raise ValueError(f'{where}: {name} must be at least 1; to leave the '
                         'tuner out, take it out of the tuning')
    return int(value)


def check_number(tuner: Tuner, name: str, value) -> float:
    """Return ``value`` as a float if it is a real number.

    Raises:
        TypeError: If it is none (a string that reads like one is none).
        ValueError: If it is infinite or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f'{type(tuner).__name__}({name}={value!r}): {name} must be a '
            f'number, not {type(value).__name__}')
    if not math.isfinite(value):
        raise ValueError(f'{type(tuner).__name__}({name}={value!r}): {name} '
                         'must be a finite number')
    return float(value)
