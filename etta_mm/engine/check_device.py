"""What a model asks of a GPU, checked before a run starts."""
from typing import List

from mmcv import ops as mmcv_ops
from mmdet.models.dense_heads import GroundingDINOHead
from mmdet.models.losses import FocalLoss
from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from ..data.config_type import unscoped_name


def check_device(model: nn.Module, cfg: Config) -> None:
    """Check that a GPU that is seen has the ops of a model.

    Args:
        model (nn.Module): The model.
        cfg (Config): The config of its run.

    Raises:
        ValueError: If mmcv lacks them, or has them in another precision.
    """
    if get_device() == 'cuda':
        _check_ops(model)
        _check_precision(model, cfg)


def _check_ops(model: nn.Module) -> None:
    """mmcv's ops ask for no more than a tensor on a GPU, whatever they were
    built for."""
    if mmcv_ops.get_compiling_cuda_version() != 'not available':
        return
    used = [type(module).__name__ for module in _ops(model)]
    if used:
        raise ValueError(
            f'mmcv is built without CUDA, and the {used[0]} of this model is '
            'its op, which on the GPU that is seen here would end the run. '
            'Build mmcv with its CUDA ops (tools/setup_env.sh, with the CUDA '
            'toolkit), or hide the GPU: CUDA_VISIBLE_DEVICES= before the '
            'command.')


def _ops(model: nn.Module) -> List[nn.Module]:
    """The modules of a model that are mmcv's ops on CUDA."""
    # Its targets are one-hot, for which mmdet has a loss of its own.
    plain = {
        loss
        for head in model.modules() if isinstance(head, GroundingDINOHead)
        for loss in head.modules()
    }
    return [
        module for module in model.modules()
        if _is_focal_op(module) and module not in plain or any(
            kind.__module__.startswith('mmcv.ops.')
            for kind in type(module).__mro__)
    ]


def _is_focal_op(module: nn.Module) -> bool:
    return (isinstance(module, FocalLoss) and module.use_sigmoid
            and not module.activated)


def _check_precision(model: nn.Module, cfg: Config) -> None:
    wrapper = cfg.get('optim_wrapper') or {}
    if (unscoped_name(wrapper) != 'AmpOptimWrapper'
            or wrapper.get('dtype') != 'bfloat16'):
        return
    for module in _ops(model):
        # It takes the path without an op.
        if not isinstance(module, mmcv_ops.MultiScaleDeformableAttention):
            raise ValueError(
                f"optim_wrapper.dtype='bfloat16': this model's "
                f"{type(module).__name__} is mmcv's op, which CUDA has for "
                'float16 and float32 only. Leave dtype out for float16, or '
                '--amp for float32.')
