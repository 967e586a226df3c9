"""Tuned checkpoints: what was trained, and nothing else.

A file holds the trained tensors and metadata (:mod:`.tuned_file`). The base
weights are not in it; hashes of them are, so that a file meets the base it was
trained on.
"""
from pathlib import Path
from typing import Dict, Optional, Sequence

import mmcv
import mmdet
import mmengine
import mmpretrain
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..layers import apply_tuning
from ..layers.frozen import FrozenStatistics
from ..layers.sublayer import TunedSublayer
from ..layers.tuning import rolled_back_on_error
from ..tuners import Tuner
from ..version import __version__
from .fingerprint import SHORT, base_dtypes, base_hashes, fingerprint, fold
from .tuned_file import read_metadata, read_tuned, write_tuned
from .tuned_fit import (check_base, check_classes, check_patterns,
                        check_tensors, check_tuning)

__all__ = [
    'fingerprint', 'load_tuned', 'read_metadata', 'save_tuned', 'tuned_roots',
    'tuned_state_dict'
]


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
    """The modules that were tuned (``apply_tuning``), by their names.

    Args:
        model (nn.Module): Any model.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(module, 'tuning', None) is not None
    }


def save_tuned(model: nn.Module,
               path,
               state_dict: Optional[Dict[str, Tensor]] = None,
               **info) -> Path:
    """Write the tuned checkpoint of ``model``.

    The file appears whole or not at all.

    Args:
        model (nn.Module): A tuned model, or one that contains tuned ones.
        path (str | Path): The file, by convention ``*.safetensors``.
        state_dict (dict, optional): Where the tensors are taken from, such as
            averaged ones. Defaults to None, the model's own.
        **info: More metadata that JSON can hold: ``epoch``, ``iter``,
            ``dataset_meta`` (with ``classes``) and what you like.

    Returns:
        Path: ``path``.

    Raises:
        ValueError: If nothing in ``model`` is tuned.
        OSError: If the file cannot be written.
    """
    tensors = tuned_state_dict(model)
    names = list(tensors)
    if state_dict is not None:
        tensors = {name: state_dict[name] for name in names}
    hashes = base_hashes(model, names)
    return write_tuned(
        path, tensors,
        dict(
            roots={
                name: dict(host=type(module).__name__, tuning=module.tuning)
                for name, module in tuned_roots(model).items()
            },
            base_fingerprint=fold(hashes),
            base_hashes={k: v[:SHORT]
                         for k, v in hashes.items()},
            base_dtypes=base_dtypes(model, names),
            versions=dict(
                etta_mm=__version__,
                torch=torch.__version__,
                mmcv=mmcv.__version__,
                mmengine=mmengine.__version__,
                mmdet=mmdet.__version__,
                mmpretrain=mmpretrain.__version__),
            info=info))


def load_tuned(model: nn.Module,
               path,
               classes: Optional[Sequence[str]] = None) -> dict:
    """Load a tuned checkpoint into its base: all of it or nothing.

    A model that is not tuned yet is tuned as the file says first. All checks
    come before the first tensor is copied, and after an error the model is
    what it was. Tuners are built without memory until their shapes are known
    to be those of the tensors in the file.

    Args:
        model (nn.Module): The base with its weights loaded, tuned or not.
        path (str | Path): A file that ``save_tuned`` wrote.
        classes (Sequence[str], optional): The classes that the model is used
            for, to be compared with those in the file. Defaults to None,
            those of ``model.dataset_meta`` if there are any.

    Returns:
        dict: The metadata of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or the base, the tuning, the
            classes, the names, the shapes or the types differ; the message
            says which.
    """
    metadata, tensors = read_tuned(path)
    check_classes(model, metadata, classes, path)
    modules = dict(model.named_modules())
    roots = tuned_roots(model)
    for name, root in metadata['roots'].items():
        if name not in modules:
            raise ValueError(f'{path} tunes {name}, and there is no such '
                             f'module in {type(model).__name__}')
        if name in roots:
            check_tuning(roots[name].tuning, root['tuning'], name, path)
        else:
            check_patterns(root['tuning'], path)
    extra = sorted(set(roots) - set(metadata['roots']))
    if extra:
        raise ValueError(f'{extra[0] or "the model"} is tuned, and {path} '
                         'tunes only ' + ', '.join(
                             name or 'the model as a whole'
                             for name in metadata['roots']))
    with rolled_back_on_error(model):
        for name, root in metadata['roots'].items():
            if name not in roots:
                _apply_without_memory(modules[name], root['tuning'], path)
        check_tensors(tuned_state_dict(model), tensors, path)
        _give_memory(model)
        # Only now is it known what is no part of the base.
        check_base(model, list(tensors), metadata, path)
        state = model.state_dict(keep_vars=True)
        _copy_all(tensors, {key: state[key] for key in tensors})
    return metadata


@torch.no_grad()
def _copy_all(tensors: Dict[str, Tensor], into: Dict[str, Tensor]) -> None:
    """Copy all of ``tensors``, or after an interruption none."""
    before = {key: tensor.clone() for key, tensor in into.items()}
    try:
        for key, tensor in tensors.items():
            into[key].copy_(tensor)
    except BaseException:
        for key, tensor in before.items():
            into[key].copy_(tensor)
        raise


def _apply_without_memory(module: nn.Module, tuning: dict, path) -> None:
    """Tune ``module`` with tuners on the meta device, of the type and in the
    mode of their sublayers."""
    try:
        with torch.device('meta'):
            apply_tuning(module, tuning)
    except (TypeError, KeyError, RuntimeError, OverflowError) as error:
        # RuntimeError: a size that no tensor can have
        raise ValueError(f'the tuning of {path} does not fit '
                         f'{type(module).__name__}: {error}') from error
    for sublayer, base in _sublayers(module):
        sublayer.tuners.to(base.dtype).train(sublayer.training)


def _sublayers(module: nn.Module):
    """The tuned sublayers and a tensor of the base of each."""
    for sublayer in module.modules():
        if isinstance(sublayer, TunedSublayer):
            base = next((p for name, p in sublayer.named_parameters()
                         if p.is_floating_point() and not p.is_meta
                         and 'tuners' not in name.split('.')),
                        None)
            if base is not None:
                yield sublayer, base


def _give_memory(model: nn.Module) -> None:
    """Put the tuners that are on the meta device where their base is."""
    for sublayer, base in _sublayers(model):
        if any(p.is_meta for p in sublayer.tuners.parameters()):
            sublayer.tuners.to_empty(device=base.device)
