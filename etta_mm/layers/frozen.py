"""Frozen layers with running statistics.

A batch norm that is not trained must not drift either, so it stays in eval
whatever ``train()`` says. Like the sublayers, such a layer takes the class of
this module in place.
"""
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class FrozenStatistics:
    """Mixin that keeps a module in eval mode."""

    def train(self, mode: bool = True):
        """Stay in eval, whatever ``mode`` says; return self."""
        return super().train(False)


class FrozenBatchNorm1d(FrozenStatistics, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` in eval for good."""


class FrozenBatchNorm2d(FrozenStatistics, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` in eval for good."""


class FrozenBatchNorm3d(FrozenStatistics, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` in eval for good."""


class FrozenSyncBatchNorm(FrozenStatistics, nn.SyncBatchNorm):
    """``nn.SyncBatchNorm`` in eval for good."""


class FrozenInstanceNorm2d(FrozenStatistics, nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` with running statistics in eval for good."""


_FROZEN = {cls.__mro__[2]: cls for cls in FrozenStatistics.__subclasses__()}


def freeze_statistics(module: nn.Module) -> None:
    """Freeze the running statistics of ``module`` itself, if it has any.

    Raises:
        TypeError: If it keeps statistics in a class that is not known here.
    """
    if not (isinstance(module, _NormBase) and module.track_running_stats):
        return
    if isinstance(module, FrozenStatistics):
        return
    # Subclasses that only carry a name of their own are frozen as well.
    for cls in type(module).__mro__:
        if cls in _FROZEN:
            module.__class__ = _FROZEN[cls]
            module.eval()
            return
    raise TypeError(
        f'{type(module).__name__} keeps running statistics and cannot be '
        'frozen; name the module that holds it in train, or use one of ' +
        ', '.join(c.__name__ for c in _FROZEN))
