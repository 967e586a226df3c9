"""How long all comparisons take on this machine, by a sample of their runs.

The runs of the evidence were made on machines that did other things as well;
their wall-clock times say little of what a replay takes.
"""
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List

from .execution import Execution
from .overview import EVIDENCE
from .plan import Run
from .plan_file import read_plan
from .report import table
from .runner import POLL_S, Comparison
from .slots import Slot

COLUMNS = ('plan', 'role', 'runs', 'mean as recorded, s', 'sampled',
           'mean of these now, s', 'all now, h')


@dataclass
class Stratum:
    """The runs of one plan with one role; one that an earlier plan has is its.

    Attributes:
        comparison (Comparison): The plan with its results.
        runs (list[Run]): Its runs.
        is_final (bool): Whether they are tested as well.
    """
    comparison: Comparison
    runs: List[Run]
    is_final: bool

    def row(self) -> dict:
        """What is known before any of them is run again."""
        recorded = [self.comparison.row(run)['wall_s'] for run in self.runs]
        return dict(
            plan=self.comparison.plan.name,
            role='final' if self.is_final else 'search',
            runs=len(self.runs),
            recorded_s=sum(recorded),
            sampled={})


def strata(root: Path) -> Iterator[Stratum]:
    """All runs of all plans, each once, by plan and role.

    Args:
        root (Path): The checkout.
    """
    seen = set()
    for path in sorted((root / 'configs/comparison').glob('*.py')):
        plan = read_plan(path, root)
        comparison = Comparison(plan, root, 'work_dirs/replay_time/unused',
                                root / EVIDENCE / plan.name)
        runs = {False: [], True: []}
        for run, is_final in comparison.tasks():
            name = comparison.settings(run).id
            if name not in seen:
                seen.add(name)
                runs[is_final].append(run)
        yield from (Stratum(comparison, found, is_final)
                    for is_final, found in runs.items() if found)


def replay_time(root: Path, work_dir: Path, slots: List[Slot], each: int,
                seed: int = 0) -> Iterator[List[dict]]:
    """Run ``each`` run of every stratum again, drawn at random.

    Args:
        root (Path): The checkout.
        work_dir (Path): Folder of the runs; its contents are run over.
        slots (list[Slot]): Where to run; as many at once.
        each (int): Runs of a stratum; all, if it has fewer.
        seed (int): Of the draw. Defaults to 0.

    Yields:
        list[dict]: After every run, a row for each stratum: ``plan``, ``role``,
        ``runs``, ``recorded_s`` (of all of them) and ``sampled``, from the id
        of a run to its seconds.

    Raises:
        RuntimeError: If a run fails.
    """
    rng = random.Random(seed)
    rows, waiting = [], []
    for stratum in strata(root):
        rows.append(stratum.row())
        drawn = rng.sample(stratum.runs, min(each, len(stratum.runs)))
        waiting += [(stratum, rows[-1], run) for run in drawn]
    free, active = list(slots), []
    try:
        while waiting or active:
            while free and waiting:
                stratum, row, run = waiting.pop(0)
                comparison = stratum.comparison
                settings = comparison.settings(run)
                started = dict(comparison.row(run), wall_s=0., trained=False,
                               peak_memory_bytes=None, session_started=None)
                active.append((row, Execution(
                    settings, started, _emptied(work_dir / settings.id), root,
                    free.pop(), stratum.is_final)))
            time.sleep(POLL_S)
            for row, execution in list(active):
                ended = execution.poll()
                if ended is None:
                    continue
                active.remove((row, execution))
                free.append(execution.slot)
                if ended['status'] != 'finished':
                    raise RuntimeError(f'{ended["id"]}: {ended["error"]}')
                row['sampled'][ended['id']] = ended['wall_s']
                yield rows
    finally:
        for _, execution in active:
            execution.kill()


def replay_time_page(rows: List[dict], jobs: int, command: str) -> str:
    """The estimate: each stratum has as many runs as it has, of the mean time
    of those that were sampled.

    Args:
        rows (list[dict]): Those of :func:`replay_time`.
        jobs (int): Runs at once.
        command (str): What has made them.
    """
    cells, recorded, estimated, spent, final = [], 0., 0., 0., 0.
    for row in rows:
        times = list(row['sampled'].values())
        mean = sum(times) / len(times)
        hours = row['runs'] * mean / 3600
        recorded += row['recorded_s'] / 3600
        estimated += hours
        final += hours * (row['role'] == 'final')
        spent += sum(times) / 3600
        cells.append([
            row['plan'], row['role'],
            str(row['runs']), f'{row["recorded_s"] / row["runs"]:.0f}',
            str(len(times)), f'{mean:.0f}', f'{hours:.2f}'
        ])
    cells.append(['all', '', str(sum(row['runs'] for row in rows)), '',
                  str(sum(len(row['sampled']) for row in rows)), '',
                  f'{estimated:.1f}'])
    ids = [f'`{name}`' for row in rows for name in row['sampled']]
    return '\n'.join([
        '# What a replay takes', '',
        'All comparisons, on a machine that does nothing else, by a random '
        'sample of their runs, trained and tested again:', '', '```shell',
        command, '```', '',
        'All final runs, three seeds a method, at the learning rates that are '
        'known by now (`tools/compare.py PLAN --rates`): '
        f'**{final:.1f} h of runs, {jobs} at once: {final / jobs:.1f} h**.',
        '', 'With the searches of the learning rates once more: '
        f'**{estimated:.1f} h of runs, {jobs} at once: '
        f'{estimated / jobs:.1f} h** (as they were run for the evidence '
        f'{recorded:.1f} h, {recorded / jobs:.1f} h). The sample itself took '
        f'{spent:.2f} h.', '', *table(list(COLUMNS), cells), '',
        'Run again: ' + ', '.join(ids) + '.', ''
    ])


def _emptied(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    return folder
