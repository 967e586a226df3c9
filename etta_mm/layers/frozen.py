"""Frozen layers with running statistics.

A batch norm that is not trained must not drift either, so it stays in eval
whatever ``train()`` says. Like the sublayers, such a layer takes the class of
this module in place.
"""
from functools import lru_cache

from mmcv.ops import SyncBatchNorm
from torch import nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.lazy import LazyModuleMixin


class FrozenStatistics:
    """Mixin that keeps a module in eval mode."""

    def train(self, mode: bool = True):
        """Stay in eval, whatever ``mode`` says; return self."""
        return super().train(False)

    def __reduce_ex__(self, protocol):
        """Pickle by the layer's own class where this one was made for it and
        has no importable name."""
        own = vars(type(self)).get('layer_class')
        if own is None:
            return super().__reduce_ex__(protocol)
        return _new, (own, ), self.__dict__


class FrozenBatchNorm1d(FrozenStatistics, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` in eval for good."""


class FrozenBatchNorm2d(FrozenStatistics, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` in eval for good."""


class FrozenBatchNorm3d(FrozenStatistics, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` in eval for good."""


class FrozenSyncBatchNorm(FrozenStatistics, _BatchNorm):
    """``nn.SyncBatchNorm``, or mmcv's, in eval for good.

    In eval nothing is synchronised. It is none of the two any more, since
    mmengine's Runner puts plain norms, which would move, in the place of
    those that are wherever there is one process.
    """

    def _check_input_dim(self, input) -> None:
        """Any number of dimensions."""


class FrozenInstanceNorm2d(FrozenStatistics, nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` with running statistics in eval for good."""


_FROZEN = {cls.__mro__[2]: cls for cls in FrozenStatistics.__subclasses__()}
_FROZEN.update(
    dict.fromkeys((nn.SyncBatchNorm, SyncBatchNorm), FrozenSyncBatchNorm))


@lru_cache(maxsize=None)
def frozen_class(cls: type) -> type:
    """The class ``cls`` in eval for good, with whatever else its forward does
    (an activation, as in timm's ``BatchNormAct2d``)."""
    return _FROZEN.get(cls) or type(
        f'Frozen{cls.__name__}', (FrozenStatistics, cls),
        dict(layer_class=cls))


def _new(cls: type) -> nn.Module:
    cls = frozen_class(cls)
    return cls.__new__(cls)


def freeze_statistics(module: nn.Module) -> None:
    """Freeze the running statistics of ``module`` itself, if it has any.

    Raises:
        TypeError: If they are not there yet.
    """
    if (getattr(module, 'running_mean', None) is None
            or isinstance(module, (FrozenStatistics, ScriptModule))):
        return
    if not isinstance(module, _NormBase) and list(module.children()):
        return  # whose children may be trained
    if isinstance(module, LazyModuleMixin):
        raise TypeError(
            f'{type(module).__name__} gets its class and its statistics with '
            'the first input, and cannot be frozen before; run the model once')
    module.__class__ = frozen_class(type(module))
    module.eval()
