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
    """A checkout with two plans that have been run; they share method A, which
    belongs to the plan that is not for the defaults."""
    (root / 'configs/comparison').mkdir()
    for name, methods, claims in (('early', TWO[:1], ['C0', 'defaults']),
                                  ('later', TWO, ['C0'])):
        path = write_plan(root, methods=methods, claims=claims).rename(
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
            for r in rows] == [('later', 'search', 2, 2),
                               ('later', 'final', 4, 3)]
    done = calls(evidence)
    assert sum(call.startswith('train') for call in done) == 5
    assert sum(call.startswith('test') for call in done) == 3
    sampled = [found for row in rows for found in row['sampled'].values()]
    assert all(found['wall_s'] > 0 and found['now'] == found['recorded'] > 60
               for found in sampled)
    # A search has its validation, which scores more here than the test has.
    searched, final = ([found['now'] for found in row['sampled'].values()]
                       for row in rows)
    assert min(searched) > 70 > max(final)


def test_a_run_that_fails_ends_the_sample(evidence):
    (evidence / 'tools/test.py').write_text('raise RuntimeError("no disk")')
    with pytest.raises(RuntimeError, match='no disk'):
        list(replay_time(evidence, evidence / 'again', find_slots(1), 1))


def test_the_estimate_weighs_each_mean_by_its_runs():
    def took(seconds: float) -> dict:
        return dict(wall_s=seconds, metric='top1', recorded=80., now=81.25)

    rows = [
        dict(plan='a', replays=['C1'], role='search', runs=10,
             recorded_s=7200., sampled={'x': took(300.), 'y': took(420.)}),
        dict(plan='b', replays=['C2'], role='final', runs=5, recorded_s=3600.,
             sampled={'z': took(720.)}),
        dict(plan='c', replays=['C2', 'defaults'], role='final', runs=15,
             recorded_s=3600., sampled={'u': took(720.)})
    ]
    page = replay_time_page(rows, 2, 'make it')
    for words in ('--rates`): **1.0 h of runs, 2 at once: 0.5 h**',
                  'machines: 1.0 h, 0.5 h)', 'once more: **2.0 h of runs, 2 '
                  'at once: 1.0 h**', 'machines: 3.0 h, 1.5 h)', 'known rates: '
                  '**4.0 h of runs, 2 at once: 2.0 h**', '2.0 h, 1.0 h)',
                  'its searches: **5.0 h of runs, 2 at once: 2.5 h**',
                  'machines: 4.0 h, 2.0 h)', 'The sample, 4 runs in 0.60 h',
                  '| a | C1 | search | 10 | 720 | 2 | 360 | 1.00 |',
                  '| `z` | top1 | 80 | 81.25 | 720 |'):
        assert words in page, words


def test_the_shipped_page_is_that_of_its_times():
    found = json.loads((SHIPPED / 'replay_time.json').read_text())
    assert (SHIPPED / 'README.md').read_text() == replay_time_page(**found)
