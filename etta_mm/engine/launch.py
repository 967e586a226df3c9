"""Build a Runner from a config: on GPU or CPU, in one process or several.

Without a GPU, processes talk through gloo. mmengine's launcher would call
``torch.cuda.set_device`` and hand DDP a GPU; so the process group is made
before the Runner, which then leaves it alone, and DDP is told that there are no
``device_ids``.

Source: mmengine 0.10.12 (OneDL) `dist/utils.py:init_dist`,
`runner/runner.py:wrap_model`.
"""
import atexit
import gc
import os
import subprocess
import sys
from datetime import timedelta
from typing import Optional, Sequence

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseTTAModel
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner, load_checkpoint
from torch import distributed as torch_dist

from ..checkpoints.base_weights import allow_pickle
from ..checkpoints.tuned_checkpoint import load_tuned
from ..checkpoints.tuned_file import plain_metainfo
from ..checkpoints.wrapper import unwrapped
from .checkpoint_hook import AtomicCheckpointHook
from .processes_hook import ProcessesHook
from .resume import resume_tuned
from .run_config import RunConfig
from .schedule_check_hook import ScheduleCheckHook
from .training_state_hook import TrainingStateHook

#: Where each launcher tells a process its rank, local rank and world size.
RANK_VARIABLES = dict(
    pytorch=('RANK', 'LOCAL_RANK', 'WORLD_SIZE'),
    slurm=('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK',
         'OMPI_COMM_WORLD_SIZE'))


def is_first_of_machine(cfg: Config) -> bool:
    """Whether this process does what is done once a machine.

    Args:
        cfg (Config): The config of the run, which names its launcher.
    """
    launcher = cfg.get('launcher', 'none')
    return launcher == 'none' or int(
        os.environ.get(RANK_VARIABLES[launcher][1], 0)) == 0


def num_processes(cfg: Config) -> int:
    """How many processes there are, of all machines.

    Args:
        cfg (Config): The config of the run, which names its launcher.
    """
    launcher = cfg.get('launcher', 'none')
    return 1 if launcher == 'none' else int(
        os.environ.get(RANK_VARIABLES[launcher][2], 0))


def build_runner(cfg: Config) -> Runner:
    """Build the Runner, or what ``runner_type`` names.

    Its checkpoints are written atomically and hold what a resumed training
    needs to be the same, whatever the config says of its hooks.

    Args:
        cfg (Config): The config of a run, as :mod:`etta_mm.engine.options`
            returns it; ``tuned_from`` is a tuned checkpoint that goes on top
            of ``load_from``, to be tested or, with ``resume``, trained on;
            ``full_from`` a full one in the place of ``load_from``, likewise;
            ``allow_pickle`` whether checkpoints may run code. It stays as it
            is, and what the Runner writes down is without ``tuned_from`` and
            ``full_from``: these are of one run, and ``load_from``, the base,
            of the config.
    """
    allow_pickle(bool(cfg.get('allow_pickle', False)))
    cfg = RunConfig.of(cfg)
    if cfg.get('launcher', 'none') != 'none' and get_device() == 'cpu':
        init_gloo(cfg.launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}))
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
            device_ids=None) | (
                cfg.get('model_wrapper_cfg') or {})
    tuned_from, resume = cfg.pop('tuned_from', None), cfg.get('resume', False)
    full_from = cfg.pop('full_from', None)
    if tuned_from is not None:
        cfg.resume = False  # the base is loaded first
    runner = RUNNERS.build(cfg)
    _make_safe(runner)
    if full_from is not None:
        runner._load_from = full_from
    if tuned_from is not None:
        _load_tuned(runner, tuned_from, resume)
        if resume:
            resume_tuned(runner, tuned_from)
    return runner


def _make_safe(runner: Runner) -> None:
    """Give the runner's own hooks our manners, in place: the config that it
    writes down stays one for mmdet's tools, too."""
    for hook in runner.hooks:
        if type(hook) is CheckpointHook:
            hook.__class__ = AtomicCheckpointHook
    for kind in (ProcessesHook, TrainingStateHook, ScheduleCheckHook):
        if not any(isinstance(hook, kind) for hook in runner.hooks):
            runner.register_hook(kind())


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


def begin_process() -> None:
    """Take what the imports have made out of the collections of garbage.

    It is millions of objects, none of which will be garbage, and mmengine
    collects garbage for every data set that it reads.
    """
    gc.freeze()


def end_process() -> None:
    """Leave the process group, if there is one, and end a run that went well.

    Among gloo's processes this ends Python at once, behind its exit handlers:
    units of FSDP keep the group alive though it is destroyed (torch 2.11.0),
    and its threads, if they run while the interpreter is taken down, can abort
    a process whose work is done.
    """
    if not (torch_dist.is_available() and torch_dist.is_initialized()):
        return
    is_gloo = torch_dist.get_backend() == 'gloo'
    torch_dist.destroy_process_group()
    if is_gloo:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _load_tuned(runner: Runner, path: str, resume: bool) -> None:
    """Load the base that the config names, then the tuned checkpoint.

    Its classes are compared with those of the data that the run reads: to
    train on if it resumes, else to test on.
    """
    model = unwrapped(runner.model)
    if isinstance(model, BaseTTAModel):
        model = model.module
    base = runner.cfg.get('load_from')
    if base is None:
        model.init_weights()  # the base comes from init_cfg
    else:
        # Not through the runner, whose hooks are not ready for it yet. What
        # the base lacks, the tuned checkpoint has.
        load_checkpoint(model, base, map_location='cpu', logger='silent')
    load_tuned(model, path,
               _classes(runner.train_loop if resume else runner.test_loop))
    runner.logger.info(
        f'Loaded the base {"of init_cfg" if base is None else base} and on '
        f'top of it the tuned checkpoint {path}')
    runner._has_loaded = True
    # train() would draw the weights anew and, having loaded, keep those.
    runner._init_model_weights = lambda: None


def _classes(loop: Optional[BaseLoop]) -> Optional[Sequence[str]]:
    """The classes of the data of a loop; None where there are none."""
    if loop is None:
        return None
    metainfo = getattr(loop.dataloader.dataset, 'metainfo', {})
    return plain_metainfo(metainfo).get('classes')
