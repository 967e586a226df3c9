"""The tools as a user starts them: real processes, real images.

Alone, the distributed test is::

    pytest tests/test_tools/test_launch.py -k two_processes
"""
import json
import os
import pickle
import shutil
import socket
import stat
from pathlib import Path

import pytest
import torch
from runs import (classification_config, detection_config, load_checkpoint,
                  load_tool, run_tool, save_base)

from etta_mm.engine import read_metadata
from etta_mm.engine.launch import RANK_VARIABLES, init_gloo

SRUN = '''printf '%s ' "$@" > srun.txt
while [ "${1#-}" != "$1" ]; do
    [ "$1" = -p ] && shift
    shift
done
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 SLURM_NODELIST=node1
exec "$@"'''
LEARNING_RATE = 0.1
# In three steps of SGD the weights move by far more than the tolerance.
TOLERANCE = 1e-5
MIN_MOVE = 1e-3


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@pytest.fixture(scope='module')
def trained(glyphs, tmp_path_factory):
    """A detector trained by tools/train.py: (config, work dir, process)."""
    folder = tmp_path_factory.mktemp('trained')
    config = detection_config(folder / 'tiny.py', glyphs)
    base = save_base(config, folder / 'base.pth')
    done = run_tool(
        'train.py', config, '--cfg-options', f'load_from={base}', cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return config, folder / 'work_dirs/tiny', done


def test_train_writes_checkpoints_into_the_default_work_dir(trained):
    _, work_dir, _ = trained
    assert (work_dir / 'epoch_1.pth').is_file()
    assert read_metadata(work_dir / 'epoch_1.safetensors')


def test_the_training_log_shows_eta_losses_and_the_report_once(trained):
    _, work_dir, done = trained
    log = next(work_dir.glob('*/*.log')).read_text()
    assert 'eta: ' in log and 'loss_bbox: ' in log
    assert log.count('parameters are trained') == 1
    assert 'loss_bbox: ' in done.stdout + done.stderr


def test_test_evaluates_dumps_and_draws(trained, tmp_path):
    config, work_dir, _ = trained
    out = tmp_path / 'new_folder/predictions.pkl'
    done = run_tool(
        'test.py',
        config,
        work_dir / 'epoch_1.pth',
        '--work-dir',
        tmp_path,
        '--out',
        out,
        '--show-dir',
        'drawn',
        cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
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


def test_slurm_starts_the_training_in_the_work_dir_given(glyphs, tmp_path):
    bin_dir = tmp_path / 'bin'
    bin_dir.mkdir()
    # Slurm as far as the script sees it: one task, its variables, one host.
    for name, script in (('srun', SRUN), ('scontrol', 'echo 127.0.0.1')):
        (bin_dir / name).write_text(f'#!/bin/sh\n{script}\n')
        (bin_dir / name).chmod(stat.S_IRWXU)
    config = detection_config(tmp_path / 'tiny.py', glyphs)
    done = run_tool(
        'slurm_train.sh',
        'dev',
        'job',
        config,
        tmp_path / 'here',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        cwd=tmp_path,
        GPUS='1',
        GPUS_PER_NODE='1',
        SRUN_ARGS='--gres=none --exclusive',
        bin_dir=bin_dir,
        MASTER_PORT=str(free_port()))
    assert done.returncode == 0, done.stderr[-3000:]
    given = (tmp_path / 'srun.txt').read_text().split()
    assert given[:6] == [
        '-p', 'dev', '--job-name=job', '--gres=gpu:1', '--ntasks=1',
        '--ntasks-per-node=1'
    ]
    assert given[6:10] == [
        '--cpus-per-task=5', '--kill-on-bad-exit=1', '--gres=none',
        '--exclusive'
    ]
    log = next((tmp_path / 'here').glob('*/*.log')).read_text()
    assert 'Distributed launcher: slurm' in log
    assert (tmp_path / 'here/epoch_1.pth').is_file()


def test_resume_goes_on_from_the_latest_checkpoint(trained, tmp_path):
    config, work_dir, _ = trained
    # The folder has moved since last_checkpoint was written.
    moved = Path(shutil.copytree(work_dir, tmp_path / 'moved'))
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
        launcher, monkeypatch):
    for variable, value in zip(RANK_VARIABLES[launcher], '001'):
        monkeypatch.setenv(variable, value)
    for variable in RANK_VARIABLES['pytorch']:  # gone again afterwards
        monkeypatch.setenv(
            variable, '0' if launcher != 'pytorch' else os.environ[variable])
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', str(free_port()))
    init_gloo(launcher, dict(backend='nccl', timeout=60))
    try:
        assert torch.distributed.get_backend() == 'gloo'
        assert torch.distributed.get_world_size() == 1
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_train_like_one_with_the_doubled_batch(glyphs, tmp_path):
    config = detection_config(
        tmp_path / 'tiny.py',
        glyphs,
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
