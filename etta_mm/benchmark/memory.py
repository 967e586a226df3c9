"""Bytes: of the weights, of their gradients, of what autograd keeps."""
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
