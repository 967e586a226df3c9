"""The hooks in mmengine's own Runner, on a tiny model."""
import copy
import itertools
import os
from pathlib import Path

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import FlexibleRunner, Runner
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from etta_mm import apply_tuning, load_tuned
from etta_mm.checkpoints import read_metadata
from etta_mm.checkpoints.atomic import write_atomically
from etta_mm.checkpoints.tuned_file import plain_metainfo
from etta_mm.engine import TunedCheckpointHook, checkpoint_hook
from etta_mm.engine.launch import _make_safe

DIMS = 4
TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=3), train='head')
#: The metrics of the validations, one after the other: the second epoch is
#: the best for one, the third for the other.
SCORES = dict(first=[0.1, 0.9, 0.5, 0.4], second=[0.1, 0.2, 0.9, 0.3])


#: Runners of one name share a message hub.
COUNT = itertools.count()


class Tiny(BaseModel):
    """An FFN, a batch norm and a head."""

    def __init__(self):
        super().__init__()
        self.ffn = FFN(DIMS, 8)
        self.norm = nn.BatchNorm1d(DIMS)
        self.head = nn.Linear(DIMS, 2)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = torch.stack(inputs) if isinstance(inputs, list) else inputs
        scores = self.head(self.norm(self.ffn(x)))
        if mode == 'loss':
            return dict(
                loss=nn.functional.cross_entropy(scores,
                                                 torch.as_tensor(labels)))
        return list(scores)


class Data(torch.utils.data.Dataset):
    """Eight random vectors."""
    metainfo = dict(classes=('a', 'b'), palette=[(1, 2, 3)], odd=object())

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(
            inputs=torch.randn(DIMS, generator=generator), labels=index % 2)


class Told(BaseMetric):
    """A metric that is told its values beforehand."""

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.epoch += 1
        return {name: s[self.epoch - 1] for name, s in SCORES.items()}


def tiny(seed=0):
    torch.manual_seed(seed)
    return Tiny()


def runner(work_dir, model=None, max_epochs=3, hooks=True, **kwargs):
    checkpoint = dict(type='CheckpointHook', interval=1)
    checkpoint.update(kwargs.pop('checkpoint', {}))
    data = dict(
        batch_size=4,
        num_workers=0,
        dataset=Data(),
        sampler=dict(type='DefaultSampler', shuffle=False))
    return Runner(
        model=model or apply_tuning(tiny(), TUNING),
        work_dir=str(work_dir),
        train_dataloader=copy.copy(data),
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs, val_interval=1),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
        val_dataloader=copy.copy(data),
        val_cfg=dict(),
        val_evaluator=[Told()],
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[
            dict(type='TunedCheckpointHook'),
            dict(type='ParameterReportHook')
        ] if hooks else None,
        randomness=dict(seed=0),
        default_scope='mmengine',
        experiment_name=f'{work_dir.name}-{next(COUNT)}',
        **kwargs)


@pytest.fixture(autouse=True)
def no_scope_is_left():
    yield
    DefaultScope._instance_dict.clear()


def names(folder, suffix):
    """Stems of the checkpoints; training states are not among them."""
    return sorted(p.stem for p in folder.rglob(f'*{suffix}')
                  if not p.stem.endswith('.train'))


def assert_each_pth_has_its_tuned_file(folder):
    full, tuned = names(folder, '.pth'), names(folder, '.safetensors')
    assert full and full == tuned
    for path in folder.rglob('*.pth'):
        state = torch.load(path, weights_only=False)['state_dict']
        for key, tensor in load_file(path.with_suffix('.safetensors')).items():
            assert_close(tensor, state[key], rtol=0, atol=0)


def test_each_checkpoint_gets_a_tuned_one(tmp_path):
    runner(tmp_path).train()
    assert names(tmp_path, '.pth') == ['epoch_1', 'epoch_2', 'epoch_3']
    assert_each_pth_has_its_tuned_file(tmp_path)


class Joined(Data):
    """As mmdet's ``ConcatDataset`` of data sets that differ in a palette."""
    metainfo = [Data.metainfo, dict(Data.metainfo, palette=[(4, 5, 6)])]


class Numbered(Data):
    """mmpretrain takes classes that are numbers."""
    metainfo = dict(classes=[0, 1])


def test_classes_that_are_numbers_are_written_as_text(tmp_path):
    run = runner(tmp_path, max_epochs=1)
    run._train_dataloader['dataset'] = Numbered()
    run.train()
    info = read_metadata(tmp_path / 'epoch_1.safetensors')['info']
    assert info['dataset_meta'] == dict(classes=['0', '1'])


def test_no_data_sets_joined_have_nothing_alike():
    assert plain_metainfo([]) == {}


def test_of_joined_data_sets_it_holds_what_all_have_alike(tmp_path):
    run = runner(tmp_path)
    run._train_dataloader['dataset'] = Joined()
    run.train()
    info = read_metadata(tmp_path / 'epoch_3.safetensors')['info']
    assert info['dataset_meta'] == dict(classes=['a', 'b'])


def test_tuned_checkpoints_by_iteration(tmp_path):
    runner(tmp_path, checkpoint=dict(by_epoch=False, interval=2)).train()
    assert names(tmp_path, '.pth') == ['iter_2', 'iter_4', 'iter_6']
    assert_each_pth_has_its_tuned_file(tmp_path)


def test_a_tuned_checkpoint_is_removed_with_the_full_one(tmp_path):
    runner(tmp_path, checkpoint=dict(max_keep_ckpts=1)).train()
    assert names(tmp_path, '.pth') == ['epoch_3']
    assert_each_pth_has_its_tuned_file(tmp_path)


def test_of_a_model_that_is_not_tuned_only_the_full_checkpoints_are_written(
        tmp_path, monkeypatch):
    run = runner(tmp_path, tiny())
    lines = []
    monkeypatch.setattr(run.logger, 'info',
                        lambda message, *a, **k: lines.append(str(message)))
    run.train()
    assert names(tmp_path, '.pth') == ['epoch_1', 'epoch_2', 'epoch_3']
    assert not names(tmp_path, '.safetensors')
    assert sum('Nothing in the model is tuned' in line for line in lines) == 1


class Touch(Hook):
    """Touch the last full checkpoint in the middle of each epoch."""

    def before_train_iter(self, runner, batch_idx, **kwargs):
        for path in Path(runner.work_dir).glob('*.pth'):
            os.utime(path, ns=(batch_idx, batch_idx))


def test_a_checkpoint_that_somebody_touches_is_not_written_again(tmp_path):
    run = runner(tmp_path)
    run.register_hook(Touch())
    run.train()
    assert_each_pth_has_its_tuned_file(tmp_path)


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(save_best='first', rule='greater'),
    dict(save_best=['first', 'second'], rule='greater')
])
def test_a_validation_by_itself_saves_nothing(tmp_path, kwargs):
    run = runner(
        tmp_path, checkpoint=dict(type='AtomicCheckpointHook', **kwargs))
    assert run.val() == {key: s[0] for key, s in SCORES.items()}
    assert not names(tmp_path, '.pth')


def test_the_best_checkpoint_gets_a_tuned_one(tmp_path):
    runner(
        tmp_path, checkpoint=dict(
            max_keep_ckpts=1, save_best='first', rule='greater')).train()
    assert names(tmp_path, '.pth') == ['best_first_epoch_2', 'epoch_3']
    assert_each_pth_has_its_tuned_file(tmp_path)


def test_the_best_checkpoint_has_no_training_state(tmp_path):
    """It is to be used; the latest is to be resumed."""
    runner(tmp_path, checkpoint=dict(
        save_best='first', rule='greater')).train()
    states = sorted(path.name for path in tmp_path.glob('*.train.*'))
    assert states == ['epoch_1.train.safetensors', 'epoch_2.train.safetensors',
                      'epoch_3.train.safetensors']


def test_training_states_can_be_left_out(tmp_path):
    made = runner(tmp_path)
    for hook in made.hooks:
        if isinstance(hook, TunedCheckpointHook):
            hook.save_state = False
    made.train()
    assert names(tmp_path, '.safetensors') == ['epoch_1', 'epoch_2', 'epoch_3']
    assert not list(tmp_path.glob('*.train.*'))


def test_the_name_of_the_latest_appears_whole(tmp_path, monkeypatch):
    made, written = runner(tmp_path), []
    _make_safe(made)

    def record(path, data):
        written.append((Path(path).name, data))
        return write_atomically(path, data)

    monkeypatch.setattr(checkpoint_hook, 'write_atomically', record)
    made.train()
    latest = str(tmp_path / 'epoch_3.pth').encode()
    assert written[-1] == ('last_checkpoint', latest)
    assert (tmp_path / 'last_checkpoint').read_bytes() == latest


def test_processes_but_the_first_write_and_remove_nothing(
        tmp_path, monkeypatch):
    made = runner(tmp_path, checkpoint=dict(max_keep_ckpts=1))
    _make_safe(made)
    done = []
    monkeypatch.setattr(checkpoint_hook, 'is_main_process', lambda: False)
    monkeypatch.setattr(checkpoint_hook, 'write_atomically',
                        lambda *args: done.append(args))
    monkeypatch.setattr(checkpoint_hook.AtomicCheckpointHook, '_remove',
                        lambda *args: done.append(args))
    monkeypatch.setattr(TunedCheckpointHook, 'forget',
                        lambda *args: done.append(args))
    made.train()
    assert not done


def test_the_best_checkpoint_of_each_metric_gets_a_tuned_one(tmp_path):
    runner(
        tmp_path,
        checkpoint=dict(
            max_keep_ckpts=1, save_best=['first', 'second'],
            rule='greater')).train()
    assert names(tmp_path, '.pth') == [
        'best_first_epoch_2', 'best_second_epoch_3', 'epoch_3'
    ]
    assert_each_pth_has_its_tuned_file(tmp_path)


@pytest.mark.parametrize('backend', ['local', 'atomic'])
def test_where_the_backend_is_named_tuned_files_go_as_well(tmp_path, backend):
    """Of the best ones there would be more than one."""
    runner(
        tmp_path, checkpoint=dict(
            type='AtomicCheckpointHook', max_keep_ckpts=1, save_best='second',
            rule='greater', backend_args=dict(backend=backend))).train()
    assert names(tmp_path, '.pth') == ['best_second_epoch_3', 'epoch_3']
    assert_each_pth_has_its_tuned_file(tmp_path)


def test_with_fewer_to_keep_tuned_files_go_as_well(tmp_path):
    keep = dict(type='AtomicCheckpointHook', max_keep_ckpts=3)
    runner(tmp_path, checkpoint=keep).train()
    assert names(tmp_path, '.pth') == ['epoch_1', 'epoch_2', 'epoch_3']
    (tmp_path / 'epoch_1.pth').unlink()  # by the user, who keeps the tuned one
    keep['max_keep_ckpts'] = 1
    again = runner(tmp_path, max_epochs=4, checkpoint=keep, resume=True)
    again.val_evaluator.metrics[0].epoch = 3
    again.train()
    assert names(tmp_path, '.pth') == ['epoch_4']
    assert (tmp_path / 'epoch_1.safetensors').exists()
    (tmp_path / 'epoch_1.safetensors').unlink()
    assert_each_pth_has_its_tuned_file(tmp_path)


def test_a_resumed_training_keeps_the_tuned_files_in_step(tmp_path):
    runner(tmp_path, max_epochs=2).train()
    before = (tmp_path / 'epoch_2.safetensors').read_bytes()
    again = runner(tmp_path, max_epochs=4, resume=True)
    again.val_evaluator.metrics[0].epoch = 2
    again.train()
    assert names(tmp_path, '.pth') == [f'epoch_{i}' for i in range(1, 5)]
    assert (tmp_path / 'epoch_2.safetensors').read_bytes() == before
    assert_each_pth_has_its_tuned_file(tmp_path)


def test_a_resumed_training_removes_what_it_did_not_write(tmp_path):
    keep = dict(max_keep_ckpts=1)
    runner(tmp_path, max_epochs=2, checkpoint=keep).train()
    again = runner(tmp_path, max_epochs=4, checkpoint=keep, resume=True)
    again.val_evaluator.metrics[0].epoch = 2
    again.train()
    assert names(tmp_path, '.pth') == ['epoch_4']
    assert_each_pth_has_its_tuned_file(tmp_path)


def test_a_second_training_in_a_folder_writes_its_own(tmp_path):
    runner(tmp_path, max_epochs=1).train()
    other = apply_tuning(tiny(), TUNING)
    with torch.no_grad():
        other.head.bias += 3
    runner(tmp_path, other, max_epochs=1).train()
    assert_each_pth_has_its_tuned_file(tmp_path)


def test_the_tuned_file_gives_the_trained_model(tmp_path):
    trained = runner(tmp_path)
    trained.train()
    model = tiny().eval()
    metadata = load_tuned(model, tmp_path / 'epoch_3.safetensors')
    x = torch.randn(5, DIMS)
    assert_close(model(x), trained.model.eval()(x), rtol=0, atol=0)
    assert metadata['info']['epoch'] == 3
    assert metadata['info']['dataset_meta']['classes'] == ['a', 'b']
    assert 'odd' not in metadata['info']['dataset_meta']


def test_training_leaves_the_base_and_its_statistics(tmp_path):
    trained = runner(tmp_path)
    trained.train()
    state = trained.model.state_dict()
    for name, tensor in tiny().state_dict().items():
        if not name.startswith('head.'):
            assert torch.equal(state[name], tensor), name
    assert not torch.equal(state['head.bias'], tiny().head.bias)
    path = tmp_path / 'epoch_1.safetensors'
    assert (read_metadata(path)['base_fingerprint'] == read_metadata(
        tmp_path / 'epoch_3.safetensors')['base_fingerprint'])


def test_the_parameter_report_is_logged_once(tmp_path, monkeypatch):
    run = runner(tmp_path)
    lines = []
    monkeypatch.setattr(run.logger, 'info',
                        lambda message, *a, **k: lines.append(str(message)))
    run.train()
    reports = [line for line in lines if 'parameters are trained' in line]
    assert len(reports) == 1
    total = sum(p.numel() for p in run.model.parameters())
    trained = sum(
        p.numel() for p in run.model.parameters() if p.requires_grad)
    assert f'{trained:,} of {total:,} parameters' in reports[0]
    for word in ('component', 'ParallelAdapter', 'head', 'percent'):
        assert word in reports[0]
    first_step = next(
        (i for i, line in enumerate(lines) if 'Epoch(train)' in line),
        len(lines))
    assert lines.index(reports[0]) < first_step


def test_a_model_without_anything_to_train_stops_before_the_training(
        tmp_path):
    run = runner(tmp_path)
    for parameter in run.model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match='no trainable parameter'):
        run.train()
    assert not names(tmp_path, '.pth')


def test_a_wrong_load_from_stops_before_the_training(tmp_path):
    other = tiny()
    state = {k.replace('ffn', 'mlp'): v for k, v in other.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'base.pth')
    run = runner(tmp_path / 'run', load_from=str(tmp_path / 'base.pth'))
    with pytest.raises(KeyError, match='no checkpoint of the base'):
        run.train()
    assert not names(tmp_path / 'run', '.pth')


class RemoveByHand(Hook):
    """Somebody makes room while the third epoch is trained."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.epoch == 2 and batch_idx == 0:
            (Path(runner.work_dir) / 'epoch_1.pth').unlink()


def test_the_tuned_files_of_a_checkpoint_that_somebody_removes_stay(tmp_path):
    training = runner(tmp_path)
    training.register_hook(RemoveByHand())
    training.train()
    assert names(tmp_path, '.pth') == ['epoch_2', 'epoch_3']
    assert names(tmp_path, '.safetensors') == ['epoch_1', 'epoch_2', 'epoch_3']


def test_a_flexible_runner_counts_no_epoch_twice_behind_a_validation(tmp_path):
    """It saves the newest once more with what is best by now."""
    data = dict(
        batch_size=4,
        dataset=Data(),
        sampler=dict(type='DefaultSampler', shuffle=False))
    FlexibleRunner(
        model=apply_tuning(tiny(), TUNING),
        work_dir=str(tmp_path),
        strategy=dict(type='SingleDeviceStrategy'),
        train_dataloader=copy.copy(data),
        train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=1),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
        val_dataloader=copy.copy(data),
        val_cfg=dict(),
        val_evaluator=[Told()],
        default_hooks=dict(
            checkpoint=dict(
                type='AtomicCheckpointHook', interval=1, save_best='first',
                rule='greater')),
        custom_hooks=[dict(type='TunedCheckpointHook')],
        randomness=dict(seed=0),
        default_scope='mmengine',
        experiment_name=f'{tmp_path.name}-{next(COUNT)}').train()
    for path in tmp_path.glob('*.pth'):
        epoch = int(path.stem.split('_')[-1])
        meta = torch.load(path, weights_only=False)['meta']
        assert (meta['epoch'], meta['iter']) == (epoch, 2 * epoch), path.name
    assert names(tmp_path, '.pth') == [
        'best_first_epoch_2', 'epoch_1', 'epoch_2', 'epoch_3'
    ]
