"""The state of the random generators, as tensors, arrays and plain values."""
import random

import numpy as np
import torch


def random_state() -> dict:
    """The generators of Python, NumPy and torch, on the CPU and on GPUs."""
    return dict(
        python=random.getstate(),
        numpy=np.random.get_state(),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all()
        if torch.cuda.is_initialized() else [])


def set_random_state(state: dict) -> None:
    """Put the generators into a state of :func:`random_state`.

    Args:
        state (dict): The state, its tensors on any device. That of GPUs is
            passed over where there are not as many.
    """
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state['cuda']])
