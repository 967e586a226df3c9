"""Check how the processes of a run share its model, before it starts."""
import logging

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from ..data.config_type import unscoped_name
from .launch import num_processes

WHOLE = ('{}; leave out runner_type and strategy for this (the config without '
         'configs/etta/_base_/fsdp.py)')

#: Strategies of mmengine that write checkpoints in ways of their own.
OTHER_STRATEGIES = ('DeepSpeedStrategy', 'ColossalAIStrategy')


def check_strategy(cfg: Config, is_tuned: bool) -> None:
    """Check the ``strategy`` of a config.

    Args:
        cfg (Config): The config of a run.
        is_tuned (bool): Whether its model is.

    Raises:
        ValueError: If the run would ignore it, or it would not work.
    """
    runner = unscoped_name(dict(type=cfg.get('runner_type')))
    flexible = runner == 'FlexibleRunner'
    strategy = cfg.get('strategy')
    if strategy is not None and not flexible:
        raise ValueError(
            f'strategy={dict(strategy)}: mmengine reads it with '
            "runner_type='FlexibleRunner' only. Set that, or leave it out.")
    if flexible and cfg.get('tuned_from') is not None:
        raise ValueError(
            WHOLE.format(f'tuned checkpoint {str(cfg.tuned_from)!r} with '
                         "runner_type='FlexibleRunner', which loads .pth "
                         'files only: give the .pth beside it'))
    if is_tuned:
        _check_tuned(cfg)
    if unscoped_name(strategy) == 'ETFSDPStrategy':
        _check_wrapper(strategy.get('model_wrapper') or {})
        _check_sharded(cfg)


def _check_tuned(cfg: Config) -> None:
    """Refuse what does not know frozen and trained parts apart."""
    kind = unscoped_name(cfg.get('strategy'))
    if kind in OTHER_STRATEGIES:
        raise ValueError(
            f'strategy.type={kind!r} saves no tuned checkpoint. Set strategy = '
            "dict(type='ETFSDPStrategy'), or leave out runner_type and strategy.")
    if unscoped_name(
            cfg.get('model_wrapper_cfg')) == 'MMFullyShardedDataParallel':
        raise ValueError(
            "model_wrapper_cfg.type='MMFullyShardedDataParallel' shards frozen "
            'and trained parameters alike. Leave it out and inherit '
            'configs/etta/_base_/fsdp.py.')
    if kind == 'FSDPStrategy':
        raise ValueError(
            "strategy.type='FSDPStrategy' shards frozen and trained "
            'parameters alike, refuses scalars such as a learned scale, and '
            'cuts checkpoints to pieces. Set '
            "strategy = dict(type='ETFSDPStrategy').")


def _check_wrapper(wrapper: dict) -> None:
    """Check the arguments of ``ETFullyShardedDataParallel``."""
    if wrapper.get('mixed_precision') is not None:
        raise ValueError(
            'strategy.model_wrapper.mixed_precision='
            f'{wrapper["mixed_precision"]}: it casts the frozen base alone, '
            'and what is trained stays whole and in single precision, so that '
            'their products fail. Leave it out; --amp casts both.')
    if wrapper.get('cpu_offload') and not torch.cuda.is_available():
        raise ValueError(
            f'strategy.model_wrapper.cpu_offload={wrapper["cpu_offload"]}: it '
            'moves the base from the memory of the host to a GPU and back, '
            'and there is none here. Leave it out.')
    if 'NO_SHARD' in str(wrapper.get('sharding_strategy')):
        raise ValueError(
            WHOLE.format(f'sharding_strategy={wrapper["sharding_strategy"]!r} '
                         'shares nothing, which DDP does at less cost'))


def _check_sharded(cfg: Config) -> None:
    """Check the rest of a run that shards its base."""
    if num_processes(cfg) == 1:
        raise ValueError(
            WHOLE.format("strategy.type='ETFSDPStrategy' shares a model among "
                         'processes, and this is one alone: use '
                         'tools/dist_train.sh or tools/slurm_train.sh'))
    hooks = [unscoped_name(hook) for hook in cfg.get('custom_hooks') or []]
    if 'EMAHook' in hooks:
        raise ValueError(
            WHOLE.format("strategy.type='ETFSDPStrategy' with EMAHook, which "
                         'averages a model that is whole: leave EMAHook out'))
    model = cfg.get('model') or {}
    if unscoped_name(cfg.get('optim_wrapper')) == 'AmpOptimWrapper' and not any(
            part.get('with_cp') for part in (model, model.get('backbone', {}))):
        print_log(
            '--amp with ETFSDPStrategy: until the backward pass, every process '
            'keeps a copy in half precision of each frozen weight that it has '
            'used. model.with_cp=True (of a classifier, model.backbone.with_cp) '
            'keeps those of one layer.',
            logger='current',
            level=logging.WARNING)
