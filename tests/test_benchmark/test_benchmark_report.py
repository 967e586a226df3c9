"""The benchmark's report: medians, failures and files."""
import json
from pathlib import Path

import pytest

from etta_mm.benchmark.cases import CASES, Case
from etta_mm.benchmark.methods import METHODS, methods_of
from etta_mm.benchmark.report import (markdown, ratios, summarize,
                                      write_report)

SHIPPED = Path(__file__).parents[2] / 'docs/evidence/benchmark'
SETTINGS = dict(batch=4, device='cpu')


def run(method: str, forward, **kwargs) -> dict:
    found = dict(
        case='vit_b16',
        method=method,
        total=100,
        trained=5,
        start_s=1.,
        forward_s=list(forward),
        backward_s=[1.] * len(forward),
        optimizer_s=[0.] * len(forward),
        weight_bytes=1,
        gradient_bytes=1,
        optimizer_bytes=1,
        peak_bytes=1,
        activation_bytes=1,
        latency_s={1: [1.], 8: [2.]},
        checkpoint_bytes=1)
    return dict(found, **kwargs)


def test_the_median_is_that_of_all_steps_of_all_rounds():
    runs = [run('etta', [1., 1., 9.]), run('etta', [3., 3.])]
    found = summarize(runs, batch=4)['vit_b16']['etta']
    assert found['forward_s'] == 3.
    assert found['step_s'] == 4.
    assert found['images_per_s'] == 1.
    assert found['latency_s'] == {1: 1., 8: 2.}


def test_a_failed_method_is_a_row_of_its_own(tmp_path):
    failed = dict(case='vit_b16', method='lora', error='out of memory')
    path = write_report(
        [run('floor', [1.]), run('etta', [3.]), failed], SETTINGS, tmp_path)
    text = path.read_text()
    assert '| lora | failed: out of memory |' in text
    assert '| 2.00 |' in text  # ETTA's step of 4 s over the floor's of 2 s
    assert (tmp_path / 'benchmark.png').stat().st_size
    saved = json.loads((tmp_path / 'benchmark.json').read_text())
    assert saved['settings'] == SETTINGS and len(saved['runs']) == 3


def test_every_table_has_as_many_cells_in_each_row(tmp_path):
    failed = dict(case='vit_b16', method='lora', error='out of memory')
    text = write_report([run('base', [1.]), failed], SETTINGS,
                        tmp_path).read_text()
    tables = [part for part in text.split('\n\n') if part.startswith('|')]
    assert len(tables) == 2
    for table in tables:
        rows = table.strip().splitlines()
        assert len({row.count('|') for row in rows}) == 1


def test_the_ratios_are_those_of_etta_to_the_others():
    runs = [
        run('base', [1.], latency_s={'1': [2.], '8': [8.]}),
        run('full', [7.], peak_bytes=4, flops=400., calls=20),
        run('etta', [3.],
            peak_bytes=1,
            flops=100.,
            calls=10,
            latency_s={
                '1': [1.],
                '8': [10.]
            }),
        dict(case='vit_b16', method='floor', error='out of memory')
    ]
    found = summarize(runs, batch=4)
    assert ratios('vit_b16', found['vit_b16']) == [
        'vit_b16', '0.50', '', '', '0.25', '', '0.50', '0.25', '0.50',
        '1.25'
    ]


def test_etta_with_fast_sampling_has_a_row_of_its_own():
    """Against what is there without ETTA, and its own floor."""
    runs = [
        run('full', [7.]), run('floor', [7.]), run('etta', [7.]),
        run('floor_fast_cpu', [1.]), run('etta_fast_cpu', [3.])
    ]
    text = markdown(summarize(runs, batch=4), SETTINGS)
    assert '| vit_b16 | 1.00 | 1.00 |' in text
    assert '| vit_b16_fast_cpu | 0.50 | 2.00 |' in text


@pytest.mark.parametrize(
    'path', sorted(SHIPPED.glob('*/benchmark.json')), ids=lambda p: p.parent.name)
def test_a_shipped_table_is_that_of_its_measurements(path):
    found = json.loads(path.read_text())
    assert path.with_suffix('.md').read_text() == markdown(
        found['summary'], found['settings'])


@pytest.mark.parametrize('name', CASES)
def test_every_case_has_its_rivals_and_the_floor(name):
    methods = methods_of(Case(name))
    assert set(methods) <= set(METHODS)
    assert {'base', 'floor', 'head', 'etta', 'serial', 'lora', 'prefix',
            'full', 'hf_peft_lora'} <= set(methods)
    assert ('etta_fast_cpu' in methods) == name.startswith('deformable')
    assert 'etta_fast_cpu' not in methods_of(Case(name, device='cuda'))


def test_an_unknown_case_is_an_error_that_names_the_cases():
    with pytest.raises(KeyError, match='the cases are detr_r50'):
        Case('yolo')
