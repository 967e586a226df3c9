"""The least that a fine-tuning step with a frozen base can cost.

Whatever is learned at the place of the lowest tuner, its gradient must pass
everything above: the floor is the forward pass of everything, the gradient
with respect to the activations from the loss down to that place, and one
scalar there.
"""
from contextlib import nullcontext
from typing import Callable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..layers import disable_tuning
from ..layers.sublayer import TunedSublayer


def to_floor(model: nn.Module) -> nn.Module:
    """Take all tuners from ``model``; one scalar takes their place.

    In place. It is added to the output of the tuned sublayer that stands
    first in the model (where a layer norm may take it out again: it is there
    for its cost, not to learn). What ``train`` names stays trained.

    Raises:
        ValueError: If no sublayer of ``model`` has a tuner.
    """
    lowest = None
    for module in model.modules():
        if isinstance(module, TunedSublayer) and len(module.tuners):
            lowest = lowest or module
            module.tuners.clear()
    if lowest is None:
        raise ValueError(f'{type(model).__name__} has no tuner whose place the '
                         "floor's scalar could take; tune it first")
    weight = next(lowest.parameters())
    lowest.floor = nn.Parameter(weight.new_zeros(()))
    lowest.register_forward_hook(_add_scalar)
    return model


def _add_scalar(module: nn.Module, args, out):
    return out + module.floor


def count_flops(step: Callable, fused: bool = False) -> int:
    """Floating-point operations of the products in ``step()``.

    Args:
        step (Callable): What is counted.
        fused (bool): Whether attention may go through its fused kernels, which
            torch can count on a GPU alone; otherwise it is taken apart into
            its products, which takes memory. Defaults to False.
    """
    apart = nullcontext() if fused else sdpa_kernel(SDPBackend.MATH)
    with apart, FlopCounterMode(display=False) as mode:
        step()
    return mode.get_total_flops()


def tuner_flops(model: nn.Module, forward: Callable) -> int:
    """Operations of the tuners' own forward and backward passes.

    The backward pass of a product is two products of its size, so it is three
    times what the tuners add to the forward pass.

    Args:
        model (nn.Module): A tuned model.
        forward (Callable): Runs it once on the batch in question.
    """
    with torch.no_grad():
        enabled = count_flops(forward)
        with disable_tuning(model):
            return 3 * (enabled - count_flops(forward))
