"""Parameters of equal settings share a group, and learn as they would alone."""
import copy
import logging
from pathlib import Path

import pytest
import torch
from hosts import HOSTS, loss
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch.testing import assert_close

from etta_mm.engine import build_on_meta

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
GROUPED = 'GroupedOptimWrapperConstructor'
#: Of the head, of the tuners' biases, of LayerNorms: several settings at once.
PARAMWISE = dict(
    norm_decay_mult=0.,
    bias_lr_mult=2.,
    custom_keys=dict(bbox_head=dict(lr_mult=0.2)))
ETTA = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=4),
    attn=dict(type='ScaledPrefix', num_prefix=3, learn_scale=True),
    train=['bbox_head', r'.*norms\.\d\.(weight|bias)'])


def tiny_detr():
    torch.manual_seed(0)
    return HOSTS['detr'].build(copy.deepcopy(ETTA)).train()


def wrapper(model, **optimizer):
    constructor = optimizer.pop('constructor')
    return build_optim_wrapper(
        model,
        dict(
            constructor=constructor,
            optimizer=dict(
                type='AdamW', lr=1e-2, weight_decay=0.1, **optimizer),
            clip_grad=dict(max_norm=0.1),
            paramwise_cfg=PARAMWISE))


# Adam makes of a rounding in a small gradient a part of a step, which is 1e-2.
@pytest.mark.parametrize('fused, atol', [(False, 1e-6), (True, 1e-4)])
def test_it_learns_as_mmengines_own_in_a_group_for_each_setting(fused, atol):
    alone, grouped = tiny_detr(), tiny_detr()
    steps = [
        wrapper(alone, constructor='DefaultOptimWrapperConstructor'),
        wrapper(grouped, constructor=GROUPED, fused=fused)
    ]
    for seed in range(3):
        for model, step in zip((alone, grouped), steps):
            torch.manual_seed(seed)
            step.update_params(loss(model, HOSTS['detr'].batch()))
    assert_close(
        dict(grouped.named_parameters()),
        dict(alone.named_parameters()),
        rtol=0,
        atol=atol)
    each, few = (step.optimizer.param_groups for step in steps)
    settings = {(g['lr'], g['weight_decay']) for g in each}
    assert len(each) > 50 and len(few) == len(settings) == 4
    assert [(g['lr'], g['weight_decay']) for g in few] == sorted(
        settings, key=[(g['lr'], g['weight_decay']) for g in each].index)


@pytest.mark.parametrize('name', [
    'etta/et_detr_r50_coco', 'etta/et_deformable_detr_coco',
    'etta/et_vit_l16_imagenet', 'baselines/lora_attn_detr_r101_coco'
])
def test_the_configs_have_all_that_is_trained_in_few_fused_groups(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    assert cfg.optim_wrapper.optimizer.fused
    model = build_on_meta(cfg)
    groups = build_optim_wrapper(
        model, cfg.optim_wrapper).optimizer.param_groups
    given = [id(p) for group in groups for p in group['params']]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(given) == sorted(trained)
    assert 1 <= len(groups) <= 4 < len(trained)


def shared(**paramwise_cfg):
    """Two maps with one weight, and the step of both."""
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(2)))
    model[1].weight = model[0].weight
    return model, build_optim_wrapper(
        model,
        dict(
            constructor=GROUPED,
            optimizer=dict(type='SGD', lr=1.),
            paramwise_cfg=dict(bias_lr_mult=2., **paramwise_cfg)))


def test_a_shared_parameter_makes_one_step():
    model, step = shared()
    before = model[0].weight.detach().clone()
    step.update_params(model[0].weight.sum())
    assert_close(model[0].weight.detach(), before - 1)


def test_a_shared_parameter_with_two_settings_is_an_error():
    first = dict(custom_keys={'0.weight': dict(lr_mult=0.1)})
    with pytest.raises(ValueError, match=r'\[4, 4\].*bypass_duplicate=True'):
        shared(**first)
    _, step = shared(bypass_duplicate=True, **first)
    group, = (g for g in step.optimizer.param_groups if g['params'][0].dim() > 1)
    assert group['lr'] == pytest.approx(0.1)


def test_of_frozen_parameters_there_is_one_line(monkeypatch, tmp_path):
    file = tmp_path / 'log'
    logger = MMLogger('frozen', log_file=str(file))
    monkeypatch.setattr(MMLogger, 'get_current_instance', lambda: logger)
    before = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    try:
        model = tiny_detr()
        wrapper(model, constructor=GROUPED)
        assert not logger.filters
    finally:
        logging.disable(before)
    text = file.read_text()
    frozen = sum(not p.requires_grad for p in model.parameters())
    assert f'{frozen} frozen parameters are left out' in text
    assert 'skipped' not in text and 'paramwise_options' in text
