"""How a training step grows with the tuners, the image and the depth."""
import dataclasses
from statistics import median
from typing import Dict, Hashable, Iterator

from ..tuners import Tuner
from .cases import Case, Contestant
from .floor import count_flops, to_floor, tuner_flops
from .measure import Rival, in_turn
from .memory import num_bytes, saved_bytes
from .methods import etta, full, tuned

#: What grows, and its values; of the image, pixels more than the case has.
AXES: Dict[str, tuple] = dict(
    bottleneck_dims=(50, 100, 200, 400, 800),
    num_prefix=(10, 25, 50, 100, 200),
    image_size=(-128, -64, 0, 64, 128),
    depth=(2, 4, 6, 8, 10))
METHODS = ('ETTA', 'floor', 'full fine-tuning')
OF_TUNERS = ('bottleneck_dims', 'num_prefix')


def growth(case: Case, steps: int = 3, warmup: int = 1) -> Iterator[dict]:
    """Measure every method at every value of every axis.

    The other sizes stay as ``case`` has them, with the paper's b = 400 and
    l = 50. All of an axis are timed in turn.

    Yields:
        dict: ``case``, ``axis``, ``value``, ``method`` and the measures of
        :func:`measure_steps`.
    """
    for axis, values in AXES.items():
        if axis == 'image_size':
            values = [value + case.image_size[0] for value in values]
        cells = {  # what does not depend on the tuners is there once
            (value, method): (method, None if axis in OF_TUNERS
                              and method != 'ETTA' else value)
            for value in values
            for method in METHODS
        }
        rivals = {}
        for (value, method), key in cells.items():
            if key not in rivals:
                rivals[key] = contestant(case, axis, value, method)
        found = measure_steps(rivals, case.device, steps, warmup)
        for (value, method), key in cells.items():
            yield dict(
                case=case.name,
                axis=axis,
                value=value,
                method=method,
                **found[key])


def contestant(case: Case, axis: str, value: int, method: str) -> Contestant:
    """``method`` on ``case`` with one size changed.

    Args:
        case (Case): The sizes that do not change.
        axis (str): One of :data:`AXES`.
        value (int): Its size; images are squares.
        method (str): One of :data:`METHODS`.
    """
    tuning = etta(**{axis: value}) if axis in OF_TUNERS else etta()
    if axis == 'image_size':
        case = dataclasses.replace(case, image_size=(value, value))
    elif axis == 'depth':
        case = dataclasses.replace(case, depth=value)
    if method == 'full fine-tuning':
        return full(case)
    rival = tuned(case, tuning)
    if method == 'floor':
        to_floor(rival.model)
    return rival


def measure_steps(contestants: Dict[Hashable, Contestant], device: str,
                  steps: int, warmup: int) -> Dict[Hashable, dict]:
    """What a step of each contestant costs, timed in turn.

    Returns:
        dict[Hashable, dict]: ``operations`` of the products,
        ``own_operations`` of the tuners among them, ``activation_bytes`` (kept
        for the backward pass), ``state_bytes`` (gradients and AdamW's two
        moments) and ``step_s`` (the median).
    """
    rivals = {
        key: Rival(one, device, 'float32')
        for key, one in contestants.items()
    }
    seconds = in_turn(rivals, lambda rival: sum(rival.step()), steps, warmup)
    return {
        key: dict(
            _counts(one),
            state_bytes=3 * num_bytes(rivals[key].trained),
            step_s=median(seconds[key]))
        for key, one in contestants.items()
    }


def _counts(rival: Contestant) -> dict:
    model = rival.model
    has_tuners = any(isinstance(m, Tuner) for m in model.modules())
    return dict(
        operations=count_flops(lambda: rival.loss().backward()),
        own_operations=tuner_flops(model, rival.loss) if has_tuners else 0,
        activation_bytes=saved_bytes(model, rival.loss))
