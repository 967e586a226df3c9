"""Tensors of images on disk, by key."""
import json
import logging
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..checkpoints.atomic import write_atomically

DTYPES = ('float16', 'bfloat16', 'float32')
SUFFIX = '.safetensors'
CHECKSUM_KEY = 'crc32'
GB = 10**9  # bytes
MAX_READERS = 8  # threads


class FeatureCache:
    """A folder of feature maps, a file for each image.

    Several processes may share it: a file appears whole or not at all. A file
    that was cut short or damaged afterwards counts as missing.

    Args:
        folder (str | Path): The folder; it is made.
        dtype (str): What the features are stored as: 'float16', 'bfloat16' or
            'float32'. Defaults to 'float16'.
        max_gb (float): What the folder may take, in units of 10^9 bytes. Each
            process of a training gets an equal share of what is left of it.
            Once it is used up, nothing more is written; what is there is
            still read. Defaults to 100.

    Raises:
        ValueError: If the dtype or the limit is none, or the folder cannot be
            made.
    """

    def __init__(self,
                 folder,
                 dtype: str = 'float16',
                 max_gb: float = 100.0) -> None:
        if dtype not in DTYPES:
            raise ValueError(f'dtype={dtype!r} cannot be stored; it must be '
                             f'one of {", ".join(DTYPES)}')
        if isinstance(max_gb, bool) or not (isinstance(max_gb, (int, float))
                                            and max_gb > 0):
            raise ValueError(f'max_gb={max_gb!r} must be a positive number, '
                             'the size that the folder may have in 10^9 bytes')
        self.folder, self.max_gb = Path(folder), max_gb
        self.dtype = getattr(torch, dtype)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f'folder={str(folder)!r} cannot be made: {error.strerror}; '
                'give one that can be written to') from error
        self._left = (max_gb * GB - self.num_bytes()) / get_world_size()
        self._is_full = False

    def path(self, key: str) -> Path:
        """The file of ``key``; the folder has 256 sub-folders."""
        return self.folder / key[:2] / f'{key}{SUFFIX}'

    def num_bytes(self) -> int:
        """What all files take, those of other processes included."""
        total = 0
        for root, _, names in os.walk(self.folder):
            for name in names:
                if name.endswith(SUFFIX):
                    total += _size(os.path.join(root, name))
        return total

    def read(self,
             keys: Sequence[str],
             device='cpu') -> List[Optional[Tuple[Tensor, ...]]]:
        """The features of each key, or None where there are none.

        They have the types and the order in memory that they were given in.
        Files are read and checked side by side, and go to the device as they
        are stored.

        Args:
            keys (Sequence[str]): Hexadecimal digits each.
            device (str | torch.device): Where the features are wanted.
                Defaults to 'cpu'.
        """
        if not keys:
            return []
        # No pool is kept: a copy of the model copies this object.
        with ThreadPoolExecutor(min(len(keys), MAX_READERS)) as pool:
            files = list(pool.map(self._load, keys))
        return [f if f is None else _unpacked(f, device) for f in files]

    def _load(self, key: str) -> Optional[Dict[str, Tensor]]:
        """The tensors of a file, None if it is missing or damaged. This runs
        in a thread: an operation of torch that shares out its work would start
        threads of its own there."""
        try:
            data = self.path(key).read_bytes()
            tensors = load(data)
        except OSError:  # not there, or not to be read: made anew
            return None
        except SafetensorError:  # cut short: made anew and written again
            return None
        if _metadata(data).get(CHECKSUM_KEY) != _checksum(tensors):
            return None
        return tensors

    def write(self, key: str,
              features: List[Tensor]) -> Tuple[Tensor, ...]:
        """Store features and return what :meth:`read` would, on their device.

        So a training does not depend on what was in the folder before.

        Args:
            key (str): Hexadecimal digits.
            features (list[Tensor]): Each has shape (1, ...).

        Raises:
            ValueError: If a finite value is beyond the range of the dtype.
        """
        stored = [f.to(self.dtype) for f in features]
        for given, kept in zip(features, stored):
            if kept.isinf().any() and given.isfinite().all():
                raise ValueError(
                    f'a feature of {given.abs().max().item():.3g} is too large '
                    f'for {self.dtype}; store the features with '
                    "dtype='bfloat16', which is coarser, or dtype='float32'")
        self._save(key, _packed(features, stored))
        return tuple(k.to(g.dtype) for g, k in zip(features, stored))

    def _save(self, key: str, tensors: dict) -> None:
        if self._is_full:
            return
        data = save(tensors, {CHECKSUM_KEY: _checksum(tensors)})
        more = len(data) - _size(self.path(key))  # it may replace a broken one
        if more > self._left:
            self._stop(f'it has reached max_gb={self.max_gb}')
            return
        try:
            write_atomically(self.path(key), data)
        except OSError as error:
            self._stop(str(error))
            return
        self._left -= more

    def _stop(self, why: str) -> None:
        """Write no more. The training goes on as it would without a cache."""
        self._is_full = True
        print_log(
            f'The feature cache {self.folder} takes no more images: {why}. '
            'The other images go through backbone and neck in every epoch. '
            'Raise max_gb, or remove what older runs left there.',
            logger='current',
            level=logging.WARNING)


def _size(path) -> int:
    """Bytes of a file, 0 if there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:  # another process may just have removed it
        return 0


def _checksum(tensors: Dict[str, Tensor]) -> str:
    """CRC-32 of the names, types, shapes and bits of contiguous tensors."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        kind = f'{name} {tensor.dtype} {tuple(tensor.shape)}'
        crc = zlib.crc32(kind.encode(), crc)
        crc = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), crc)
    return f'{crc:08x}'


def _metadata(data: bytes) -> dict:
    """The metadata in the header of a safetensors file, which follows its own
    length in 8 bytes; :func:`safetensors.torch.load` leaves it out."""
    end = 8 + int.from_bytes(data[:8], 'little')
    return json.loads(data[8:end]).get('__metadata__', {})


def _packed(features: List[Tensor], stored: List[Tensor]) -> dict:
    """The tensors of a file. Their names tell number, type and order in
    memory of what they stand for."""
    packed = {}
    for i, (given, kept) in enumerate(zip(features, stored)):
        dtype = str(given.dtype).removeprefix('torch.')
        is_last = not given.is_contiguous() and given.dim() == 4
        packed[f'{i}.{dtype}.{"last" if is_last else "first"}'] = \
            kept.cpu().contiguous()
    return packed


def _unpacked(tensors: Dict[str, Tensor], device) -> Tuple[Tensor, ...]:
    features = []
    for name in sorted(tensors, key=lambda name: int(name.split('.')[0])):
        _, dtype, channels = name.split('.')
        memory_format = (
            torch.channels_last
            if channels == 'last' else torch.contiguous_format)
        features.append(tensors[name].to(device).to(
            getattr(torch, dtype), memory_format=memory_format))
    return tuple(features)
