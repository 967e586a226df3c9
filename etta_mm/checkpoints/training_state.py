"""The training state beside a tuned checkpoint, for resuming from it alone.

``epoch_3.safetensors`` holds the trained tensors,
``epoch_3.train.safetensors`` what else mmengine's ``epoch_3.pth`` holds and the
base does not: optimizer, schedulers, message hub, random generators, and of
averaged weights the raw ones.
It is a sealed file (:mod:`.sealed_file`): tensors by number, and the rest as
JSON, no pickle.
"""
import logging
from pathlib import Path
from typing import Dict, List

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor, nn

from .sealed_file import STATE, read_sealed, write_sealed
from .tuned_checkpoint import tuned_state_dict

#: What the Runner cannot resume without.
NEEDED = ('meta', 'message_hub', 'optimizer')
EMA_PREFIX = 'module.'  # of the averaged model in mmengine's EMAHook
ARRAY_DTYPES = [
    np.dtype(kind) for kind in ('bool', 'uint8', 'uint16', 'uint32', 'int8',
                                'int16', 'int32', 'int64', 'float16',
                                'float32', 'float64')
]


def state_path(path) -> Path:
    """Where the training state of a tuned checkpoint lies.

    Args:
        path (str | Path): The tuned checkpoint.
    """
    path = Path(path)
    return path.with_name(f'{path.stem}.train{path.suffix}')


def save_training_state(path, checkpoint: dict, tuned: List[str],
                        tuned_fingerprint: str) -> Path:
    """Write the training state of a checkpoint, whole or not at all.

    Args:
        path (str | Path): The file.
        checkpoint (dict): What mmengine's Runner saves. Values that are no
            plain data are left out, with a line in the log.
        tuned (list[str]): Names of the tensors that are trained.
        tuned_fingerprint (str): Of the tensors in the tuned checkpoint that
            this belongs to.
    """
    state = {k: v for k, v in checkpoint.items() if k != 'state_dict'}
    if 'ema_state_dict' in state:
        kept = {EMA_PREFIX + name for name in tuned}
        state['ema_state_dict'] = {
            key: tensor
            for key, tensor in state['ema_state_dict'].items()
            if key in kept or not key.startswith(EMA_PREFIX)
        }
    tensors = {}
    encoded = _encode(state, tensors, 'checkpoint')
    return write_sealed(
        path, STATE,
        dict(tuned_fingerprint=tuned_fingerprint, checkpoint=encoded), tensors)


def load_training_state(path, model: nn.Module,
                        tuned_fingerprint: str) -> dict:
    """What mmengine's Runner resumes from, made of a base and its tuned files.

    Args:
        path (str | Path): The training state.
        model (nn.Module): The base with the tuned checkpoint loaded.
        tuned_fingerprint (str): Of the tensors in that checkpoint.

    Returns:
        dict: A checkpoint as the Runner saves it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or belongs to another tuned checkpoint.
    """
    content, tensors = read_sealed(path, STATE)
    if content.get('tuned_fingerprint') != tuned_fingerprint:
        raise ValueError(f'{path} does not belong to the tuned checkpoint '
                         'beside it: it was saved with other weights')
    checkpoint = _decode_checked(content.get('checkpoint'), tensors, path)
    checkpoint['state_dict'] = {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
    }
    if 'ema_state_dict' in checkpoint:
        _complete_average(checkpoint, model, path)
    return checkpoint


def _decode_checked(encoded, tensors: Dict[str, Tensor], path) -> dict:
    """The checkpoint, a dict with what is needed."""
    try:
        checkpoint = _decode(encoded, tensors)
    except (AssertionError, AttributeError, IndexError, KeyError,
            OverflowError, RecursionError, RuntimeError, TypeError,
            ValueError) as error:
        raise ValueError(f'{path} is damaged: {error!r:.200}. Take an intact '
                         'copy') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} is damaged: it holds no checkpoint but '
                         f'{checkpoint!r:.60}. Take an intact copy')
    wrong = [key for key in NEEDED if not isinstance(checkpoint.get(key), dict)]
    if wrong:
        raise ValueError(f'{path} is damaged: {wrong[0]} is no dict but '
                         f'{checkpoint.get(wrong[0])!r:.60}. Take an intact '
                         'copy')
    return checkpoint


def _complete_average(checkpoint: dict, model: nn.Module, path) -> None:
    """Add what is not trained, and so is its own average, and the other names
    of what is."""
    given = checkpoint['ema_state_dict']
    tuned = list(tuned_state_dict(model))
    missing = [
        name for name in tuned if not isinstance(given, dict)
        or not isinstance(given.get(EMA_PREFIX + name), Tensor)
    ]
    if missing:
        raise ValueError(f'{path} lacks the raw weights of {missing[:3]}; '
                         'take an intact copy')
    state = model.state_dict(keep_vars=True)
    raw = {state[name].data_ptr(): given[EMA_PREFIX + name] for name in tuned}
    for name, tensor in state.items():
        given.setdefault(
            EMA_PREFIX + name,
            raw.get(tensor.data_ptr(), tensor.detach()).clone())


def _encode(value, tensors: Dict[str, Tensor], where: str):
    """``value`` as JSON; what JSON has no word for is a dict with one key
    that begins with a dollar."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [
            _encode(item, tensors, f'{where}[{i}]')
            for i, item in enumerate(value)
        ]
    if isinstance(value, tuple):
        return {'$tuple': _encode(list(value), tensors, where)}
    if isinstance(value, dict):
        pairs = []
        for key, item in value.items():
            pairs.append([
                _encode(key, tensors, where),
                _encode(item, tensors, f'{where}.{key}')
            ])
        return {'$dict': [p for p in pairs if p[1] != _LEFT_OUT]}
    if isinstance(value, np.generic):
        return {'$scalar': _encode(np.asarray(value), tensors, where)}
    if isinstance(value, np.ndarray) and value.dtype in ARRAY_DTYPES:
        array = value.astype(np.int64) if value.dtype.kind == 'u' else value
        return {
            '$array': [
                _encode(torch.tensor(array), tensors, where),
                str(value.dtype)
            ]
        }
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {'$tensor': name}
    if isinstance(value, HistoryBuffer):
        log, count = value.data
        return {
            '$history': _encode([log, count, value.max_length], tensors, where)
        }
    print_log(
        f'{where}, a {type(value).__name__}, is no plain value and left out '
        'of the training state',
        logger='current',
        level=logging.WARNING)
    return _LEFT_OUT


_LEFT_OUT = {'$left_out': None}


def _decode(value, tensors: Dict[str, Tensor]):
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == '$left_out':
        return None
    if kind == '$tensor':
        return tensors[content]
    if kind == '$dict':
        return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
    if kind == '$array':
        dtype = ARRAY_DTYPES[ARRAY_DTYPES.index(content[1])]
        return _decode(content[0], tensors).numpy().astype(dtype)
    content = _decode(content, tensors)
    if kind == '$tuple':
        return tuple(content)
    if kind == '$scalar':
        return content[()]
    if kind == '$history':
        if not all(isinstance(array, np.ndarray) for array in content[:2]):
            raise ValueError(f'a history of {content!r:.40}')
        return HistoryBuffer(*content)
    raise ValueError(f'unknown {kind!r:.20}')
