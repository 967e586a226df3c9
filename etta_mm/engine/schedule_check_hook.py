"""Warn of schedules and rates that do not fit a training's length and batch."""
from typing import Iterator

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim import (CosineAnnealingParamScheduler,
                            LinearParamScheduler)
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

#: By how much a batch must differ from the one that a rate is for: by then the
#: rate is off by a factor of two.
OTHER_BATCH = 4


@HOOKS.register_module()
class ScheduleCheckHook(Hook):
    """Say before the first step where a schedule, a rate and the training part.

    A cosine that has ended leaves the rest of the training without a rate; one
    that has not, stops in the middle; a warm-up that was made for a large data
    set may be longer than all epochs of a small one; a rate for sixteen GPUs is too
    high for one. mmengine says nothing.
    A warm-up of a single step, such as an epoch of one batch, is an error: the
    rate never comes back from where it starts.
    """

    def before_train(self, runner) -> None:
        """Log a warning for each.

        Args:
            runner (Runner): The runner of the training.

        Raises:
            ValueError: If a warm-up has one step.
        """
        schedules = runner.param_schedulers or []
        groups = (
            schedules.values()  # of several optimizers
            if isinstance(schedules, dict) else [schedules])
        for group in groups:
            for schedule in group:
                _check_warm_up(schedule)
            for text in _mismatches(runner.train_loop, group):
                runner.logger.warning(text)
        for text in _other_batch(runner):
            runner.logger.warning(text)


def _is_warm_up(schedule) -> bool:
    return (isinstance(schedule, LinearParamScheduler)
            and schedule.start_factor < schedule.end_factor)


def _is_followed(cosine, schedules: list, loop) -> bool:
    """Whether another schedule of the same setting takes over at its end."""

    def iterations(schedule, number: int) -> int:
        return number * (len(loop.dataloader) if schedule.by_epoch else 1)

    end = iterations(cosine, cosine.begin + cosine.T_max)
    return any(
        end <= iterations(other, other.begin) < loop.max_iters
        and other.param_name == cosine.param_name for other in schedules)


def _check_warm_up(schedule) -> None:
    if _is_warm_up(schedule) and schedule.end - schedule.begin == 1:
        unit = 'epoch' if schedule.by_epoch else 'iteration'
        raise ValueError(
            f'The warm-up ({type(schedule).__name__}) is one {unit} long, and '
            f'mmengine would leave the rate at {schedule.start_factor:g} of '
            'what it is meant to be for all of the training. Set its end to 2 '
            'or more; where it counts epochs (convert_to_iter_based=True) and '
            'an epoch is one batch, to 2 epochs.')


def _other_batch(runner) -> Iterator[str]:
    """What is wrong with the batch; nothing, if the config does not say which
    one its rate is for, or has mmengine scale the rate."""
    scaling = runner.cfg.get('auto_scale_lr') or {}
    loader = runner.train_loop.dataloader
    # Where a sampler makes the batches, the loader does not know their size.
    batch_size = loader.batch_size or getattr(loader.batch_sampler,
                                              'batch_size', None)
    expected = scaling.get('base_batch_size')
    if not expected or scaling.get('enable') or not batch_size:
        return
    found = (get_world_size() * batch_size * getattr(
        runner.optim_wrapper, '_accumulative_counts', 1))
    ratio = found / expected
    if max(ratio, 1 / ratio) >= OTHER_BATCH:
        yield (f'The config says that its learning rates are for {expected} '
               'images a step (auto_scale_lr.base_batch_size), and here are '
               f'{found}. Adam and AdamW want rates times the square root of '
               f'the ratio: {ratio**0.5:.3g} (docs/cluster.md, "Larger '
               'batches"). If they are for this batch already, set '
               f'auto_scale_lr.base_batch_size={found}.')


def _mismatches(loop, schedules: list) -> Iterator[str]:
    is_by_epoch = isinstance(loop, EpochBasedTrainLoop)
    for schedule in schedules:
        name = type(schedule).__name__
        if schedule.by_epoch and not is_by_epoch:
            continue
        total, unit = ((loop.max_epochs, 'epochs') if schedule.by_epoch else
                       (loop.max_iters, 'iterations'))
        if isinstance(schedule, CosineAnnealingParamScheduler):
            end = schedule.begin + schedule.T_max
            if end != total and not _is_followed(schedule, schedules, loop):
                what = ('behind that the rate is next to nothing, or rises '
                        'again' if end < total else
                        'it stops before the rate has come down')
                yield (f'{name} ends at {end} of {total} {unit}: {what}. Set '
                       'its T_max and end to the length of the training '
                       '(train_cfg.max_epochs, with convert_to_iter_based too, '
                       'or max_iters).')
        elif (_is_warm_up(schedule)
              and total < 2 * (schedule.end - schedule.begin)):
            yield (f'The warm-up ({name}) is {schedule.end - schedule.begin} '
                   f'{unit} long, and the training {total}: the learning rate is '
                   'below what it is meant to be for most of it. Set a '
                   'smaller end, or one in epochs (end=1, '
                   'convert_to_iter_based=True).')
