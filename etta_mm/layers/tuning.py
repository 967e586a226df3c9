"""Tune a model: put the tuners where the tuning says and freeze the rest."""
import threading
from contextlib import contextmanager
from functools import partial
from typing import List, Optional

from mmdet.models.dense_heads import MaskFormerHead
from mmdet.models.detectors import DETR
from mmengine.logging import print_log
from mmengine.model import ModuleDict, PretrainedInit, initialize
from mmpretrain.models.backbones import RevVisionTransformer
from torch import nn

from ..tuners import Tuner
from .attention import fuse_attentions
from .dropout import pack_dropouts
from .ffn import keep_inputs_of_relus
from .frozen import freeze_statistics
from .guard import guard_loading
from .plan import (frozen_by_train, normalize_tuning, plan_tuning,
                   trained_names, tuned_class)
from .sublayer import TunedSublayer

_COUNTING = threading.Lock()


def apply_tuning(model: nn.Module, tuning: dict) -> nn.Module:
    """Tune ``model`` in place: tuners into its sublayers, the rest frozen.

    Each sublayer's output becomes ``h + s * Δh`` with h frozen. What is
    trained afterwards: the tuners and the submodules that ``train`` names.
    Frozen layers with running statistics stay in eval mode. Attentions of mmcv
    go through fused kernels, those without a tuner as well, and dropout on a
    CPU draws its masks in a cheaper way (:mod:`etta_mm.layers.dropout`).

    Names and shapes of the base parameters stay as they are, so a checkpoint
    of the base loads before and after. ``init_weights`` of the tuned model
    starts the tuners behind the rest, and does nothing a second time (see
    :func:`init_tuned`).

    Args:
        model (nn.Module): Any module that contains FFNs or attentions of
            mmcv or mmpretrain. Those inside a DETR's head (its ``reg_ffn``)
            are no transformer sublayers and are passed over.
        tuning (dict): With the keys

            - ``ffn``, ``attn`` (dict | list[dict], optional): Tuners of every
              feed-forward network and of every attention. A tuner may have a
              ``where`` of its own.
            - ``conv`` (dict | list[dict], optional): Likewise of every block
              of a ResNet, but for those that its ``frozen_stages`` freeze.
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
    trained = trained_names(model, tuning['train'])
    plan = plan_tuning(model, tuning, trained)
    has_tuners = any(isinstance(m, Tuner) for m in model.modules())
    if not (plan or trained or has_tuners):
        raise ValueError('the tuning leaves nothing to train; give it ffn, '
                         'attn or train')
    with rolled_back_on_error(model):
        for module, cfgs in plan:
            module.__class__ = tuned_class(module)
            module.add_tuners(cfgs)
        fuse_attentions(model)
        pack_dropouts(model)
        _drop_dead_updates(model)
        _freeze(model, trained)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        if not any(p.requires_grad for p in parameters.values()):
            raise ValueError(
                f'the tuning leaves nothing to train: train={tuning["train"]} '
                'holds no parameter, or the model itself froze them '
                '(frozen_stages); give it ffn, attn or another train')
        model.tuning = tuning
        # What is saved, even if it is frozen before: modules and parameters.
        model.tuning_trains = frozenset(
            n for n in trained
            if n not in parameters or parameters[n].requires_grad)
        guard_loading(model, trained)
    _use_autograd(model)
    keep_inputs_of_relus(model)
    if hasattr(model, 'init_weights'):
        model.init_weights = partial(init_tuned, model)
    return model


def _drop_dead_updates(model: nn.Module) -> None:
    """Take the LoRA from the value projection of the first decoder
    self-attention of DETR and MaskFormer: its input is the zero content query,
    so it never moves. Without a prefix there, the update of the query beside it
    changes nothing either, since all keys have one value; it stays."""
    for host in model.modules():
        if isinstance(host, DETR):
            decoder = host.decoder
        elif type(host) is MaskFormerHead:
            decoder = host.transformer_decoder
        else:
            continue
        tuners = getattr(decoder.layers[0].self_attn, 'tuners', {})
        if 'lora_v' in tuners:
            del tuners['lora_v']


def _use_autograd(model: nn.Module) -> None:
    """Have a reversible transformer trained by autograd: behind its own
    backward pass nothing learns whose input needs no gradient."""
    for module in model.modules():
        if (isinstance(module, RevVisionTransformer)
                and not module.no_custom_backward):
            module.no_custom_backward = True
            print_log(
                f'{type(module).__name__}: no_custom_backward is set, for its '
                'own backward pass reaches no tuner behind frozen layers; it '
                'keeps the activations of all layers',
                logger='current')


def _tuners(module: nn.Module) -> Optional[dict]:
    """The tuners of a sublayer by name, None where there is no place for any."""
    tuners = module._modules.get('tuners')
    return None if tuners is None else dict(tuners.items())


@contextmanager
def rolled_back_on_error(model: nn.Module):
    """Make ``model`` what it was if the tuning turns out wrong half way."""
    before = [(m, type(m), m.training, 'tuning' in vars(m),
               _tuners(m), list(m._load_state_dict_pre_hooks))
              for m in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for module, cls, training, was_tuned, tuners, hooks in before:
            if type(module) is not cls:
                module.__class__ = cls
                module.training = training
            if tuners != _tuners(module):
                module._modules.pop('tuners', None)
                if tuners is not None:
                    module.tuners = ModuleDict(tuners)
            if not was_tuned:
                for name in ('tuning', 'tuning_trains', 'tuners_loaded', 'other_shapes',
                             'init_weights'):
                    vars(module).pop(name, None)
            for key in set(module._load_state_dict_pre_hooks) - set(hooks):
                del module._load_state_dict_pre_hooks[key]
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise


def _freeze(model: nn.Module, trained: List[str]) -> None:
    """Freeze all but the tuners and ``trained``, whose parameters stay as
    they are: what the host froze there (``frozen_stages``) stays frozen."""
    kept = {
        id(p)
        for n, p in model.named_parameters(remove_duplicate=False)
        if n in trained
    }
    kept -= frozen_by_train(model)  # what some backbones do there alone
    for module in model.modules():
        if isinstance(module, Tuner):
            kept.update(id(p) for p in module.parameters())
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)
            parameter.grad = None  # an older step's
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
    _rest(sublayers, 1)
    try:
        yield model
    finally:
        _rest(sublayers, -1)


def _rest(sublayers: List[TunedSublayer], change: int) -> None:
    """Count the contexts that are open, which may overlap: those of threads
    end in any order."""
    with _COUNTING:
        for module in sublayers:
            module.resting += change


def init_tuned(model: nn.Module, *args, **kwargs) -> None:
    """``init_weights`` of a tuned model: initialise it, then start the tuners,
    over which a host's initialisation goes (a DETR draws every matrix of its
    encoder and decoder). Not if it was initialised before, which mmengine's
    Runner does not look at; and tuners that ``init_cfg`` has just loaded stay.
    """
    if getattr(model, 'is_init', False):
        return
    model.tuners_loaded = False
    type(model).init_weights(model, *args, **kwargs)
    # mmpretrain's ViTs draw their position embedding over what was loaded,
    # unless init_cfg is a single dict.
    init_cfg = getattr(model, 'init_cfg', None)
    loaded = [
        cfg for cfg in (init_cfg if isinstance(init_cfg, list) else ())
        if cfg['type'] in ('Pretrained', PretrainedInit)
    ]
    if loaded:
        initialize(model, loaded)
    if not model.tuners_loaded:
        start_tuners(model)


def start_tuners(model: nn.Module) -> None:
    """Set every tuner below ``model`` to its start."""
    for module in model.modules():
        if isinstance(module, Tuner):
            module.init_weights()
