"""Frozen layers with running statistics.

A batch norm that is not trained must not drift either, so it stays in eval
whatever ``train()`` says. Like the sublayers, such a layer takes the class of
this module in place.
"""
from mmcv.ops import SyncBatchNorm
from torch import nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from .derived import Derived, derived_class


class FrozenStatistics(Derived):
    """Mixin that keeps a module in eval mode."""

    prefix = 'Frozen'

    def train(self, mode: bool = True):
        """Stay in eval, whatever ``mode`` says; return self."""
        return super().train(False)


class FrozenBatchNorm2d(FrozenStatistics, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` in eval for good."""


class FrozenSyncBatchNorm(FrozenStatistics, _BatchNorm):
    """``nn.SyncBatchNorm``, or mmcv's, in eval for good.

    In eval nothing is synchronised. It is none of the two any more, since
    mmengine's Runner puts plain norms, which would move, in the place of
    those that are wherever there is one process.
    """

    def _check_input_dim(self, input) -> None:
        """Any number of dimensions."""


#: Other classes are made as they are met, with whatever else their forward does
#: (an activation, as in timm's ``BatchNormAct2d``).
_FROZEN = {
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.SyncBatchNorm: FrozenSyncBatchNorm,
    SyncBatchNorm: FrozenSyncBatchNorm,
}


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
    cls = type(module)
    module.__class__ = _FROZEN.get(cls) or derived_class(
        FrozenStatistics, cls)
    module.eval()
