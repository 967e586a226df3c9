"""The budget solver: what it promises is what a count of the model says."""
import copy
import re
from functools import lru_cache

import pytest
from hosts import HOSTS
from mmengine.config import Config
from torch import nn

from etta_mm import count_parameters, solve_bottleneck
from etta_mm.engine import Budget, build_on_meta

BOTTLENECK, NUM_PREFIX = 5, 3
WHOLES = ('total', 'base')
#: Every kind of parameter that a budget counts.
TUNINGS = dict(
    etta=dict(
        ffn=dict(type='ParallelAdapter', bottleneck_dims=4),
        attn=dict(type='ScaledPrefix', num_prefix=2)),
    learned_scale=dict(
        ffn=dict(
            type='ParallelAdapter', bottleneck_dims=4, learn_scale=True),
        attn=dict(type='ScaledPrefix', num_prefix=2, learn_scale=False)),
    everything=dict(
        ffn=[
            dict(type='ParallelAdapter', bottleneck_dims=4),
            dict(type='SerialAdapter', bottleneck_dims=2)
        ],
        attn=[
            dict(type='ParallelAdapter', bottleneck_dims=4),
            dict(type='Prefix', num_prefix=2),
            dict(type='LoRA', rank=2)
        ]),
    adapter_alone=dict(ffn=dict(type='ParallelAdapter', bottleneck_dims=4)),
)


def sized(tuning: dict, bottleneck_dims: int, num_prefix: int) -> dict:
    """A copy of ``tuning`` with other sizes; without prefixes where l = 0."""
    tuning = copy.deepcopy(tuning)
    for site in ('ffn', 'attn'):
        cfgs = tuning.get(site, [])
        cfgs = cfgs if isinstance(cfgs, list) else [cfgs]
        for cfg in cfgs:
            if cfg['type'] == 'ParallelAdapter':
                cfg['bottleneck_dims'] = bottleneck_dims
            if 'num_prefix' in cfg:
                cfg['num_prefix'] = num_prefix
        tuning[site] = [c for c in cfgs if c.get('num_prefix') != 0]
    return tuning


def build(host: str, tuning: dict) -> nn.Module:
    tuning = copy.deepcopy(tuning)
    if HOSTS[host].head:
        tuning['train'] = [HOSTS[host].head]
    return HOSTS[host].build(tuning)


@lru_cache(maxsize=None)
def budget(host: str, tuning: str = 'etta') -> Budget:
    return Budget.of(build(host, TUNINGS[tuning]))


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('name', TUNINGS)
def test_what_a_budget_says_of_other_sizes_is_what_a_count_of_them_says(
        host, name):
    lengths = (0, ) if name == 'adapter_alone' else (0, NUM_PREFIX)
    for num_prefix in lengths:
        sizes = (BOTTLENECK, num_prefix)
        report = count_parameters(build(host, sized(TUNINGS[name], *sizes)))
        ours = budget(host, name)
        assert ours.base == report.base
        assert ours.added(*sizes) == report.added
        assert ours.trained(*sizes) == report.trainable
        assert ours.percent(*sizes) == report.percent
        assert ours.percent(*sizes, of='base') == report.percent_of_base


@pytest.mark.parametrize('of', WHOLES)
@pytest.mark.parametrize('host', HOSTS)
def test_the_percentage_of_a_bottleneck_gives_it_back(host, of):
    for num_prefix in (0, 1, NUM_PREFIX):
        for b in (1, BOTTLENECK, 64):
            percent = budget(host).percent(b, num_prefix, of)
            assert percent < 100
            assert budget(host).bottleneck(percent, num_prefix, of) == b


@pytest.mark.parametrize('of', WHOLES)
def test_the_bottleneck_is_the_largest_within_the_percentage(of):
    model = build('detr', TUNINGS['etta'])
    percent = budget('detr').percent(BOTTLENECK + 0.5, NUM_PREFIX, of)
    b = solve_bottleneck(model, percent, NUM_PREFIX, of)
    name = 'percent' if of == 'total' else 'percent_of_base'
    below, above = (
        getattr(
            count_parameters(
                build('detr', sized(TUNINGS['etta'], size, NUM_PREFIX))), name)
        for size in (b, b + 1))
    assert below <= percent < above


def test_the_two_wholes_are_base_and_base_plus_added():
    report = count_parameters(build('vit', TUNINGS['etta']))
    assert report.percent == 100 * report.trainable / report.total
    assert report.percent_of_base == 100 * report.trainable / report.base
    assert report.added == sum(
        p.numel() for n, p in build('vit', TUNINGS['etta']).named_parameters()
        if '.tuners.' in n)


@pytest.mark.parametrize('of', WHOLES)
def test_what_cannot_be_met_names_the_least_that_can(of):
    model = build('deformable_twostage', TUNINGS['etta'])
    least = Budget.of(model).percent(1, NUM_PREFIX, of)
    with pytest.raises(ValueError, match='least possible') as error:
        solve_bottleneck(model, least * 0.99, NUM_PREFIX, of)
    said = re.search(r'least possible is ([\d.]+) %', str(error.value))
    assert least <= float(said[1]) < least + 0.01
    assert solve_bottleneck(model, float(said[1]), NUM_PREFIX, of) >= 1


@pytest.mark.parametrize(
    'arguments, error, words', [
        (dict(percent='5'), TypeError, "percent='5'"),
        (dict(percent=True), TypeError, 'number'),
        (dict(percent=0), ValueError, 'between 0 and 100'),
        (dict(percent=100), ValueError, 'between 0 and 100'),
        (dict(percent=float('nan')), ValueError, 'between 0 and 100'),
        (dict(num_prefix=2.), TypeError, 'num_prefix=2.0'),
        (dict(num_prefix=-1), ValueError, 'at least 0'),
        (dict(of='all'), ValueError, 'base . added'),
        (dict(model='config.py'), TypeError, 'nn.Module'),
    ])
def test_a_wrong_argument_is_one_clear_message(arguments, error, words):
    right = dict(
        model=build('vit', TUNINGS['etta']), percent=50., num_prefix=1)
    with pytest.raises(error, match=words):
        solve_bottleneck(**{**right, **arguments})


def test_a_model_without_what_is_sized_is_an_error():
    lora = dict(ffn=dict(type='LoRA', rank=2))
    with pytest.raises(ValueError, match='no ParallelAdapter'):
        solve_bottleneck(build('vit', lora), 5., 0)
    alone = build('vit', TUNINGS['adapter_alone'])
    with pytest.raises(ValueError, match='the model has no prefix'):
        solve_bottleneck(alone, 50., NUM_PREFIX)


def test_a_config_is_counted_without_its_numbers_and_stays_as_it_is():
    model = HOSTS['detr'].config()
    model['tuning'] = dict(TUNINGS['etta'], train=['bbox_head'])
    cfg = Config(dict(default_scope='mmdet', model=model))
    before = copy.deepcopy(cfg.to_dict())
    assert Budget.of(cfg) == budget('detr')
    assert all(p.is_meta for p in build_on_meta(cfg).parameters())
    assert cfg.to_dict() == before
    with pytest.raises(KeyError, match='no model'):
        Budget.of(Config(dict(modle=model)))
