"""Tune a model: put the tuners where the tuning says and freeze the rest."""
import re
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Dict, List

from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.dense_heads import DETRHead
from mmdet.models.detectors import DETR
from mmpretrain.models.utils import MultiheadAttention as ViTAttention
from mmpretrain.models.utils import SwiGLUFFN, SwiGLUFFNFused
from torch import nn

from ..tuners import Tuner, tuner_class
from .attention import ETMultiheadAttention, ETViTAttention
from .deformable import ETMultiScaleDeformableAttention
from .ffn import ETFFN, ETSwiGLUFFN
from .frozen import freeze_statistics
from .guard import guard_loading
from .sublayer import TunedSublayer, as_list

#: The sublayers that can be tuned and what they become. Exact types: a
#: subclass may compute something else.
TUNED_CLASSES = {
    FFN: ETFFN,
    SwiGLUFFN: ETSwiGLUFFN,
    SwiGLUFFNFused: ETSwiGLUFFN,
    MultiheadAttention: ETMultiheadAttention,
    ViTAttention: ETViTAttention,
    MultiScaleDeformableAttention: ETMultiScaleDeformableAttention,
}
KEYS = ('ffn', 'attn', 'train', 'where')


def apply_tuning(model: nn.Module, tuning: dict) -> nn.Module:
    """Tune ``model`` in place: tuners into its sublayers, the rest frozen.

    Each sublayer's output becomes ``h + s * Δh`` with h frozen. What is
    trained afterwards: the tuners and the submodules that ``train`` names.
    Frozen layers with running statistics stay in eval mode.

    Names and shapes of the base parameters stay as they are, so a checkpoint
    of the base loads before and after. Initialise a model (``init_weights``)
    before it is tuned, or let a class of :mod:`etta_mm.models` do both: the
    hosts' initialisation would go over the tuners.

    Args:
        model (nn.Module): Any module that contains FFNs or attentions of
            mmcv or mmpretrain. Those inside a DETR's head (its ``reg_ffn``)
            are no transformer sublayers and are passed over.
        tuning (dict): With the keys

            - ``ffn``, ``attn`` (dict | list[dict], optional): Tuners of every
              feed-forward network and of every attention. A tuner may have a
              ``where`` of its own.
            - ``train`` (str | list[str], optional): Submodules or parameters
              trained in full: their names, or regular expressions that match
              a whole name.
            - ``where`` (str | list[str], optional): Regular expressions, one
              of which must be found in the name of a sublayer for it to be
              tuned. Defaults to all.

    Returns:
        nn.Module: ``model``.

    Raises:
        TypeError: If the tuning is no dict, or a tuner's numbers are none.
        KeyError: If a key or a tuner does not exist.
        ValueError: If the model is tuned already, a tuner or a pattern
            matches nothing, or a tuner cannot stand where it should. The
            model is unchanged after an error about the tuning.
    """
    tuning = normalize_tuning(tuning)
    for name, module in model.named_modules():
        if getattr(module, 'tuning', None) is not None:
            raise ValueError(
                f'{name or type(model).__name__} is tuned already; build a '
                'new model to tune it in another way')
    trained = _trained_names(model, tuning['train'])
    plan = _plan(model, tuning, trained)
    has_tuners = any(isinstance(m, Tuner) for m in model.modules())
    if not (plan or trained or has_tuners):
        raise ValueError('the tuning leaves nothing to train; give it ffn, '
                         'attn or train')
    with rolled_back_on_error(model):
        for module, cfgs in plan:
            module.__class__ = TUNED_CLASSES[type(module)]
            module.add_tuners(cfgs)
        _drop_dead_updates(model)
        _freeze(model, trained)
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(
                f'the tuning leaves nothing to train: train={tuning["train"]} '
                'holds no parameter, or the model itself froze them '
                '(frozen_stages); give it ffn, attn or another train')
        model.tuning = tuning
        guard_loading(model, trained)
    return model


def _drop_dead_updates(model: nn.Module) -> None:
    """Take the LoRA from the value projection of DETR's first decoder
    self-attention: its input is the zero content query, so it never moves."""
    for host in model.modules():
        if isinstance(host, DETR):
            tuners = getattr(host.decoder.layers[0].self_attn, 'tuners', {})
            if 'lora_v' in tuners:
                del tuners['lora_v']


@contextmanager
def rolled_back_on_error(model: nn.Module):
    """Make ``model`` what it was if the tuning turns out wrong half way."""
    before = [(m, type(m), m.training, 'tuning' in vars(m),
               list(m._load_state_dict_pre_hooks)) for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for module, cls, training, was_tuned, hooks in before:
            if type(module) is not cls:
                module.__class__ = cls
                module.training = training
                module._modules.pop('tuners', None)
            if not was_tuned:
                vars(module).pop('tuning', None)
            for key in set(module._load_state_dict_pre_hooks) - set(hooks):
                del module._load_state_dict_pre_hooks[key]
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise


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
    for key in ('ffn', 'attn'):
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
    """Dicts and lists of mmengine's config as builtin ones."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _trained_names(model: nn.Module, patterns: List[str]) -> List[str]:
    """Names of the modules and parameters of ``model`` that are trained in
    full: what a pattern matches, and everything below."""
    names = [name for name, _ in model.named_modules() if name]
    # A shared parameter has several names; all of them count.
    names += [n for n, _ in model.named_parameters(remove_duplicate=False)]
    trained = []
    for pattern in patterns:
        matched = [n for n in names if re.fullmatch(pattern, n)]
        if not matched:
            raise ValueError(
                f'train={pattern!r} matches no submodule and no parameter '
                f'of {type(model).__name__}; {_nearest(pattern, names)}')
        trained += [
            n for n in names if n not in trained and any(
                f'{n}.'.startswith(f'{owner}.') for owner in matched)
        ]
    return trained


def _nearest(pattern: str, names: List[str]) -> str:
    near = get_close_matches(pattern, names, n=3, cutoff=0.3)
    near = near or [name for name in names if '.' not in name]
    return 'the nearest names are ' + ', '.join(near)


def _sublayers(model: nn.Module, trained: List[str]) -> Dict[str, nn.Module]:
    """The sublayers of ``model`` that a tuner can join, by name."""
    heads = [
        f'{name}.' for name, module in model.named_modules()
        if isinstance(module, DETRHead)
    ]
    found = {}
    for name, module in model.named_modules():
        if type(module) not in TUNED_CLASSES:
            continue
        if any(f'{name}.'.startswith(head) for head in heads):
            continue
        if name not in trained:  # what is trained in full needs no tuner
            found[name] = module
    return found


def _plan(model: nn.Module, tuning: dict, trained: List[str]):
    """Pairs of a sublayer and the tuners it gets."""
    sublayers = _sublayers(model, trained)
    plan = {}
    for site in ('ffn', 'attn'):
        at_site = [
            n for n, m in sublayers.items()
            if TUNED_CLASSES[type(m)].site == site
        ]
        for cfg in tuning[site]:
            cls = tuner_class(cfg)
            if site not in cls.sites:
                raise ValueError(
                    f'{site}={cls.__name__}: a prefix needs an attention, and '
                    f'a feed-forward network has none; name it under attn')
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
                    (_nearest(where[0] if where else '', at_site) if at_site
                     else f'it has none of {_supported(site)}'))
            own = {k: v for k, v in cfg.items() if k != 'where'}
            for name in names:
                plan.setdefault(name, []).append(own)
    _check_where(model, tuning, list(sublayers))
    return [(sublayers[name], cfgs) for name, cfgs in plan.items()]


def _check_where(model: nn.Module, tuning: dict, names: List[str]) -> None:
    """Refuse a pattern of a ``where`` that no sublayer has; beside one that
    matches it would go unseen."""
    patterns = list(tuning['where'])
    for cfg in tuning['ffn'] + tuning['attn']:
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


def _freeze(model: nn.Module, trained: List[str]) -> None:
    """Freeze all but the tuners and ``trained``, whose parameters stay as
    they are: what the host froze there (``frozen_stages``) stays frozen."""
    kept = {
        id(p)
        for n, p in model.named_parameters(remove_duplicate=False)
        if n in trained
    }
    for module in model.modules():
        if isinstance(module, Tuner):
            kept.update(id(p) for p in module.parameters())
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)
    for name, module in model.named_modules():
        if name not in trained:
            freeze_statistics(module)


@contextmanager
def disable_tuning(model: nn.Module):
    """The base model's output: every tuner below ``model`` rests inside.

    What ``train`` named has been trained in place and stays as it is.

    Args:
        model (nn.Module): A tuned model, or one that contains tuned ones.

    Raises:
        ValueError: If nothing below ``model`` is tuned.
    """
    sublayers = [m for m in model.modules() if isinstance(m, TunedSublayer)]
    if not sublayers and not any(
            hasattr(m, 'tuning') for m in model.modules()):
        raise ValueError(f'{type(model).__name__} is not tuned')
    before = [m.tuning_enabled for m in sublayers]
    try:
        for module in sublayers:
            module.tuning_enabled = False
        yield model
    finally:
        for module, enabled in zip(sublayers, before):
            module.tuning_enabled = enabled


def start_tuners(model: nn.Module) -> None:
    """Set every tuner below ``model`` to its start."""
    for module in model.modules():
        if isinstance(module, Tuner):
            module.init_weights()
