"""Carry out a plan: what is left of it, in as many slots as there are."""
import fcntl
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from .execution import RECORD, Execution, run_in_slots
from .plan import Plan, Point, Run
from .progress import minutes, outcome
from .report import write_report
from .results import choose, merge_rows, read_rows, write_rows
from .settings import Settings, resolve
from .slots import Slot

#: In the work dir: rows that left results.json when the plan changed.
REPLACED = 'replaced_results.json'


class BusyError(RuntimeError):
    """Another comparison works in the same folder."""


class Comparison:
    """A plan with what has been run of it.

    A run is known by its method and the hash of its resolved settings, which
    its id holds. Its row is looked for in the work dir, then in
    ``results.json``, then in those of the comparisons beside it (plans share
    runs) and among the rows that an earlier plan of this name had; a finished
    one is not run again, a failed one is tried again by the next comparison.

    Args:
        plan (Plan): What to run.
        root (Path): The checkout.
        work_dir (Path): Folder of the runs, one folder each.
        out (Path): Folder of ``results.json``, table and figures.

    Raises:
        ValueError: If options do not fit their config.
    """

    def __init__(self, plan: Plan, root, work_dir, out) -> None:
        self.plan, self.root = plan, Path(root).resolve()
        self.work_dir = (self.root / work_dir).resolve()
        self.out = (self.root / out).resolve()
        self._settings, self._rows = {}, {}
        rows = [
            *read_rows(self.out / 'results.json'), *self._rows_beside(),
            *read_rows(self.work_dir / REPLACED)
        ]
        self._stored = {
            (r['id'], r['hash']): r
            for r in merge_rows(rows) if self._is_measured_alike(r)
        }
        self._tried = set()  # ids that this comparison has run
        for point in plan.points:  # all errors before the first run
            for rate in point.rates or (None, ):
                self.settings(Run(point, rate, plan.search_seed))

    def _rows_beside(self) -> List[dict]:
        rows = []
        for path in sorted(self.out.parent.glob('*/results.json')):
            try:
                rows += read_rows(path)
            except ValueError:
                continue  # another tool's, or no business of this comparison
        return rows

    def _is_measured_alike(self, row: dict) -> bool:
        """Whether the figures of a row are of the plan's metric."""
        return row.get('metric', self.plan.metric) == self.plan.metric

    def settings(self, run: Run) -> Settings:
        """The resolved settings of a run."""
        key = (run.point.method, run.point.budget, run.rate, run.seed)
        if key not in self._settings:
            self._settings[key] = resolve(self.plan, run, self.root)
        return self._settings[key]

    def row(self, run: Run) -> dict:
        """The row of a run: as recorded, or a new one without ``status``."""
        settings, plan = self.settings(run), self.plan
        if settings.id in self._rows:
            return self._rows[settings.id]
        record = self.work_dir / settings.id / RECORD
        known = self._stored.get((settings.id, settings.hash), {})
        if record.is_file():
            known = json.loads(record.read_text())
            if not self._is_measured_alike(known):
                # Trained, and to be read from its logs and tested once more.
                known = {key: known.get(key)
                         for key in ('wall_s', 'peak_memory_bytes')}
        folder = self._shown(self.work_dir / settings.id)
        row = dict(
            id=settings.id,
            claims=plan.claims,
            host=plan.host,
            method=run.point.method,
            budget=run.point.budget,
            config=self._shown(self.root / run.point.config),
            seed=run.seed,
            lr=settings.get(plan.lr_key),
            role='search',
            metric=plan.metric)
        for key in ('status', 'value', 'trained_percent', 'val_value',
                    'step_time_s', 'samples_per_s', 'peak_memory_bytes',
                    'wall_s', 'device', 'error', 'validation'):
            row[key] = known.get(key)
        row.update(
            options=json.loads(self._shown(json.dumps(settings.options))),
            command=self._shown(settings.command(run.point.config, folder)),
            hash=settings.hash,
            wall_s=row['wall_s'] or 0.,
            # These two stay in the record. A row of results.json that lacks
            # the first has its training behind it.
            trained=known.get('trained', known.get('val_value') is not None),
            session_started=known.get('session_started'))
        self._rows[settings.id] = row
        return row

    def tasks(self) -> Iterator[Tuple[Run, bool]]:
        """Runs that can be named by now, and whether each is tested: those
        behind a search only when it has ended."""
        for point in self.plan.points:
            candidates = self._candidates(point)
            rate = point.rates[0] if point.rates else None
            searching = False
            if candidates:
                searching = not all(self._settled(r, False) for r in candidates)
                rate = None if searching else choose(
                    [self.row(run) for run in candidates])
            known = not searching and (rate is not None or not candidates)
            finals = self.plan.finals(point, rate) if known else []
            for run in candidates:
                if run not in finals:
                    yield run, False
            for run in finals:
                yield run, True

    def _candidates(self, point: Point) -> List[Run]:
        """The plan's candidates, and those that the results so far call for."""
        values = {}
        while True:
            candidates = self.plan.candidates(point, values)
            ended = {
                run.rate: self.row(run)['val_value']
                for run in candidates if self._settled(run, False)
            }
            if ended.keys() == values.keys():
                return candidates
            values = ended

    @property
    def num_runs(self) -> int:
        """Trainings in all, as far as the searches are known; a chosen
        candidate counts once."""
        plan, total = self.plan, sum(1 for _ in self.tasks())
        to_come = len(plan.seeds) - (plan.search_seed in plan.seeds)
        return total + to_come * sum(
            not diverged for _, diverged in self._without_rate())

    def _without_rate(self) -> Iterator[Tuple[Point, bool]]:
        """The points that have no rate, and whether they will have none: at no
        rate of their search was the validation a number at the end."""
        named = {run.point for run, is_final in self.tasks() if is_final}
        for point in self.plan.points:
            if point not in named:
                yield point, all(
                    self._settled(run, False)
                    for run in self._candidates(point))

    def rows(self) -> List[dict]:
        """The rows of ``results.json``: what has ended, in the plan's order."""
        rows = []
        for run, is_final in self.tasks():
            row = dict(self.row(run))
            if row['status'] in ('finished', 'failed'):
                if is_final and (row['value'] is not None or row['error']):
                    row['role'] = 'final'
                del row['trained'], row['session_started']
                rows.append(row)
        return rows

    def outline(self) -> Iterator[str]:
        """The runs as lines of text; those behind a search without a rate."""
        for run, is_final in self.tasks():
            row = self.row(run)
            role = 'final' if is_final else 'search'
            yield f'{row["id"]}  {role}  {row["status"] or "to come"}'
        seeds = ', '.join(map(str, self.plan.seeds))
        for point, diverged in self._without_rate():
            yield f'{point.method} b{point.budget}, seeds {seeds}: ' + (
                'not run, for the search has found no rate'
                if diverged else 'at the rate that the search chooses')

    def write(self) -> None:
        """Write ``results.json``, the table and the figures."""
        rows = self.rows()
        write_rows(self.out / 'results.json', rows)
        write_report(self.plan, rows, self.out)

    def run(self, slots: List[Slot]) -> int:
        """Run what is left and report after every run.

        Args:
            slots (list[Slot]): Where to run; as many at once.

        Returns:
            int: How many runs of the plan have failed.

        Raises:
            BusyError: If another comparison uses the work dir.
        """
        self.work_dir.mkdir(parents=True, exist_ok=True)
        with open(self.work_dir / '.lock', 'w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(
                    f'another comparison is running in {self.work_dir}; wait '
                    'for it, or give another --work-dir') from error
            self._run(slots)
        return sum(row['status'] == 'failed' for row in self.rows())

    def _run(self, slots: List[Slot]) -> None:
        begun, start, walls = {}, time.time(), []

        def begin(slot: Slot) -> Optional[Execution]:
            task = self._next(begun)
            if task is None:
                return None
            run, with_test = task
            settings = self.settings(run)
            self._say('started ', settings.id, slot.device)
            begun[settings.id] = time.time()
            return Execution(settings, self.row(run),
                             self.work_dir / settings.id, self.root, slot,
                             with_test)

        self._keep_unknown()
        self.write()
        print(f'{self.num_runs} runs, {self._done()} done before; up to '
              f'{len(slots)} at once', flush=True)
        with closing(run_in_slots(slots, begin)) as ended:
            for execution in ended:
                row = execution.row
                self._tried.add((row['id'], execution.with_test))
                walls.append(time.time() - begun.pop(row['id']))
                self.write()
                left = self.num_runs - self._done()
                eta = left * sum(walls) / len(walls) / len(slots)
                self._say(row['status'].ljust(8), row['id'], outcome(row),
                          f'{walls[-1]:.0f} s', f'ETA {minutes(eta)}')
        print(f'done in {minutes(time.time() - start)}; results in '
              f'{self._shown(self.out)}', flush=True)

    def _keep_unknown(self) -> None:
        """Keep results that are of other settings than the plan's, such as
        those of a config that has changed since, beside those kept before."""
        known = {row['id'] for row in self.rows()}
        rows = read_rows(self.out / 'results.json')
        number = sum(row['id'] not in known or not self._is_measured_alike(row)
                     for row in rows)
        if number:
            path = self.work_dir / REPLACED
            write_rows(path, merge_rows([*read_rows(path), *rows]))
            print(f'{number} runs of results.json are not of this plan as it '
                  f'is now and are left out; {self._shown(path)} has them',
                  flush=True)

    def _next(self, begun: dict) -> Optional[Tuple[Run, bool]]:
        for run, is_final in self.tasks():
            if self.settings(run).id not in begun and not self._settled(
                    run, is_final):
                return run, is_final
        return None

    def _settled(self, run: Run, with_test: bool) -> bool:
        """Whether there is nothing more to do for a run now."""
        row, key = self.row(run), self.settings(run).id
        if (key, with_test) in self._tried or (key, True) in self._tried:
            return True
        if not with_test:
            return row['val_value'] is not None
        return row['status'] == 'finished' and row['value'] is not None

    def _done(self) -> int:
        return sum(self._settled(*task) for task in self.tasks())

    def _say(self, *words: str) -> None:
        print(f'[{self._done():3d}/{self.num_runs}]', '  '.join(words),
              flush=True)

    def _shown(self, text) -> str:
        """Without the path of the checkout."""
        return str(text).replace(f'{self.root}/', '')
