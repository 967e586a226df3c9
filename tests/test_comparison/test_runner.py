"""Which runs a comparison makes, and what it makes of those that end badly."""
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import psutil
import pytest
from fakes import RATES, TWO, calls, write_plan

from etta_mm.comparison import (BusyError, Comparison, Slot, find_slots,
                                read_plan, results)
from etta_mm.comparison.execution import run_in_slots
from etta_mm.comparison.plan import MAX_BEYOND
from etta_mm.comparison.results import choose, measure, merge_rows

CRASH = dict(
    name='crash', config='configs/fake.py', options={'behaviour.crash': True})


def compare(root, slots=None, **values):
    """Run a plan; returns (failed runs, rows of results.json)."""
    plan = read_plan(write_plan(root, **values), root)
    comparison = Comparison(plan, root, 'work', 'out')
    failed = comparison.run(slots or find_slots(1))
    return failed, json.loads((root / 'out/results.json').read_text())['rows']


def test_the_rate_is_chosen_by_validation_and_only_the_chosen_is_tested(root):
    _, rows = compare(root, methods=TWO[:1])
    assert calls(root) == [
        'train 0.001 0', 'train 0.003 0', 'train 0.01 0', 'test 0.003 0',
        'train 0.003 1', 'test 0.003 1'
    ]
    assert [(r['lr'], r['seed'], r['role'], r['value']) for r in rows] == [
        (0.001, 0, 'search', None), (0.01, 0, 'search', None),
        (0.003, 0, 'final', 63.), (0.003, 1, 'final', 64.)
    ]


@pytest.mark.parametrize('rates, trained', [
    ([3e-4, 1e-3], [3e-4, 1e-3, 3e-3, 1e-2]),
    ([1e-2, 3e-2], [1e-2, 3e-2, 3e-3, 1e-3]),
    ([8e-4, 2e-3], [8e-4, 2e-3, 1e-2]),
])
def test_a_search_goes_on_until_the_best_rate_lies_between_two(
        root, rates, trained):
    methods = [dict(TWO[0], lr=rates)]
    failed, rows = compare(root, methods=methods, seeds=[0])
    done = calls(root)
    assert done[:-1] == [f'train {rate:g} 0' for rate in trained]
    best = min(trained, key=lambda rate: abs(rate - 3e-3))
    assert not failed and done[-1] == f'test {best:g} 0'
    report = (root / 'out/README.md').read_text()
    assert all(f'{rate:g}: ' in report for rate in trained)
    assert compare(root, methods=methods, seeds=[0])[1] == rows
    assert calls(root) == []


def test_a_search_ends_where_no_rate_is_best_or_all_beyond_are_better(root):
    plan = read_plan(write_plan(root, methods=TWO[:1]), root)
    point, values = plan.points[0], dict.fromkeys(RATES)
    assert len(plan.candidates(point, values)) == len(RATES)
    rates = {rate: 0. for rate in RATES}
    for _ in range(2 * MAX_BEYOND):
        values = {rate: rate for rate in rates}
        rates = [run.rate for run in plan.candidates(point, values)]
    assert rates == [*RATES, 3e-2, 1e-1, 3e-1, 1.]


def test_a_search_goes_on_from_an_end_that_is_as_good_as_the_best(root):
    plan = read_plan(write_plan(root, methods=TWO[:1]), root)
    for values, added in (([1., 9., 9.], 3e-2), ([9., 9., 1.], 3e-4)):
        found = plan.candidates(plan.points[0], dict(zip(RATES, values)))
        assert {run.rate for run in found} == {*RATES, added}


@pytest.mark.parametrize('diverged', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('place', range(3))
def test_a_rate_that_diverged_is_never_chosen(place, diverged):
    values = [70., 80.]
    values.insert(place, diverged)
    rows = [dict(lr=r, val_value=v) for r, v in zip(RATES, values)]
    assert choose(rows) == RATES[values.index(80.)]
    assert choose([rows[place]]) is None


@pytest.mark.parametrize('diverged', [math.nan, math.inf, None])
def test_a_rate_that_diverged_hides_no_better_end_of_a_search(root, diverged):
    plan = read_plan(write_plan(root, methods=TWO[:1]), root)
    for values, added in (([diverged, 70., 80.], {3e-2}),
                          ([80., 70., diverged], {3e-4}),
                          ([70., 80., diverged], set()),
                          ([diverged] * 3, set())):
        found = plan.candidates(plan.points[0], dict(zip(RATES, values)))
        assert {run.rate for run in found} == {*RATES, *added}


def test_a_search_seed_of_its_own_counts_for_nothing_but_the_search(root):
    _, rows = compare(root, methods=TWO[:1], seeds=[1, 2], search_seed=0)
    assert [(r['seed'], r['role'])
            for r in rows] == [(0, 'search')] * 3 + [(1, 'final'),
                                                     (2, 'final')]


def test_a_row_holds_what_the_logs_say(root):
    row = compare(root, methods=TWO[1:], seeds=[1])[1][0]
    assert row['validation'] == [[1, 80.], [2, 81.]]
    assert (row['val_value'], row['value']) == (81., 62.)
    assert row['step_time_s'] == 0.1  # 9 s is the first log interval
    assert row['samples_per_s'] == 8 / 0.1
    assert row['trained_percent'] == 25
    # Of a run too short to be looked at, the system's count is taken, which
    # holds what the parent had.
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 1e6 < row['peak_memory_bytes'] < 1e9 + parent
    assert row['wall_s'] > 0
    assert (row['host'], row['claims'], row['metric']) == ('Fake', ['C0'],
                                                           'accuracy/top1')


def test_no_row_and_no_report_names_the_machine(root):
    compare(root, methods=[TWO[1], CRASH], seeds=[0])
    for path in (root / 'out').glob('*.[jm]*'):
        assert str(root) not in path.read_text(), path


def test_a_finished_run_is_not_run_again(root):
    _, before = compare(root, methods=TWO[:1], seeds=[0])
    calls(root)
    assert compare(root, methods=TWO[:1], seeds=[0])[1] == before
    assert calls(root) == []
    longer = compare(root, methods=TWO[:1])[1]
    assert calls(root) == ['train 0.003 1', 'test 0.003 1']
    assert len(longer) == len(before) + 1


def test_results_json_alone_is_enough_to_know_a_finished_run(root):
    _, before = compare(root, methods=TWO[:1], seeds=[0])
    calls(root)
    (root / 'work').rename(root / 'gone')
    assert compare(root, methods=TWO[:1], seeds=[0])[1] == before
    assert calls(root) == []


def test_plans_share_their_runs(root):
    compare(root, methods=TWO[:1], seeds=[0])
    calls(root)
    (root / 'out').rename(root / 'before')
    (root / 'work').rename(root / 'gone')
    (root / 'other').mkdir()
    (root / 'other/results.json').write_text('{"losses": []}')
    _, rows = compare(root, methods=TWO, seeds=[0, 1], claims=['C9'])
    assert sorted(calls(root)) == [
        'test 0.001 0', 'test 0.001 1', 'test 0.003 1', 'train 0.001 0',
        'train 0.001 1', 'train 0.003 1'
    ]
    assert all(row['claims'] == ['C9'] for row in rows)


def test_known_rates_take_the_place_of_the_search(root):
    compare(root, methods=TWO)
    results = json.loads((root / 'out/results.json').read_text())['rows']
    calls(root)
    plan = read_plan(write_plan(root, methods=TWO), root).with_rates(results)
    again = Comparison(plan, root, 'work2', 'work2/again')
    assert again.num_runs == 4
    assert again.run(find_slots(1)) == 0
    assert [c for c in calls(root) if c.startswith('train')] == [
        'train 0.003 0', 'train 0.003 1', 'train 0.001 0', 'train 0.001 1'
    ]
    finals = [row for row in results if row['role'] == 'final']
    assert [(r['id'], r['value'], r['role']) for r in again.rows()
            ] == [(r['id'], r['value'], 'final') for r in finals]
    with pytest.raises(ValueError, match="no final run of 'A', budget 0"):
        plan = read_plan(write_plan(root, methods=TWO), root)
        plan.with_rates([dict(r, role='search') for r in results])


def test_changed_settings_are_another_run(root):
    compare(root, methods=TWO[1:], seeds=[0])
    calls(root)
    compare(root, methods=TWO[1:], seeds=[0], options={'behaviour.new': 1})
    assert calls(root) == ['train 0.001 0', 'test 0.001 0']


def test_a_crashing_run_is_marked_and_the_others_go_on(root):
    failed, rows = compare(root, methods=[CRASH, TWO[1]], seeds=[0])
    assert failed == 1
    assert [r['status'] for r in rows] == ['failed', 'finished']
    assert rows[0]['error'] == 'RuntimeError: no such thing in data'
    report = (root / 'out/README.md').read_text()
    assert '0 finished, 1 failed' in report
    assert rows[0]['error'] in report
    calls(root)
    assert compare(root, methods=[CRASH, TWO[1]], seeds=[0])[0] == 1
    assert calls(root) == ['train 1.0 0']  # tried once more, alone


def test_a_metric_that_nobody_logs_is_named_beside_those_logged(root):
    failed, rows = compare(
        root, methods=TWO[1:], seeds=[0], metric='coco/bbox_mAP')
    assert failed == 1
    assert "no 'coco/bbox_mAP', but accuracy/top1, accuracy/top5" in rows[0]['error']


def test_a_test_that_has_logged_nothing_is_said(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/run.json').write_text('')
    with pytest.raises(ValueError, match="no 'top1', but nothing"):
        results.tested(tmp_path, 'top1')


class Task:
    """Stands in a slot until it is told to end."""

    def __init__(self, slot):
        self.slot, self.row, self.killed = slot, None, False

    def poll(self):
        return self.row

    def kill(self):
        self.killed = True


def test_a_loop_that_is_left_early_kills_what_still_runs():
    begun = []

    def begin(slot):
        begun.append(Task(slot))
        return begun[-1]

    with closing(run_in_slots(['a', 'b'], begin)) as ended:
        threading.Timer(0.2, lambda: setattr(begun[1], 'row', {})).start()
        assert next(ended) is begun[1]
    assert [(task.slot, task.killed) for task in begun] == [('a', True),
                                                            ('b', False)]


def test_a_killed_training_goes_on_from_its_checkpoint(root):
    options = {'behaviour.die_at': 1}
    failed, rows = compare(
        root, methods=TWO[1:], seeds=[0], options=options)
    assert failed == 1 and 'signal 9' in rows[0]['error']
    failed, rows = compare(
        root, methods=TWO[1:], seeds=[0], options=options)
    assert failed == 0
    assert calls(root) == [
        'train 0.001 0', 'train 0.001 0 --resume', 'test 0.001 0'
    ]


def test_a_training_that_stopped_early_is_not_done_once_more(root):
    plan = dict(methods=TWO[1:], seeds=[0],
                options={'behaviour.die_at': 1, 'behaviour.stop_at': 1})
    compare(root, **plan)
    assert compare(root, **plan)[0] == 0
    assert calls(root) == [
        'train 0.001 0', 'train 0.001 0 --resume', 'test 0.001 0'
    ]


@pytest.mark.parametrize('is_beside', [False, True])
def test_another_metric_is_measured_and_not_taken_for_the_first(
        root, is_beside):
    plan = dict(methods=TWO[1:], seeds=[0])
    first = compare(root, **plan)[1]
    calls(root)
    if is_beside:  # another plan with the same runs, and its own folder
        (root / 'out').rename(root / 'beside')
    second = compare(root, **plan, metric='accuracy/top5')[1]
    assert calls(root) == ['train 0.001 0 --resume', 'test 0.001 0']
    for before, after in zip(first, second):
        assert after['metric'] == 'accuracy/top5'
        assert after['id'] == before['id']
        for key in ('value', 'val_value'):
            assert after[key] == before[key] + 5
        assert after['wall_s'] > before['wall_s']
    kept = root / 'work/replaced_results.json'
    assert is_beside or [r['metric'] for r in json.loads(
        kept.read_text())['rows']] == ['accuracy/top1']


CUT_SHORT = '{"loss": 1.0, "tim'


@pytest.mark.parametrize('broken', [
    CUT_SHORT, f'{CUT_SHORT}\n', f'{CUT_SHORT}{{"step": 9}}\n', '\0\0\n', '9'
], ids=['at the end', 'a line', 'before another', 'zeros', 'a number'])
def test_a_line_cut_short_in_a_log_costs_no_training(root, broken):
    plan = dict(methods=TWO[1:], seeds=[0], options={'behaviour.die_at': 1})
    compare(root, **plan)
    log, = (root / 'work').glob('*/train/*/vis_data/scalars.json')
    log.write_text(log.read_text() + broken)
    failed, rows = compare(root, **plan)
    assert not failed and rows[0]['validation'] == [[1, 79.], [2, 80.]]
    assert calls(root) == [
        'train 0.001 0', 'train 0.001 0 --resume', 'test 0.001 0'
    ]


def test_what_stands_behind_a_line_cut_short_is_read(tmp_path):
    log = tmp_path / '0/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_bytes(b'{"loss": 1.0, "time": 2.0}\n{"loss": 1.0, "t\xff' +
                    b'{"accuracy/top1": 80.0, "step": 1}\n')
    found = measure(tmp_path, 'accuracy/top1', 8)
    assert found['validation'] == [[1, 80.]] and found['step_time_s'] == 2.


def test_a_training_without_its_last_validation_is_done_once_more(root):
    methods, seeds = TWO[1:], [0]
    compare(root, methods=methods, seeds=seeds)
    record = next((root / 'work').glob('*/run.json'))
    log = next(record.parent.glob('train/*/vis_data/scalars.json'))
    log.write_text(''.join(log.read_text().splitlines(True)[:-1]))
    row = json.loads(record.read_text())
    row.update(trained=False, status='running', val_value=None)
    record.write_text(json.dumps(row))
    # The resumed session finds nothing to do, as mmengine's does.
    (root / 'tools/train.py').write_text(
        'import sys\nif "--resume" in sys.argv: sys.exit()\n' +
        (root / 'tools/train.py').read_text())
    calls(root)
    _, rows = compare(root, methods=methods, seeds=seeds)
    assert calls(root) == ['train 0.001 0', 'test 0.001 0']
    assert rows[0]['validation'][-1] == [2, 80.]


def test_a_training_killed_in_its_only_validation_is_done_once_more(root):
    methods, seeds = TWO[1:], [0]
    compare(root, methods=methods, seeds=seeds)
    record = next((root / 'work').glob('*/run.json'))
    log = next(record.parent.glob('train/*/vis_data/scalars.json'))
    log.write_text(''.join(line for line in log.read_text().splitlines(True)
                           if 'accuracy' not in line))
    row = json.loads(record.read_text())
    record.write_text(json.dumps(dict(row, trained=False, status='running')))
    (root / 'out/results.json').unlink()
    calls(root)
    # Resumed at its end, mmengine's loop validates no more.
    train = root / 'tools/train.py'
    text = train.read_text()
    train.write_text(text.replace(
        "print(json.dumps({'accuracy",
        "'--resume' in sys.argv or print(json.dumps({'accuracy"))
    failed, rows = compare(root, methods=methods, seeds=seeds)
    train.write_text(text)
    assert failed == 0 and rows[0]['val_value'] == 80.
    assert calls(root) == [
        'train 0.001 0 --resume', 'train 0.001 0', 'test 0.001 0'
    ]


def test_results_of_other_settings_are_kept_beside_the_runs(root, capsys):
    _, before = compare(root, methods=TWO[1:], seeds=[0])
    compare(root, methods=TWO[1:], seeds=[1])
    kept = json.loads((root / 'work/replaced_results.json').read_text())
    assert kept['rows'] == before
    assert '1 runs of results.json are not of this plan' in (
        capsys.readouterr().out)


def test_a_plan_that_is_back_finds_the_results_it_once_had(root):
    plans = [dict(methods=TWO[1:], seeds=[seed]) for seed in range(3)]
    before = compare(root, **plans[0])[1]
    (root / 'work').rename(root / 'gone')  # results.json alone has them
    others = [compare(root, **plan)[1] for plan in plans[1:]]
    kept = json.loads((root / 'work/replaced_results.json').read_text())
    assert kept['rows'] == before + others[0]
    (root / 'work/replaced_results.json').rename(root / 'kept.json')
    (root / 'work').rename(root / 'gone2')
    (root / 'work').mkdir()
    (root / 'kept.json').rename(root / 'work/replaced_results.json')
    calls(root)
    for plan, rows in zip(plans, [before, *others]):
        assert compare(root, **plan)[1] == rows
    assert calls(root) == []


def test_of_the_rows_of_a_run_the_one_that_got_furthest_is_kept():
    failed, trained, tested = (
        dict(id='a', hash='1', val_value=val_value, value=value)
        for val_value, value in ((None, None), (80., None), (80., 70.)))
    for rows in ([failed, trained, tested], [tested, trained, failed]):
        assert merge_rows(rows) == [tested]
        assert merge_rows([r for r in rows if r is not tested]) == [trained]
    other = dict(tested, hash='2', value=60.)
    assert merge_rows([tested, other, dict(other)]) == [tested, other]


def test_runs_share_the_machine(root):
    core = sorted(os.sched_getaffinity(0))[:1]
    slots = [Slot(tuple(core), None, 'CPU')] * 2
    compare(root, slots, methods=TWO[1:], options={'behaviour.sleep': 0.5})
    (begin, end), (begin2, end2) = (
        map(float, line.split())
        for line in (root / 'times.log').read_text().splitlines())
    assert max(begin, begin2) < min(end, end2)


def test_more_jobs_than_room_are_refused():
    with pytest.raises(ValueError, match='--jobs 1000: this machine has room'):
        find_slots(1000)


def test_a_run_is_pinned_to_its_cores_with_as_many_threads(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {4, 5, 6, 7})
    first, second = find_slots(2)
    assert (first.cores, second.cores) == ((4, 5), (6, 7))
    assert second.environment()['OMP_NUM_THREADS'] == '2'
    assert second.device == 'CPU, 2 threads'


def test_two_comparisons_in_one_folder_are_refused(root):
    plan = read_plan(write_plan(root, methods=TWO[1:]), root)
    (root / 'work').mkdir()
    script = (f'import fcntl, time; f = open({str(root / "work/.lock")!r}, '
              '"w"); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); '
              'time.sleep(60)')
    other = subprocess.Popen([sys.executable, '-c', script],
                             stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(BusyError, match='another comparison is running'):
            Comparison(plan, root, 'work', 'out').run(find_slots(1))
    finally:
        other.kill()
        other.communicate()


def test_an_interrupted_comparison_ends_its_runs_and_goes_on(root):
    plan = read_plan(
        write_plan(root, methods=TWO[1:], options={'behaviour.sleep': 30}),
        root)
    comparison = Comparison(plan, root, 'work', 'out')
    others = set(psutil.Process().children())
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 1)
    began = time.time()
    with pytest.raises(KeyboardInterrupt):
        comparison.run(find_slots(1))
    assert time.time() - began < 20
    left = set(psutil.Process().children()) - others
    assert not left, left
    record = json.loads(next((root / 'work').glob('*/run.json')).read_text())
    assert record['status'] == 'running'
    assert json.loads((root / 'out/results.json').read_text())['rows'] == []


def test_dry_run_names_what_is_to_come(root):
    plan = read_plan(write_plan(root), root)
    lines = list(Comparison(plan, root, 'work', 'out').outline())
    assert len(lines) == len(RATES) + 2 + 1
    assert lines[-1] == ('A b0, seeds 0, 1: at the rate that the search '
                         'chooses')
    assert calls(root) == [] and not (root / 'out').exists()


def test_a_method_whose_search_found_no_rate_is_not_to_come(root):
    plan = read_plan(write_plan(root, methods=TWO[:1]), root)
    comparison = Comparison(plan, root, 'work', 'out')
    assert comparison.num_runs == len(RATES) + 1
    for run, _ in list(comparison.tasks()):
        comparison.row(run).update(
            status='finished', trained=True, val_value=math.nan)
    lines = list(comparison.outline())
    assert len(lines) == len(RATES) + 1
    assert lines[-1] == ('A b0, seeds 0, 1: not run, for the search has found '
                         'no rate')
    assert comparison.num_runs == len(RATES)
