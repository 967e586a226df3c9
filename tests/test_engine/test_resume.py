"""A training that stopped and was resumed ends where it would have."""
import copy
import errno
import hashlib
import itertools
import json
import logging
import os
import random
import resource
import shutil
import signal
import stat
import time
import traceback
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, OPTIM_WRAPPERS, DefaultScope
from mmengine.runner import find_latest_checkpoint, load_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trainer import NUM_ITEMS, NoisyData, Stopped
from trainer import base as save_the_base
from trainer import config, train

from etta_mm import load_tuned
from etta_mm.checkpoints import read_metadata
from etta_mm.checkpoints.atomic import write_atomically
from etta_mm.checkpoints.sealed_file import STATE
from etta_mm.checkpoints.training_state import load_training_state, state_path
from etta_mm.engine import (TrainingStateHook, processes_hook,
                            schedule_check_hook, training_state_hook)
from etta_mm.engine.launch import build_runner
from etta_mm.engine.random_state import random_state
from etta_mm.engine.tuned_checkpoint_hook import TunedCheckpointHook

NUM_KILLS = 20
EPOCHS = 4
EMA = [
    dict(type='EMAHook', momentum=0.1),
    dict(type='TunedCheckpointHook')
]
#: 4 steps an epoch: with 3 gradients at a time, an epoch ends amid a step.
ACCUMULATION = dict(
    type='OptimWrapper',
    accumulative_counts=3,
    optimizer=dict(type='Adam', lr=0.05))
RUNS = pytest.mark.parametrize('changes', [
    dict(),
    dict(custom_hooks=EMA),
    dict(optim_wrapper=ACCUMULATION),
    dict(custom_hooks=EMA, optim_wrapper=ACCUMULATION),
    dict(seed=None),
], ids=['plain', 'ema', 'accumulation', 'both', 'no seed'])


@pytest.fixture(autouse=True)
def fast_and_alone(monkeypatch):
    """Spare each Runner the look at compilers; leave no scope behind."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture
def base(tmp_path):
    return save_the_base(tmp_path)


def checkpoint(work_dir):
    return torch.load(
        find_latest_checkpoint(str(work_dir)), weights_only=False)


def assert_equal_trainings(one, other):
    """Weights, averages and the optimizer's state, bit for bit."""
    for key in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert (key in one) == (key in other)
        if key in one:
            assert_equal(one[key], other[key], key)


def assert_equal(one, other, name):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_equal(one[key], other[key], f'{name}.{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), name
        for i, pair in enumerate(zip(one, other)):
            assert_equal(*pair, f'{name}[{i}]')
    else:
        assert one == other, name


def resume_pth(work_dir, base, **changes):
    """From the latest .pth, as --resume does."""
    latest = find_latest_checkpoint(str(work_dir))
    return train(
        work_dir, base, EPOCHS, **dict(changes, resume=True, load_from=latest))


def resume_tuned(work_dir, base, **changes):
    """From the tuned checkpoint, the .pth being lost."""
    path = work_dir / 'epoch_2.safetensors'
    (work_dir / 'epoch_2.pth').unlink()
    return train(
        work_dir, base, EPOCHS, **changes, resume=True, tuned_from=str(path))


@pytest.mark.parametrize('changes, epochs', [
    (dict(), 2),
    (dict(), 3),
    (dict(
        train_cfg=dict(by_epoch=False, max_iters=6, val_interval=3),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', interval=3, by_epoch=False))), 0),
], ids=['ended', 'epochs left', 'iterations'])
def test_a_training_that_has_ended_says_that_nothing_is_left(
        base, tmp_path, changes, epochs):
    train(tmp_path / 'run', base, 2, **changes)
    latest = find_latest_checkpoint(str(tmp_path / 'run'))
    logging.disable(logging.NOTSET)
    train(tmp_path / 'again', base, epochs,
          **dict(changes, resume=True, load_from=latest))
    log, = (tmp_path / 'again').rglob('*.log')
    assert ('nothing left to train' in log.read_text()) == (epochs < 3)


def test_the_best_checkpoint_of_another_folder_is_not_removed(base, tmp_path):
    """A work dir is copied, or another one begins with its checkpoint."""
    first = tmp_path / 'first'
    train(first, base, 2)
    best, = first.glob('best_norm*.pth')
    copied = shutil.copytree(first, tmp_path / 'copied')
    for work_dir in (copied, tmp_path / 'other'):
        latest = first / 'epoch_2.pth'
        made = build_runner(config(
            work_dir, base, 3, resume=True, load_from=str(latest),
            default_hooks=dict(checkpoint=dict(
                type='CheckpointHook', interval=1, save_best='norm',
                rule='greater'))))
        made.load_or_resume()
        made.message_hub.update_info('best_score', -1e9)  # so the next is best
        made.load_or_resume = lambda: None
        made.train()
        assert best.is_file() and latest.is_file()
        assert len(list(work_dir.glob('best_norm*.pth'))) == 1


def test_an_epoch_of_another_length_is_trained_whole(base, tmp_path):
    train(tmp_path / 'run', base, 1)
    logging.disable(logging.NOTSET)
    loader = config(tmp_path / 'run', base, 1).train_dataloader
    made = train(
        tmp_path / 'again', base, 2, resume=True,
        load_from=find_latest_checkpoint(str(tmp_path / 'run')),
        train_dataloader=dict(loader, batch_size=6))
    assert len(made.train_dataloader) == 2 and made.iter == 4 + 2
    # Nor is anything left out of those after it, whose iterations go on.
    made = train(
        tmp_path / 'third', base, 3, resume=True,
        load_from=find_latest_checkpoint(str(tmp_path / 'again')),
        train_dataloader=dict(loader, batch_size=6))
    assert made.iter == 4 + 2 + 2


def test_nothing_is_left_out_where_nothing_says_what_was_seen(base, tmp_path):
    """A checkpoint of mmengine itself, and another batch size."""
    train(tmp_path / 'run', base, 1)
    latest = find_latest_checkpoint(str(tmp_path / 'run'))
    saved = torch.load(latest, weights_only=False)
    del saved['training_state']
    torch.save(saved, latest)
    loader = config(tmp_path / 'run', base, 1).train_dataloader
    made = train(
        tmp_path / 'again', base, 2, resume=True, load_from=latest,
        train_dataloader=dict(loader, batch_size=6))
    assert made.iter == 4 + 2


def log_of(folder) -> str:
    log, = folder.rglob('*.log')
    return ' '.join(log.read_text().split())


def schedule(epochs):
    return [dict(type='CosineAnnealingLR', T_max=epochs, end=epochs,
                 convert_to_iter_based=True)]


@pytest.mark.parametrize('changes, words', [
    (dict(param_scheduler=schedule(2)), []),
    (dict(param_scheduler=schedule(4)),
     ['CosineAnnealingLR.T_max 8 (config: 16)', 'CosineAnnealingLR.end 8']),
    (dict(param_scheduler=schedule(2), optim_wrapper=dict(
        type='OptimWrapper',
        optimizer=dict(type='Adam', lr=0.01, weight_decay=0.3))),
     ['lr 0.05 (config: 0.01)', 'weight_decay 0 (config: 0.3)']),
    (dict(param_scheduler=schedule(2), batch_size=6),
     ['CosineAnnealingLR.T_max 8 (config: 4)', 'the batch size']),
], ids=['same', 'schedule', 'optimizer', 'batch size'])
def test_settings_that_the_checkpoint_brings_are_named(
        base, tmp_path, changes, words):
    train(tmp_path / 'run', base, 2, 1, param_scheduler=schedule(2))
    logging.disable(logging.NOTSET)
    changes = dict(changes)
    loader = config(tmp_path / 'run', base, 1).train_dataloader
    size = changes.pop('batch_size', loader.batch_size)
    train(tmp_path / 'again', base, 2, resume=True,
          load_from=find_latest_checkpoint(str(tmp_path / 'run')),
          train_dataloader=dict(loader, batch_size=size), **changes)
    log = log_of(tmp_path / 'again')
    assert ('not of the config' in log) == bool(words)
    assert all(word in log for word in words), log


WARM_UP = dict(type='LinearLR', start_factor=0.1, end=7, by_epoch=False)


@pytest.mark.parametrize('schedules, words', [
    (schedule(2), []),
    (schedule(1), ['ends at 4 of 8 iterations', 'next to nothing']),
    (schedule(3), ['ends at 12 of 8 iterations', 'before the rate']),
    ([dict(type='CosineAnnealingLR', T_max=1)], ['ends at 1 of 2 epochs']),
    ([WARM_UP], ['is 7 iterations long, and the training 8']),
    ([dict(WARM_UP, end=4)], []),
    ([dict(type='CosineAnnealingLR', T_max=1, end=1),
      dict(type='ConstantLR', factor=1, begin=1)], []),
    (schedule(1) + [dict(type='ConstantLR', factor=1, begin=1)], []),
    (schedule(3) + [dict(type='ConstantLR', factor=1, begin=3, end=4)],
     ['ends at 12 of 8 iterations', 'before the rate']),
    ([dict(type='CosineAnnealingLR', T_max=4, end=1),
      dict(type='ConstantLR', factor=1, begin=1)], ['ends at 4 of 2 epochs']),
    ([dict(type='CosineAnnealingLR', T_max=1, end=1),
      dict(type='ConstantMomentum', factor=1, begin=1)], ['ends at 1 of 2']),
    ([dict(type='ExponentialLR', gamma=0.9)], []),
    ([dict(type='MultiStepLR', milestones=[1])], []),
], ids=str)
def test_schedules_of_another_length_than_the_training_are_named(
        base, tmp_path, schedules, words):
    logging.disable(logging.NOTSET)
    train(tmp_path / 'run', base, 2, 0, param_scheduler=schedules)
    log = log_of(tmp_path / 'run')
    assert ('T_max and end' in log or 'warm-up' in log) == bool(words)
    assert all(word in log for word in words), log


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('before, after', [(0, 1), (1, 0), (1, 2)])
def test_a_resume_without_the_states_of_its_schedules_is_refused(
        base, tmp_path, before, after, suffix):
    """Their rates would start anew from rates that others have changed."""
    train(tmp_path / 'run', base, 2, 1, param_scheduler=schedule(2) * before)
    saved = str(tmp_path / f'run/epoch_1.{suffix}')
    where = 'load_from' if suffix == 'pth' else 'tuned_from'
    with pytest.raises(
            ValueError, match=f'the states of {before} schedules, and the '
            f'config has {after}: .*load_from, without --resume'):
        train(tmp_path / 'again', base, 2, resume=True, **{where: saved},
              param_scheduler=schedule(2) * after)


@pytest.mark.parametrize('scaling, accumulated, words', [
    (None, 1, []),
    (dict(base_batch_size=3), 1, []),
    (dict(base_batch_size=11), 1, []),
    (dict(base_batch_size=12), 1, ['for 12 images a step', 'are 3.', ': 0.5 (']),
    (dict(base_batch_size=12), 2, []),
    (dict(base_batch_size=1), 3, ['are 9.', ': 3 (', 'base_batch_size=9']),
    (dict(base_batch_size=12, enable=True), 1, []),
], ids=str)
def test_a_batch_far_from_the_one_of_the_rate_is_named(
        base, tmp_path, scaling, accumulated, words):
    logging.disable(logging.NOTSET)
    optimizer = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3),
                     accumulative_counts=accumulated)
    changes = {} if scaling is None else dict(auto_scale_lr=scaling)
    train(tmp_path / 'run', base, 2, 0, optim_wrapper=optimizer, **changes)
    log = log_of(tmp_path / 'run')
    assert ('images a step' in log) == bool(words)
    assert all(word in log for word in words), log


def test_the_batch_is_that_of_all_processes(base, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule_check_hook, 'get_world_size', lambda: 4)
    logging.disable(logging.NOTSET)
    train(tmp_path / 'run', base, 2, 0, auto_scale_lr=dict(base_batch_size=12))
    assert 'images a step' not in log_of(tmp_path / 'run')


def test_each_of_several_processes_keeps_its_own_generators(monkeypatch):
    """The checkpoint's are those of the first: all would draw the same."""
    hook = TrainingStateHook()
    hook._resumed = dict(random=random_state())
    torch.manual_seed(7)
    before = torch.get_rng_state()
    monkeypatch.setattr(training_state_hook, 'get_world_size', lambda: 2)
    runner = SimpleNamespace(train_loop=None, train_dataloader=(), epoch=0,
                             iter=0)
    hook.before_train_epoch(runner)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_batch_is_known_where_a_sampler_makes_it(base, tmp_path):
    logging.disable(logging.NOTSET)
    loader = config(tmp_path, base, 1).train_dataloader
    loader.batch_sampler = dict(
        type='torch.utils.data.BatchSampler', drop_last=False)
    train(tmp_path / 'run', base, 2, 0, train_dataloader=loader,
          auto_scale_lr=dict(base_batch_size=32))
    assert 'here are 3.' in log_of(tmp_path / 'run')


@pytest.mark.parametrize('end, by_epoch', [(1, False), (1, True)])
def test_a_warm_up_of_one_step_is_refused(base, tmp_path, end, by_epoch):
    """The rate would stay where it starts."""
    warm_up = dict(WARM_UP, end=end, by_epoch=by_epoch)
    with pytest.raises(ValueError, match='for all of the training. Set its end'):
        train(tmp_path / 'run', base, 2, param_scheduler=[warm_up])
    made = train(tmp_path / 'again', base, 4,
                 param_scheduler=[dict(warm_up, end=end + 1)])
    assert made.optim_wrapper.get_lr()['lr'] == pytest.approx([0.05])


class Scaler:
    """As torch's for mixed precision, with a scale that stays."""

    def get_scale(self):
        return 2.**16


@OPTIM_WRAPPERS.register_module()
class Scaled(OptimWrapper):
    """Gradients are those of the scaled loss until a step takes them, as in
    mixed precision, which a CPU does not have."""
    loss_scaler = Scaler()

    def backward(self, loss, **kwargs):
        super().backward(loss * self.loss_scaler.get_scale(), **kwargs)

    def step(self, **kwargs):
        for group in self.optimizer.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    parameter.grad /= self.loss_scaler.get_scale()
        super().step(**kwargs)


@pytest.mark.parametrize('before, after', [
    ('Scaled', 'OptimWrapper'), ('OptimWrapper', 'Scaled'),
    ('Scaled', 'Scaled')])
def test_accumulated_gradients_fit_the_precision_that_goes_on(
        base, tmp_path, before, after):
    """A step takes what is left of an epoch with what is new."""
    changes = [dict(optim_wrapper=dict(ACCUMULATION, type=kind))
               for kind in (before, after)]
    train(tmp_path / 'whole', base, EPOCHS,
          optim_wrapper=ACCUMULATION)
    train(tmp_path / 'run', base, EPOCHS, 2, **changes[0])
    resume_pth(tmp_path / 'run', base, **changes[1])
    found, expected = (checkpoint(tmp_path / name)['state_dict']
                       for name in ('run', 'whole'))
    torch.testing.assert_close(found, expected)


def test_a_resume_without_its_average_says_so(base, tmp_path):
    train(tmp_path / 'run', base, 2, 1, custom_hooks=EMA)
    logging.disable(logging.NOTSET)
    latest = find_latest_checkpoint(str(tmp_path / 'run'))
    for name, hooks in (('with', EMA), ('without', [])):
        train(tmp_path / name, base, 2, resume=True, load_from=latest,
              custom_hooks=hooks)
        assert ('goes on from the averaged weights' in log_of(
            tmp_path / name)) == (name == 'without')


def test_workers_go_on_with_the_seed_of_the_checkpoint(base, tmp_path):
    """They draw the augmentations."""
    loader = dict(config(tmp_path / 'run', base, 1).train_dataloader,
                  num_workers=1)
    changes = dict(train_dataloader=loader, randomness=dict(seed=None))
    first = train(tmp_path / 'run', base, EPOCHS, 2, **changes)
    whole = train(tmp_path / 'whole', base, EPOCHS, **dict(
        changes, randomness=dict(seed=first.seed)))
    resume_pth(tmp_path / 'run', base, **changes)
    assert whole.seed == first.seed
    assert_equal_trainings(
        checkpoint(tmp_path / 'run'), checkpoint(tmp_path / 'whole'))


def test_a_schedule_that_holds_a_function_is_saved_without_it(base, tmp_path):
    changes = dict(param_scheduler=[
        dict(type='OneCycleLR', eta_max=0.1, total_steps=4 * EPOCHS,
             by_epoch=False)
    ])
    train(tmp_path / 'run', base, EPOCHS, 2, **changes)
    load_checkpoint(
        torch.nn.Linear(1, 1), find_latest_checkpoint(str(tmp_path / 'run')))
    resume_pth(tmp_path / 'run', base, **changes)
    train(tmp_path / 'whole', base, EPOCHS, **changes)
    assert_equal_trainings(
        checkpoint(tmp_path / 'run'), checkpoint(tmp_path / 'whole'))


def test_no_tuned_file_of_another_training_stays_beside_a_new_checkpoint(
        base, tmp_path, monkeypatch):
    train(tmp_path / 'run', base, 1)
    old = (tmp_path / 'run/epoch_1.safetensors').read_bytes()
    monkeypatch.setattr(TunedCheckpointHook, '_write', stop)  # a full disk
    train(tmp_path / 'run', base, 1, seed=5)
    tuned = tmp_path / 'run/epoch_1.safetensors'
    assert not tuned.exists() or tuned.read_bytes() != old
    assert not state_path(tuned).exists()


def stop(*args, **kwargs):
    raise Stopped


class MakeRoom(Hook):
    """A user who removes a checkpoint in the validation that is the best."""

    def before_val_epoch(self, runner):
        if runner.epoch == 2:
            (runner.work_dir_path / 'epoch_1.pth').unlink()
            runner.message_hub.update_info('best_score', -1e9)


def test_tuned_files_of_what_the_user_removes_stay(base, tmp_path):
    cfg = config(tmp_path / 'run', base, 2, default_hooks=dict(
        checkpoint=dict(type='CheckpointHook', interval=1, save_best='norm',
                        rule='greater')))
    runner = build_runner(cfg)
    runner.work_dir_path = tmp_path / 'run'
    runner.register_hook(MakeRoom())
    runner.train()
    assert not (tmp_path / 'run/epoch_1.pth').exists()
    assert (tmp_path / 'run/epoch_1.safetensors').exists()


class Endless:
    """A sampler that does not know its length."""

    def __init__(self, dataset, seed=0):
        self.seed = seed

    def __iter__(self):
        return itertools.cycle(range(NUM_ITEMS))


def test_iterations_need_no_length(base, tmp_path):
    cfg = config(
        tmp_path / 'run', base, 0,
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=9),
        default_hooks=dict(
            logger=None,
            checkpoint=dict(
                type='CheckpointHook', interval=2, by_epoch=False)))
    cfg.train_dataloader.sampler = dict(type=Endless)
    cfg.param_scheduler = None
    build_runner(cfg).train()
    assert (tmp_path / 'run/iter_4.pth').is_file()


def test_processes_that_start_from_different_checkpoints_stop(
        base, tmp_path, monkeypatch):
    monkeypatch.setattr(processes_hook, 'get_world_size', lambda: 2)
    for other, message in (
            (lambda *start: (2, 8, start[2]), 'epoch 2, iteration 8'),
            (lambda *start: (*start[:2], start[2] + 1), 'epoch 0, iteration 0')):
        monkeypatch.setattr(processes_hook, 'all_gather_object',
                            lambda start: [start, other(*start)])
        with pytest.raises(ValueError, match='process 0: epoch 0, iteration 0, '
                           f'.*process 1: {message}.*--resume'):
            train(tmp_path / 'run', base, 1)
    monkeypatch.setattr(processes_hook, 'all_gather_object',
                        lambda start: [start, start])
    made = train(tmp_path / 'run', base, 1)
    # And where a validation brings their results together.
    metric, = made.val_loop.evaluator.metrics
    assert metric.collect_dir == str(tmp_path / 'run/.collect_0')


def test_one_byte_of_a_weight_is_seen():
    model = torch.nn.Linear(3, 4)
    before = processes_hook._sum_of_weights(model)
    assert before == processes_hook._sum_of_weights(copy.deepcopy(model))
    with torch.no_grad():
        model.bias[2] = torch.nextafter(model.bias[2], torch.tensor(9.))
    assert before != processes_hook._sum_of_weights(model)


@pytest.mark.parametrize('batch_size, counts', [(6, 2), (6, 3), (4, 4)])
def test_gradients_are_accumulated_to_the_end_with_other_batches(
        base, tmp_path, batch_size, counts):
    """By the iterations that are left, not by those of an unbroken training."""
    changes = dict(optim_wrapper=dict(
        config(tmp_path, base, 1).optim_wrapper, accumulative_counts=counts))
    train(tmp_path / 'run', base, 1, **changes)
    logging.disable(logging.NOTSET)
    loader = config(tmp_path / 'run', base, 1).train_dataloader
    made = train(
        tmp_path / 'again', base, 3, resume=True,
        load_from=find_latest_checkpoint(str(tmp_path / 'run')),
        train_dataloader=dict(loader, batch_size=batch_size), **changes)
    wrapper, num_iters = made.optim_wrapper, 4 + 2 * len(made.train_dataloader)
    assert made.iter == made.max_iters == wrapper._max_counts == num_iters
    assert wrapper._remainder_counts == num_iters % counts
    assert all(p.grad is None or not p.grad.any()
               for p in made.model.parameters())


def test_tuned_files_go_with_the_full_ones_wherever_these_are(base, tmp_path):
    def hooks():
        return dict(checkpoint=dict(
            type='CheckpointHook', interval=1, max_keep_ckpts=1,
            out_dir=str(tmp_path / 'elsewhere')))

    train(tmp_path / 'run', base, 2, default_hooks=hooks())
    folder = tmp_path / 'elsewhere/run'
    train(tmp_path / 'run', base, 3, default_hooks=hooks(), resume=True,
          load_from=str(folder / 'epoch_2.pth'))
    assert sorted(p.name for p in folder.iterdir()) == [
        'epoch_3.pth', 'epoch_3.safetensors', 'epoch_3.train.safetensors']


@RUNS
@pytest.mark.parametrize('resume', [resume_pth, resume_tuned])
def test_a_resumed_training_ends_like_one_that_never_stopped(
        base, tmp_path, resume, changes):
    if changes.get('seed', 0) is None:  # drawn, so the same for both
        changes = dict(changes, randomness=dict(seed=None))
        changes.pop('seed')
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    first = train(parts, base, EPOCHS, stop_after=2, **changes)
    torch.manual_seed(77)
    resume(parts, base, **changes)
    train(whole, base, EPOCHS, **dict(
        changes, randomness=dict(seed=first.seed)))
    assert_equal_trainings(checkpoint(parts), checkpoint(whole))


def test_resuming_makes_a_difference(base, tmp_path):
    """The comparison can fail: another seed ends elsewhere."""
    train(tmp_path / 'a', base, 2)
    train(tmp_path / 'b', base, 2, randomness=dict(seed=1))
    with pytest.raises(AssertionError):
        assert_equal_trainings(
            checkpoint(tmp_path / 'a'), checkpoint(tmp_path / 'b'))


def test_of_averaged_weights_both_files_hold_the_average(base, tmp_path):
    work_dir = tmp_path / 'run'
    runner = train(work_dir, base, 2, custom_hooks=EMA)
    saved = checkpoint(work_dir)['state_dict']
    model = build_runner(config(tmp_path / 'test', base, 1)).model
    model.init_weights()
    load_checkpoint(model, str(base))
    load_tuned(model, work_dir / 'epoch_2.safetensors')
    assert_equal(dict(model.state_dict()), dict(saved), 'averaged')
    raw = runner.model.state_dict()['head.0.weight']
    assert not torch.equal(raw, saved['head.0.weight'])


def test_the_training_state_holds_nothing_of_the_base(base, tmp_path):
    train(tmp_path / 'run', base, 1, custom_hooks=EMA)
    path = state_path(tmp_path / 'run/epoch_1.safetensors')
    largest = max(t.numel() for t in load_file(str(path)).values()
                  if t.is_floating_point())
    assert largest < 32  # the base's FFN has matrices of 32 numbers


def test_the_state_of_another_checkpoint_is_refused(base, tmp_path):
    hooks = dict(
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)))
    train(tmp_path / 'run', base, 2, **hooks)
    one, other = (
        tmp_path / f'run/epoch_{i}.safetensors' for i in (1, 2))
    state_path(one).replace(state_path(other))
    with pytest.raises(ValueError, match='does not belong'):
        train(tmp_path / 'run', base, 3, resume=True, tuned_from=str(other))


def test_a_training_never_reads_the_data_to_test_on(base, tmp_path):
    train(tmp_path / 'run', base, 1)
    path = tmp_path / 'run/epoch_1.safetensors'
    unread = dict(
        test_dataloader=dict(dataset=dict(type='NoSuchData'), batch_size=1),
        test_cfg=dict(),
        test_evaluator=dict(type='Norm'))
    runner = train(
        tmp_path / 'run', base, 2, resume=True, tuned_from=str(path), **unread)
    assert runner.epoch == 2


def test_resuming_with_other_classes_is_refused(base, tmp_path, monkeypatch):
    train(tmp_path / 'run', base, 1)
    path = tmp_path / 'run/epoch_1.safetensors'
    monkeypatch.setattr(NoisyData, 'metainfo', dict(classes=('a', 'c')))
    with pytest.raises(ValueError, match="number 1 is 'b' there and 'c' here"):
        train(tmp_path / 'run', base, 2, resume=True, tuned_from=str(path))


class Start(Hook):
    """Keep the weights that the training starts with."""

    def before_train(self, runner):
        self.weights = copy.deepcopy(runner.model.state_dict())


def test_a_training_on_top_of_a_tuned_checkpoint_starts_with_its_weights(
        base, tmp_path):
    train(tmp_path / 'run', base, 1)
    path = tmp_path / 'run/epoch_1.safetensors'
    runner = build_runner(
        config(tmp_path / 'more', base, 1, tuned_from=str(path)))
    start = Start()
    runner.register_hook(start)
    runner.train()
    assert_equal(
        dict(start.weights), dict(checkpoint(tmp_path / 'run')['state_dict']),
        'start')


def test_a_damaged_training_state_is_refused(base, tmp_path):
    train(tmp_path / 'run', base, 1)
    path = tmp_path / 'run/epoch_1.safetensors'
    whole = state_path(path).read_bytes()
    for damaged in (b'', whole[:100], whole[:-1], path.read_bytes()):
        state_path(path).write_bytes(damaged)
        with pytest.raises(ValueError, match='epoch_1.train.safetensors'):
            train(tmp_path / 'run', base, 2, resume=True, tuned_from=str(path))


def test_a_training_state_with_a_flipped_bit_is_refused(base, tmp_path):
    train(tmp_path / 'run', base, 1, custom_hooks=EMA)
    path = tmp_path / 'run/epoch_1.safetensors'
    whole = state_path(path).read_bytes()
    end = 8 + int.from_bytes(whole[:8], 'little')
    rng = random.Random(0)
    places = [rng.randrange(8, end) for _ in range(100)]
    places += [rng.randrange(end, len(whole)) for _ in range(20)]
    runner = build_runner(config(tmp_path / 'other', base, 1))
    fingerprint = read_metadata(path)['tensors_fingerprint']
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        state_path(path).write_bytes(damaged)
        with pytest.raises(ValueError, match='epoch_1.train.safetensors'):
            load_training_state(state_path(path), runner.model, fingerprint)


def rewrite(path, change):
    """Write a training state with other JSON, and a checksum that fits it."""
    with safe_open(str(path), framework='pt') as file:
        header = file.metadata()
    data = json.loads(header[STATE.key])
    change(data)
    text = json.dumps(data)
    save_file(
        load_file(str(path)), str(path), {
            STATE.key: text,
            f'{STATE.key}_sha256': hashlib.sha256(text.encode()).hexdigest()
        })


def pairs(data):
    return data['checkpoint']['$dict']


def item(key, value):
    return lambda data: pairs(data).append([key, value])


MALFORMED = dict(
    a_number=lambda data: data.update(checkpoint=5),
    a_list=lambda data: data.update(checkpoint=[]),
    nothing=lambda data: data.update(checkpoint={'$dict': []}),
    no_optimizer=lambda data: data['checkpoint'].update(
        {'$dict': [p for p in pairs(data) if p[0] != 'optimizer']}),
    array_of_a_number=item('a', {'$array': [3, 'float32']}),
    array_of_nothing=item('a', {'$array': []}),
    array_of_another_type=item('a', {'$array': [{'$tensor': '0'}, 'O']}),
    scalar=item('a', {'$scalar': 3}),
    history=item('a', {'$history': [1, 2]}),
    history_of_words=item('a', {'$history': ['a', 'b', 3]}),
    unknown=item('a', {'$code': 'os.system'}),
    two_kinds=item('a', {'$tuple': [], '$array': []}),
    no_tensor=item('a', {'$tensor': '999'}),
    tensor_by_a_list=item('a', {'$tensor': []}),
    key=item({'$dict': []}, 3),
    triple=lambda data: pairs(data).append([1, 2, 3]),
    average=item('ema_state_dict', 3),
    average_of_words=item('ema_state_dict', {'$dict': [['module.norm', 'a']]}))


@pytest.fixture(scope='module')
def state(tmp_path_factory):
    """A training state, and what it is loaded with."""
    folder = tmp_path_factory.mktemp('state')
    runner = train(folder / 'run', save_the_base(folder), 1)
    path = folder / 'run/epoch_1.safetensors'
    return (state_path(path), runner.model,
            read_metadata(path)['tensors_fingerprint'])


@pytest.mark.parametrize('kind', MALFORMED)
def test_a_malformed_training_state_is_refused(state, tmp_path, kind):
    written, *rest = state
    path = tmp_path / written.name
    path.write_bytes(written.read_bytes())
    load_training_state(path, *rest)
    rewrite(path, MALFORMED[kind])
    with pytest.raises(ValueError, match='epoch_1.train.safetensors'):
        load_training_state(path, *rest)


# ------------------------------------------------------------------- killed
def forked(work, *args, **kwargs) -> int:
    """Start ``work`` in a process of its own; its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*args, **kwargs)
            code = 0
        except BaseException:
            traceback.print_exc()  # shown where the test fails
        finally:
            os._exit(code)
    return pid


def start_or_resume(work_dir, base, epochs):
    """What a script does that the cluster starts again and again."""
    if not (work_dir / 'last_checkpoint').exists():
        train(work_dir, base, epochs)
        return
    latest = find_latest_checkpoint(str(work_dir))
    train(work_dir, base, epochs, resume=True, load_from=latest)


def test_killed_twenty_times_a_training_ends_like_one_that_was_not(
        base, tmp_path):
    epochs = 3 * NUM_KILLS
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    start = time.perf_counter()
    assert os.waitpid(forked(train, whole, base, epochs), 0)[1] == 0
    epoch = (time.perf_counter() - start) / epochs
    rng = random.Random(0)
    for i in range(NUM_KILLS):
        pid = forked(start_or_resume, killed, base, epochs)
        if i % 4:  # in the epoch after the next checkpoint; else anywhere
            await_change(killed / 'last_checkpoint')
        time.sleep(rng.uniform(0, 1 if i % 4 else 4) * epoch)
        os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), 'it was at its end'
        if (killed / 'last_checkpoint').exists():
            checkpoint(killed)  # it is whole
    assert os.waitpid(forked(start_or_resume, killed, base, epochs),
                      0)[1] == 0
    assert_equal_trainings(checkpoint(killed), checkpoint(whole))


def await_change(path, timeout=60):
    """Wait until a file is another one."""
    before, end = identity(path), time.perf_counter() + timeout
    while identity(path) == before:
        assert time.perf_counter() < end, f'{path} stays as it is'
        time.sleep(0.001)


def identity(path):
    try:
        return path.stat().st_ino, path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The folder of a training that never stopped."""
    folder = tmp_path_factory.mktemp('whole')
    train(folder / 'run', save_the_base(folder), EPOCHS)
    return folder / 'run'


class Killer:
    """Stands for a function and kills the process at the n-th call."""

    def __init__(self, function, when):
        self.function, self.when = function, itertools.count(1 - when)

    def __call__(self, *args, **kwargs):
        if next(self.when) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.function(*args, **kwargs)


@pytest.mark.parametrize('step', ['fsync', 'replace'])
@pytest.mark.parametrize('when', range(1, 6))
def test_killed_at_any_step_of_writing_a_training_goes_on(
        whole, tmp_path, step, when):
    base = whole.parent / 'base.safetensors'
    killed = tmp_path / 'killed'
    train(killed, base, EPOCHS, stop_after=2)

    def killed_in_between():
        setattr(os, step, Killer(getattr(os, step), when))
        start_or_resume(killed, base, EPOCHS)

    os.waitpid(forked(killed_in_between), 0)
    latest = find_latest_checkpoint(str(killed))
    assert torch.load(latest, weights_only=False)['meta']['epoch'] >= 2
    for path in killed.glob('*.safetensors'):
        if not path.stem.endswith('.train'):
            read_metadata(path)
    for left in killed.glob('.*.tmp'):
        os.utime(left, (0, 0))  # removed only when nobody can be writing it
    start_or_resume(killed, base, EPOCHS)
    assert_equal_trainings(checkpoint(killed), checkpoint(whole))
    assert not list(killed.glob('.*.tmp'))


# ---------------------------------------------------------------- full disk
@contextmanager
def full_disk():
    """From the call of what it gives, no file can be longer than a kilobyte.

    Over before the test is: pytest itself may be writing to a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_survives(
        base, tmp_path):
    work_dir = tmp_path / 'run'
    train(work_dir, base, 1)
    before = {p: p.read_bytes() for p in work_dir.glob('epoch_1.*')}
    assert len(before) == 3
    runner = build_runner(
        config(
            work_dir,
            base,
            2,
            resume=True,
            load_from=str(work_dir / 'epoch_1.pth'),
            default_hooks=dict(
                logger=None,
                checkpoint=dict(
                    type='CheckpointHook', interval=1, max_keep_ckpts=1))))
    with full_disk() as fill:
        runner.call_hook = Full(runner.call_hook, fill)
        with pytest.raises(OSError, match=r'epoch_2\.pth cannot be.*Make room'):
            runner.train()
    assert {p: p.read_bytes() for p in work_dir.glob('epoch_*')} == before
    assert find_latest_checkpoint(
        str(work_dir)) == str(work_dir / 'epoch_1.pth')


def test_a_folder_that_cannot_be_synced_is_no_failed_write(
        tmp_path, monkeypatch):
    sync = os.fsync

    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, 'Invalid argument')
        sync(handle)

    monkeypatch.setattr(os, 'fsync', files_only)
    path = write_atomically(tmp_path / 'a.bin', b'new')
    assert path.read_bytes() == b'new'


class Full:
    """Fill the disk when the epoch is over; logs are spared."""

    def __init__(self, call, fill):
        self.call, self.fill = call, fill

    def __call__(self, name, **kwargs):
        if name == 'after_train_epoch':
            self.fill()
        return self.call(name, **kwargs)


class Seen(Hook):
    """Note the items of each batch, and stop where the test says."""

    def __init__(self, stop_at=None):
        self.items, self.rates, self.stop_at = [], [], stop_at

    def after_train_iter(self, runner, batch_idx, data_batch=None, **kwargs):
        self.items += [int(round(float(x[0]))) for x in data_batch['inputs']]
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])
        if runner.iter + 1 == self.stop_at:
            raise Stopped


@DATASETS.register_module()
class NumberedData(NoisyData):
    """Vectors that say which they are."""

    def __getitem__(self, index):
        return dict(super().__getitem__(index),
                    inputs=torch.full((4, ), float(index)))


@pytest.mark.parametrize('stop_at', [2, 4, 6])
def test_a_training_by_epochs_goes_on_within_an_epoch(base, tmp_path, stop_at):
    """Each epoch sees each item once, though it was saved amid its batches."""
    loader = config(tmp_path, base, 2).train_dataloader
    loader.dataset.type = 'NumberedData'
    changes = dict(
        train_dataloader=loader,
        val_dataloader=None, val_cfg=None, val_evaluator=None,
        param_scheduler=[dict(type='LinearLR', by_epoch=False, start_factor=1.,
                              end_factor=0.1, begin=0, end=8)],
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', by_epoch=False, interval=2)))
    seen = []
    for end, resume in ((stop_at, False), (None, True)):
        if resume:
            changes.update(
                resume=True,
                load_from=str(tmp_path / 'run' / f'iter_{stop_at}.pth'))
        runner = build_runner(config(tmp_path / 'run', base, 2, **changes))
        seen.append(Seen(end))
        runner.register_hook(seen[-1], priority='LOWEST')
        with suppress(Stopped):
            runner.train()
    items = seen[0].items + seen[1].items
    assert sorted(items[:11]) == sorted(items[11:]) == list(range(11))
    rates = seen[0].rates + seen[1].rates
    assert rates == pytest.approx(
        [0.05 * (1 - 0.9 * min(step, 7) / 7) for step in range(1, 9)])
    assert runner.epoch == 2 and runner.iter == 8
