"""A model at its real size, without its numbers."""
import copy

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.overrides import TorchFunctionMode


class _RatesOnCpu(TorchFunctionMode):
    """Leave ``torch.linspace`` its numbers: most backbones with random depth
    read their rates from it while they are built."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


def build_on_meta(cfg: Config) -> nn.Module:
    """Build the model of ``cfg`` as the Runner does, on the meta device.

    It knows its shapes and holds no numbers, so a large model costs seconds
    and no memory, no weights and no download.

    Args:
        cfg (Config): The config of a run. It stays as it is.

    Raises:
        KeyError: If the config has no ``model``.
    """
    if 'model' not in cfg:
        raise KeyError('the config has no model; its keys are ' +
                       ', '.join(sorted(cfg)))
    model = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor',
                         copy.deepcopy(cfg.data_preprocessor))
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
    with scope, torch.device('meta'), _RatesOnCpu():
        model = MODELS.build(model)
    # torch.Tensor(SIZE) heeds no device: Deformable DETR's level_embed.
    return model.to('meta')
