"""A frozen base cut to pieces: two processes, gloo, real images.

Alone::

    pytest tests/test_tools/test_sharding.py
"""
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hosts import HOSTS
from mmengine._strategy import single_device
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import FlexibleRunner
from runs import (ROOT, detection_config, fork_tool, load_checkpoint,
                  load_tool, run_tool, save_base)
from test_launch import TOLERANCE, TUNING, free_port

from etta_mm.checkpoints import read_metadata, tuned_state_dict
from etta_mm.checkpoints.sealed_file import read_safetensors
from etta_mm.engine import ETFSDPStrategy, ETFullyShardedDataParallel
from etta_mm.engine import check_strategy as check_strategy_module
from etta_mm.engine.check_strategy import check_strategy
from etta_mm.engine.sharding import on_meta

FSDP = Config.fromfile(ROOT / 'configs/etta/_base_/fsdp.py').to_dict()
LEARNING_RATE = 0.1
MIN_MOVE = 1e-3
PROCESSES = 2


def tiny_config(path, glyphs, **changes):
    """Three steps of SGD with momentum over the same images each time."""
    return detection_config(
        path,
        glyphs,
        model=dict(
            tuning=dict(TUNING, ffn=dict(TUNING['ffn'], learn_scale=True))),
        train_dataloader=dict(batch_size=4, sampler=dict(shuffle=False)),
        # Clipped gradients move weights by less than the tolerance.
        optim_wrapper=dict(
            clip_grad=None,
            optimizer=dict(
                _delete_=True, type='SGD', lr=LEARNING_RATE, momentum=0.5)),
        custom_hooks=[
            dict(type='ParameterReportHook'),
            dict(type='TunedCheckpointHook'),
            dict(type='RankShardHook')
        ],
        custom_imports=dict(
            imports=['etta_mm', 'rank_shard_hook'],
            allow_failed_imports=False),
        **changes)


def train_sharded_on_two_machines(config, work_dir, *options):
    """Train in two processes that two torchruns start, as on two machines."""
    port = str(free_port())

    def train(node_rank: int):
        return run_tool(
            'dist_train.sh',
            config,
            1,
            '--work-dir',
            work_dir,
            *options,
            'train_dataloader.batch_size=2',
            cwd=work_dir.parent,
            NNODES=str(PROCESSES),
            NODE_RANK=str(node_rank),
            MASTER_ADDR='127.0.0.1',
            PORT=port)

    with ThreadPoolExecutor() as pool:
        for done in pool.map(train, range(PROCESSES)):
            assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope='module')
def runs(glyphs, tmp_path_factory):
    """The folder with ``one``, trained in one process, and ``two``, in two
    sharded ones (two machines to torchrun) with half the batch each, both from ``base.pth``."""
    folder = tmp_path_factory.mktemp('sharded')
    config = tiny_config(folder / 'tiny.py', glyphs)
    sharded = tiny_config(folder / 'sharded.py', glyphs, **FSDP)
    base = f'load_from={save_base(config, folder / "base.pth")}'
    train_sharded_on_two_machines(
        sharded, folder / 'two', '--cfg-options', base)
    load_tool('train').main(
        [str(config), '--work-dir',
         str(folder / 'one'), '--cfg-options', base])
    return folder


def assert_equal_weights(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_sharded_losses_are_those_of_one_process(runs):
    ranks = [torch.load(runs / f'two/shard_{rank}.pth') for rank in range(2)]
    alone = torch.load(runs / 'one/shard_0.pth')
    mean = [sum(losses) / 2 for losses in zip(*(r['losses'] for r in ranks))]
    assert len(alone['losses']) == 3 and len(set(alone['losses'])) == 3
    torch.testing.assert_close(mean, alone['losses'], rtol=1e-5, atol=1e-5)
    for first, second in zip(*(rank['trained'] for rank in ranks)):
        assert torch.equal(first, second)


def test_each_process_holds_its_part_of_the_base_without_gradients(runs):
    ranks = [torch.load(runs / f'two/shard_{rank}.pth') for rank in range(2)]
    whole = torch.load(runs / 'one/shard_0.pth')['frozen']
    assert sum(rank['frozen'] for rank in ranks) == whole
    assert all(0.4 < rank['frozen'] / whole < 0.6 for rank in ranks)
    assert all(rank['frozen_with_gradient'] == 0 for rank in ranks)


def test_the_full_checkpoint_is_whole_and_that_of_one_process(runs):
    found, expected = (
        load_checkpoint(runs / name / 'epoch_1.pth') for name in ('two', 'one'))
    start = torch.load(runs / 'base.pth')['state_dict']
    assert_equal_weights(found['state_dict'], expected['state_dict'])
    moved = [
        name for name, weight in start.items()
        if not torch.equal(found['state_dict'][name], weight)
    ]
    assert moved and all(name.startswith('bbox_head.') for name in moved)
    assert max((found['state_dict'][name] - start[name]).abs().max()
               for name in moved) > MIN_MOVE
    torch.testing.assert_close(
        found['optimizer']['state'],
        expected['optimizer']['state'],
        atol=1e-4,
        rtol=1e-4)
    assert found['optimizer']['param_groups'] == expected['optimizer'][
        'param_groups']
    assert not list(runs.glob('two/.*.tmp'))


def test_the_tuned_checkpoint_is_whole_and_that_of_one_process(runs):
    two, one = (runs / name / 'epoch_1.safetensors' for name in ('two', 'one'))
    tensors = read_safetensors(two)[1]
    full = load_checkpoint(runs / 'two/epoch_1.pth')['state_dict']
    assert tensors.keys() == read_safetensors(one)[1].keys()
    assert all(torch.equal(tensors[name], full[name]) for name in tensors)
    for key in ('roots', 'base_fingerprint', 'base_hashes', 'info'):
        assert read_metadata(two)[key] == read_metadata(one)[key], key


def test_the_log_reports_the_real_sizes(runs):
    logs = [next(runs.glob(f'{name}/*/*.log')).read_text()
            for name in ('two', 'one')]
    reports = [
        next(line.partition(' - INFO - ')[2] for line in log.split('\n')
             if 'parameters are trained' in line) for log in logs
    ]
    assert reports[0] == reports[1]


def test_a_sharded_training_goes_on_where_one_process_stopped(runs, tmp_path):
    # And accumulates gradients: of two steps, then of the one that is left.
    options = [
        '--resume', '--cfg-options', 'train_cfg.max_epochs=2',
        'optim_wrapper.accumulative_counts=2'
    ]
    for name in ('two', 'one'):  # both go on from that of one process
        shutil.copytree(runs / 'one', tmp_path / name)
        last = tmp_path / name / 'epoch_1.pth'
        (tmp_path / name / 'last_checkpoint').write_text(str(last))
    fork_tool(
        'train', runs / 'sharded.py', '--work-dir', tmp_path / 'two', *options,
        'train_dataloader.batch_size=2', cwd=tmp_path, num_procs=PROCESSES,
        port=free_port())
    load_tool('train').main(
        [str(runs / 'tiny.py'), '--work-dir',
         str(tmp_path / 'one'), *options])
    found, expected = (
        load_checkpoint(tmp_path / name / 'epoch_2.pth')
        for name in ('two', 'one'))
    assert found['meta']['iter'] == expected['meta']['iter'] == 6
    assert_equal_weights(found['state_dict'], expected['state_dict'])


def test_sharded_processes_predict_like_one(runs, tmp_path):
    checkpoint, out = runs / 'two/epoch_1.pth', ('two.pkl', 'one.pkl')
    fork_tool(
        'test', runs / 'sharded.py', checkpoint, '--work-dir',
        tmp_path / 'two', '--out', out[0], cwd=tmp_path, num_procs=PROCESSES,
        port=free_port())
    load_tool('test').main([
        str(runs / 'tiny.py'),
        str(checkpoint), '--work-dir',
        str(tmp_path / 'one'), '--out',
        str(tmp_path / out[1])
    ])
    found, expected = ([
        image['pred_instances']['scores']
        for image in pickle.loads((tmp_path / name).read_bytes())
    ] for name in out)
    assert len(found) == 4
    torch.testing.assert_close(found, expected)


# ------------------------------------------------------------ what is refused
def test_a_checkpoint_in_pieces_is_refused():
    with pytest.raises(ValueError, match="state_dict_cfg='local'.*'full'"):
        ETFSDPStrategy(state_dict_cfg='local')


def test_a_model_without_a_frozen_part_is_refused():
    with pytest.raises(ValueError, match='0 frozen parameters'):
        ETFullyShardedDataParallel(torch.nn.Linear(2, 2))


@pytest.mark.parametrize('runner', [FlexibleRunner, 'mmengine.FlexibleRunner'])
def test_a_runner_may_be_named_by_its_class_or_with_a_scope(
        runner, monkeypatch):
    cfg = Config(dict(FSDP, launcher='pytorch', runner_type=runner))
    check_strategy(cfg, is_tuned=True)


@pytest.mark.parametrize('changes, message', [
    (dict(runner_type='Runner'), "runner_type='FlexibleRunner' only"),
    (dict(strategy=dict(type='FSDPStrategy')), 'ETFSDPStrategy'),
    (dict(strategy=dict(type='mmengine.FSDPStrategy')), 'ETFSDPStrategy'),
    (dict(strategy=dict(type='DeepSpeedStrategy')), 'no tuned checkpoint'),
    (dict(model_wrapper_cfg=dict(type='MMFullyShardedDataParallel')),
     '_base_/fsdp.py'),
    ({
        'strategy.model_wrapper': dict(sharding_strategy='NO_SHARD')
    }, 'shares nothing'),
    (dict(custom_hooks=[dict(type='mmengine.EMAHook')]), 'EMAHook'),
    (dict(launcher='none'), 'dist_train.sh'),
    (dict(tuned_from='epoch_1.safetensors'), '.pth'),
    (dict(custom_hooks=[dict(type='EMAHook')]), 'EMAHook'),
    ({
        'strategy.model_wrapper': dict(
            mixed_precision=dict(param_dtype='bfloat16'))
    }, '--amp'),
    ({
        'strategy.model_wrapper': dict(cpu_offload=True)
    }, 'cpu_offload=True: .* GPU'),
])
def test_a_strategy_that_would_not_work_is_refused(changes, message,
                                                   monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = Config(dict(FSDP, launcher='pytorch'))
    check_strategy(cfg, is_tuned=True)
    cfg.merge_from_dict(changes)
    with pytest.raises(ValueError, match=message):
        check_strategy(cfg, is_tuned=True)


@pytest.mark.parametrize('model, warns', [
    (dict(), True), (dict(with_cp=True), False),
    (dict(backbone=dict(with_cp=6)), False),
    (dict(with_cp=False, backbone=dict(depth=50)), True)])
def test_half_copies_of_a_sharded_base_are_warned_of(model, warns,
                                                     monkeypatch):
    said = []
    monkeypatch.setattr(check_strategy_module, 'print_log',
                        lambda text, **_: said.append(text))
    cfg = Config(dict(FSDP, launcher='pytorch', model=model))
    check_strategy(cfg, is_tuned=True)
    assert not said
    cfg.optim_wrapper = dict(type='AmpOptimWrapper')
    check_strategy(cfg, is_tuned=True)
    assert ('with_cp' in ''.join(said)) == warns


def test_one_process_of_a_launcher_is_alone_as_well(monkeypatch):
    cfg = Config(dict(FSDP, launcher='pytorch'))
    monkeypatch.setenv('WORLD_SIZE', '2')
    check_strategy(cfg, is_tuned=True)
    monkeypatch.setenv('WORLD_SIZE', '1')
    with pytest.raises(ValueError, match='this is one alone'):
        check_strategy(cfg, is_tuned=True)


def test_one_process_is_told_in_one_message_what_starts_several(runs, capsys):
    with pytest.raises(SystemExit, match='error: .*tools/dist_train.sh'):
        load_tool('train').main([str(runs / 'sharded.py')])


# --------------------------------------------------------------- its structure
@pytest.mark.parametrize('name', ['detr', 'deformable_refine', 'vit'])
def test_a_copy_without_numbers_has_every_name_shape_and_sharing(name):
    model = HOSTS[name].build(dict(ffn=dict(type='LoRA', rank=2)))
    copied = on_meta(model)
    assert all(p.is_meta for p in copied.parameters())
    assert [(n, p.shape, p.requires_grad)
            for n, p in copied.named_parameters()
            ] == [(n, p.shape, p.requires_grad)
                  for n, p in model.named_parameters()]
    assert list(copied.state_dict()) == list(model.state_dict())
    assert list(tuned_state_dict(copied)) == list(tuned_state_dict(model))
    assert not any(p.is_meta for p in model.parameters())


# -------------------------------------------------- what is loaded, in one process
class Loading(ETFSDPStrategy):
    """A strategy that has only what loading needs."""

    def __init__(self, model):
        self.structure, self.model = on_meta(model), model
        self.logger = MMLogger.get_instance('sharding')

    def _is_full_state_dict(self):
        return True

    def _units(self, writeback):
        yield self.model


def classifier(num_classes):
    backbone = HOSTS['vit'].build(
        dict(ffn=dict(type='LoRA', rank=2)))
    return torch.nn.ModuleDict(dict(
        backbone=backbone, head=torch.nn.Linear(2, num_classes)))


@pytest.mark.parametrize('wrapped', [True, False])
@pytest.mark.parametrize('asked', ['default', 'cpu', None])
def test_a_checkpoint_is_loaded_on_the_cpu(monkeypatch, tmp_path, wrapped,
                                           asked):
    """On whatever device the parts are: as a whole it may not fit there."""
    model = classifier(3)
    expected = {k: torch.rand_like(v) if v.is_floating_point() else v
                for k, v in model.state_dict().items()}
    path, given = tmp_path / 'epoch_1.pth', []
    torch.save(dict(state_dict=expected, meta={}) if wrapped else expected, path)
    monkeypatch.setattr(single_device, 'get_device', lambda: 'meta')
    arguments = {} if asked is None else dict(map_location=asked)
    rest = Loading(model).load_checkpoint(
        str(path), callback=lambda checkpoint: given.extend(checkpoint),
        **arguments)
    assert 'state_dict' in given and 'state_dict' not in rest
    torch.testing.assert_close(model.state_dict(), expected)


def test_a_head_for_other_classes_is_left_at_its_start():
    """As without sharding, where mmengine passes over it."""
    model, base = classifier(3), classifier(5)
    start = model['head'].weight.clone()
    Loading(model).load_model_state_dict(base.state_dict())
    assert torch.equal(model['head'].weight, start)
    found, expected = (
        {k: v for k, v in m.state_dict().items() if not k.startswith('head.')}
        for m in (model, base))
    torch.testing.assert_close(found, expected)
