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
from .fingerprint import SHORT, base_dtypes, base_hashes, fold
from .sealed_file import TUNED, write_sealed
from .tuned_file import read_tuned
from .tuned_fit import (check_base, check_patterns, check_tensors,
                        check_trained_classes, check_tuning)
from .wrapper import check_names, unwrapped


def tuned_state_dict(model: nn.Module) -> Dict[str, Tensor]:
    """The tensors of ``model`` that training may change, under their names.

    These are the tuners' parameters, what ``train`` of a tuning left
    trainable, every other parameter that requires a gradient now (such as the
    head of a classifier whose backbone is tuned; a shared one once), and the
    buffers of the modules that own those, that ``train`` names or that stand in
    a trained part beside what is tuned (the loss of a head may count in one), or
    that keep running statistics that are not frozen.

    Args:
        model (nn.Module): A tuned model, or one that contains tuned ones.

    Raises:
        ValueError: If nothing in ``model`` is tuned.
    """
    model = unwrapped(model)
    check_names(model)
    roots = tuned_roots(model)
    if not roots:
        raise ValueError(f'{type(model).__name__} is not tuned; tune it with '
                         'apply_tuning or a tuned host first')
    ours = {id(p) for p in model.parameters() if p.requires_grad}
    for module in model.modules():
        if isinstance(module, Tuner):
            ours.update(id(p) for p in module.parameters())
    named = set()
    for root in roots.values():
        named |= {
            id(module)
            for name, module in root.named_modules(remove_duplicate=False)
            if name in getattr(root, 'tuning_trains', ())
        }
        ours.update(
            id(p)
            for name, p in root.named_parameters(remove_duplicate=False)
            if name in getattr(root, 'tuning_trains', ()))
    for child in model.children() if '' not in roots else ():
        parts = list(child.modules())
        if any(id(p) in ours for p in child.parameters()) and not any(
                part is root for part in parts for root in roots.values()):
            named |= {id(part) for part in parts}
    tensors = {
        name: p.detach()
        for name, p in model.named_parameters() if id(p) in ours
    }
    persistent = model.state_dict(keep_vars=True)
    for name, module in model.named_modules():
        moves = id(module) in named or any(
            id(p) in ours for p in module.parameters(recurse=False))
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
        ValueError: If nothing in ``model`` is tuned, or it is frozen as a
            whole and what was trained outside of what is tuned cannot be told.
        OSError: If the file cannot be written.
    """
    model = unwrapped(model)
    _check_known(model)
    tensors = tuned_state_dict(model)
    names = list(tensors)
    if state_dict is not None:
        tensors = {name: state_dict[name] for name in names}
    hashes = base_hashes(model, names)
    return write_sealed(
        path, TUNED,
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
            info=info), tensors)


def _check_known(model: nn.Module) -> None:
    """Refuse a model, such as an averaged copy, whose head would be left out
    because it says of nothing that it is trained."""
    outside = [name for name in tuned_roots(model) if name]
    if outside and not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f'all of {type(model).__name__} is frozen, so that nobody knows '
            f'whether something beside {", ".join(outside)}, such as a head, '
            'was trained. Unfreeze what was, or of an averaged copy save the '
            'model itself with state_dict=averaged.state_dict()')


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
    model = unwrapped(model)
    check_names(model)
    metadata, tensors = read_tuned(path)
    check_trained_classes(model, metadata, classes, path)
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
                _unfreeze(modules[name], f'{name}.' if name else '', tensors)
                _apply_without_memory(modules[name], root['tuning'], path)
        expected, state = tuned_state_dict(model), model.state_dict()
        # What is frozen here and was trained there; that it is no part of the
        # base there, the fingerprint of the base says.
        expected.update(
            {key: state[key] for key in tensors if key in state})
        # What is trainable here and was frozen there, such as a head, is part
        # of the base there, and has to be the same here.
        for key in set(expected) - set(tensors):
            if key in metadata['base_hashes']:
                del expected[key]
        check_tensors(expected, tensors, path)
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


def _unfreeze(module: nn.Module, prefix: str,
              tensors: Dict[str, Tensor]) -> None:
    """Have what was trained there trained here, of a base that was frozen to
    predict: a tuning leaves frozen what it finds frozen."""
    for name, parameter in module.named_parameters():
        if f'{prefix}{name}' in tensors and parameter.is_floating_point():
            parameter.requires_grad_(True)


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
