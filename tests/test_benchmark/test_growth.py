"""A step grows as the floor does, and by the tuners' own work."""
import json
from pathlib import Path

import pytest

from etta_mm.benchmark.cases import Case
from etta_mm.benchmark.growth import (AXES, METHODS, contestant, growth,
                                      measure_steps)
from etta_mm.benchmark.growth_report import growth_page, write_growth

SHIPPED = Path(__file__).resolve().parents[2] / 'docs/evidence/growth'
VALUES = dict(
    bottleneck_dims=(8, 16, 24),
    num_prefix=(2, 4, 6),
    image_size=(64, 128),
    depth=(1, 3))
MARGIN = 1.1


def case_of(name: str) -> Case:
    return Case(name, (64, 64), batch=1, depth=1)


def measured(name: str, axis: str, value: int, method: str) -> dict:
    one = contestant(case_of(name), axis, value, method)
    return measure_steps(dict(one=one), 'cpu', 1, 0)['one']


@pytest.mark.parametrize('name', ['detr_r50', 'vit_b16'])
@pytest.mark.parametrize('axis', VALUES)
def test_a_step_grows_by_the_floor_and_the_tuners_own_work(name, axis):
    ours, floors = ([
        measured(name, axis, value, method) for value in values
    ] for method, values in zip(METHODS, (VALUES[axis], VALUES[axis][-2:])))
    assert ours[0]['operations'] < ours[-1]['operations']
    for one, floor in zip(ours[-2:], floors):
        assert one['own_operations'] > floor['own_operations'] == 0
        assert (one['operations'] - one['own_operations'] <=
                MARGIN * floor['operations'])
    if axis in ('bottleneck_dims', 'num_prefix'):  # linear, the floor constant
        for key in ('operations', 'activation_bytes', 'state_bytes'):
            first, second, third = (one[key] for one in ours)
            assert third - second == second - first > 0, key
            assert len({floor[key] for floor in floors}) == 1


def test_every_value_of_every_axis_has_every_method(monkeypatch, tmp_path):
    monkeypatch.setattr('etta_mm.benchmark.growth.AXES',
                        dict(VALUES, image_size=(0, 64)))
    rows = list(growth(case_of('vit_b16'), steps=1, warmup=0))
    assert [(r['axis'], r['value'], r['method']) for r in rows
            ] == [(axis, value, method) for axis in AXES
                  for value in VALUES[axis] for method in METHODS]
    page = write_growth(rows, dict(batch=1), tmp_path, 'make it')
    lines = [line for line in page.read_text().splitlines() if '|' in line]
    assert len({line.count('|') for line in lines}) == 1
    assert len(lines) == len(rows) + 2 * len(AXES)
    for axis in AXES:
        assert f']({axis}.png)' in page.read_text()
        assert (tmp_path / f'{axis}.png').stat().st_size > 1000
    again = json.loads(json.dumps(rows))
    assert growth_page(again, dict(batch=1), 'make it') == page.read_text()


def test_the_shipped_page_is_that_of_its_measurements():
    found = json.loads((SHIPPED / 'growth.json').read_text())
    assert (SHIPPED / 'README.md').read_text() == growth_page(
        found['rows'], found['settings'], found['command'])
    for row in found['rows']:
        if row['method'] == 'ETTA':
            floor, = (
                r for r in found['rows'] if r['method'] == 'floor' and all(
                    r[key] == row[key] for key in ('case', 'axis', 'value')))
            assert (row['operations'] - row['own_operations'] <=
                    MARGIN * floor['operations'])
