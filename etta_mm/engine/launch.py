"""Build a Runner from a config: on GPU or CPU, in one process or several.

Without a GPU, processes talk through gloo. mmengine's launcher would call
``torch.cuda.set_device`` and hand DDP a GPU; so the process group is made
before the Runner, which then leaves it alone, and DDP is told that there are no
``device_ids``.

Source: mmengine 0.10.12 (OneDL) `dist/utils.py:init_dist`,
`runner/runner.py:wrap_model`.
"""
import copy
import os
import subprocess
from datetime import timedelta

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed as torch_dist

from .tuned_checkpoint import load_tuned

#: Where each launcher tells a process its rank, local rank and world size.
RANK_VARIABLES = dict(
    pytorch=('RANK', 'LOCAL_RANK', 'WORLD_SIZE'),
    slurm=('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK',
         'OMPI_COMM_WORLD_SIZE'))


def build_runner(cfg: Config) -> Runner:
    """Build the Runner, or what ``runner_type`` names.

    Args:
        cfg (Config): The config of a run, as :mod:`etta_mm.engine.options`
            returns it. It stays as it is.
    """
    if cfg.get('launcher', 'none') != 'none' and get_device() == 'cpu':
        init_gloo(cfg.launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}))
        cfg = copy.deepcopy(cfg)
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
            device_ids=None) | (
                cfg.get('model_wrapper_cfg') or {})
    runner = RUNNERS.build(cfg)
    if cfg.get('tuned_from') is not None:
        _load_tuned(runner, cfg.tuned_from)
    return runner


def init_gloo(launcher: str, dist_cfg: dict) -> None:
    """Join the process group as mmengine's ``init_dist`` does, without CUDA.

    Args:
        launcher (str): 'pytorch', 'slurm' or 'mpi'.
        dist_cfg (dict): ``timeout`` in seconds and, for slurm, ``port``; a
            ``backend`` is that of the GPUs and passed over.
    """
    if torch_dist.is_initialized():
        return
    for name, given in zip(RANK_VARIABLES['pytorch'],
                           RANK_VARIABLES[launcher]):
        os.environ[name] = os.environ[given]
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']],
            check=True,
            capture_output=True,
            text=True)
        os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]
    os.environ.setdefault('MASTER_PORT', str(dist_cfg.get('port', 29500)))
    torch_dist.init_process_group(
        'gloo', timeout=timedelta(seconds=dist_cfg.get('timeout', 1800)))


def _load_tuned(runner: Runner, path: str) -> None:
    """Load the base that the config names, then the tuned checkpoint."""
    model = runner.model
    if is_model_wrapper(model):
        model = model.module
    if runner.cfg.get('load_from') is None:
        model.init_weights()  # the base comes from init_cfg
    runner.load_or_resume()
    load_tuned(model, path)
