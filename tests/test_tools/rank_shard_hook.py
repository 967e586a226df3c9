"""What each process of a sharded run holds and computes.

The tests name this module in ``custom_imports``; the training processes find it
on their PYTHONPATH.
"""
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class RankShardHook(Hook):
    """Write to ``shard_<rank>.pth`` in the work dir the losses of every step,
    the trained parameters, and how much is held and has a gradient."""

    def __init__(self) -> None:
        self._losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None) -> None:
        self._losses.append(outputs['loss'].item())

    def after_train(self, runner) -> None:
        parameters = list(runner.model.parameters())
        torch.save(
            dict(
                losses=self._losses,
                trained=[p.detach() for p in parameters if p.requires_grad],
                frozen=sum(p.numel() for p in parameters
                           if not p.requires_grad),
                frozen_with_gradient=sum(
                    p.grad is not None for p in parameters
                    if not p.requires_grad)),
            Path(runner.work_dir) / f'shard_{get_rank()}.pth')
