"""From command-line options to a checked config.

`tools/train.py` and `tools/test.py` parse and call, everything else is here and
in :mod:`etta_mm.engine.launch`. Flags, defaults and meanings are those of
mmdet's and mmpretrain's own tools, with these deviations:

- what the run reads and writes is checked first: one message, not a traceback;
- ``--resume`` without a checkpoint to resume is an error, not a fresh start;
- classification configs get mmpretrain's loader defaults (batches collated into
  one tensor), whichever tool runs them;
- a tuned checkpoint can be tested and resumed: it goes on top of the config's
  own base;
- a checkpoint that would run code when it is loaded is an error, until
  ``--allow-pickle``.

Source: mmdet 3.5.1 (OneDL) `tools/train.py`, `tools/test.py`; mmpretrain 1.3.6
(OneDL) `tools/train.py`, `tools/test.py`.
"""
import argparse
import os
import os.path as osp
from pathlib import Path
from typing import Optional

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.runner import find_latest_checkpoint

from ..checkpoints.sealed_file import TUNED, is_sealed
from ..checkpoints.training_state import state_path
from ..data.check import check_dataset
from ..data.check_evaluator import check_evaluator, check_save_best
from ..data.check_num_classes import (check_num_classes, check_one_hot,
                                      check_same_classes)
from ..data.config_type import unscoped_name
from ..data.file import check_config, check_file, check_folder_writable
from .check_model import check_model
from .config import merge_options
from .launch import RANK_VARIABLES, is_first_of_machine
from .task import draw, dump_predictions, set_loaders

#: Devices on which mmengine's AmpOptimWrapper runs.
AMP_DEVICES = ('cuda', 'npu', 'mlu', 'musa')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir',
        help='folder of logs and checkpoints; by default work_dir of the '
        'config, or else ./work_dirs/ and the name of the config')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the config to override, as key=value; a list is '
        'key="[a,b]" or key=a,b; nested, key="[(a,b),(c,d)]", with the '
        'quotation marks and without white space')
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='load checkpoints that run what is in them; only for files whose '
        'origin you trust')
    parser.add_argument(
        '--launcher',
        choices=['none', *RANK_VARIABLES],
        default='none',
        help='what started the processes')
    # torch.distributed.launch passes it; torchrun sets the variable instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args: argparse.Namespace) -> Config:
    """The config with the shared options merged in.

    Args:
        args (argparse.Namespace): Parsed options of :func:`add_arguments`.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If it is none, or the launcher has not started this process.
    """
    check_config(args.config)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    absent = [
        variable for variable in RANK_VARIABLES.get(args.launcher, ())
        if variable not in os.environ
    ]
    if absent:
        raise ValueError(
            f'--launcher {args.launcher} has not started this process: '
            f'{", ".join(absent)} is not set. Use tools/dist_train.sh or '
            'tools/slurm_train.sh, or leave --launcher out for one process.')
    if args.launcher != 'none':  # mmengine reads it, whatever the launcher
        os.environ['LOCAL_RANK'] = os.environ[RANK_VARIABLES[args.launcher][1]]
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    merge_options(cfg, args.cfg_options)
    # Only the options say which checkpoint this run goes on from, or tests.
    cfg.pop('tuned_from', None)
    cfg.pop('full_from', None)
    if args.allow_pickle:
        cfg.allow_pickle = True
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', Path(args.config).stem)
    set_loaders(cfg)
    return cfg


def training_config(args: argparse.Namespace) -> Config:
    """The checked config of a training run.

    ``resume=True`` in the config resumes from the latest checkpoint of the
    work dir, or starts from ``load_from`` where there is none yet: mmengine
    would resume from ``load_from``, which is the base.

    Args:
        args (argparse.Namespace): ``resume`` (None, 'auto' or a checkpoint),
            ``amp``, ``auto_scale_lr`` and those of :func:`add_arguments`.

    Raises:
        FileNotFoundError: If something that the run reads is missing.
        ValueError: If an option, or something that the run reads or writes,
            does not fit.
    """
    cfg = load_config(args)
    _set_precision(cfg, args.amp)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                '--auto-scale-lr: the config has no auto_scale_lr.'
                'base_batch_size, the batch size that its learning rate is '
                'meant for. Set it, or leave --auto-scale-lr out.')
        cfg.auto_scale_lr.enable = True
    if (cfg.get('train_cfg') or {}).get('val_interval') == 0:
        raise ValueError(
            'train_cfg.val_interval=0: mmengine divides by it. To train without '
            'validation, set val_dataloader, val_cfg and val_evaluator to None.')
    resume = args.resume or _resume_by_config(cfg)
    cfg.resume = resume is not None
    if cfg.resume:
        if resume.endswith('.safetensors'):
            _check_resumable(resume)
            cfg.tuned_from = resume
        else:
            cfg.full_from = (
                _latest_checkpoint(cfg) if resume == 'auto' else resume)
            check_file(cfg.full_from, 'The checkpoint',
                       'Give one that exists, as --resume.')
    if 'full_from' not in cfg and cfg.get('load_from') is not None:
        check_file(cfg.load_from, 'The checkpoint',
                   'Give one that exists, as load_from of the config.')
    check_model(cfg, 'full_from' in cfg)
    _check_data(cfg, 'train', 'val')
    check_folder_writable(cfg.work_dir, 'work_dir')
    return cfg


def testing_config(args: argparse.Namespace) -> Config:
    """The checked config of a test run.

    Args:
        args (argparse.Namespace): ``checkpoint``, ``out``, ``show``,
            ``show_dir``, ``wait_time`` and those of :func:`add_arguments`.

    Raises:
        FileNotFoundError: If something that the run reads is missing.
        ValueError: If an option, or something that the run reads or writes,
            does not fit.
    """
    cfg = load_config(args)
    check_file(args.checkpoint, 'The checkpoint', 'Give one that exists.')
    if _is_tuned(args.checkpoint):
        cfg.tuned_from = args.checkpoint
        if cfg.get('load_from') is not None:
            check_file(cfg.load_from, 'The base of the tuned checkpoint',
                       'Set load_from of the config to where it is.')
    else:
        cfg.full_from = args.checkpoint
    cfg.resume = False  # a config that a resumed run has written says True
    if args.show or args.show_dir:
        draw(cfg, args.show, args.show_dir, args.wait_time)
    if args.out is not None:
        if not args.out.endswith(('.pkl', '.pickle')):
            raise ValueError(f'--out {args.out!r} must end with .pkl or '
                             '.pickle: predictions are pickled.')
        check_folder_writable(
            osp.dirname(args.out) or '.', 'The folder of --out')
        dump_predictions(cfg, args.out)
    _check_data(cfg, 'test')
    check_model(cfg, 'full_from' in cfg, is_trained=False)
    check_folder_writable(cfg.work_dir, 'work_dir')
    return cfg


def _set_precision(cfg: Config, amp: bool) -> None:
    if amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if unscoped_name(cfg.get('optim_wrapper')) == 'AmpOptimWrapper' \
            and get_device() not in AMP_DEVICES:
        raise ValueError(
            'Automatic mixed precision (--amp, or optim_wrapper.type='
            f'AmpOptimWrapper) on {get_device()!r}: it runs on '
            f'{", ".join(AMP_DEVICES)} only. Leave --amp out, set '
            'optim_wrapper.type=OptimWrapper, or make a GPU visible.')


def _resume_by_config(cfg: Config) -> Optional[str]:
    """What a config without ``--resume`` asks to resume from, if anything."""
    asked = cfg.get('resume') or None
    if asked is None or isinstance(asked, str):
        return asked
    if osp.exists(osp.join(cfg.work_dir, 'last_checkpoint')):
        return 'auto'
    print_log(f'resume={asked} in the config, and {cfg.work_dir!r} has no '
              'last_checkpoint: the training starts from load_from='
              f'{cfg.get("load_from")!r}')
    return None


def _latest_checkpoint(cfg: Config) -> str:
    work_dir = cfg.work_dir
    remedy = (
        'Check --work-dir, name the checkpoint (--resume FILE), or leave '
        '--resume out to start anew.')
    check_file(
        osp.join(work_dir, 'last_checkpoint'),
        '--resume without a checkpoint asks for the latest of work_dir, but',
        remedy)
    latest = find_latest_checkpoint(work_dir)
    # What is written there is of the folder as it was: it may have another name
    # now, be a copy, or we stand elsewhere. With out_dir it is where it says.
    own = osp.join(work_dir, osp.basename(latest))
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    is_elsewhere = hook.get('out_dir') and osp.exists(latest)
    return own if osp.exists(own) and not is_elsewhere else latest


def _check_resumable(path: str) -> None:
    """Check that a tuned checkpoint has its training state beside it."""
    check_file(path, 'The checkpoint', 'Give one that exists, as --resume.')
    if not is_sealed(path, TUNED):
        raise ValueError(f'--resume {path!r} is no tuned checkpoint. Give '
                         'one, or the .pth that mmengine wrote.')
    state = state_path(path)
    if not state.is_file():
        raise ValueError(
            f'--resume {path!r} holds weights only: resuming needs the state '
            f'of the optimizer as well, and {state} does not exist. Give the '
            '.pth beside it, or one that was saved with its state.')


def _is_tuned(path: str) -> bool:
    return (path.endswith('.safetensors') and '://' not in path
            and is_sealed(path, TUNED))


def _check_data(cfg: Config, *splits: str) -> None:
    """Check data sets and metrics, once a machine: disks may differ."""
    if not is_first_of_machine(cfg):
        return
    datasets, model = {}, cfg.get('model') or {}
    # What is retrieved may be of other classes than what is trained on.
    compared = splits if 'prototype' not in model else ('train', )
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for split in splits:
            loader = cfg.get(f'{split}_dataloader')
            datasets[split] = dataset = (
                loader.get('dataset') if isinstance(loader, dict) else None)
            name = f'{split}_dataloader.dataset'
            content = check_dataset(dataset, name)
            if split in compared:
                check_num_classes(model, dataset, name)
            if split == 'train':
                check_one_hot(cfg, dataset, name)
            check_evaluator(
                cfg.get(f'{split}_evaluator'), f'{split}_evaluator', dataset,
                content)
            del content  # may be gigabytes, and the next is read now
        if len(splits) > 1:
            check_save_best(*(cfg.get(key) for key in (
                'default_hooks', 'val_evaluator', 'val_cfg')))
        if len(compared) > 1:
            check_same_classes(*datasets.values())
