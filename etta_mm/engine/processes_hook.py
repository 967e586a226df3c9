"""What the processes of a run have in common."""
import os.path as osp

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel


@HOOKS.register_module()
class ProcessesHook(Hook):
    """Compare where the processes of a training start, and let those of a
    validation meet in the work dir.

    mmengine broadcasts no weights that were loaded: each process keeps what its
    own disk held. And its metrics bring the results of all processes together
    in a folder below the one in which the first process stands, which another
    machine may not have, or nobody may write to.
    """

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        """Compare the starts.

        Args:
            runner (Runner): The runner of the training.

        Raises:
            ValueError: If the processes do not start from the same weights.
        """
        _check_equal_starts(runner)

    def before_val(self, runner) -> None:
        """Have the metrics meet in the work dir.

        Args:
            runner (Runner): The runner of the training.
        """
        _meet_in(runner.work_dir, runner.val_loop)

    def before_test(self, runner) -> None:
        """Have the metrics meet in the work dir.

        Args:
            runner (Runner): The runner of the test.
        """
        _meet_in(runner.work_dir, runner.test_loop)


def _check_equal_starts(runner) -> None:
    if get_world_size() == 1:
        return
    starts = all_gather_object(
        (runner.epoch, runner.iter, _sum_of_weights(runner.model)))
    if len(set(starts)) == 1:
        return
    where = ', '.join(
        f'process {rank}: epoch {epoch}, iteration {step}, sum of the weights '
        f'{weights}' for rank, (epoch, step, weights) in enumerate(starts))
    raise ValueError(
        f'the processes start from different checkpoints ({where}). Put '
        'work_dir on a disk that all machines share, or name one checkpoint '
        'with --resume; load_from must be the same file everywhere')


@torch.no_grad()
def _sum_of_weights(model: nn.Module) -> int:
    """The sum of all bytes of the parameters, which no order of summation
    changes; 0 of a model that is cut to pieces."""
    if any(isinstance(m, FullyShardedDataParallel) for m in model.modules()):
        return 0
    sums = [
        p.contiguous().flatten().view(torch.uint8).sum(dtype=torch.long)
        for p in model.parameters()
    ]
    return torch.stack([s.cpu() for s in sums]).sum().item() if sums else 0


def _meet_in(work_dir: str, loop) -> None:
    if get_world_size() == 1:
        return
    metrics = getattr(loop.evaluator, 'metrics', ())
    for number, metric in enumerate(metrics):
        if metric.collect_device == 'cpu' and metric.collect_dir is None:
            # One each: rank 0 removes it, which other machines may see late.
            metric.collect_dir = osp.join(work_dir, f'.collect_{number}')
