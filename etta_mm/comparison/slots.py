"""Where runs can go at the same time: GPUs, or groups of CPU cores."""
import ctypes
import os
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import List, Optional

import torch

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Slot:
    """Room for one run.

    Attributes:
        cores (tuple[int]): The CPU cores that it may use.
        gpu (str, optional): Its CUDA_VISIBLE_DEVICES; None for a CPU run.
        device (str): In words, for the results.
        fork (bool): Whether runs are forked from a process that has the
            imports done.
    """
    cores: tuple
    gpu: Optional[str]
    device: str
    fork: bool = False

    def environment(self) -> dict:
        """The variables of a process that runs here."""
        threads = len(self.cores)
        if os.environ.get('OMP_NUM_THREADS', '').isdigit():
            threads = min(threads, int(os.environ['OMP_NUM_THREADS']))
        env = dict(os.environ, OMP_NUM_THREADS=str(max(threads, 1)))
        if self.gpu is not None:
            env['CUDA_VISIBLE_DEVICES'] = self.gpu
        return env

    def enter(self) -> None:
        """In the new process: take the cores, and die with the parent, lest
        a training outlive a killed comparison and meet its own successor."""
        if sys.platform == 'linux':
            os.sched_setaffinity(0, self.cores)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def device_name(device: str) -> str:
    """The name of a GPU, or the processor's kind. Another process is asked:
    with CUDA started here, no fork could use it, and a GPU that takes one
    process alone would be taken.

    Args:
        device (str): Such as 'cpu' or 'cuda:0'.
    """
    if not device.startswith('cuda'):
        return platform.machine()
    command = f'import torch; print(torch.cuda.get_device_name({device!r}))'
    return subprocess.check_output([sys.executable, '-c', command],
                                   text=True).strip()


def find_slots(jobs: Optional[int] = None, fork: bool = False) -> List[Slot]:
    """Divide the machine among ``jobs`` runs.

    More runs than GPUs share these in turn, which small models leave room
    for; each then has cores of its own, and the device says by how many it is
    shared.

    Args:
        jobs (int, optional): How many at once. Defaults to one per GPU, or to
            1 where there is none.
        fork (bool): Of the slots; for a CPU.

    Raises:
        ValueError: If there is neither a GPU nor a core for each of them, or
            if they are to be forked and there is a GPU.
    """
    gpus = torch.cuda.device_count()
    cores = (
        sorted(os.sched_getaffinity(0)) if sys.platform == 'linux' else list(
            range(os.cpu_count())))
    jobs = (gpus or 1) if jobs is None else jobs
    room = max(gpus, len(cores))
    if not 1 <= jobs <= room:
        raise ValueError(f'--jobs {jobs}: this machine has room for 1 to '
                         f'{room} ({gpus} GPUs, {len(cores)} CPU cores)')
    if fork and gpus:
        raise ValueError('--fork is for runs on a CPU, and this machine has '
                         f'{gpus} GPUs; leave it out, or hide them with '
                         'CUDA_VISIBLE_DEVICES=')
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    visible = visible.split(',') if visible else [str(i) for i in range(gpus)]
    share = max(len(cores) // jobs, 1)
    slots = []
    for index in range(jobs):
        own = tuple(cores[index * share:(index + 1) * share]) or tuple(cores)
        if gpus:
            gpu = index % gpus
            sharing = len(range(gpu, jobs, gpus))
            name = device_name(f'cuda:{gpu}')
            if sharing > 1:
                name += f', shared by {sharing}'
            slots.append(Slot(own, visible[gpu], name))
        else:
            threads = Slot(own, None, '').environment()['OMP_NUM_THREADS']
            name = f'CPU, {threads} thread' + 's' * (threads != '1')
            # Memory of the libraries that a fork shares is not all its own.
            slots.append(Slot(own, None, name + ', forked' * fork, fork))
    return slots
