"""Tiny configs on real Glyphs, and the tools as a user starts them."""
import importlib.util
import logging
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.utils import ManagerMixin

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'

DIMS = 16
TINY_DETECTOR = dict(
    num_queries=10,
    backbone=dict(base_channels=8),
    neck=dict(
        in_channels=[16, 32, 64],
        out_channels=DIMS,
        norm_cfg=dict(num_groups=4)),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=DIMS),
            ffn_cfg=dict(embed_dims=DIMS, feedforward_channels=24))),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=DIMS),
            cross_attn_cfg=dict(embed_dims=DIMS),
            ffn_cfg=dict(embed_dims=DIMS, feedforward_channels=24))),
    positional_encoding=dict(num_feats=DIMS // 2),
    bbox_head=dict(embed_dims=DIMS),
    tuning=dict(ffn=dict(bottleneck_dims=6), attn=dict(num_prefix=3)),
    test_cfg=dict(max_per_img=10))
TINY_CLASSIFIER = dict(
    backbone=dict(
        arch=dict(embed_dims=24, num_layers=2, feedforward_channels=32),
        tuning=dict(ffn=dict(bottleneck_dims=6), attn=dict(num_prefix=3))),
    head=dict(in_channels=24))
SHORT = dict(
    train_cfg=dict(max_epochs=1, val_interval=1),
    param_scheduler=[],
    log_processor=dict(window_size=1),
    randomness=dict(seed=0),
    default_hooks=dict(logger=dict(interval=1)))


def detection_config(path: Path, data: Path, **changes) -> Path:
    """Write a tiny ET-Deformable DETR's config to ``path``."""
    cfg = Config.fromfile(ROOT / 'configs/glyphs/et_deformable_detr_glyphs.py')
    home = data / 'detection/printed'
    cfg.merge_from_dict(dict(SHORT, model=TINY_DETECTOR, load_from=None))
    for split in ('val', 'test'):
        ann_file = str(home / f'annotations/{split}.json')
        cfg.merge_from_dict({f'{split}_evaluator.ann_file': ann_file})
    return _write(cfg, path, home, changes)


def classification_config(path: Path, data: Path, **changes) -> Path:
    """Write a tiny ET-ViT classifier's config to ``path``."""
    cfg = Config.fromfile(ROOT / 'configs/glyphs/et_vit_glyphs.py')
    home = data / 'classification/printed'
    cfg.merge_from_dict(dict(SHORT, model=TINY_CLASSIFIER, load_from=None))
    return _write(cfg, path, home, changes)


def save_base(config: Path, path: Path) -> Path:
    """Write a base checkpoint for ``config``: its model without the tuning."""
    cfg = Config.fromfile(config)
    model_cfg = cfg.model.to_dict()
    owner = model_cfg if 'tuning' in model_cfg else model_cfg['backbone']
    owner.pop('tuning')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(model_cfg)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


def load_checkpoint(path: Path) -> dict:
    """A checkpoint that a run has written."""
    return CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def load_tool(name: str):
    """The module of a tool, to be run in this process."""
    spec = importlib.util.spec_from_file_location(f'tools_{name}',
                                                  TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(name: str,
             *args,
             cwd: Path,
             bin_dir: Path = Path(sys.executable).parent,
             **env) -> subprocess.CompletedProcess:
    """Run a tool in processes of its own, with this Python.

    Args:
        name (str): File name of the tool.
        *args: Its arguments.
        cwd (Path): The folder it starts in.
        bin_dir (Path): The folder whose programs come first.
        **env: Environment variables.
    """
    tool = str(TOOLS / name)
    command = [sys.executable, tool] if name.endswith('.py') else [tool]
    env['PATH'] = (
        f'{bin_dir}:{Path(sys.executable).parent}:{os.environ["PATH"]}')
    return _run([*command, *map(str, args)], cwd, env)


def fork_tool(name: str, *args, cwd: Path, num_procs: int = 1,
              port: int = 0) -> str:
    """Run a tool in forks of this process, which need no imports.

    Args:
        name (str): The tool, such as 'train'.
        *args: Its arguments.
        cwd (Path): The folder that they start in.
        num_procs (int): How many; several are told what torchrun tells them.
        port (int): A free port, for several.

    Returns:
        str: What they printed.
    """
    printed = cwd / f'{name}-{os.getpid()}-{time.monotonic_ns()}.txt'
    children = []
    for rank in range(num_procs):
        child = os.fork()
        if child == 0:
            _be_the_tool(name, args, cwd, printed, rank, num_procs, port)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
    text = printed.read_text()
    assert not any(codes), text[-3000:]
    return text


def _be_the_tool(name, args, cwd, printed, rank, num_procs, port) -> None:
    code = 1
    try:
        with open(printed, 'a') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, 'w', 1), os.fdopen(2, 'w', 1)
        os.chdir(cwd)
        args = [*map(str, args)]
        if num_procs > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1',
                WORLD_SIZE=str(num_procs), MASTER_PORT=str(port))
            args += ['--launcher', 'pytorch']
        logging.disable(logging.NOTSET)
        _forget_runs()
        load_tool(name).main(args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _forget_runs(kind: type = ManagerMixin) -> None:
    """What runs in this process before have left: each class has its own."""
    kind._instance_dict.clear()
    for heir in kind.__subclasses__():
        _forget_runs(heir)


def run_code(code: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run Python code in a process of its own.

    Args:
        code (str): The code.
        cwd (Path): The folder it starts in.
    """
    return _run([sys.executable, '-c', code], cwd, {})


def _run(command: list, cwd: Path, env: dict) -> subprocess.CompletedProcess:
    here = Path(__file__).parent
    paths = [here / 'without_peers', ROOT, here,
             os.environ.get('PYTHONPATH', '')]
    env = dict(
        os.environ,
        PYTHONPATH=':'.join(str(p) for p in paths if str(p)),
        OMP_NUM_THREADS='1',
        **env)
    return subprocess.run(command,
                          cwd=cwd,
                          env=env,
                          capture_output=True,
                          text=True,
                          timeout=300)


def _write(cfg: Config, path: Path, home: Path, changes: dict) -> Path:
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{home}/'
    cfg.merge_from_dict(changes)
    # Config.dump takes seconds to make the text pretty.
    path.write_text('\n'.join(f'{key} = {value!r}'
                              for key, value in cfg.to_dict().items()))
    return path
