"""What came out: rows, one a run, and their summary, one a point.

A row of ``results.json`` is a dict:

- what was run: ``claims``, ``host``, ``method``, ``budget``, ``config``,
  ``options``, ``seed``, ``lr``, ``command``, ``id``, ``hash``, ``device``;
- ``role``: 'final' if it counts, 'search' if it only looked for the rate;
- ``status``: 'finished' or 'failed' (then ``error``);
- ``trained_percent``; ``metric`` and its ``value`` on the test images (None for
  a search run), ``val_value`` at the end and ``validation``, pairs of an epoch
  (or iteration, where a training counts those) and a value;
- ``step_time_s`` (median of the logged steps behind the first log interval),
  ``samples_per_s``, ``peak_memory_bytes`` (of the GPU, else resident memory of
  the training process) and ``wall_s`` (training and test, all sessions).
"""
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

from ..checkpoints.atomic import write_atomically
from ..engine.scalar_log import read_records
from .plan import is_finite
from .settings import BY_EPOCH_KEY


def read_rows(path) -> List[dict]:
    """The rows of a ``results.json``; none if there is no such file.

    Raises:
        ValueError: If the file is not one of ours.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())['rows']
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{str(path)!r} is no results.json of tools/compare.py: {error!r}. '
            'Restore it, or take it away to collect the results again from '
            'the work dir') from error


def write_rows(path, rows: List[dict]) -> Path:
    """Write ``results.json``, whole or not at all."""
    text = json.dumps(dict(rows=rows), indent=1, ensure_ascii=False)
    return write_atomically(path, f'{text}\n'.encode())


def merge_rows(rows: List[dict]) -> List[dict]:
    """One row for each run and metric: of several the one that got furthest
    (tested, trained, neither), of equal ones the first."""
    merged = {}
    for row in rows:
        key = row['id'], row['hash'], row.get('metric')
        if key not in merged or _progress(row) > _progress(merged[key]):
            merged[key] = row
    return list(merged.values())


def _progress(row: dict) -> Tuple[bool, bool]:
    return row.get('value') is not None, row.get('val_value') is not None


def measure(work_dir, metric: str, batch_size: int) -> dict:
    """Read the logs of a training, of all its sessions.

    Args:
        work_dir (Path): The work dir of the training.
        metric (str): The metric of its validation.
        batch_size (int): Images of one step.

    Returns:
        dict: ``validation``, ``val_value``, ``step_time_s``,
        ``samples_per_s`` and, from a GPU, ``peak_memory_bytes``.

    Raises:
        ValueError: If the validation has logged no such metric.
    """
    curve, times, memory, names = {}, [], [], set()
    for log in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        records = list(read_records(log))
        steps = [r for r in records if 'loss' in r]
        times += [r['time'] for r in (steps[1:] or steps)]
        memory += [r['memory'] for r in steps if 'memory' in r]
        for record in records:
            if 'loss' not in record:
                names |= set(record)
            if metric in record:  # what a resumed session repeats replaces
                curve[record['step']] = record[metric]
    if not curve:
        raise ValueError(f'the validation has logged no {metric!r}, but '
                         f'{", ".join(sorted(names)) or "nothing"}; name one '
                         'of these as the metric of the plan')
    found = dict(
        validation=sorted(map(list, curve.items())),
        val_value=curve[max(curve)],
        step_time_s=statistics.median(times) if times else None,
        samples_per_s=None)
    if found['step_time_s']:
        found['samples_per_s'] = batch_size / found['step_time_s']
    if memory:  # mmengine logs MB
        found['peak_memory_bytes'] = int(max(memory) * 2**20)
    return found


def tested(work_dir, metric: str) -> float:
    """The metric that tools/test.py has logged in ``work_dir``.

    Raises:
        ValueError: If it has logged no such metric.
    """
    logs = sorted(Path(work_dir).glob('*/*.json'))
    records = list(read_records(logs[-1])) if logs else []
    record = records[-1] if records else {}
    if metric not in record:
        raise ValueError(f'the test has logged no {metric!r}, but '
                         f'{", ".join(sorted(record)) or "nothing"}')
    return record[metric]


def unit(rows: List[dict]) -> str:
    """What the trainings of rows count: 'epochs' or 'iterations'."""
    by_epoch = (row['options'].get(BY_EPOCH_KEY, True) for row in rows)
    return 'epochs' if all(by_epoch) else 'iterations'


def choose(rows: List[dict]) -> Optional[float]:
    """The learning rate of the best last validation, the lower if equal; None
    if no row has a finite one."""
    able = [row for row in rows if is_finite(row.get('val_value'))]
    if not able:
        return None
    return max(able, key=lambda row: (row['val_value'], -row['lr']))['lr']


@dataclass
class Summary:
    """One point: its final runs, and how its rate was found.

    Attributes:
        point (Point): Of the plan.
        percent (float, optional): Trained share of the parameters.
        rate (float, optional): The chosen rate, or the plan's only one.
        candidates (list[tuple]): (rate, last validation or None).
        values (list[float]): Test values, by seed.
        step_time, throughput, memory (float, optional): Median seconds,
            median images/s, largest bytes.
        curve (list[tuple]): (epoch, mean of the validation over the seeds).
        unit (str): 'epochs', or 'iterations' where the trainings count those.
        failed (list[dict]): Rows that failed, search runs included.
    """
    point: object
    percent: Optional[float]
    rate: Optional[float]
    candidates: List[Tuple[float, Optional[float]]]
    values: List[float]
    step_time: Optional[float]
    throughput: Optional[float]
    memory: Optional[float]
    curve: List[Tuple[float, float]]
    unit: str
    failed: List[dict]

    @property
    def mean(self) -> Optional[float]:
        return statistics.mean(self.values) if self.values else None

    @property
    def deviation(self) -> Optional[float]:
        """Sample standard deviation over the seeds, from two on."""
        if not all(map(is_finite, self.values)):  # statistics refuses it
            return math.nan
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def summarize(plan, rows: List[dict]) -> List[Summary]:
    """Summarize the rows, one point of ``plan`` after the other."""
    return [_summary(plan, point, rows) for point in plan.points]


def _summary(plan, point, rows: List[dict]) -> Summary:
    rows = [
        r for r in rows
        if r['method'] == point.method and r['budget'] == point.budget
    ]
    finals = [
        r for r in rows if r['role'] == 'final' and r['seed'] in plan.seeds
    ]
    done = sorted((r for r in finals if r['status'] == 'finished'),
                  key=lambda r: r['seed'])
    candidates, rate = [], point.rates[0] if point.rates else None
    if len(point.rates) > 1:
        values = {
            r['lr']: r.get('val_value')
            for r in rows if r['seed'] == plan.search_seed
        }
        candidates = [(run.rate, values.get(run.rate))
                      for run in plan.candidates(point, values)]
        rate = finals[0]['lr'] if finals else None
    curve = {}
    for row in done:
        for epoch, value in row['validation']:
            curve.setdefault(epoch, []).append(value)
    percents = [r['trained_percent'] for r in rows if r.get('trained_percent')]

    def known(key):
        return [r[key] for r in done if r.get(key) is not None]

    return Summary(
        point=point,
        percent=percents[0] if percents else None,
        rate=rate,
        candidates=candidates,
        values=[r['value'] for r in done],
        step_time=_median(known('step_time_s')),
        throughput=_median(known('samples_per_s')),
        memory=max(known('peak_memory_bytes'), default=None),
        curve=[(epoch, statistics.mean(values))
               for epoch, values in sorted(curve.items())
               if len(values) == len(done)],
        unit=unit(rows),
        failed=[r for r in rows if r['status'] == 'failed'])


def _median(values: list) -> Optional[float]:
    return statistics.median(values) if values else None
