"""One run: a training by tools/train.py, then a test by tools/test.py."""
import json
import os
import re
import shutil
import time
from collections import deque
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence

from ..checkpoints.atomic import write_atomically
from ..engine import build_on_meta, count_parameters
from .process import start
from .results import measure, tested
from .settings import Settings
from .slots import Slot

POLL_S = 0.1
#: The record of a run in its folder: its row, and what it takes to go on.
RECORD = 'run.json'


class Execution:
    """A run in a slot, from where it was left.

    The folder of the run holds ``config.py``, ``train/`` and ``test/`` (work
    dirs of the tools), ``output.log`` (what they printed) and ``run.json``.

    Args:
        settings (Settings): What to run.
        row (dict): Its row as known so far.
        folder (Path): The folder of the run.
        root (Path): The checkout; the tools run from there.
        slot (Slot): Where to run.
        with_test (bool): Whether to test the last checkpoint.
    """

    def __init__(self, settings: Settings, row: dict, folder: Path, root: Path,
                 slot: Slot, with_test: bool) -> None:
        self.settings, self.folder, self.root = settings, folder, root
        self.slot, self.with_test = slot, with_test
        # A session that was killed had no time to add up its own.
        row['wall_s'] = row.get('wall_s', 0.) + _lost_time(row, folder)
        row.update(status='running', error=None, device=slot.device,
                   session_started=time.time())
        self.row = row
        self.process = None
        self.config = settings.write(folder / 'config.py')
        self._save()
        if row.get('trained') and self._checkpoint():
            self._start_test()
        else:
            row['trained'] = False
            self._start_training()

    def poll(self) -> Optional[dict]:
        """The row if the run has ended, in whatever way, else None."""
        code = self.process.poll()
        if code is None:
            return None
        if code != 0:
            return self._end(self._last_line(code))
        try:
            if self.row['trained']:
                self.row['value'] = tested(self.folder / 'test',
                                           self.row['metric'])
                return self._end()
            if not self._measure():
                return None
        except ValueError as error:
            return self._end(str(error))
        if not self.with_test:
            return self._end()
        self._start_test()
        return None

    def kill(self) -> None:
        """End the process at once; the run can go on another time."""
        self.process.kill()

    def _start_training(self) -> None:
        self.resumed = self._checkpoint() is not None
        if not self.resumed:
            shutil.rmtree(self.folder / 'train', ignore_errors=True)
        self._start('train.py', self.config, '--work-dir',
                    self.folder / 'train',
                    *(['--resume'] if self.resumed else []))

    def _start_test(self) -> None:
        shutil.rmtree(self.folder / 'test', ignore_errors=True)
        self._start('test.py', self.config, self._checkpoint(), '--work-dir',
                    self.folder / 'test')

    def _start(self, tool: str, *args) -> None:
        self.process = start(self.root / 'tools' / tool, args, self.root,
                             self.folder / 'output.log', self.slot)

    def _measure(self) -> bool:
        """Take the figures of the training that has just ended.

        Returns:
            bool: False if it has to be done once more: a session was killed
            between its last checkpoint and its last validation.
        """
        cfg, row = self.settings.cfg, self.row
        figures = dict(peak_memory_bytes=max(self.process.peak_memory_bytes,
                                             row['peak_memory_bytes'] or 0))
        try:
            figures.update(
                measure(self.folder / 'train', row['metric'],
                        cfg.train_dataloader.batch_size))
            is_whole = figures['validation'][-1][0] >= self._position()
        except ValueError:  # there may have been one validation, or none
            if not self.resumed:
                raise
            is_whole = False
        if self.resumed and not is_whole:
            shutil.rmtree(self.folder / 'train')
            self._start_training()
            return False
        row.update(
            figures,
            trained_percent=count_parameters(build_on_meta(cfg)).percent,
            trained=True)
        self._save()
        return True

    def _checkpoint(self) -> Optional[Path]:
        """The last checkpoint, if it is there."""
        note = self.folder / 'train/last_checkpoint'
        if not note.is_file():
            return None
        path = self.folder / 'train' / Path(note.read_text().strip()).name
        return path if path.is_file() else None

    def _position(self) -> int:
        """The epoch, or iteration, of the last checkpoint: behind it a training
        that was stopped early may have been validated, and no other."""
        found = re.search(r'(\d+)\.pth$', str(self._checkpoint()))
        train_cfg = self.settings.cfg.train_cfg
        return int(found[1]) if found else (
            train_cfg.get('max_epochs') or train_cfg.get('max_iters'))

    def _end(self, error: Optional[str] = None) -> dict:
        self.row['wall_s'] += time.time() - self.row['session_started']
        self.row.update(
            status='failed' if error else 'finished',
            error=error,
            session_started=None)
        self._save()
        return self.row

    def _last_line(self, code: int) -> str:
        with open(self.folder / 'output.log', 'rb') as log:
            log.seek(max(log.seek(0, os.SEEK_END) - 10000, 0))
            lines = log.read().decode(errors='replace').split('\n')
        lines = [line.strip() for line in lines if line.strip()]
        text = lines[-1] if lines else 'nothing was printed'
        text = text.replace(f'{self.root}/', '')
        return text if code > 0 else f'ended by signal {-code}; last: {text}'

    def _save(self) -> None:
        write_atomically(self.folder / RECORD,
                         json.dumps(self.row, indent=1).encode())


def run_in_slots(
        slots: Sequence[Slot],
        begin: Callable[[Slot], Optional[Execution]]) -> Iterator[Execution]:
    """Keep ``slots`` busy until there is nothing more to begin.

    Close the iterator where it may be left early: that kills what still runs.

    Args:
        slots (Sequence[Slot]): Where to run; as many at once.
        begin (Callable): Begins the next run in the slot that it is given;
            returns None if there is none for now.

    Yields:
        Execution: Each that has ended, with its ``row``.
    """
    free, active = deque(slots), []
    try:
        while True:
            while free and (execution := begin(free[0])) is not None:
                free.popleft()
                active.append(execution)
            if not active:
                return
            time.sleep(POLL_S)
            for execution in list(active):
                if execution.poll() is not None:
                    active.remove(execution)
                    free.append(execution.slot)
                    yield execution
    finally:
        for execution in active:
            execution.kill()


def _lost_time(row: dict, folder: Path) -> float:
    """Seconds that a killed session ran, as far as its files tell."""
    started = row.get('session_started')
    if started is None:
        return 0.
    written = [p.stat().st_mtime for p in folder.rglob('*') if p.is_file()]
    return max(max(written, default=started) - started, 0.)
