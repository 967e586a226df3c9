"""Fingerprints: short hashes that tell one set of weights from another."""
import hashlib
from typing import Dict, Iterator, List, Tuple

import torch
from torch import Tensor, nn

from ..tuners import Tuner

SHORT = 8  # hexadecimal digits of a hash that only names what differs


def base_hashes(model: nn.Module, tuned: List[str]) -> Dict[str, str]:
    """Hash of every tensor of the base, by name.

    A hash is of the name, the shape and the values as float32. So it depends
    neither on the device, nor on whether a base stored in half precision has
    been loaded into a model of half or of single precision.

    Args:
        model (nn.Module): The model.
        tuned (list[str]): Names that do not count, beside the tuners'.
    """
    hashes = {}
    for name, tensor in _base_tensors(model, tuned):
        if tensor.is_floating_point():
            tensor = tensor.float()
        digest = hashlib.sha256(f'{name}{tuple(tensor.shape)}'.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
        hashes[name] = digest.hexdigest()
    return hashes


def fold(hashes: Dict[str, str]) -> str:
    """One hash of many; their order does not count."""
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f'{name}:{hashes[name]}\n'.encode())
    return digest.hexdigest()


def fingerprint(model: nn.Module, tuned: List[str]) -> str:
    """One hash of the base of ``model``: its :func:`base_hashes`, folded.

    Args:
        model (nn.Module): The model.
        tuned (list[str]): Names that do not count, beside the tuners'.
    """
    return fold(base_hashes(model, tuned))


def tensors_fingerprint(tensors: Dict[str, Tensor]) -> str:
    """Hash of tensors as they are stored: names, types, shapes and bits."""
    hashes = {}
    for name, tensor in tensors.items():
        digest = hashlib.sha256(f'{tensor.dtype}{tuple(tensor.shape)}'.encode())
        digest.update(_bits(tensor))
        hashes[name] = digest.hexdigest()
    return fold(hashes)


def base_dtypes(model: nn.Module, tuned: List[str]) -> Dict[str, int]:
    """How many tensors of the base are of which type, for the reader."""
    counts = {}
    for _, tensor in _base_tensors(model, tuned):
        dtype = str(tensor.dtype).removeprefix('torch.')
        counts[dtype] = counts.get(dtype, 0) + 1
    return counts


def _base_tensors(model: nn.Module,
                  tuned: List[str]) -> Iterator[Tuple[str, Tensor]]:
    """All tensors of ``model`` but the tuners' and ``tuned``, by name."""
    state = model.state_dict(keep_vars=True)
    tuned = set(tuned)
    # A shared parameter has several names, and is ours under all of them.
    # Tensors on the meta device hold no data, so no address either.
    ours = {state[name].data_ptr() for name in tuned if name in state}
    ours |= {
        p.data_ptr()
        for m in model.modules() if isinstance(m, Tuner)
        for p in m.parameters()
    }
    ours.discard(0)
    for name in sorted(state):
        tensor = state[name].detach()
        if name not in tuned and tensor.data_ptr() not in ours \
                and not name.endswith('.num_batches_tracked'):
            yield name, tensor


def _bits(tensor: Tensor) -> bytes:
    """The memory of a tensor; numpy knows no bfloat16."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b''

