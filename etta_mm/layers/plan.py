"""What a tuning means for a model: which sublayers get which tuners, and which
names are trained in full."""
import re
from difflib import get_close_matches
from typing import Dict, List, Optional, Set

import numpy as np
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.dense_heads import DETRHead
from mmpretrain.models.utils import MultiheadAttention as ViTAttention
from mmpretrain.models.utils import SwiGLUFFN, SwiGLUFFNFused
from torch import nn

from ..tuners import Tuner, tuner_class
from .attention import ETMultiheadAttention
from .conv import ETBasicBlock, ETBottleneck
from .deformable import ETMultiScaleDeformableAttention
from .ffn import ETFFN, ETSwiGLUFFN
from .sublayer import as_list, check_site
from .vit_attention import ETViTAttention

#: The sublayers that can be tuned and what they become. Exact types: a
#: subclass may compute something else.
TUNED_CLASSES = {
    FFN: ETFFN,
    SwiGLUFFN: ETSwiGLUFFN,
    SwiGLUFFNFused: ETSwiGLUFFN,
    MultiheadAttention: ETMultiheadAttention,
    ViTAttention: ETViTAttention,
    MultiScaleDeformableAttention: ETMultiScaleDeformableAttention,
    BasicBlock: ETBasicBlock,
    Bottleneck: ETBottleneck,
}

def tuned_class(module: nn.Module) -> Optional[type]:
    """What ``module`` becomes with tuners, or None if it can have none."""
    cls = type(module)
    return cls if cls in TUNED_CLASSES.values() else TUNED_CLASSES.get(cls)


#: The keys of a tuning that name tuners.
SITES = ('ffn', 'attn', 'conv')
KEYS = (*SITES, 'train', 'where')


def normalize_tuning(tuning: dict) -> dict:
    """A plain copy of ``tuning`` with every key; ``train`` and ``where`` are
    lists, the tuners' types names."""
    if not isinstance(tuning, dict):
        raise TypeError('a tuning is a dict with the keys ' +
                        f'{", ".join(KEYS)}, not {tuning!r}')
    wrong = sorted(set(tuning) - set(KEYS))
    if wrong:
        raise KeyError(f'a tuning has no key {", ".join(wrong)}; its keys are '
                       f'{", ".join(KEYS)}')
    plain = {}
    for key in SITES:
        plain[key] = [
            dict(_plain(cfg), type=tuner_class(cfg).__name__)
            for cfg in as_list(tuning.get(key))
        ]
        for cfg in plain[key]:
            if 'where' in cfg:
                cfg['where'] = _patterns('where', cfg['where'])
    for key in ('train', 'where'):
        plain[key] = _patterns(key, tuning.get(key))
    return plain


def _patterns(key: str, value) -> List[str]:
    """None, a pattern or several of them as a list."""
    if value is None:
        return []
    patterns = [value] if isinstance(value, str) else value
    if not (isinstance(patterns, (list, tuple))
            and all(isinstance(pattern, str) for pattern in patterns)):
        raise TypeError(f'{key}={value!r} is neither a string nor a list of '
                        'strings')
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f'{key}={pattern!r} is neither a name nor a regular '
                f'expression: {error}') from error
    return list(patterns)


def _plain(value):
    """Dicts and lists of mmengine's config, and NumPy's numbers, as builtin
    ones."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray)):  # such as of np.arange
        return value.tolist()
    return value


def trained_names(model: nn.Module, patterns: List[str]) -> List[str]:
    """Names of the modules and parameters of ``model`` that are trained in
    full: what a pattern matches, and everything below."""
    # What is shared has several names; all of them count.
    names = [n for n, _ in model.named_modules(remove_duplicate=False) if n]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names += parameters
    trained = []
    for pattern in patterns:
        matched = [
            n for n in names if n == pattern or re.fullmatch(pattern, n)
        ]
        if not matched:
            raise ValueError(
                f'train={pattern!r} matches no submodule and no parameter '
                f'of {type(model).__name__}; {_nearest(pattern, names)}')
        trained += [
            n for n in names if n not in trained and any(
                f'{n}.'.startswith(f'{owner}.') for owner in matched)
        ]
    everything = {**dict(model.named_modules(remove_duplicate=False)),
                  **parameters}
    ids = {id(everything[n]) for n in trained}
    return trained + [
        n for n, p in everything.items() if id(p) in ids and n not in trained
    ]


def _nearest(pattern: str, names: List[str]) -> str:
    near = get_close_matches(pattern, names, n=3, cutoff=0.3)
    near = near or [name for name in names if '.' not in name]
    return 'the nearest names are ' + ', '.join(near)


def _sublayers(model: nn.Module, trained: List[str]) -> Dict[str, nn.Module]:
    """The sublayers of ``model`` that a tuner can join, by name."""
    excluded = [
        f'{name}.' for name, module in model.named_modules()
        if isinstance(module, DETRHead)
    ]
    frozen = frozen_by_train(model)
    found = {}
    for name, module in model.named_modules():
        if tuned_class(module) is None or any(
                isinstance(m, Tuner) for m in module.modules()):
            continue
        if any(f'{name}.'.startswith(prefix) for prefix in excluded):
            continue
        if name in trained:  # what is trained in full needs no tuner
            continue
        if frozen.issuperset(map(id, module.parameters())):
            continue  # its tuners would be frozen with it
        found[name] = module
    return found


def frozen_by_train(model: nn.Module) -> Set[int]:
    """Ids of the parameters that ``train()`` freezes, whatever they were:
    those of a backbone's ``frozen_stages``. ``model`` stays as it is."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()
             if p.is_floating_point()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        model.train()
        return {id(p) for p, _ in flags if not p.requires_grad}
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def plan_tuning(model: nn.Module, tuning: dict, trained: List[str]):
    """Pairs of a sublayer and the tuners it gets."""
    sublayers = _sublayers(model, trained)
    plan = {}
    for site in SITES:
        at_site = [
            n for n, m in sublayers.items()
            if tuned_class(m).site == site
        ]
        for cfg in tuning[site]:
            cls = tuner_class(cfg)
            check_site(cls, site)
            patterns = [tuning['where'], cfg.get('where', [])]
            names = [
                n for n in at_site if all(
                    not p or any(re.search(x, n) for x in p) for p in patterns)
            ]
            if not names:
                where = [x for p in patterns for x in p]
                raise ValueError(
                    f'{site}={cls.__name__} matches no sublayer of '
                    f'{type(model).__name__}' +
                    (f' with where={where}' if where else '') + '; ' +
                    (_nearest(where[0] if where else '', at_site)
                     if at_site else _why_none(model, site)))
            own = {k: v for k, v in cfg.items() if k != 'where'}
            for name in names:
                plan.setdefault(name, []).append(own)
    _check_where(model, tuning, list(sublayers))
    return [(sublayers[name], cfgs) for name, cfgs in plan.items()]


def _why_none(model: nn.Module, site: str) -> str:
    if any(
            getattr(tuned_class(m), 'site', None) == site
            for m in model.modules()):
        return (f'each of {_supported(site)} in it is trained in full (train), '
                "frozen for good (frozen_stages), part of a DETR's head or has "
                'a tuner already')
    return f'it has none of {_supported(site)}'


def _check_where(model: nn.Module, tuning: dict, names: List[str]) -> None:
    """Refuse a pattern of a ``where`` that no sublayer has; beside one that
    matches it would go unseen."""
    patterns = list(tuning['where'])
    for site in SITES:
        for cfg in tuning[site]:
            patterns += cfg.get('where', [])
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f'where={pattern!r} matches no sublayer of '
                f'{type(model).__name__}; {_nearest(pattern, names)}')


def _supported(site: str) -> str:
    return ', '.join(
        f'{cls.__module__.split(".")[0]}.{cls.__name__}'
        for cls, tuned in TUNED_CLASSES.items() if tuned.site == site)
