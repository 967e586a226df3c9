"""Fold tuners into the base weights, where that is exact.

LoRA is linear: ``W x + α/r B A x = (W + α/r B A) x``. Adapters have a ReLU
and prefixes a softmax in between, so no weight of the base can take them up.
"""
from typing import Dict, List, Tuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers.attention import ETMultiheadAttention
from ..layers.linear import ETLinear
from ..layers.plan import SITES
from ..layers.sublayer import TunedSublayer
from ..layers.vit_attention import ETViTAttention
from ..tuners import LoRA
from .tuned_checkpoint import tuned_roots

#: Where query, key and value stand in a packed projection.
PACKED = dict(q=0, k=1, v=2)


def merge_tuning(model: nn.Module) -> Tuple[List[str], Dict[str, List[str]]]:
    """Fold every LoRA of ``model`` into its linear map, in place.

    The products are made in double precision and rounded once to the type of
    the weight. What the tuning says of LoRA is taken out of it; if nothing is
    left, the state dict is the plain host's.

    Args:
        model (nn.Module): A tuned model.

    Returns:
        tuple: Names of the tuners that were folded, and of those that cannot
        be, by their type.

    Raises:
        ValueError: If ``model`` has no tuner that can be folded, or a weight
            is shared by several layers. The model is unchanged then.
    """
    folded, left = {}, {}
    for name, sublayer in model.named_modules():
        if not isinstance(sublayer, TunedSublayer):
            continue
        for key, tuner in sublayer.tuners.items():
            full = f'{name}.tuners.{key}'.lstrip('.')
            if type(tuner) is LoRA:
                folded[full] = (sublayer, key, tuner, _weight(sublayer, key))
            else:
                left.setdefault(type(tuner).__name__, []).append(full)
    if not folded:
        raise ValueError(
            f'{type(model).__name__} has no LoRA, and only LoRA can be folded '
            'into the base weights' +
            (f'; {", ".join(left)} cannot' if left else ''))
    _check_unshared(model, folded)
    with torch.no_grad():
        for sublayer, key, tuner, weight in folded.values():
            update = tuner.up.double() @ tuner.down.double()
            weight.copy_(weight.double() + update * (tuner.alpha / tuner.rank))
            del sublayer.tuners[key]
    for root in tuned_roots(model).values():
        root.tuning = dict(
            root.tuning, **{
                site: [
                    cfg for cfg in root.tuning[site]
                    if MODELS.get(cfg['type']) is not LoRA
                ]
                for site in SITES
            })
    return list(folded), left


def _weight(sublayer: TunedSublayer, key: str) -> Tensor:
    """The weight, or rows of a packed one, that a LoRA updates: (out, in)."""
    if isinstance(sublayer, ETLinear):
        return sublayer.weight
    part = key.removeprefix('lora_')
    if isinstance(sublayer, ETMultiheadAttention):
        attn = sublayer.attn
        if not attn._qkv_same_embed_dim:
            return getattr(attn, f'{part}_proj_weight')
        return attn.in_proj_weight.chunk(3)[PACKED[part]]
    if isinstance(sublayer, ETViTAttention):
        return sublayer.qkv.weight.chunk(3)[PACKED[part]]
    raise ValueError(f'a LoRA at {type(sublayer).__name__} is not known here')


def _check_unshared(model: nn.Module, folded: dict) -> None:
    owners = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                pointer = parameter.untyped_storage().data_ptr()
                owners[pointer] = owners.get(pointer, 0) + 1
    for name, (*_, weight) in folded.items():
        if owners[weight.untyped_storage().data_ptr()] > 1:
            raise ValueError(f'{name} updates a weight that several layers '
                             'share; folded in, it would change them all')
