"""What all comparisons take, by a sample of their runs."""
import json
from pathlib import Path

import pytest
from fakes import TWO, calls, write_plan

from etta_mm.comparison import (Comparison, find_slots, read_plan,
                                replay_time, replay_time_page)

SHIPPED = Path(__file__).parents[2] / 'docs/evidence/replay_time'


@pytest.fixture
def evidence(root):
    """A checkout with two plans that have been run; they share method A."""
    (root / 'configs/comparison').mkdir()
    for name, methods in (('first', TWO), ('second', TWO[:1])):
        path = write_plan(root, methods=methods).rename(
            root / f'configs/comparison/{name}.py')
        comparison = Comparison(
            read_plan(path, root), root, f'work/{name}',
            root / 'docs/evidence' / name)
        comparison.run(find_slots(1))
    calls(root)
    return root


def test_every_run_belongs_to_one_stratum_and_as_many_are_run_as_asked(
        evidence):
    *_, rows = replay_time(evidence, evidence / 'work/again', find_slots(1), 3)
    assert [(r['plan'], r['role'], r['runs'], len(r['sampled']))
            for r in rows] == [('first', 'search', 2, 2),
                               ('first', 'final', 4, 3)]
    done = calls(evidence)
    assert sum(call.startswith('train') for call in done) == 5
    assert sum(call.startswith('test') for call in done) == 3
    assert all(seconds > 0 for row in rows
               for seconds in row['sampled'].values())


def test_a_run_that_fails_ends_the_sample(evidence):
    (evidence / 'tools/test.py').write_text('raise RuntimeError("no disk")')
    with pytest.raises(RuntimeError, match='no disk'):
        list(replay_time(evidence, evidence / 'again', find_slots(1), 1))


def test_the_estimate_weighs_each_mean_by_its_runs():
    rows = [
        dict(plan='a', role='search', runs=10, recorded_s=7200.,
             sampled={'x': 300., 'y': 420.}),
        dict(plan='b', role='final', runs=5, recorded_s=3600.,
             sampled={'z': 720.})
    ]
    page = replay_time_page(rows, 2, 'make it')
    assert '**1.0 h of runs, 2 at once: 0.5 h**' in page  # the final ones
    assert '**2.0 h of runs, 2 at once: 1.0 h**' in page
    assert '3.0 h, 1.5 h). The sample itself took 0.40 h' in page
    assert '| a | search | 10 | 720 | 2 | 360 | 1.00 |' in page


def test_the_shipped_page_is_that_of_its_times():
    found = json.loads((SHIPPED / 'replay_time.json').read_text())
    assert (SHIPPED / 'README.md').read_text() == replay_time_page(**found)
