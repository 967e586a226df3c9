"""Frozen batch norms folded into the convolutions before them.

A batch norm in eval is an affine map of each channel, so a convolution and
the frozen norm behind it are one convolution:

    BN(W * x + b) = (γ / √(σ² + ε) W) * x + γ / √(σ² + ε) (b - μ) + β

The parameters stay where they are, with their names and values: only the
product that the forward pass uses is kept beside them, and made anew whenever
one of them changes. Like the sublayers, both layers take a class of this
module in place.

A pair is folded where the code of its owner is known to run the norm right
behind the convolution and to use neither elsewhere: mmdet's ResNets, mmcv's
``ConvModule`` and ``Sequential`` (exact types; a subclass may compute something
else), outside of dense heads.
"""
import copy
from collections import Counter
from typing import Iterator, Optional, Tuple

import torch
from mmcv.cnn import ConvModule
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.backbones.resnet import (BasicBlock, Bottleneck, ResNet,
                                           ResNetV1d)
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck
from mmdet.models.backbones.resnext import ResNeXt
from mmdet.models.dense_heads import TOODHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmengine.model import Sequential
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .conv import ETBasicBlock, ETBottleneck
from .frozen import FrozenBatchNorm2d, FrozenSyncBatchNorm

#: Owners of ``conv1`` and ``norm1``, ``conv2`` and ``norm2``, ...
_NUMBERED = (BasicBlock, Bottleneck, ETBasicBlock, ETBottleneck,
             ResNeXtBottleneck, ResNet, ResNetV1d, ResNeXt)
_SEQUENTIAL = (nn.Sequential, Sequential)


class ConvNorm:
    """A convolution and the norm behind it, and their product.

    Args:
        owner (nn.Module): The module whose children they are.
        conv_name (str): Name of the convolution in ``owner``.
        norm_name (str): Name of the norm in ``owner``.
        channels_last (bool): Whether the product lies in memory with the
            channels last, and with it all that is computed from it.
    """

    def __init__(self, owner: nn.Module, conv_name: str, norm_name: str,
                 channels_last: bool) -> None:
        self.owner = owner
        self.conv_name, self.norm_name = conv_name, norm_name
        self.conv = owner._modules[conv_name]
        self.norm = owner._modules[norm_name]
        self.memory_format = (
            torch.channels_last if channels_last else torch.contiguous_format)
        self.forget()

    def __getstate__(self) -> dict:
        """All but the product, which a copy makes of its own weights."""
        return dict(vars(self), _key=None, _product=None)

    def __deepcopy__(self, memo: dict) -> 'ConvNorm':
        """A copy goes with a copy of the owner. One of the layers that is
        copied alone (``fuse_conv_bn_eval``) is no part of any pair."""
        if id(self.owner) not in memo:
            return self  # whose layers the copy is none of
        memo[id(self)] = pair = type(self).__new__(type(self))
        vars(pair).update(copy.deepcopy(self.__getstate__(), memo))
        return pair

    def forget(self) -> None:
        self._key = self._product = None

    def product(self, module: nn.Module) -> Optional[Tuple[Tensor, Tensor]]:
        """Weight (out, in / groups, h, w) and bias (out, ) of the fold; None
        if ``module`` is none of the two, or they cannot be folded now.

        Each of the two asks before it does its part, so they always agree.
        They cannot be if one is trained after all, has moving statistics, has
        been replaced (``convert_sync_batchnorm``), replicated
        (``DataParallel``), cut to pieces (FSDP) or given another class
        (``parametrize``, a bank's routing). A compiler fuses the norm
        with what follows it, and is left to it; a trace would hold the folding.

        This is asked a hundred times in a forward pass, so that it reads the
        modules' own dicts, where a lookup by attribute takes far longer.
        """
        conv, norm = self.conv, self.norm
        children = self.owner._modules
        if (torch.compiler.is_compiling() or torch.jit.is_tracing()
                or norm.training
                or type(conv) is not FoldedConv2d
                or type(norm) not in _FOLDED_NORMS
                or not (module is conv or module is norm)
                or children.get(self.conv_name) is not conv
                or children.get(self.norm_name) is not norm):
            return None
        try:
            of_conv, of_norm = conv._parameters, norm._parameters
            tensors = (of_conv['weight'], of_conv['bias'],
                       norm._buffers['running_mean'],
                       norm._buffers['running_var'], of_norm['weight'],
                       of_norm['bias'])
        except KeyError:  # pruned, parametrized, cut to pieces
            return None
        dtype, device = tensors[0].dtype, tensors[0].device.type
        if device != 'meta' and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        key = (dtype, device, *[
            None if t is None else
            (t.data_ptr(), t.requires_grad,
             None if t.is_inference() else t._version) for t in tensors
        ])
        if key != self._key:
            # What is made in inference mode could never meet a gradient.
            with torch.inference_mode(False), torch.no_grad():
                self._product = self._fold(dtype, *tensors)
            self._key = key
        return self._product

    def _fold(self, dtype: torch.dtype, *tensors: Optional[Tensor]
              ) -> Optional[Tuple[Tensor, Tensor]]:
        if tensors[2] is None or any(
                t is not None and
            (t.requires_grad or len(t) != self.conv.out_channels)
                for t in tensors):
            return None
        precise = torch.promote_types(tensors[0].dtype, torch.float32)
        weight, bias, mean, var, gamma, beta = (
            None if t is None else t.detach().to(precise) for t in tensors)
        weight, bias = fuse_conv_bn_weights(weight, bias, mean, var,
                                            self.norm.eps, gamma, beta)
        return (weight.detach().to(dtype, memory_format=self.memory_format),
                bias.detach().to(dtype))


class FoldedLayer:
    """Mixin of both layers of a pair: they forget the product whenever the
    weights may have changed in a way that leaves no trace (``p.data``)."""

    pair: ConvNorm

    def train(self, mode: bool = True):
        self.pair.forget()
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self.pair.forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self.pair.forget()
        super()._load_from_state_dict(*args, **kwargs)


class FoldedConv2d(FoldedLayer, nn.Conv2d):
    """``nn.Conv2d`` that does the work of the frozen norm behind it."""

    def forward(self, x: Tensor) -> Tensor:
        """(bs, in_channels, h, w) -> (bs, out_channels, h', w')."""
        product = self.pair.product(self)
        if product is None:
            return super().forward(x)
        return self._conv_forward(x, *product)


class FoldedNorm(FoldedLayer):
    """Mixin of a norm whose work the convolution before it does."""

    def forward(self, x: Tensor) -> Tensor:
        """(bs, channels, h, w), unchanged if the pair is folded."""
        return super().forward(x) if self.pair.product(self) is None else x


class FoldedBatchNorm2d(FoldedNorm, FrozenBatchNorm2d):
    """Frozen ``nn.BatchNorm2d`` that is folded."""


class FoldedSyncBatchNorm(FoldedNorm, FrozenSyncBatchNorm):
    """Frozen ``nn.SyncBatchNorm`` that is folded."""


_FOLDED = {
    FrozenBatchNorm2d: FoldedBatchNorm2d,
    FrozenSyncBatchNorm: FoldedSyncBatchNorm
}
_FOLDED_NORMS = frozenset(_FOLDED.values())


def _neighbours(model: nn.Module) -> Iterator[Tuple[nn.Module, str, str]]:
    """Owner and names of each module and the one that runs right behind."""
    # TOOD's head reads the weight of a ConvModule by itself.
    in_heads = {
        id(m) for head in model.modules() if isinstance(head, BaseDenseHead)
        for m in head.modules()
    }
    for owner in model.modules():
        if id(owner) in in_heads:
            continue
        if type(owner) in _SEQUENTIAL:
            names = list(owner._modules)
            yield from ((owner, *pair) for pair in zip(names, names[1:]))
        elif type(owner) in _NUMBERED:
            for i in (1, 2, 3):
                name = getattr(owner, f'norm{i}_name', None)
                if name is not None:
                    yield owner, f'conv{i}', name
        elif type(owner) is ConvModule and owner.with_norm:
            if ('conv', 'norm') in zip(owner.order, owner.order[1:]):
                yield owner, 'conv', owner.norm_name


def _reads_raw_memory(model: nn.Module) -> bool:
    """Whether an op of mmcv in ``model`` may be given the backbone's output,
    or what is computed from it: most take the channels to be the second
    dimension in memory, too, and say nothing where they are not."""
    return any(
        type(m).__module__.startswith('mmcv.ops.')
        and not isinstance(m, MultiScaleDeformableAttention)
        or isinstance(m, TOODHead) for m in model.modules())


def fold_frozen_norms(model: nn.Module, channels_last: bool = True) -> int:
    """Fold each frozen batch norm of ``model`` into its frozen convolution.

    In place; names, values and checkpoints stay as they are, the output
    differs by rounding. What is trained, has moving statistics or an unknown
    owner is left alone, now and whenever it becomes so.

    Args:
        model (nn.Module): A tuned model.
        channels_last (bool): Compute the folded convolutions with the
            channels last in memory, which fewer copies make faster on CPUs
            and in half precision on GPUs. Not in a model with RoIAlign,
            deformable convolutions and other ops of mmcv that read memory as
            it lies. Defaults to True.

    Returns:
        int: The number of pairs folded.
    """
    channels_last = channels_last and not _reads_raw_memory(model)
    number = 0
    parents = Counter(
        id(child) for m in model.modules() for child in m._modules.values())
    for owner, conv_name, norm_name in _neighbours(model):
        conv = owner._modules.get(conv_name)
        norm = owner._modules.get(norm_name)
        if type(conv) is not nn.Conv2d or type(norm) not in _FOLDED:
            continue
        if parents[id(conv)] > 1 or parents[id(norm)] > 1:
            continue  # shared: a convolution may have several norms
        parameters = (*conv.parameters(), *norm.parameters())
        if any(p.requires_grad for p in parameters):
            continue
        pair = ConvNorm(owner, conv_name, norm_name, channels_last)
        conv.__class__, norm.__class__ = FoldedConv2d, _FOLDED[type(norm)]
        conv.pair = norm.pair = pair
        number += 1
    return number
