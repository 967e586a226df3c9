"""The rivals' configs: each changes the method and nothing else, and spends the
budget of the ETTA config that it inherits."""
import copy
import re
from functools import lru_cache
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from etta_mm import ParameterReport, count_parameters
from etta_mm.checkpoints.tuned_checkpoint import tuned_roots
from etta_mm.engine import build_on_meta
from etta_mm.layers.sublayer import TunedSublayer
from etta_mm.tuners import Tuner

ROOT = Path(__file__).parents[1] / 'configs'
#: Host and data: the config of ETTA.
HOSTS = dict(
    vit_l16_cifar100='etta/et_vit_l16_cifar100.py',
    detr_r101_coco='etta/et_detr_r101_coco.py',
    deformable_detr_coco='etta/et_deformable_detr_coco.py')
#: What the paper compares with full fine-tuning alone.
LARGER = dict(
    vit_l16_imagenet='etta/et_vit_l16_imagenet.py',
    detr_r101_bigdetection='etta/et_detr_r101_bigdetection.py')
ZOO = dict(
    detr_r101_coco='mmdet::detr/detr_r101_8xb2-500e_coco.py',
    deformable_detr_coco='mmdet::deformable_detr/'
    'deformable-detr_r50_16xb2-50e_coco.py')
#: Method: what stands at a feed-forward network and at an attention.
METHODS = dict(
    adapter_houlsby=('SerialAdapter', 'SerialAdapter'),
    adapter_pfeiffer=('SerialAdapter', None),
    lora_attn=(None, 'LoRA'),
    lora_attn_ffn=('LoRA', 'LoRA'),
    lora_ffn=('LoRA', None),
    prefix=(None, 'Prefix'),
    scaled_prefix=(None, 'ScaledPrefix'),
    parallel_adapter=('ParallelAdapter', None),
    parallel_adapter_attn=(None, 'ParallelAdapter'),
    head_only=(None, None),
    full=(None, None))
UNSIZED = ('head_only', 'full')
ALL = [f'baselines/{m}_{h}.py' for m in METHODS for h in HOSTS]
ALL += [f'baselines/full_{h}.py' for h in LARGER]
SIZED = [n for n in ALL if not n.split('/')[1].startswith(UNSIZED)]
MOST_LINES = 20
MOST_POINTS_APART = 0.2  # of the trained percentage
TRAINED = re.compile(
    r'^# Trained: ([\d,]+) of ([\d,]+) parameters \(([\d.]+) %\)$',
    re.MULTILINE)


def method_and_host(name: str):
    stem = Path(name).stem
    host, = (h for h in {**HOSTS, **LARGER} if stem.endswith(f'_{h}')
             and stem.removesuffix(f'_{h}') in METHODS)
    return stem.removesuffix(f'_{host}'), host


@lru_cache(maxsize=None)
def parse(name: str) -> Config:
    return Config.fromfile(ROOT / name)


@lru_cache(maxsize=None)
def model_of(name: str) -> nn.Module:
    return build_on_meta(parse(name))


def report(name: str) -> ParameterReport:
    return count_parameters(model_of(name))


def etta(name: str) -> str:
    return {**HOSTS, **LARGER}[method_and_host(name)[1]]


def trained_names(model: nn.Module) -> set:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def rates(cfg: Config, model: nn.Module) -> dict:
    """Learning rate and weight decay of every trained parameter, by name."""
    names = {id(p): n for n, p in model.named_parameters()}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    return {
        names[id(p)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups for p in group['params']
        if p.requires_grad
    }


def tuned_sublayers(model: nn.Module, site: str) -> dict:
    """The tuners' types at each tuned sublayer of a site."""
    found = {
        name: {type(t).__name__ for t in module.modules()
               if isinstance(t, Tuner)}
        for name, module in model.named_modules()
        if isinstance(module, TunedSublayer) and module.site == site
    }
    return {name: types for name, types in found.items() if types}


def test_every_method_stands_at_every_host():
    found = {f'baselines/{p.name}' for p in (ROOT / 'baselines').glob('*.py')}
    assert found == set(ALL)


@pytest.mark.parametrize('name', ALL)
def test_config_is_short_and_its_header_is_true(name):
    text = (ROOT / name).read_text()
    assert len(text.splitlines()) <= MOST_LINES
    (trained, total, percent), = TRAINED.findall(text)
    ours = report(name)
    assert trained == f'{ours.trainable:,}'
    assert total == f'{ours.total:,}'
    assert percent == f'{ours.percent:.2f}'
    assert 'not been searched' in ' '.join(text.split('\n# ')) or (
        'not searched' in ' '.join(text.split('\n# ')))


@pytest.mark.parametrize('name', SIZED)
def test_a_rival_spends_the_budget_of_etta(name):
    ours = report(etta(name)).percent
    assert abs(report(name).percent - ours) <= MOST_POINTS_APART
    assert f'({ours:.2f} %)' in (ROOT / name).read_text()


@pytest.mark.parametrize('name', ALL)
def test_a_rival_changes_the_method_and_nothing_else(name):
    method, _ = method_and_host(name)
    ours, ettas = (
        copy.deepcopy(parse(n)._cfg_dict.to_dict()) for n in (name, etta(name)))
    for cfg in (ours, ettas):
        owner = cfg['model']
        owner = owner if 'tuning' in owner else owner['backbone']
        owner.pop('tuning')
        owner.pop('frozen_stages', None) if method == 'head_only' else None
        if method in UNSIZED:
            cfg.pop('custom_hooks')
        if method == 'full':
            cfg['optim_wrapper']['optimizer'].pop('lr')
            for keys in cfg['optim_wrapper']['paramwise_cfg'].values():
                keys.pop('bbox_head', None)
    assert ours == ettas


@pytest.mark.parametrize('name', SIZED)
def test_tuners_stand_at_every_sublayer_of_their_kind_and_at_no_other(name):
    method, _ = method_and_host(name)
    for site, tuner in zip(('ffn', 'attn'), METHODS[method]):
        ours = tuned_sublayers(model_of(name), site)
        ettas = tuned_sublayers(model_of(etta(name)), site)
        assert len(ettas) >= 12  # both tuners of ETTA stand at each
        expected = set() if tuner is None else {tuner}
        assert ours == ({n: expected for n in ettas} if tuner else {})


@pytest.mark.parametrize('name', [n for n in ALL if '/full' not in n])
def test_what_is_trained_is_the_tuners_and_the_head(name):
    model = model_of(name)
    head = 'bbox_head' if hasattr(model, 'bbox_head') else 'head'
    tuners = {
        f'{n}.{k}'
        for n, m in model.named_modules() if isinstance(m, Tuner)
        for k, _ in m.named_parameters()
    }
    assert bool(tuners) == (name in SIZED)
    assert trained_names(model) == tuners | {
        n for n, _ in model.named_parameters() if n.startswith(f'{head}.')
    }


@pytest.mark.parametrize('name', SIZED)
def test_tuners_and_head_learn_at_the_rates_of_etta(name):
    ours, ettas = (rates(parse(n), model_of(n)) for n in (name, etta(name)))
    for kind in ('.tuners.', 'head.'):
        of_kind = [{v for k, v in found.items() if kind in k}
                   for found in (ours, ettas)]
        assert of_kind[0] == of_kind[1] and len(of_kind[0]) == 1


@pytest.mark.parametrize('host', ZOO)
def test_full_fine_tuning_trains_what_the_zoo_trains_at_its_rates(host):
    cfg, zoo = parse(f'baselines/full_{host}.py'), get_config(ZOO[host])
    model, zoo_model = model_of(f'baselines/full_{host}.py'), build_on_meta(zoo)
    assert trained_names(model) == trained_names(zoo_model)
    assert any(n.startswith('backbone.') for n in trained_names(model))
    assert rates(cfg, model) == rates(zoo, zoo_model)


def test_full_fine_tuning_of_the_vit_trains_all_of_it():
    model = model_of('baselines/full_vit_l16_cifar100.py')
    assert trained_names(model) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize('name', ALL)
def test_tuned_checkpoints_are_written_where_something_is_tuned(name):
    hooks = [hook['type'] for hook in parse(name).custom_hooks]
    assert 'ParameterReportHook' in hooks
    assert ('TunedCheckpointHook' in hooks) == bool(
        tuned_roots(model_of(name)))
