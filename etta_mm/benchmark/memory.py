"""Bytes: of the weights, of their gradients, of what autograd keeps."""
import ctypes
from contextlib import contextmanager
from typing import Callable, Iterable

import torch
from torch import Tensor, nn


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of ``tensors``, a shared one once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def saved_bytes(model: nn.Module, forward: Callable) -> int:
    """Bytes that autograd keeps of ``forward()`` for the backward pass, the
    weights and buffers of ``model`` apart."""
    own = {
        t.untyped_storage().data_ptr()
        for t in (*model.parameters(), *model.buffers())
    }
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        # Kept as itself, an output would keep its own graph alive for ever.
        tensor = tensor.detach()
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = forward()
    size = num_bytes(kept)
    del result
    return size


#: What mallopt sets, as malloc.h has it.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@contextmanager
def freed_memory_returned():
    """Give freed memory back to the system at once, so that what is resident
    is what is in use.

    glibc keeps it in a heap otherwise, with holes that depend on the order of
    all allocations and grow from step to step. Costs time, since memory that
    comes back is filled with zeros; does nothing where malloc is another.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', lambda *args: 0)
    mallopt(_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:  # where glibc's own rule arrives after one large tensor
        mallopt(_MMAP_THRESHOLD, 2**25)
        mallopt(_TRIM_THRESHOLD, 2**26)
