"""What tools/compare.py makes of its arguments."""
import pytest
from runs import ROOT, load_tool

PLAN = str(ROOT / 'configs/comparison/vit_split.py')


def outline(capsys, *args) -> str:
    assert load_tool('compare').main([PLAN, '--dry-run', *args]) == 0
    return capsys.readouterr().out


def test_known_rates_leave_final_runs_alone(capsys, tmp_path):
    lines = outline(capsys, '--rates', '--out', str(tmp_path)).splitlines()
    assert len(lines) == 12  # four splits, three seeds
    assert all('  final  to come' in line for line in lines)
    searched = outline(capsys, '--out', str(tmp_path)).splitlines()
    assert sum('  search  to come' in line for line in searched) == 12


@pytest.mark.parametrize('args, message', [
    (['--rates'], 'give it another folder with --out'),
    (['--rates', 'docs'], "results.json. does not exist; name the folder"),
    (['--rates', 'docs/evidence/vit_rivals', '--out', 'work_dirs/split'],
     "no final run of 'b = 62, l = 2', budget 0"),
])
def test_rates_that_cannot_be_read_are_an_error(capsys, args, message):
    with pytest.raises(SystemExit, match=message):
        outline(capsys, *args)
