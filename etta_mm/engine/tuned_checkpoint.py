"""Tuned checkpoints: what was trained, and nothing else.

A file is safetensors: the trained tensors, and JSON metadata under the key
``etta_mm``. Reading one runs no code. The base weights are not in it; a
fingerprint of them is, so that a file meets the base it was trained on.
"""
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Dict, List

import mmcv
import mmengine
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..layers import apply_tuning
from ..layers.frozen import FrozenStatistics
from ..layers.tuning import rolled_back_on_error
from ..tuners import Tuner
from ..version import __version__

FORMAT_VERSION = 1
METADATA_KEY = 'etta_mm'


def tuned_state_dict(model: nn.Module) -> Dict[str, Tensor]:
    """The tensors of ``model`` that training may change, under their names.

    These are the tuners' parameters, every parameter that requires a gradient
    (a shared one once), and the buffers of the modules that own those or keep
    running statistics that are not frozen.

    Args:
        model (nn.Module): A tuned model, or one that contains tuned ones.

    Raises:
        ValueError: If nothing in ``model`` is tuned.
    """
    if not tuned_roots(model):
        raise ValueError(f'{type(model).__name__} is not tuned; tune it with '
                         'apply_tuning or a tuned host first')
    tuners = {
        id(p)
        for m in model.modules() if isinstance(m, Tuner)
        for p in m.parameters()
    }
    tensors = {
        name: p.detach()
        for name, p in model.named_parameters()
        if p.requires_grad or id(p) in tuners
    }
    persistent = model.state_dict(keep_vars=True)
    for name, module in model.named_modules():
        moves = any(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, _NormBase):
            moves = not isinstance(module, FrozenStatistics)
        if not moves:
            continue
        for key, buffer in module.named_buffers(recurse=False):
            key = f'{name}.{key}' if name else key
            if key in persistent:
                tensors[key] = buffer.detach()
    return tensors


def tuned_roots(model: nn.Module) -> Dict[str, nn.Module]:
    """The modules that were tuned (``apply_tuning``), by their names."""
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(module, 'tuning', None) is not None
    }


def fingerprint(model: nn.Module, tuned: List[str]) -> str:
    """Hash of the base: all tensors of ``model`` but the tuners' and ``tuned``.

    It depends on names, shapes and values (as float32), not on the device or
    the order.

    Args:
        model (nn.Module): The model.
        tuned (list[str]): Names that do not count.
    """
    state = model.state_dict(keep_vars=True)
    # A shared parameter has several names, and is ours under all of them.
    ours = {state[name].data_ptr() for name in tuned if name in state}
    ours |= {
        p.data_ptr()
        for m in model.modules() if isinstance(m, Tuner)
        for p in m.parameters()
    }
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        if name in tuned or tensor.data_ptr() in ours or name.endswith(
                '.num_batches_tracked'):
            continue
        if tensor.is_floating_point():
            tensor = tensor.float()
        digest.update(f'{name}{tuple(tensor.shape)}'.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_tuned(model: nn.Module, path, **info) -> Path:
    """Write the tuned checkpoint of ``model``.

    The file appears whole or not at all: it is written under another name in
    the same folder, synced and renamed.

    Args:
        model (nn.Module): A tuned model, or one that contains tuned ones.
        path (str | Path): The file, by convention ``*.safetensors``.
        **info: More metadata that JSON can hold, such as the data set's.

    Returns:
        Path: ``path``.

    Raises:
        ValueError: If nothing in ``model`` is tuned.
    """
    path = Path(path)
    tensors = tuned_state_dict(model)
    metadata = dict(
        format_version=FORMAT_VERSION,
        roots={
            name: dict(host=type(module).__name__, tuning=module.tuning)
            for name, module in tuned_roots(model).items()
        },
        base_fingerprint=fingerprint(model, list(tensors)),
        versions=dict(
            etta_mm=__version__,
            torch=torch.__version__,
            mmcv=mmcv.__version__,
            mmengine=mmengine.__version__),
        info=info)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f'.{path.name}.')
    os.close(handle)
    try:
        save_file({k: v.cpu().contiguous()
                   for k, v in tensors.items()}, temporary,
                  {METADATA_KEY: json.dumps(metadata)})
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp is for the owner alone
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def read_metadata(path) -> dict:
    """The metadata of a tuned checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no tuned checkpoint, cut short, or of a newer
            format.
    """
    return _read(path, with_tensors=False)[0]


def _read(path, with_tensors: bool = True):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no tuned checkpoint {path}')
    tensors = {}
    try:
        with safe_open(str(path), framework='pt') as file:
            header = file.metadata() or {}
            if with_tensors:
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        metadata = json.loads(header[METADATA_KEY])
        version = metadata['format_version']
    except SafetensorError as error:
        raise ValueError(f'{path} is no safetensors file, or cut short '
                         f'({error}); take an intact copy') from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f'{path} is a safetensors file without the metadata of a tuned '
            'checkpoint; write tuned checkpoints with save_tuned') from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f'{path} has format version {version}, this etta_mm {__version__} '
            f'reads version {FORMAT_VERSION}; update etta_mm')
    if not (isinstance(metadata.get('roots'), dict)
            and isinstance(metadata.get('base_fingerprint'), str)):
        raise ValueError(f'the metadata of {path} lacks what was tuned or the '
                         'fingerprint of the base; take an intact copy')
    return metadata, tensors


def load_tuned(model: nn.Module, path) -> dict:
    """Load a tuned checkpoint into its base.

    A model that is not tuned yet is tuned as the file says first. All checks
    come before the first tensor is copied.

    Args:
        model (nn.Module): The base with its weights loaded, tuned or not.
        path (str | Path): A file that ``save_tuned`` wrote.

    Returns:
        dict: The metadata of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or the base, the tuning, the names
            or the shapes differ; the message says which.
    """
    metadata, tensors = _read(path)
    modules = dict(model.named_modules())
    roots = tuned_roots(model)
    for name, root in metadata['roots'].items():
        here = name or 'the model'
        if name not in modules:
            raise ValueError(f'{path} tunes {name}, and there is no such '
                             f'module in {type(model).__name__}')
        if name in roots and roots[name].tuning != root['tuning']:
            ours = roots[name].tuning
            differ = [k for k in ours if ours[k] != root['tuning'].get(k)]
            raise ValueError(
                f'{path} was trained with another tuning of {here}: ' +
                '; '.join(f'{k} is {root["tuning"].get(k)} there and '
                          f'{ours[k]} here' for k in differ))
    with rolled_back_on_error(model):
        for name, root in metadata['roots'].items():
            if name not in roots:
                apply_tuning(modules[name], root['tuning'])
        _check_tensors(model, tensors, path)
        # Last, since only now is it known what is no part of the base.
        if fingerprint(model, list(tensors)) != metadata['base_fingerprint']:
            raise ValueError(
                f'{path} was trained on another base than this '
                f'{type(model).__name__}: the fingerprints of the base '
                'weights differ. Load the base checkpoint that the training '
                'started from first, then the tuned one')
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, tensor in tensors.items():
            state[key].copy_(tensor)
    return metadata


def _check_tensors(model: nn.Module, tensors: Dict[str, Tensor],
                   path) -> None:
    """Check that ``tensors`` are exactly those that ``model`` has trained."""
    expected = tuned_state_dict(model)
    missing = sorted(set(expected) - set(tensors))
    extra = sorted(set(tensors) - set(expected))
    if missing or extra:
        raise ValueError(
            f'{path} does not fit the tuned model: {len(missing)} tensors are '
            f'missing {missing[:3]}, {len(extra)} are too many {extra[:3]}')
    for key, tensor in tensors.items():
        if expected[key].shape != tensor.shape:
            raise ValueError(
                f'{key} has shape {tuple(tensor.shape)} in {path} and '
                f'{tuple(expected[key].shape)} in the model; does the head '
                'have the same classes?')
