"""Table and figures are functions of the plan and of results.json."""
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import TWO, make_checkout, write_plan

from etta_mm.comparison import (Comparison, find_slots, overview, read_plan,
                                read_rows, replace_table, summarize, total_cost,
                                write_report, write_rows)

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE = sorted(
    path.parent for path in ROOT.glob('docs/evidence/*/results.json')
    if (ROOT / f'configs/comparison/{path.parent.name}.py').exists())
TABLE = [
    '| A | 25.00 | 0.003 | 63.50 ± 0.71 (2) | 0.100 | 80.0 |',
    '| 84.5 (5.6 %) | 2 finished |',
    '| B | 25.00 | 0.001 | 61.50 ± 0.71 (2) |'
]


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """A comparison with its report: (plan, folder)."""
    root = make_checkout(tmp_path_factory.mktemp('done').resolve())
    plan = read_plan(write_plan(root), root)
    Comparison(plan, root, 'work', 'out').run(find_slots(1))
    return plan, root / 'out'


def test_table_and_figures_can_be_made_again_byte_for_byte(done, tmp_path):
    plan, out = done
    write_report(plan, read_rows(out / 'results.json'), tmp_path / 'again')
    names = sorted(path.name for path in (tmp_path / 'again').iterdir())
    assert names == ['README.md', 'trained_percent.png', 'training_curves.png']
    for name in names:
        again = (tmp_path / 'again' / name).read_bytes()
        assert again == (out / name).read_bytes(), name


def test_one_validation_a_run_is_no_curve(done, tmp_path):
    plan, out = done
    rows = read_rows(out / 'results.json')
    for row in rows:
        row['validation'] = row['validation'][-1:]
    write_report(plan, rows, tmp_path)
    assert not (tmp_path / 'training_curves.png').exists()
    assert 'training_curves' not in (tmp_path / 'README.md').read_text()


def test_the_table_says_what_the_rows_say(done):
    plan, out = done
    text = (out / 'README.md').read_text()
    for part in TABLE:
        assert part in text
    assert 'They tie.' in text and 'Claims: C0.' in text
    assert '0.001: 80.00, **0.003: 82.00**, 0.01: 75.00' in text
    assert 'python tools/compare.py configs/plan.py --report-only' in text


def test_the_figures_of_a_verdict_are_those_of_the_table(done, tmp_path):
    plan, out = done
    plan = replace(plan, verdict='A has {A}, {A - B} more than B; C {A - C}.')
    rows = read_rows(out / 'results.json')
    path = write_report(plan, rows, tmp_path)
    assert 'A has 63.50, 2.0 more than B; C –.' in path.read_text()
    for row in rows:  # shares, whose points are hundredths
        row['value'] = row['value'] and row['value'] / 100
    path = write_report(plan, rows, tmp_path)
    assert 'A has 0.6350, 2.0 more than B' in path.read_text()


@pytest.mark.parametrize('folder', EVIDENCE, ids=lambda path: path.name)
def test_every_figure_of_a_verdict_is_there(folder):
    text = (folder / 'README.md').read_text().split('| method |')[0]
    assert '–' not in text and '{' not in text


def test_a_value_of_another_rate_never_enters_the_table(done):
    plan, out = done
    rows = read_rows(out / 'results.json')
    for row in rows:
        if row['role'] == 'search':
            row['value'] = 99.
    assert summarize(plan, rows)[0].values == [63., 64.]


def test_a_share_has_four_digits(done, tmp_path):
    plan, out = done
    rows = read_rows(out / 'results.json')
    for row in rows:
        row['value'] = row['value'] and row['value'] / 100
    write_report(plan, rows, tmp_path)
    assert '0.6350 ± 0.0071 (2)' in (tmp_path / 'README.md').read_text()


@pytest.mark.parametrize('diverged', [math.nan, math.inf])
def test_a_training_that_diverged_is_shown_and_called_no_best(
        diverged, done, tmp_path):
    plan, out = done
    rows = read_rows(out / 'results.json')
    row = next(r for r in rows if r['role'] == 'final' and r['seed'] == 0)
    row.update(val_value=diverged, value=diverged)
    text = write_report(plan, rows, tmp_path).read_text()
    assert f'0.001: 80.00, {row["lr"]}: {diverged:.2f}, 0.01: 75.00' in text
    assert f'| {diverged:.2f} ± nan (2) |' in text


def test_budgets_are_points_of_one_line(root):
    budgets = [dict(options={'behaviour.size': n}) for n in (1, 2)]
    plan = read_plan(
        write_plan(root, methods=[dict(TWO[1], budgets=budgets)], seeds=[0]),
        root)
    Comparison(plan, root, 'work', 'out').run(find_slots(1))
    text = (root / 'out/README.md').read_text()
    assert text.count('| B | 25.00 |') == 2
    assert (root / 'out/trained_percent.png').stat().st_size > 5000


def test_a_plan_without_results_has_a_table_and_no_figures(root, tmp_path):
    write_report(read_plan(write_plan(root), root), [], tmp_path / 'empty')
    assert [p.name for p in (tmp_path / 'empty').iterdir()] == ['README.md']
    assert '0 finished, 2 to come' in (tmp_path / 'empty/README.md').read_text()


def test_a_broken_results_json_is_an_error(root, tmp_path):
    path = write_rows(tmp_path / 'results.json', [])
    assert read_rows(path) == []
    path.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match='is no results.json of tools'):
        read_rows(path)


@pytest.mark.parametrize('folder', EVIDENCE, ids=lambda path: path.name)
def test_the_shipped_table_is_that_of_its_results(folder, tmp_path):
    plan = read_plan(ROOT / f'configs/comparison/{folder.name}.py', ROOT)
    write_report(plan, read_rows(folder / 'results.json'), tmp_path)
    assert (tmp_path / 'README.md').read_bytes() == (folder /
                                                     'README.md').read_bytes()


def test_the_readme_has_the_figures_of_the_comparisons():
    text = (ROOT / 'README.md').read_text()
    assert replace_table(text, overview(ROOT)) == text
    text = (ROOT / 'docs/evidence/README.md').read_text()
    assert replace_table(text, total_cost(ROOT)) == text


def test_a_run_that_two_plans_share_is_counted_once(tmp_path):
    for name, runs in dict(one='ab', two='bc').items():
        plan = tmp_path / f'configs/comparison/{name}.py'
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.touch()
        out = tmp_path / 'docs/evidence' / name
        out.mkdir(parents=True)
        write_rows(out / 'results.json',
                   [dict(id=run, hash=run, wall_s=3600.) for run in runs])
    assert total_cost(tmp_path)[0].startswith(
        '3 runs, one after the other 3.0 h')


def test_an_unfinished_method_has_no_figure_in_the_overview(done, root):
    plan = root / 'configs/comparison/vit_rivals.py'
    plan.parent.mkdir(exist_ok=True)
    write_plan(root, seeds=[0, 1]).rename(plan)
    for name in ('detr_rivals', 'deformable_detr_rivals'):
        plan.with_stem(name).write_text(plan.read_text())
    out = root / 'docs/evidence/vit_rivals'
    out.mkdir(parents=True)
    rows = [
        row for row in read_rows(done[1] / 'results.json')
        if (row['method'], row['seed']) != ('B', 1)
    ]
    # A rate that fails in a search takes nothing from the seeds.
    tried = next(row for row in rows if row['role'] == 'search')
    tried.update(status='failed', val_value=None, error='it diverged')
    write_rows(out / 'results.json', rows)
    lines = overview(root)
    assert lines[2] == ('| A | 63.50 ± 0.71 (25.00 %) | not yet run | not yet '
                        'run |')
    assert lines[3] == '| B | not yet run | not yet run | not yet run |'
    with pytest.raises(ValueError, match='there is no .*results'):
        replace_table('# Title', lines)
