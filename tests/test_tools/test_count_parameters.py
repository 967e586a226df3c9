"""The counting tool, and the page of the docs that is made by counting."""
import json

import pytest
from runs import ROOT, load_tool

CONFIG = str(ROOT / 'configs/etta/et_detr_r50_coco.py')
WITHOUT_ADAPTERS = str(ROOT / 'configs/baselines/lora_attn_detr_r101_coco.py')


def count(*args) -> None:
    load_tool('count_parameters').main([str(arg) for arg in args])


@pytest.fixture
def report(tmp_path, capsys):
    """What the tool saves for the given arguments, and what it prints."""

    def run(*args):
        path = tmp_path / 'report.json'
        count(CONFIG, '--out', path, *args)
        return json.loads(path.read_text()), capsys.readouterr().out

    return run


def test_saved_report_adds_up_and_is_what_is_printed(report):
    saved, printed = report()
    assert saved['total'] == saved['base'] + saved['added']
    assert saved['total'] == sum(row['parameters'] for row in saved['rows'])
    assert saved['trained'] == sum(row['trained'] for row in saved['rows'])
    assert saved['percent'] == 100 * saved['trained'] / saved['total']
    assert saved['percent_of_base'] == 100 * saved['trained'] / saved['base']
    assert {row['part'] for row in saved['rows']} == {
        'base', 'ParallelAdapter', 'ScaledPrefix'}
    for row in saved['rows']:
        assert f'{row["parameters"]:,}' in printed
    assert f'{saved["percent_of_base"]:.2f} % of the base alone' in printed


@pytest.mark.parametrize('of, key', [('total', 'percent'),
                                     ('base', 'percent_of_base')])
def test_the_bottleneck_it_finds_trains_the_percentage_when_it_is_set(
        report, of, key):
    budget = report('--percent', 5.4, '--num-prefix', 20, '--of', of)[0][
        'budget']
    sizes = [
        f'model.tuning.ffn.bottleneck_dims={budget["bottleneck_dims"]}',
        'model.tuning.attn.num_prefix=20'
    ]
    saved, _ = report('--cfg-options', *sizes)
    assert saved['trained'] == budget['trained']
    assert saved[key] == budget[key]
    assert 5.38 < saved[key] <= 5.4


@pytest.mark.parametrize('args, words', [
    (['configs/et_detr_r50_coc.py'], 'Near it: configs/etta/et_detr_r50_coco'),
    (['configs/etta'], 'is a folder'),
    (['README.md'], 'is no config'),
    ([CONFIG, '--percent', 0.5, '--num-prefix', 50], 'least possible is'),
    ([CONFIG, '--percent', 5, '--num-prefix', -1], 'at least 0'),
    ([WITHOUT_ADAPTERS, '--percent', 5, '--num-prefix', 0], 'ParallelAdapter'),
])
def test_what_cannot_be_is_one_message(args, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as error:
        count(*args)
    assert str(error.value).startswith('count_parameters.py: error: ')
    assert words in str(error.value)


@pytest.mark.parametrize('args, words', [
    (['--percent', '5'], '--num-prefix'),
    (['--num-prefix', '5'], '--percent'),
    (['--out', 'report.txt'], '.json'),
])
def test_options_that_do_not_fit_are_refused(args, words, capsys):
    with pytest.raises(SystemExit):
        count(CONFIG, *args)
    assert words in capsys.readouterr().err


def test_budget_page_is_what_its_command_writes(tmp_path):
    load_tool('budget_table').main(['--out', str(tmp_path / 'budget.md')])
    page = (ROOT / 'docs/budget.md').read_text()
    assert (tmp_path / 'budget.md').read_text() == page
    assert 'python tools/budget_table.py' in page
