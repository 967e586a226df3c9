"""A tool's process, new or forked: the same but for the imports."""
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from fakes import wait_for

from etta_mm.comparison import Slot, find_slots
from etta_mm.comparison.process import start

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60  # seconds
REPORT = '''
import helper, os, sys, torch
print(__name__, sys.argv[1:], os.getcwd(), sorted(os.sched_getaffinity(0)),
      torch.get_num_threads(), os.environ['OMP_NUM_THREADS'],
      repr(sys.stdin.read()), 'mmdet' in sys.modules)
print('to stderr', file=sys.stderr)
'''


@pytest.fixture(params=[False, True], ids=['new', 'forked'])
def slot(request) -> Slot:
    core = sorted(os.sched_getaffinity(0))[-1]
    return Slot((core, ), None, 'CPU', request.param)


def run(folder: Path, slot: Slot, text: str, *args):
    """Write a tool, run it to its end; returns (process, status, its log)."""
    (folder / 'tools').mkdir(exist_ok=True)
    (folder / 'tools/helper.py').touch()  # a neighbour that it imports
    tool = folder / 'tools/tool.py'
    tool.write_text(text)
    process = start(tool, args, folder, folder / 'log', slot)
    wait_for(lambda: process.poll() is not None)
    return process, process.poll(), (folder / 'log').read_text()


def test_it_is_what_a_command_line_starts(tmp_path, slot, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    (tmp_path / 'log').write_text('before\n')
    _, status, log = run(tmp_path, slot, REPORT, 'a b', 3)
    assert status == 0
    first, *rest = log.splitlines()
    assert first == 'before' and sorted(rest) == sorted([
        f"__main__ ['a b', '3'] {tmp_path} {list(slot.cores)} 1 1 '' "
        f'{slot.fork}', 'to stderr'
    ])


@pytest.mark.parametrize('text, status, last', [
    ('import sys; sys.exit(3)', 3, 'before'),
    ('import sys; sys.exit("tool.py: error: no")', 1, 'tool.py: error: no'),
    ('raise KeyError("x")', 1, "KeyError: 'x'"),
    ('import os; os.kill(os.getpid(), 9)', -signal.SIGKILL, 'before'),
    ('import os; os.kill(os.getpid(), 15)', -signal.SIGTERM, 'before'),
])
def test_its_end_is_told(tmp_path, slot, text, status, last):
    found = run(tmp_path, slot, 'print("before", flush=True)\n' + text)
    assert found[1] == status
    assert found[2].splitlines()[-1] == last


def test_its_peak_is_its_own(tmp_path, slot):
    hold = 'import time; x = b"1" * {}; time.sleep(0.5)'
    few, _, _ = run(tmp_path, slot, hold.format(1))
    many, _, _ = run(tmp_path, slot, hold.format(300_000_000))
    more = many.peak_memory_bytes - few.peak_memory_bytes
    assert 2.5e8 < more < 3.5e8


def test_it_is_killed(tmp_path, slot):
    (tmp_path / 'tool.py').write_text('import time; time.sleep(100)')
    process = start(tmp_path / 'tool.py', [], tmp_path, tmp_path / 'log', slot)
    process.kill()
    assert process.poll() == -signal.SIGKILL


def test_both_kinds_end_with_who_started_them(tmp_path):
    (tmp_path / 'tool.py').write_text(
        'import os, sys, time\n'
        'open("part" + sys.argv[1], "w").write(str(os.getpid()))\n'
        'os.rename("part" + sys.argv[1], sys.argv[1])\ntime.sleep(1000)')
    script = tmp_path / 'parent.py'
    script.write_text(f'''
import os, time
from pathlib import Path
from etta_mm.comparison import Slot
from etta_mm.comparison.process import start
if __name__ == '__main__':
    here = Path({str(tmp_path)!r})
    cores = tuple(os.sched_getaffinity(0))
    for name, fork in ('new', False), ('forked', True):
        start(here / 'tool.py', [name], here, here / 'log',
              Slot(cores, None, 'CPU', fork))
    time.sleep(1000)
''')
    parent = subprocess.Popen([sys.executable, str(script)], cwd=ROOT)
    tools = []
    try:
        for name in ('new', 'forked'):
            wait_for((tmp_path / name).exists)
            tools.append(psutil.Process(int((tmp_path / name).read_text())))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _, alive = psutil.wait_procs(tools, TIMEOUT)
    for tool in alive:
        tool.kill()
    assert not alive


def test_slots_are_forked_on_a_cpu_alone(monkeypatch):
    slot, = find_slots(1, fork=True)
    assert slot.fork and slot.device.endswith(', forked')
    assert replace(slot, fork=False, device='') == replace(
        find_slots(1)[0], device='')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(ValueError, match='--fork is for runs on a CPU'):
        find_slots(1, fork=True)
