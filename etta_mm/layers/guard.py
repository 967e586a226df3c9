"""Refuse a checkpoint that is not the tuned model's base.

mmengine's Runner loads with ``strict=False``: a checkpoint of another
architecture costs it one warning, and the training that follows is worthless.
A tuned model checks what it is given before a single tensor is copied.
"""
from difflib import get_close_matches
from functools import partial
from typing import List

from mmengine.logging import print_log
from torch import nn

from ..tuners import Tuner


def guard_loading(model: nn.Module, trained: List[str]) -> None:
    """Make ``model`` check every state dict that it loads.

    Allowed are: a base checkpoint (the tuners stay as they are), and a
    checkpoint of the tuned model. In modules trained in full, tensors may
    have another shape (a head for other classes): they are passed over, with
    one line in the log.

    Args:
        model (nn.Module): A tuned model.
        trained (list[str]): Names of what is trained in full.
    """
    model.register_load_state_dict_pre_hook(
        partial(check_state_dict, trained=frozenset(trained)))


def check_state_dict(module: nn.Module, state_dict: dict, prefix: str, *args,
                     trained: frozenset) -> None:
    """The hook: compare the keys below ``prefix`` with the module's.

    Raises:
        KeyError: If a key of the base is missing, a key belongs to nothing,
            or only a part of the tuners is there.
        ValueError: If a tensor of the base has another shape.
    """
    expected = module.state_dict(keep_vars=True)
    ours = {
        f'{name}.{key}'
        for name, child in module.named_modules() if isinstance(child, Tuner)
        for key in child.state_dict()
    }
    given = {
        key[len(prefix):]
        for key in state_dict if key.startswith(prefix)
    }
    # torch adds this counter itself where an old checkpoint lacks it.
    missing = [
        key for key in expected if key not in given and key not in ours
        and not key.endswith('.num_batches_tracked')
    ]
    unexpected = sorted(given - set(expected))
    if missing or unexpected:
        raise KeyError(_describe(module, missing, unexpected, len(expected)))
    absent = sorted(ours - given)
    if absent and len(absent) < len(ours):
        raise KeyError(
            f'the checkpoint holds only {len(ours) - len(absent)} of the '
            f'{len(ours)} tensors of the tuners; it lacks '
            f'{_listing(absent)}. It comes from another tuning: load it into '
            'a model with that one, or take the base checkpoint')
    shapes = [(key, tuple(state_dict[prefix + key].shape),
               tuple(expected[key].shape)) for key in expected
              if key in given
              and state_dict[prefix + key].shape != expected[key].shape]
    wrong = [
        f'{key} {found} where {wanted} is needed'
        for key, found, wanted in shapes if key not in trained
    ]
    if wrong:
        raise ValueError(
            f'{len(wrong)} tensors of the checkpoint have another shape than '
            f'{type(module).__name__}: {_listing(wrong)}. Take the checkpoint '
            'of this architecture; only what train names may differ')
    for key, _, _ in shapes:
        state_dict.pop(prefix + key)
    if shapes:
        print_log(
            'trained in full and of another shape than in the checkpoint, so '
            'from its own start: ' + ', '.join(key for key, _, _ in shapes),
            logger='current')


def _describe(module: nn.Module, missing: List[str], unexpected: List[str],
              total: int) -> str:
    text = (f'this is no checkpoint of the base of {type(module).__name__}: '
            f'of its {total} tensors {len(missing)} are missing')
    if missing:
        text += f' ({_listing(missing)})'
    text += f', and {len(unexpected)} belong to nothing in the model'
    if unexpected:
        text += f' ({_listing(unexpected)})'
    if missing and unexpected:
        near = get_close_matches(missing[0], unexpected, n=1)
        if near:
            text += f'; {missing[0]} may be what it calls {near[0]}'
    return text + ('. Give the checkpoint of this very architecture as '
                   'load_from; tuned-only files are loaded with load_tuned')


def _listing(names: List[str], most: int = 3) -> str:
    more = len(names) - most
    return ', '.join(names[:most]) + (f' and {more} more' if more > 0 else '')
