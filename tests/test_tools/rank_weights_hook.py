"""What each process of a distributed run holds at its end.

The tests name this module in ``custom_imports``; the training processes find it
on their PYTHONPATH.
"""
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class RankWeightsHook(Hook):
    """Write the weights of every rank to ``rank_<rank>.pth`` in the work dir.

    mmengine's own checkpoints come from rank 0 alone.
    """

    def after_train(self, runner) -> None:
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        torch.save(model.state_dict(),
                   Path(runner.work_dir) / f'rank_{get_rank()}.pth')
