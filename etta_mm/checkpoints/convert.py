"""From full checkpoints to tuned ones and back, and how two of them differ."""
import io
from pathlib import Path
from typing import List, Optional

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, load_checkpoint
from safetensors.torch import save
from torch import nn

from ..listing import listing
from ..tuners import Tuner
from .atomic import write_atomically
from .base_weights import allow_pickle
from .merge import merge_tuning
from .tuned_checkpoint import load_tuned, save_tuned, tuned_roots
from .tuned_file import file_classes, plain_metainfo, read_tuned


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, as its class initialises it.

    Args:
        cfg (Config): Any config with a ``model``. With ``allow_pickle``,
            checkpoints may be unpickled from now on.
    """
    if cfg.get('allow_pickle'):
        allow_pickle()
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return MODELS.build(cfg.model)


def extract(cfg: Config, checkpoint: str, out) -> Path:
    """Make a tuned checkpoint of a full one.

    Args:
        cfg (Config): The config of the training.
        checkpoint (str): What mmengine saved.
        out (str | Path): The tuned checkpoint.

    Raises:
        ValueError: If ``checkpoint`` is not one of this tuned model.
    """
    model = build_model(cfg)
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state = {
        key.removeprefix('module.'): tensor
        for key, tensor in loaded.get('state_dict', loaded).items()
    }
    expected = model.state_dict()
    differ = sorted(set(expected) ^ set(state)) + [
        key for key in expected
        if key in state and expected[key].shape != state[key].shape
    ]
    if differ:
        raise ValueError(
            f'{checkpoint} is no full checkpoint of the tuned '
            f'{type(model).__name__} of this config: {len(differ)} tensors '
            f'differ ({listing(differ)}). Take the config that it was '
            'trained with')
    model.load_state_dict(state)
    meta = loaded.get('meta') or {}
    info = {key: meta[key] for key in ('epoch', 'iter') if key in meta}
    if meta.get('dataset_meta'):
        info['dataset_meta'] = plain_metainfo(meta['dataset_meta'])
    return save_tuned(model, out, **info)


def apply(cfg: Config, tuned, out, base: Optional[str] = None) -> Path:
    """Make a full checkpoint of a base and a tuned checkpoint.

    Args:
        cfg (Config): The config of the training.
        tuned (str | Path): The tuned checkpoint.
        out (str | Path): ``*.pth`` as mmengine saves it, or ``*.safetensors``.
        base (str, optional): The base's checkpoint. Defaults to None, the
            config's ``load_from``, or its ``init_cfg`` without one.

    Raises:
        ValueError: If they do not fit together.
    """
    model, metadata = build_tuned_model(cfg, tuned, base, as_config=True)
    return _save_full(cfg, model, metadata, out)


def merge(cfg: Config, tuned, out, base: Optional[str] = None) -> tuple:
    """Make a full checkpoint with every LoRA folded into its linear map.

    Args:
        cfg (Config): The config of the training.
        tuned (str | Path): The tuned checkpoint.
        out (str | Path): ``*.pth`` as mmengine saves it, or ``*.safetensors``.
        base (str, optional): See :func:`apply`.

    Returns:
        tuple: As :func:`.merge.merge_tuning`: what was folded, and what
        cannot be.

    Raises:
        ValueError: If they do not fit together, or there is no LoRA.
    """
    model, metadata = build_tuned_model(cfg, tuned, base)
    folded, left = merge_tuning(model)
    _save_full(cfg, model, metadata, out)
    return folded, left


def differences(one, other) -> List[str]:
    """How two tuned checkpoints differ, a line for each metadatum and tensor.

    Args:
        one (str | Path): A tuned checkpoint.
        other (str | Path): Another.
    """
    (meta, tensors), (other_meta, other_tensors) = (
        read_tuned(path) for path in (one, other))
    lines = []
    flat, other_flat = dict(_flat(meta)), dict(_flat(other_meta))
    for key in sorted({*flat, *other_flat}):
        pair = [f.get(key, '(none)') for f in (flat, other_flat)]
        if pair[0] != pair[1]:
            lines.append(f'{key}: {pair[0]} | {pair[1]}')
    for key in sorted({*tensors, *other_tensors}):
        a, b = tensors.get(key), other_tensors.get(key)
        if a is None or b is None:
            lines.append(f'{key}: only in {other if a is None else one}')
        elif a.shape != b.shape or a.dtype != b.dtype:
            lines.append(f'{key}: {a.dtype} {tuple(a.shape)} | {b.dtype} '
                         f'{tuple(b.shape)}')
        elif not torch.equal(a, b):
            largest = (a.double() - b.double()).abs().max()
            lines.append(f'{key}: differs by up to {largest:.3g}')
    return lines


def description(path) -> List[str]:
    """What a tuned checkpoint says of itself, line by line.

    Args:
        path (str | Path): The tuned checkpoint.
    """
    metadata, tensors = read_tuned(path)
    lines = [f'format version  {metadata["format_version"]}']
    for name, root in metadata['roots'].items():
        lines.append(f'host            {root["host"]}' +
                     (f' (the module {name})' if name else ''))
        for key, value in root['tuning'].items():
            lines.append(f'  {key:5}         {value}')
    info = dict(metadata['info'])
    classes = file_classes(metadata)
    if classes is not None:
        lines.append(f'classes         {len(classes)}: {", ".join(classes)}')
    info.pop('dataset_meta', None)
    lines += [f'{key:15} {value}' for key, value in info.items()]
    lines += [f'{k:15} {v}' for k, v in metadata['versions'].items()]
    lines.append(f'base            {metadata["base_fingerprint"]}')
    hashes, dtypes = metadata['base_hashes'], metadata['base_dtypes']
    lines.append(f'                {len(hashes)} tensors, ' +
                 ', '.join(f'{n} {kind}' for kind, n in dtypes.items()))
    count = sum(tensor.numel() for tensor in tensors.values())
    lines.append(f'tensors         {len(tensors)}, {count:,} numbers, '
                 f'{Path(path).stat().st_size / 1e6:.2f} MB')
    return lines


def build_tuned_model(cfg: Config,
                      tuned,
                      base: Optional[str] = None,
                      as_config: bool = False) -> tuple:
    """The model of a config with its base and a tuned checkpoint loaded.

    Args:
        cfg (Config): The config of the training.
        tuned (str | Path): The tuned checkpoint.
        base (str, optional): See :func:`apply`.
        as_config (bool): Whether the weights are for another model of this
            config, which thus has to be tuned in it. Defaults to False.

    Returns:
        tuple: The model, and the metadata of the tuned checkpoint.

    Raises:
        ValueError: If they do not fit together.
    """
    model = build_model(cfg)
    roots = tuned_roots(model)
    base = base or cfg.get('load_from')
    if base is None:
        model.init_weights()
    else:
        # Silent of missing tuners; load_tuned checks the rest.
        load_checkpoint(model, str(base), map_location='cpu', logger='silent')
    metadata = load_tuned(model, tuned)
    if as_config and not metadata['roots'].keys() <= roots.keys():
        raise ValueError(
            f'{tuned} is of a tuned model, and the {type(model).__name__} of '
            f'{cfg.filename or "this config"} is not tuned: it has no place '
            'for the tuners. Give the config of the training')
    return model, metadata


def _save_full(cfg: Config, model: nn.Module, metadata: dict, out) -> Path:
    state = {key: tensor.cpu() for key, tensor in model.state_dict().items()}
    if str(out).endswith('.safetensors'):
        return write_atomically(
            out, save({k: v.clone().contiguous() for k, v in state.items()}))
    info = metadata['info']
    meta = {
        key: info[key]
        for key in ('epoch', 'iter', 'dataset_meta') if key in info
    }
    if not any(isinstance(m, Tuner) for m in model.modules()):
        meta['merged'] = True  # the config's tuning does not belong to it
    else:
        meta['cfg'] = cfg.pretty_text
    with io.BytesIO() as buffer:
        torch.save(dict(meta=meta, state_dict=state), buffer)
        return write_atomically(out, buffer.getvalue())


def _flat(value, name: str = ''):
    """Nested metadata as pairs of a dotted name and a value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f'{name}.{key}' if name else key)
    else:
        yield name, value
