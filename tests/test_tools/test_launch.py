"""The tools as a user starts them: real processes, real images.

Alone, the distributed test is::

    pytest tests/test_tools/test_launch.py -k two_processes
"""
import json
import os
import pickle
import re
import shutil
import socket
import stat
from pathlib import Path

import pytest
import torch
from runs import (ROOT, classification_config, detection_config,
                  load_checkpoint, load_tool, run_tool, save_base)
from torch.testing import assert_close

from etta_mm.checkpoints import read_metadata
from etta_mm.engine.launch import RANK_VARIABLES, init_gloo

TUNING = dict(
    _delete_=True,
    ffn=dict(type='ParallelAdapter', bottleneck_dims=6),
    attn=dict(type='ScaledPrefix', num_prefix=3),
    train=['bbox_head'])
LEARNING_RATE = 0.1
# In three steps of SGD the weights move by far more than the tolerance.
TOLERANCE = 1e-5
MIN_MOVE = 1e-3


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def stub(path: Path, script: str) -> None:
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(stat.S_IRWXU)


def test_train_writes_checkpoints_into_the_default_work_dir(trained):
    config, work_dir, _ = trained
    assert work_dir == config.parent / 'work_dirs' / config.stem
    assert (work_dir / 'epoch_1.pth').is_file()
    assert read_metadata(work_dir / 'epoch_1.safetensors')


def test_the_training_log_shows_eta_losses_and_the_report_once(trained):
    _, work_dir, printed = trained
    log = next(work_dir.glob('*/*.log')).read_text()
    assert 'eta: ' in log and 'loss_bbox: ' in log
    assert log.count('parameters are trained') == 1
    assert 'loss_bbox: ' in printed


def test_test_evaluates_dumps_and_draws(trained, tmp_path):
    config, work_dir, _ = trained
    out = tmp_path / 'new_folder/predictions.pkl'
    load_tool('test').main([
        str(config),
        str(work_dir / 'epoch_1.pth'), '--work-dir',
        str(tmp_path), '--out',
        str(out), '--show-dir', 'drawn'
    ])
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 4
    assert predictions[0]['pred_instances']['bboxes'].shape == (10, 4)
    scores = json.loads(next(tmp_path.glob('*/*.json')).read_text())
    assert 'coco/bbox_mAP' in scores
    assert len(list(tmp_path.glob('*/drawn/*.jpg'))) == 4


def test_several_processes_test_a_tuned_checkpoint_like_one_the_full(
        trained, tmp_path):
    config, work_dir, _ = trained
    two, one = tmp_path / 'two.pkl', tmp_path / 'one.pkl'
    done = run_tool(
        'dist_test.sh',
        config,
        work_dir / 'epoch_1.safetensors',
        2,
        '--work-dir',
        tmp_path / 'two',
        '--out',
        two,
        '--cfg-options',
        f'load_from={config.parent / "base.pth"}',
        cwd=tmp_path,
        PORT=str(free_port()))
    assert done.returncode == 0, done.stderr[-3000:]
    log = next((tmp_path / 'two').glob('*/*.log')).read_text()
    assert re.search(r'Loaded the base .*base.pth and on top .*epoch_1.saf', log)
    assert 'missing keys' not in log
    load_tool('test').main([
        str(config),
        str(work_dir / 'epoch_1.pth'), '--work-dir',
        str(tmp_path / 'one'), '--out',
        str(one)
    ])
    found, expected = (pickle.loads(p.read_bytes()) for p in (two, one))
    assert [f['img_id'] for f in found] == [e['img_id'] for e in expected]
    for f, e in zip(found, expected):
        torch.testing.assert_close(f['pred_instances']['scores'],
                                   e['pred_instances']['scores'])


@pytest.mark.parametrize('tool, given', [
    ('slurm_train.sh', ['a.py', 'here', '--amp']),
    ('slurm_train.sh', ['a.py', '--work-dir', 'here', '--amp']),
    ('slurm_test.sh', ['a.py', 'b.pth', '--work-dir', 'here', '--amp']),
])
def test_slurm_is_asked_for_what_the_environment_says(tool, given, tmp_path):
    stub(tmp_path / 'srun', 'printf "%s\\n" "$@" > srun.txt')
    done = run_tool(
        tool,
        'dev',
        'job',
        *given,
        cwd=tmp_path,
        bin_dir=tmp_path,
        GPUS='16',
        CPUS_PER_TASK='3',
        SRUN_ARGS='--gres=none --exclusive')
    assert done.returncode == 0, done.stderr
    script = ROOT / 'tools' / tool.replace('slurm_', '').replace('.sh', '.py')
    checkpoint = ['b.pth'] if 'test' in tool else []
    found = (tmp_path / 'srun.txt').read_text().split('\n')[:-1]
    assert found[:13] == [
        '-p', 'dev', '--job-name=job', '--gres=gpu:8', '--ntasks=16',
        '--ntasks-per-node=8', '--cpus-per-task=3', '--kill-on-bad-exit=1',
        '--gres=none', '--exclusive', 'python', '-u',
        str(script)
    ]
    assert found[13:14 + len(checkpoint)] == ['a.py', *checkpoint]
    assert sorted(found[14 + len(checkpoint):]) == sorted(
        ['--work-dir', 'here', '--launcher', 'slurm', '--amp'])


def test_resuming_without_the_full_checkpoint_ends_with_the_same_weights(
        trained, tmp_path):
    config, work_dir, _ = trained
    ends = []
    for name in ('epoch_1.pth', 'epoch_1.safetensors'):
        home = tmp_path / Path(name).suffix[1:]
        shutil.copytree(work_dir, home)
        if name != 'epoch_1.pth':
            (home / 'epoch_1.pth').unlink()
        torch.manual_seed(77)
        load_tool('train').main([
            str(config), '--work-dir', str(home), '--resume', str(home / name),
            '--cfg-options', 'train_cfg.max_epochs=2',
            f'load_from={config.parent / "base.pth"}'
        ])
        ends.append(load_checkpoint(home / 'epoch_2.pth')['state_dict'])
    assert_close(ends[0], ends[1], rtol=0, atol=0)
    start = load_checkpoint(work_dir / 'epoch_1.pth')['state_dict']
    assert any(not torch.equal(start[key], ends[0][key]) for key in start)


def test_resume_goes_on_from_the_latest_checkpoint(trained, tmp_path):
    config, work_dir, _ = trained
    # The folder has moved since last_checkpoint was written.
    moved = Path(shutil.copytree(work_dir, tmp_path / 'moved'))
    (moved / 'last_checkpoint').write_text('where/it/was/epoch_1.pth')
    before = load_checkpoint(moved / 'epoch_1.pth')
    load_tool('train').main([
        str(config), '--work-dir',
        str(moved), '--resume', '--cfg-options', 'train_cfg.max_epochs=2'
    ])
    after = load_checkpoint(moved / 'epoch_2.pth')
    assert (before['meta']['iter'], after['meta']['iter']) == (3, 6)
    step, = {s['step'].item() for s in after['optimizer']['state'].values()}
    assert step == 6


def test_a_classifier_is_trained_and_tested_alike(glyphs, tmp_path):
    config = classification_config(tmp_path / 'tiny.py', glyphs)
    out = tmp_path / 'predictions.pkl'
    load_tool('train').main([str(config), '--work-dir', str(tmp_path)])
    load_tool('test').main([
        str(config),
        str(tmp_path / 'epoch_1.pth'), '--work-dir',
        str(tmp_path), '--out',
        str(out), '--show-dir',
        str(tmp_path / 'drawn')
    ])
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 4
    assert predictions[0]['pred_score'].shape == (36, )
    assert len(list((tmp_path / 'drawn').iterdir())) == 4


@pytest.mark.parametrize('launcher', RANK_VARIABLES)
def test_without_a_gpu_every_launcher_talks_through_gloo(
        launcher, tmp_path, monkeypatch):
    for variable in (*RANK_VARIABLES['pytorch'], 'MASTER_ADDR'):
        monkeypatch.setenv(variable, '')  # so that pytest restores it
    os.environ.pop('MASTER_ADDR')
    for variable, value in zip(RANK_VARIABLES[launcher], ('0', '3', '1')):
        monkeypatch.setenv(variable, value)
    if launcher == 'slurm':  # it says where the first host is, if asked
        stub(tmp_path / 'scontrol', '[ $3 = "a[1-2]" ] && echo 127.0.0.1 a2')
        monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
        monkeypatch.setenv('SLURM_NODELIST', 'a[1-2]')
    else:
        monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', str(free_port()))
    init_gloo(launcher, dict(backend='nccl', timeout=60))
    try:
        assert torch.distributed.get_backend() == 'gloo'
        assert torch.distributed.get_world_size() == 1
        assert os.environ['LOCAL_RANK'] == '3'
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_train_like_one_with_the_doubled_batch(glyphs, tmp_path):
    config = detection_config(
        tmp_path / 'tiny.py',
        glyphs,
        # Batch norms that are trained see the batch of their own process, so
        # this law is for tunings that leave them frozen.
        model=dict(tuning=TUNING),
        # Same images each step: rank r of 2 takes indices r::2 of a fixed
        # order. SGD, since Adam divides by gradients that may be noise.
        train_dataloader=dict(batch_size=2, sampler=dict(shuffle=False)),
        optim_wrapper=dict(
            optimizer=dict(_delete_=True, type='SGD', lr=LEARNING_RATE)),
        custom_hooks=[dict(type='RankWeightsHook')],
        custom_imports=dict(
            imports=['etta_mm', 'rank_weights_hook'],
            allow_failed_imports=False))
    base = save_base(config, tmp_path / 'base.pth')
    two, one = tmp_path / 'two', tmp_path / 'one'

    done = run_tool(
        'dist_train.sh',
        config,
        2,
        '--work-dir',
        two,
        '--cfg-options',
        f'load_from={base}',
        cwd=tmp_path,
        PORT=str(free_port()))
    assert done.returncode == 0, done.stderr[-3000:]
    load_tool('train').main([
        str(config), '--work-dir',
        str(one), '--cfg-options', f'load_from={base}',
        'train_dataloader.batch_size=4'
    ])

    start = torch.load(base)['state_dict']
    ranks = [torch.load(two / f'rank_{rank}.pth') for rank in range(2)]
    alone = torch.load(one / 'rank_0.pth')
    tuned = [
        name for name in alone
        if name not in start or name.startswith('bbox_head.')
    ]
    assert len(tuned) > len(set(alone) - set(start)) > 0
    moved = 0
    for name, weight in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        if name not in tuned:
            assert torch.equal(ranks[0][name], start[name]), name
        torch.testing.assert_close(
            ranks[0][name], weight, atol=TOLERANCE, rtol=0)
        if name in start:
            moved = max(moved, (weight - start[name]).abs().max().item())
    assert moved > MIN_MOVE
