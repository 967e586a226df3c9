"""Base weights: as safetensors, and from pickles without running them.

mmengine's checkpoints are pickles, and unpickling can run any code; mmengine
tries ``weights_only=True`` and, where that fails, unpickles after all.
Importing this module teaches mmengine's ``CheckpointLoader`` otherwise, for
``load_from``, ``init_cfg`` and ``--resume`` alike:

- ``*.safetensors`` is loaded as a checkpoint, from this machine or from
  ``https://``;
- a pickle is loaded with ``weights_only=True`` and the few harmless types that
  mmengine itself writes; any other is an error until it is allowed
  (``--allow-pickle``, ``allow_pickle=True`` in the config).
"""
import argparse
import functools
import hashlib
import os
import pickle
import re
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import Callable
from urllib.error import URLError
from urllib.parse import urlsplit

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from safetensors.torch import save
from torch import nn

from .atomic import write_atomically
from .sealed_file import STATE, TUNED, read_safetensors

try:
    from numpy._core import multiarray
except ImportError:  # NumPy 1
    from numpy.core import multiarray

#: torch's own switches, for all of torch.load.
FORCE_WEIGHTS_ONLY = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
FORCE_PICKLE = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'

_is_pickle_allowed = False


def save_base(model: nn.Module, path, dtype: torch.dtype = torch.half) -> Path:
    """Write the weights of ``model`` as safetensors.

    Args:
        model (nn.Module): The model.
        path (str | Path): The file, ``*.safetensors``.
        dtype (torch.dtype): What floating-point weights are stored as;
            running statistics keep their own. Defaults to half precision.
    """
    buffers = {name for name, _ in model.named_buffers()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name not in buffers:
            tensor = tensor.to(dtype)
        tensors[name] = tensor.detach().cpu().clone().contiguous()
    return write_atomically(path, save(tensors))


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$')
def load_base(filename: str, map_location=None) -> dict:
    """Read a safetensors file as mmengine reads a checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no safetensors file, cut short, or a tuned
            checkpoint, which alone is no model.
    """
    filename = os.path.expanduser(filename)
    if not Path(filename).is_file():
        raise FileNotFoundError(f'{filename} can not be found.')
    header, tensors = read_safetensors(filename)
    if STATE.key in header:
        raise ValueError(
            f'{filename} is the training state of a tuned checkpoint, for '
            '--resume, and holds no model. Give the file beside it, without '
            '.train in its name')
    if TUNED.key in header:
        raise ValueError(
            f'{filename} is a tuned checkpoint: without its base it is no '
            f'model. Give both as etta_mm://CONFIG::{filename} (in code '
            'etta_mm.tuned_weights(config, tuned)), or load the base and then '
            'this with etta_mm.load_tuned')
    return dict(state_dict=tensors, meta={})


# Of the loaders whose pattern fits, mmengine takes the last in the alphabet:
# this one comes before that of all of https://.
@CheckpointLoader.register_scheme(
    prefixes=r'https?://[^?#]*\.safetensors(?:[?#]|$)')
def load_base_from_http(url: str, map_location=None) -> dict:
    """Fetch a safetensors file, once, and read it as :func:`load_base` does.

    It is kept where torch keeps what it fetches, in a folder of its address:
    many files are called ``model.safetensors``.

    Raises:
        OSError: If it cannot be fetched.
        ValueError: As :func:`load_base`.
    """
    folder = hashlib.sha256(url.encode()).hexdigest()[:16]
    file = Path(torch.hub.get_dir(), 'checkpoints', folder,
                Path(urlsplit(url).path).name)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        # It appears whole, so several processes may fetch it at once.
        try:
            torch.hub.download_url_to_file(url, str(file), progress=False)
        except URLError as error:
            raise _unreachable(url, error) from error
    return load_base(file)


def allow_pickle(allowed: bool = True) -> None:
    """Say whether checkpoints may be unpickled, which runs what is in them.

    Args:
        allowed (bool): From now on, in this process. Defaults to True.
    """
    global _is_pickle_allowed
    _is_pickle_allowed = allowed


def _statistics_method(owner, name: str) -> Callable:
    """What a pickled ``HistoryBuffer`` needs of ``getattr``: its own methods.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current',
                                                  'mean'):
        raise pickle.UnpicklingError(
            f'GLOBAL builtins.getattr of {owner!r:.40}, {name!r:.40}')
    return getattr(HistoryBuffer, name)


def _harmless() -> list:
    """Types that hold data and run nothing: what mmengine's message hub is
    made of, and the options that training scripts keep beside the weights."""
    types = [
        HistoryBuffer, np.ndarray, np.dtype, argparse.Namespace, slice, object,
        (_statistics_method, 'builtins.getattr')
    ]
    for old in ('numpy.core', 'numpy._core'):
        types += [(multiarray._reconstruct, f'{old}.multiarray._reconstruct'),
                  (multiarray.scalar, f'{old}.multiarray.scalar')]
    kinds = ('bool', 'uint8', 'int32', 'uint32', 'int64', 'uint64', 'float16',
             'float32', 'float64')
    return types + [type(np.dtype(kind)) for kind in kinds]


#: What a device says that is not here or full, whatever the file.
OF_DEVICE = re.compile(
    r'Attempting to deserialize|CUDA (error|out of memory)|^NCCL')


@contextmanager
def weights_only():
    """Make every ``torch.load`` inside take harmless types alone."""
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = '1'
    try:
        with torch.serialization.safe_globals(_harmless()):
            yield
    finally:
        if before is None:
            del os.environ[FORCE_WEIGHTS_ONLY]
        else:
            os.environ[FORCE_WEIGHTS_ONLY] = before


def _is_allowed() -> bool:
    return _is_pickle_allowed or os.environ.get(FORCE_PICKLE) == '1'


def _guarded(load: Callable) -> Callable:
    """``load`` of mmengine, unpickling only what is harmless or allowed."""

    @functools.wraps(load)
    def load_guarded(filename, map_location=None, **kwargs):
        try:
            if _is_allowed():
                print_log(f'{filename} is unpickled, which runs what is in '
                          'it: pickles are allowed', 'current')
                loaded = load(filename, map_location=map_location, **kwargs)
            else:
                with weights_only():
                    loaded = load(
                        filename, map_location=map_location, **kwargs)
        except URLError as error:
            raise _unreachable(filename, error) from error
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            if OF_DEVICE.search(str(error)):
                raise
            raise _refusal(filename, error) from error
        state = loaded
        if isinstance(loaded, dict):
            state = loaded.get('state_dict', loaded)
        if not isinstance(state, dict):
            raise ValueError(f'{filename} is no checkpoint: where the weights '
                             f'should be, by their names, it holds a '
                             f'{type(state).__name__}')
        return loaded

    return load_guarded


def _unreachable(url: str, error: URLError) -> ConnectionError:
    """What to say of an address that gives no file."""
    return ConnectionError(
        f'{url} cannot be fetched: {error.reason}. Fetch it where there is '
        'internet and name the file: --cfg-options load_from=FILE, or --base '
        'FILE where a tool has that. What init_cfg names, load_from replaces: '
        '--cfg-options model.backbone.init_cfg=None.')


def _refusal(filename, error: Exception) -> ValueError:
    """What to say of a file that torch does not load."""
    reason = str(error).rpartition('WeightsUnpickler error:')[2].strip()
    named = re.search(r'GLOBAL (\S+)', reason)
    # The opcode that pickles of protocol 4 and later begin with.
    is_newer = reason.startswith('Unsupported operand 149')
    if _is_allowed() or not (named or is_newer):
        reason = re.split(r'\. |\n', reason)[0] or type(error).__name__
        return ValueError(f'{filename} is damaged or no checkpoint '
                          f'({reason:.200}). Take an intact copy')
    return ValueError(
        f'{filename} is no checkpoint of tensors and plain values alone: it ' +
        (f'names {named.group(1)}' if named else
         'names types in the way of pickle protocol 4, which is not read') +
        '. Unpickling it would run what is in it. If you trust where it comes '
        'from, allow that with --allow-pickle, or allow_pickle=True in the '
        'config; better, ask for a safetensors file')


def load_from_local(filename, map_location=None):
    """Read a local checkpoint that mmengine or torch has written.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be opened.
        pickle.UnpicklingError: If its content is none that can be loaded;
            for some, torch raises EOFError or RuntimeError.
    """
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'{filename} can not be found.')
    is_allowed = _is_allowed()
    # Unpickling may raise anything; reading tensors alone, what torch's
    # reader stumbles over.
    faults = (OSError, ) if is_allowed else (
        ArithmeticError, AssertionError, AttributeError, LookupError, OSError,
        TypeError, ValueError, struct.error)
    with open(filename, 'rb') as file:
        try:
            return torch.load(
                file, map_location=map_location, weights_only=not is_allowed)
        except faults as error:
            raise pickle.UnpicklingError(
                f'{type(error).__name__}: {error}') from error


for _prefixes, _load in {
        '': load_from_local,
    ('http://', 'https://'): mmengine_checkpoint.load_from_http,
    ('modelzoo://', 'torchvision://'):
        mmengine_checkpoint.load_from_torchvision,
    ('open-mmlab://', 'openmmlab://'): mmengine_checkpoint.load_from_openmmlab,
        'mmcls://': mmengine_checkpoint.load_from_mmcls,
        'pavi://': mmengine_checkpoint.load_from_pavi,
    (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'):
        mmengine_checkpoint.load_from_ceph,
}.items():
    CheckpointLoader.register_scheme(_prefixes, _guarded(_load), force=True)
