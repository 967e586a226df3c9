"""Operator calls of a step: on a GPU a kernel each, or a few."""
from typing import Callable

from torch.utils._python_dispatch import TorchDispatchMode


class _Calls(TorchDispatchMode):

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += not func.is_view  # which computes nothing
        return func(*args, **(kwargs or {}))


def count_calls(step: Callable) -> int:
    """Calls of operators in ``step()``, forward and backward, views left out.

    What a small batch costs on a GPU: each call takes its microseconds there,
    however little it computes.
    """
    with _Calls() as calls:
        step()
    return calls.number
