"""What tools/compare.py makes of its arguments."""
import pytest
from runs import ROOT, load_tool

from etta_mm.comparison import read_rows, write_rows

PLAN = str(ROOT / 'configs/comparison/vit_split.py')


def outline(capsys, *args) -> str:
    assert load_tool('compare').main([PLAN, '--dry-run', *args]) == 0
    return capsys.readouterr().out


def test_known_rates_leave_final_runs_alone(capsys, tmp_path):
    # Nothing that has been run in this checkout, or by another test.
    own = ['--out', str(tmp_path / 'out'), '--work-dir', str(tmp_path / 'work')]
    lines = outline(capsys, '--rates', *own).splitlines()
    assert len(lines) == 12  # four splits, three seeds
    assert all('  final  to come' in line for line in lines)
    searched = outline(capsys, *own).splitlines()
    # The first two rates of each split.
    assert sum('  search  to come' in line for line in searched) == 8


@pytest.mark.parametrize('args, message', [
    (['--rates'], 'give it another folder with --out'),
    (['--rates', 'docs'], "results.json. does not exist; name the folder"),
    (['--rates', 'docs/evidence/vit_rivals', '--out', 'work_dirs/split'],
     "no final run of 'b = 62, l = 2', budget 0"),
])
def test_rates_that_cannot_be_read_are_an_error(capsys, args, message):
    with pytest.raises(SystemExit, match=message):
        outline(capsys, *args)


@pytest.mark.parametrize('option', ['--work-dir', '--out'])
def test_a_folder_that_cannot_be_written_is_an_error(option, tmp_path):
    (tmp_path / 'file').touch()
    folders = {'--work-dir': tmp_path / 'work', '--out': tmp_path / 'out',
               option: tmp_path / 'file/inside'}
    args = [str(word) for pair in folders.items() for word in pair]
    with pytest.raises(SystemExit, match=f'error: {option} .*cannot be writ'):
        load_tool('compare').main([PLAN, '--jobs', '1', *args])


def test_a_report_says_how_to_make_it_again(tmp_path):
    out = str(tmp_path / 'out')
    args = [PLAN, '--rates', '--out', out]
    rows = read_rows(ROOT / 'docs/evidence/vit_split/results.json')
    write_rows(tmp_path / 'out/results.json',
               [row for row in rows if row['role'] == 'final'])
    assert load_tool('compare').main([*args, '--report-only']) == 0
    text = (tmp_path / 'out/README.md').read_text()
    assert 'Learning rates' not in text
    assert (f'\npython tools/compare.py configs/comparison/vit_split.py '
            f'--rates --out {out}\n') in text
