"""Check the model of a run, and its base, before the run starts."""
import os.path as osp
import re
import warnings
from collections import OrderedDict
from typing import Optional, Sequence

from mmengine.config import Config
from mmengine.model import BaseTTAModel, PretrainedInit
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from torch import nn

from ..checkpoints.base_weights import allow_pickle
from ..checkpoints.new_parts import drop_new
from ..checkpoints.training_state import NEEDED
from ..checkpoints.tuned_checkpoint import tuned_roots
from ..checkpoints.tuned_file import plain_metainfo
from ..checkpoints.tuned_fit import check_trained_classes
from ..data.classes import common_classes
from ..layers.frozen import FrozenStatistics
from ..listing import listing
from ..tuners import Tuner
from .check_device import check_device
from .check_hooks import check_hooks
from .check_host import check_hosts
from .check_strategy import check_strategy
from .launch import is_first_of_machine
from .meta_model import build_on_meta
from .user_error import is_ours, message

UNCHECKED = ('model and checkpoint are not compared before the run, which takes '
             'a model without its numbers: {}')
#: Types of ``init_cfg`` that load a checkpoint, after all others. With a scope
#: before the name, what is loaded is drawn anew by the parts of the module.
LOADED = ('Pretrained', PretrainedInit)
#: Switches of mmengine that break a tuned model, and why.
SWITCHES = dict(
    activation_checkpointing=(
        'checkpoints layers whose inputs need no gradient, as those of a frozen '
        'base, so that no tuner would be trained. Leave it out and set with_cp '
        'of the tuned host.'),
    efficient_conv_bn_eval=(
        'traces the backbone with the weights that it has before load_from, '
        'and keeps them. Leave it out: frozen norms are folded as it is.'))
#: As torch says it of a tensor whose shape is another than the model's.
MISMATCH = re.compile(
    r'size mismatch for (\S+): copying a param with shape torch\.Size\('
    r'(\[.*?\])\) from checkpoint, the shape in current model is torch\.Size\('
    r'(\[.*?\])\)')


def check_model(cfg: Config,
                is_whole: bool = False,
                is_trained: bool = True) -> None:
    """Build the model without its numbers and compare its base with it.

    Errors of etta_mm's own (a tuning that does not fit, a base of another
    architecture) become one message. Frozen parts for which no base is named
    are warned of: they would stay random numbers. What other packages raise is
    left to the run itself, whose traceback says more; so is a model that cannot
    be built or loaded on the meta device, which is warned of.

    Args:
        cfg (Config): The config of a run. It stays as it is.
        is_whole (bool): Whether the model comes from no base, whose head may
            be another, but from ``full_from`` (or ``load_from``), a checkpoint
            of this model, to be tested or with ``resume`` trained on; its
            classes must be those of the data to test or to train on. Defaults
            to False.
        is_trained (bool): Whether the run is a training. Defaults to True.

    Raises:
        ValueError: If the tuning or its place, the base, the strategy or the
            precision does not fit, or mmcv lacks the ops of the device.
    """
    check_hosts(cfg)
    model = _without_numbers(cfg)
    if model is None:
        return
    is_tuned = any(isinstance(module, Tuner) for module in model.modules())
    if cfg.get('tuned_from') and cfg.get('resume') and not is_tuned:
        raise ValueError(
            f'--resume {str(cfg.tuned_from)!r} is a tuned checkpoint, and the '
            'model of the config has no tuning: its optimizer would not know '
            'the tuners. Give the config of that training.')
    check_strategy(cfg, is_tuned)
    check_device(model, cfg)
    _check_switches(model, cfg)
    if is_trained:
        check_hooks(model, cfg)
    path: Optional[str] = cfg.get('full_from', cfg.get('load_from'))
    if path is None:
        # a tuned checkpoint asks for its base when it is loaded
        if (is_tuned or is_whole) and cfg.get('tuned_from') is None:
            _warn_of_no_base(model)
    elif '://' in str(path) and not is_first_of_machine(cfg):
        return  # each would fetch it; with the run's group the first does
    elif is_tuned or is_whole:
        allow_pickle(bool(cfg.get('allow_pickle', False)))
        _check_base(model, path, is_whole, bool(cfg.get('resume')),
                    _classes(cfg) if is_whole else None)


def check_full(cfg: Config, path: str) -> None:
    """Compare a full checkpoint with the model of a config, which is to
    predict with it; the names of its classes may be any.

    Args:
        cfg (Config): The config. It stays as it is.
        path (str): The checkpoint.

    Raises:
        ValueError: If it is of another model; as :func:`check_model`.
    """
    model = _without_numbers(cfg)
    if model is not None:
        _check_base(model, path, is_whole=True)


def _without_numbers(cfg: Config) -> Optional[nn.Module]:
    try:
        model = build_on_meta(cfg)
    except Exception as error:
        _raise_ours(error, 'model')
        warnings.warn(UNCHECKED.format(error))
        return None
    # as mmengine loads it
    return model.module if isinstance(model, BaseTTAModel) else model


def _classes(cfg: Config) -> Optional[Sequence[str]]:
    """The classes of the data that a run with a full checkpoint reads."""
    split = 'train' if cfg.get('resume') else 'test'
    loader = cfg.get(f'{split}_dataloader') or {}
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        try:
            return common_classes(
                loader.get('dataset'), f'{split}_dataloader.dataset')
        except OSError:  # of which the check of the data says more
            return None


def _check_switches(model: nn.Module, cfg: Config) -> None:
    """Refuse what mmengine would do to a tuned model behind its back."""
    frozen = [
        name for name, module in model.named_modules()
        if isinstance(module, FrozenStatistics)
    ]
    strategy = cfg.get('strategy') or {}
    kind = cfg.get('sync_bn') or strategy.get('sync_bn')
    if kind and frozen:
        raise ValueError(
            f'sync_bn={kind!r} would put norms with moving statistics '
            f'in the place of {len(frozen)} frozen ones ({listing(frozen)}). '
            'Leave it out: what is frozen needs no synchronising.')
    for key, why in SWITCHES.items():
        value = cfg.get(key) or strategy.get(key)
        if value and tuned_roots(model):
            raise ValueError(f'{key}={value!r} {why}')


def _check_base(model: nn.Module,
                path: str,
                is_whole: bool,
                is_resumed: bool = False,
                classes: Optional[Sequence[str]] = None) -> None:
    if osp.isdir(path):
        return  # sharded, and read by the processes that share it
    try:
        checkpoint = CheckpointLoader.load_checkpoint(
            path, map_location='meta', logger='silent')
        if is_whole and is_resumed:
            _check_resumable(checkpoint)
        state = checkpoint.get('state_dict', checkpoint)
        weights = OrderedDict(
            (key.removeprefix('module.'), t) for key, t in state.items())
        if hasattr(state, '_metadata'):  # by which hosts know what to rename
            weights._metadata = state._metadata
        if not is_whole:
            drop_new(model, weights)
        with warnings.catch_warnings():  # of copies to meta that do nothing
            warnings.simplefilter('ignore')
            absent = model.load_state_dict(weights, strict=False)
        if is_whole:
            _check_no_tuners(model, absent.unexpected_keys)
            for name, root in tuned_roots(model).items():
                _check_shapes(path, [(f'{name}.{key}' if name else key,
                                      list(there), list(here))
                                     for key, there, here in root.other_shapes])
            _check_complete(model, absent.missing_keys)
            # mmdet 2.x has no dataset_meta, but CLASSES, in other spellings
            meta = (checkpoint.get('meta') or {}).get('dataset_meta')
            check_trained_classes(model, dict(info=dict(
                dataset_meta=plain_metainfo(meta))), classes, 'it')
    except Exception as error:
        if is_whole:
            _check_shapes(path, MISMATCH.findall(str(error)))
        _raise_ours(error, repr(str(path)) if is_whole
                    else f'load_from={str(path)!r}')
        warnings.warn(UNCHECKED.format(error))


def _check_shapes(path: str, found: list) -> None:
    if found:
        name, there, here = found[0]
        raise ValueError(
            f'{path} is of another model than that of this config: '
            f'{len(found)} tensors have other shapes, such as {name}, {there} '
            f'there and {here} here. Give the config that it was trained with '
            '(num_classes?), or another checkpoint')


def _check_resumable(checkpoint: dict) -> None:
    absent = [key for key in NEEDED if key not in checkpoint]
    if absent:
        raise ValueError(
            f'nothing can be resumed from it: it lacks {", ".join(absent)}. '
            'Give a checkpoint that a training has saved with its optimizer, '
            'or start from these weights: load_from in the config, without '
            'resume')


def _check_no_tuners(model: nn.Module, unexpected: list) -> None:
    tuners = [key for key in unexpected if '.tuners.' in key]
    if tuners:
        raise ValueError(
            f'it has {len(tuners)} tensors of tuners, such as {tuners[0]}, '
            f'and the {type(model).__name__} of this config has no place for '
            'them. Give the config that it was trained with')


def _check_complete(model: nn.Module, missing: list) -> None:
    # What has two names may be there by one; tuners alone may be absent, and
    # the model is then its base.
    there = {
        id(p)
        for name, p in model.named_parameters(remove_duplicate=False)
        if name not in missing or '.tuners.' in name
    }
    absent = [n for n, p in model.named_parameters() if id(p) not in there]
    if absent:
        raise ValueError(
            f'it lacks {len(absent)} parameters of the {type(model).__name__} '
            f'of this config, such as {absent[0]}, which would be random '
            'numbers. Give the config that it was trained with, or another '
            'checkpoint')


def _warn_of_no_base(model: nn.Module) -> None:
    loaded = tuple(
        f'{name}.' if name else '' for name, module in model.named_modules()
        if _loads(module))
    random = [
        name for name, parameter in model.named_parameters()
        if not (parameter.requires_grad or name.startswith(loaded))
    ]
    if random:
        parts = ', '.join(sorted({name.split('.')[0] for name in random}))
        warnings.warn(
            f'no base is given, and {len(random)} frozen parameters ({parts}) '
            'would stay the random numbers that they start with. Name the '
            'checkpoint to fine-tune: load_from in the config, or '
            '--cfg-options load_from=FILE.')


def _loads(module: nn.Module) -> bool:
    cfgs = getattr(module, 'init_cfg', None) or []
    return any(isinstance(cfg, dict) and cfg.get('type') in LOADED for cfg in (
        cfgs if isinstance(cfgs, (list, tuple)) else [cfgs]))


def _raise_ours(error: Exception, what: str) -> None:
    """Raise ``error`` as a message if etta_mm raised it."""
    if is_ours(error):
        raise ValueError(f'{what}: {message(error)}') from error
