"""Activation checkpointing of transformer layers.

A checkpointed layer keeps its inputs alone and computes the rest again in the
backward pass. mmengine's own is re-entrant and takes positional arguments: a
DETR's layers are called with keywords, and a re-entrant checkpoint whose
inputs need no gradient, as those of a frozen base, gives none to the tuners
inside. This one is neither.
"""
from typing import List, Optional

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.dense_heads import DETRHead
from mmpretrain.models.backbones.revvit import RevTransformerEncoderLayer
from mmpretrain.models.utils import SwiGLUFFN
from torch import nn
from torch.utils.checkpoint import checkpoint

from .derived import Derived, derived_class


class Checkpointed(Derived):
    """Mixin of a layer whose activations are computed twice, not kept."""

    prefix = 'Checkpointed'

    def forward(self, *args, **kwargs):
        """As the layer's."""
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        forward, number, names = super().forward, len(args), tuple(kwargs)

        def by_position(*values):
            return forward(*values[:number], **dict(zip(names,
                                                        values[number:])))

        # Of the devices of what stands by position alone does torch keep the
        # random state, without which dropout would draw other masks the second
        # time; a Deformable DETR's encoder passes keywords only.
        return checkpoint(
            by_position, *args, *kwargs.values(), use_reentrant=False)


def transformer_layers(model: nn.Module) -> List[nn.Module]:
    """The transformer layers of ``model``: what holds a feed-forward network,
    be it in a list, and is no DETR's head."""
    found = []

    def walk(module: nn.Module, holder: nn.Module) -> None:
        if isinstance(module, (FFN, SwiGLUFFN)):
            found.append(holder)
        elif not isinstance(module, DETRHead):
            for child in module.children():
                is_list = isinstance(module, (nn.ModuleList, nn.Sequential))
                walk(child, holder if is_list else module)

    walk(model, model)
    return list(dict.fromkeys(found))


def _draws(layer: RevTransformerEncoderLayer) -> bool:
    """Whether the layer draws random numbers in training."""
    rates = [layer.drop_path_cfg['drop_prob']] + [
        getattr(module, name, 0.) for module in layer.modules()
        for name in ('p', 'attn_drop')
    ]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def checkpoint_layers(model: nn.Module, number: Optional[int] = None) -> int:
    """Checkpoint the activations of transformer layers of ``model``.

    In place: the layers change their class, parameters keep their names.

    Args:
        model (nn.Module): Any model with feed-forward networks of mmcv or
            mmpretrain in its layers.
        number (int, optional): How many layers, from the first on (a DETR's
            encoder, which has the most tokens, is before its decoder).
            Defaults to None, all.

    Returns:
        int: The number of layers.

    Raises:
        ValueError: If there is none, or not as many, or a layer that is
            computed again draws other random numbers (RevViT's with dropout).
    """
    layers = transformer_layers(model)
    if not layers:
        raise ValueError(
            f'{type(model).__name__} has no layer with a feed-forward network '
            'of mmcv or mmpretrain, so with_cp=True would save nothing; leave '
            'it out')
    number = len(layers) if number is None else number
    if not 1 <= number <= len(layers):
        raise ValueError(
            f'with_cp={number}: {type(model).__name__} has {len(layers)} '
            'transformer layers, of which 1 to all can be checkpointed; True '
            'is all of them, False none')
    for layer in layers[:number]:
        if isinstance(layer, RevTransformerEncoderLayer) and _draws(layer):
            raise ValueError(
                f'with_cp: a layer of {type(model).__name__} seeds its random '
                'depth and dropout anew whenever it is computed, so that the '
                'gradients would be wrong; set drop_path_rate, drop_rate and '
                'attn_drop_rate to 0, or leave with_cp out')
    for layer in layers[:number]:
        if not isinstance(layer, Checkpointed):
            layer.__class__ = derived_class(Checkpointed, type(layer))
    return number
