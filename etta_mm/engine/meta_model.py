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
    with scope, torch.device('meta'):
        try:
            with _RatesOnCpu():
                built = MODELS.build(copy.deepcopy(model))
        except RuntimeError:  # they are computed with, as in CLRNet
            built = MODELS.build(model)
    _drop_numbers(built)
    return built


def _drop_numbers(model: nn.Module) -> None:
    """Move to the meta device what heeds no device: ``torch.Tensor(SIZE)``
    (Deformable DETR's ``level_embed``), rates. What is shared stays so."""
    moved = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or tensor.is_meta:
                    continue
                if id(tensor) not in moved:
                    data = tensor.detach().to('meta')
                    moved[id(tensor)] = tensor, (
                        nn.Parameter(data, tensor.requires_grad) if isinstance(
                            tensor, nn.Parameter) else data)
                tensors[name] = moved[id(tensor)][1]
