"""Refuse a checkpoint that is not the tuned model's base.

mmengine's Runner loads with ``strict=False``: a checkpoint of another
architecture costs it one warning, and the training that follows is worthless.
A tuned model checks what it is given before a single tensor is copied.
"""
import copy
from difflib import get_close_matches
from functools import partial
from typing import List

import torch
from mmengine.logging import print_log
from torch import nn

from ..listing import listing
from ..tuners import Tuner

#: What a pre-training leaves in its checkpoint (DINOv2's, BEiT's) and no forward
#: pass of a fine-tuning reads.
OF_PRETRAINING = ('mask_token', )
FEW = 4  # of a base, less than one tensor of so many


def guard_loading(model: nn.Module, trained: List[str]) -> None:
    """Make ``model`` check every state dict that it loads.

    Allowed are: a base checkpoint (the tuners stay as they are), and a
    checkpoint of the tuned model. In modules trained in full, tensors may
    have another shape (a head for other classes) or be absent (a new head):
    they are passed over, with a line in the log.

    Args:
        model (nn.Module): A tuned model.
        trained (list[str]): Names of what is trained in full.
    """
    trained = frozenset(trained)
    buffers = (name for name, _ in model.named_buffers(remove_duplicate=False))
    trained |= {n for n in buffers if n.rpartition('.')[0] in trained}
    handle = model.register_load_state_dict_pre_hook(
        partial(check_state_dict, trained=trained))
    # Before the host's own hooks, which drop what the host makes itself.
    model._load_state_dict_pre_hooks.move_to_end(handle.id, last=False)
    model.tuners_loaded, model.other_shapes = False, []


def check_state_dict(module: nn.Module, state_dict: dict, prefix: str, *args,
                     trained: frozenset) -> None:
    """The hook: compare the keys below ``prefix`` with the module's.

    The hooks of the host, which resize a position embedding or rename what an
    old checkpoint has, come first, on a copy of the dict. Whether the tuners
    were there is noted in ``module.tuners_loaded``, and what is trained in full
    and of another shape, (name, shape there, shape here), in
    ``module.other_shapes``.

    Raises:
        KeyError: If a frozen tensor is missing, a key belongs to nothing, or
            only a part of the tuners is there.
        ValueError: If a tensor of the base has another shape.
    """
    expected = module.state_dict(keep_vars=True)
    ours = {
        f'{name}.{key}'
        for name, child in module.named_modules() if isinstance(child, Tuner)
        for key in child.state_dict()
    }
    loaded = _after_hooks(module, state_dict, prefix)
    given, original = (
        {key[len(prefix):] for key in keys if key.startswith(prefix)}
        for keys in (loaded, state_dict))
    # torch adds this counter itself where an old checkpoint lacks it.
    lacking = [
        key for key in expected if key not in given | original | ours
        and not key.endswith('.num_batches_tracked')
    ]
    missing = [key for key in lacking if key not in trained]
    # Older versions of transformers saved buffers that it keeps to itself now.
    unsaved = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    unexpected = sorted(given - set(expected) - unsaved)
    # A DDQ-DETR gives its decoder the head's branches when it trains first.
    unused = [
        key for key in unexpected
        if key.rpartition('.')[2] in OF_PRETRAINING
        or _stands_twice(key, expected, loaded, prefix)
    ]
    unexpected = [key for key in unexpected if key not in unused]
    for key in unused:
        state_dict.pop(prefix + key, None)
    if missing or unexpected:
        raise KeyError(_describe(module, missing, unexpected, len(expected)))
    absent = sorted(ours - given)
    if absent and len(absent) < len(ours):
        raise KeyError(
            f'the checkpoint holds only {len(ours) - len(absent)} of the '
            f'{len(ours)} tensors of the tuners; it lacks '
            f'{listing(absent)}. It comes from another tuning: load it into '
            'a model with that one, or take the base checkpoint')
    shapes = [(key, tuple(loaded[prefix + key].shape),
               tuple(expected[key].shape)) for key in expected
              if key in given
              and loaded[prefix + key].shape != expected[key].shape]
    wrong = [
        f'{key} {found} where {wanted} is needed'
        for key, found, wanted in shapes if key not in trained
    ]
    if wrong:
        raise ValueError(
            f'{len(wrong)} tensors of the checkpoint have another shape than '
            f'{type(module).__name__}: {listing(wrong)}. Take the checkpoint '
            'of this architecture; only what train names may differ')
    module.tuners_loaded = bool(ours) and not absent
    module.other_shapes = shapes
    for key, _, _ in shapes:
        state_dict.pop(prefix + key, None)
    for reason, keys in (('of another shape than in the checkpoint',
                          [key for key, _, _ in shapes]),
                         ('not in the checkpoint', lacking)):
        if keys:
            print_log(
                f'trained in full and {reason}, so from its own start: ' +
                ', '.join(keys),
                logger='current')


def _stands_twice(key: str, expected: dict, loaded: dict, prefix: str) -> bool:
    """Whether the same tensor is there under the part of the model that is
    known to have it."""
    below = key.partition('.')[2]
    twins = [
        loaded[prefix + other] for other in expected
        if below and other.partition('.')[2] == below
        and prefix + other in loaded
    ]
    tensor = loaded[prefix + key]
    return any(
        twin.shape == tensor.shape and
        (twin.is_meta or tensor.is_meta or torch.equal(twin, tensor))
        for twin in twins)  # without numbers, the benefit of the doubt


def _after_hooks(module: nn.Module, state_dict: dict, prefix: str) -> dict:
    """``state_dict`` as it is when the tensors are copied: after the hooks
    of the host and of all that lies below it."""
    loaded = copy.copy(state_dict)
    metadata = getattr(state_dict, '_metadata', None) or {}
    for name, child in module.named_modules():
        below = f'{prefix}{name}.' if name else prefix
        for hook in child._load_state_dict_pre_hooks.values():
            function = getattr(hook, 'hook', hook)
            if (getattr(function, 'func', None) is check_state_dict
                    or _is_torchs(function)):
                continue
            hook(loaded, below, metadata.get(below[:-1], {}), False, [], [],
                 [])
    return loaded


def _is_torchs(hook) -> bool:
    """Whether torch itself put it there, as FSDP does: such a hook acts on
    the module, not on the dict."""
    return (getattr(hook, '__module__', None) or '').startswith('torch.')


def _describe(module: nn.Module, missing: List[str], unexpected: List[str],
              total: int) -> str:
    text = (f'this is no checkpoint of the base of {type(module).__name__}: '
            f'of its {total} tensors {len(missing)} are missing')
    if missing:
        text += f' ({listing(missing)})'
    text += f', and {len(unexpected)} belong to nothing in the model'
    if unexpected:
        text += f' ({listing(unexpected)})'
    if missing and unexpected:
        near = get_close_matches(missing[0], unexpected, n=1)
        if near:
            text += f'; {missing[0]} may be what it calls {near[0]}'
    if unexpected and not missing:
        text += '. If these are of no use here, take them out of the file'
    if missing and not unexpected and len(missing) * FEW < total:
        parts = list(dict.fromkeys(key.rpartition('.')[0] or key
                                   for key in missing))
        text += ('. If these are new in this model, have them trained: name '
                 f'{listing(parts)} in train of the tuning')
    return text + ('. Give the checkpoint of this very architecture as '
                   'load_from; tuned-only files are loaded with load_tuned')
