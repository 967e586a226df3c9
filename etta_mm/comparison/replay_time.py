"""How long all comparisons take on this machine, by a sample of their runs.

The runs of the evidence were made on other machines, which did other things as
well; their wall-clock times say little of what a replay takes on this one. What
comes out of the runs is set beside what is recorded.
"""
import random
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional

from ..markdown import table
from .execution import Execution, run_in_slots
from .overview import EVIDENCE
from .plan import Run
from .plan_file import read_plan
from .runner import Comparison
from .slots import Slot

#: The claim of a plan that is there for the choice of defaults.
DEFAULTS = 'defaults'
COLUMNS = ('plan', 'replays', 'role', 'runs', 'mean as recorded, s', 'sampled',
           'mean of these now, s', 'all now, h')
OUTCOME_COLUMNS = ('run', 'metric', 'recorded', 'now', 's')


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
            replays=self.comparison.plan.claims,
            role='final' if self.is_final else 'search',
            runs=len(self.runs),
            recorded_s=sum(recorded),
            sampled={})

    def outcome(self, before: dict, now: dict) -> dict:
        """What a run took and what it is there for: its result on the test
        data, or on the validation data."""
        key = 'value' if self.is_final else 'val_value'
        return dict(
            wall_s=now['wall_s'],
            metric=now['metric'],
            recorded=before[key],
            now=now[key])


def strata(root: Path) -> Iterator[Stratum]:
    """All runs of all plans, each once, by plan and role; the plans for the
    choice of defaults come last, so that the others have all their runs.

    Args:
        root (Path): The checkout.
    """
    seen = set()
    plans = [read_plan(path, root)
             for path in sorted((root / 'configs/comparison').glob('*.py'))]
    for plan in sorted(plans, key=lambda plan: DEFAULTS in plan.claims):
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
        ``replays`` (claims of the plan), ``runs``, ``recorded_s`` (of all of
        them) and ``sampled``, from the id of a run to its ``wall_s``,
        ``metric`` and results, as ``recorded`` and ``now``.

    Raises:
        RuntimeError: If a run fails.
    """
    rng = random.Random(seed)
    rows, waiting = [], []
    for stratum in strata(root):
        rows.append(stratum.row())
        drawn = rng.sample(stratum.runs, min(each, len(stratum.runs)))
        waiting += [(stratum, rows[-1], run) for run in drawn]
    begun = {}

    def begin(slot: Slot) -> Optional[Execution]:
        if not waiting:
            return None
        stratum, row, run = waiting.pop(0)
        settings = stratum.comparison.settings(run)
        before = stratum.comparison.row(run)
        begun[settings.id] = stratum, row, before
        started = dict(before, wall_s=0., trained=False,
                       peak_memory_bytes=None, session_started=None)
        return Execution(settings, started, _emptied(work_dir / settings.id),
                         root, slot, stratum.is_final)

    with closing(run_in_slots(slots, begin)) as finished:
        for execution in finished:
            ended = execution.row
            stratum, row, before = begun[ended['id']]
            if ended['status'] != 'finished':
                raise RuntimeError(f'{ended["id"]}: {ended["error"]}')
            row['sampled'][ended['id']] = stratum.outcome(before, ended)
            yield rows


def replay_time_page(rows: List[dict], jobs: int, command: str) -> str:
    """The estimate: each stratum has as many runs as it has, of the mean time
    of those that were sampled.

    Args:
        rows (list[dict]): Those of :func:`replay_time`.
        jobs (int): Runs at once.
        command (str): What has made them.
    """
    cells, again = [], []
    parts = {name: [0., 0.]
             for name in ('claims', 'final claims', 'final', 'all')}
    for row in rows:
        times = [outcome['wall_s'] for outcome in row['sampled'].values()]
        mean = sum(times) / len(times)
        seconds = row['runs'] * mean
        cells.append([
            row['plan'], ', '.join(row['replays']), row['role'],
            str(row['runs']), f'{row["recorded_s"] / row["runs"]:.0f}',
            str(len(times)), f'{mean:.0f}', f'{seconds / 3600:.2f}'
        ])
        again += [[f'`{name}`', found['metric'], f'{found["recorded"]:.4g}',
                   f'{found["now"]:.4g}', f'{found["wall_s"]:.0f}']
                  for name, found in row['sampled'].items()]
        is_claimed = DEFAULTS not in row['replays']
        is_final = row['role'] == 'final'
        for part, counts in (('claims', is_claimed),
                             ('final claims', is_claimed and is_final),
                             ('final', is_final), ('all', True)):
            parts[part][0] += seconds * counts
            parts[part][1] += row['recorded_s'] * counts
    spent = sum(found['wall_s'] for row in rows
                for found in row['sampled'].values())

    def hours(part: str) -> str:
        now, recorded = (seconds / 3600 for seconds in parts[part])
        return (f'**{now:.1f} h of runs, {jobs} at once: {now / jobs:.1f} h** '
                f'(as they were run for the evidence, on other machines: '
                f'{recorded:.1f} h, {recorded / jobs:.1f} h)')

    return '\n'.join([
        '# What a replay takes', '',
        'All comparisons, on a machine that does nothing else, by a random '
        'sample of their runs, trained and tested again:', '', '```shell',
        command, '```', '',
        'The plans that replay the claims, three seeds a method, at the '
        'learning rates that are known by now (`tools/compare.py PLAN '
        f'--rates`): {hours("final claims")}.', '',
        'With the searches of the learning rates once more: '
        f'{hours("claims")}.', '',
        'With the plans for the choice of defaults as well, at known rates: '
        f'{hours("final")}.', '',
        f'Everything with its searches: {hours("all")}.', '',
        *table(COLUMNS, cells), '',
        f'The sample, {len(again)} runs in {spent / 3600:.2f} h, and what came '
        'out beside what is recorded (of a final run on the test data, of a '
        'search on the validation data); processors round differently, and '
        'a training makes of that what another seed makes:', '',
        *table(OUTCOME_COLUMNS, again), ''
    ])


def _emptied(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    return folder
