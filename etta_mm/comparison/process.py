"""The process of a tool: a new Python, or a fork that has its imports done."""
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import wait
from pathlib import Path
from typing import Optional, Sequence

from .slots import Slot

#: What a run imports, its registries' modules included.
PRELOADED = ('etta_mm.comparison', 'etta_mm.engine.launch',
             'etta_mm.engine.options',
             'mmdet.datasets', 'mmdet.engine', 'mmdet.evaluation',
             'mmdet.visualization', 'mmpretrain.datasets', 'mmpretrain.engine',
             'mmpretrain.evaluation', 'mmpretrain.visualization')


class ToolProcess:
    """``python TOOL ARGS`` in a slot.

    Args:
        tool (Path): The script.
        args (Sequence): What follows it on its command line.
        root (Path): Where it runs.
        log (Path): What it prints is added to this file.
        slot (Slot): The cores or the GPU that it may use.
    """

    def __init__(self, tool: Path, args: Sequence, root: Path, log: Path,
                 slot: Slot) -> None:
        self._resident = 0
        command = [str(word) for word in (sys.executable, tool, *args)]
        with open(log, 'ab') as output:
            self._process = subprocess.Popen(
                command, cwd=root, env=slot.environment(),
                stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, preexec_fn=slot.enter)

    def poll(self) -> Optional[int]:
        """The exit status, minus the signal if one ended it; None before."""
        process = self._process
        if process.returncode is not None:
            return process.returncode
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid == 0:
            self._look()
            return None
        process.returncode = os.waitstatus_to_exitcode(status)
        # Kilobytes on Linux, bytes on macOS. On Linux it has in it what this
        # process held at the fork, so that what was seen of the run is better.
        reported = usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
        self._resident = self._resident or reported
        return process.returncode

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    @property
    def peak_memory_bytes(self) -> int:
        """The highest resident memory as far as it was seen."""
        return self._resident

    def _look(self) -> None:
        self._resident = _resident_bytes(self._process.pid) or self._resident


class ForkedToolProcess(ToolProcess):
    """The same without the seconds that imports take.

    The processes are forked from a server that has imported
    :data:`PRELOADED` and done nothing else.
    """

    def __init__(self, tool: Path, args: Sequence, root: Path, log: Path,
                 slot: Slot) -> None:
        self._resident = 0
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(list(PRELOADED))
        self._process = context.Process(
            target=_run_tool,
            args=(str(tool), [str(word) for word in args], root, log, slot))
        self._process.start()
        self._look()

    def poll(self) -> Optional[int]:
        if self._process.is_alive():
            self._look()
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def start(tool: Path, args: Sequence, root: Path, log: Path,
          slot: Slot) -> ToolProcess:
    """Start a tool in the way that its slot asks for."""
    kind = ForkedToolProcess if slot.fork else ToolProcess
    return kind(tool, args, root, log, slot)


def _run_tool(tool: str, args: list, root: Path, log: Path,
              slot: Slot) -> None:
    """What ``python TOOL ARGS`` does, in a fork."""
    for source, mode, targets in ((os.devnull, 'rb', (0, )), (log, 'ab',
                                                             (1, 2))):
        with open(source, mode) as stream:
            for target in targets:
                os.dup2(stream.fileno(), target)
    # The system would tell of the server's end, not of the comparison's.
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=_end_with, args=(parent, ), daemon=True).start()
    os.environ.update(slot.environment())
    slot.enter()
    import torch
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    os.chdir(root)
    sys.argv = [tool, *args]
    sys.path.insert(0, str(Path(tool).parent))
    runpy.run_path(tool, run_name='__main__')


def _end_with(parent: int) -> None:
    wait([parent])
    os.kill(os.getpid(), signal.SIGKILL)


def _resident_bytes(pid: int) -> int:
    """The highest resident memory of a process so far, 0 if not known."""
    try:
        text = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return 0
    found = re.search(r'VmHWM:\s+(\d+) kB', text)
    return int(found[1]) * 1024 if found else 0
