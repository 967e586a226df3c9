"""Old ground: a tuned host still does what mmdet's and mmpretrain's own tests
expect of the host (their tests/test_models/test_detectors, test_dense_heads
and test_backbones).
"""
import copy
import io
import math
import pickle

import pytest
import torch
from hosts import (CLASSES, DIMS, HOSTS, QUERIES, detection_batch, loss,
                   output, prepare, train_steps, vit_config)
from mmdet.structures import DetDataSample
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from etta_mm import ETVisionTransformer, disable_tuning
from etta_mm.tuners import Tuner

TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=5),
    attn=dict(type='ScaledPrefix', num_prefix=3))
DETECTORS = [n for n, h in HOSTS.items() if h.batch is detection_batch]
CLASSIFIERS = [n for n, h in HOSTS.items() if h.root]
DETRS = [n for n in DETECTORS if n != 'vit_detector']
EMPTY = (0, 0)
CLOSE = dict(rtol=1e-4, atol=1e-4)


def tuned(name: str):
    """A tuned model with the base's weights, in training mode."""
    host = HOSTS[name]
    torch.manual_seed(1)
    tuning = dict(copy.deepcopy(TUNING))
    if host.head:
        tuning['train'] = host.head
    model = host.build(tuning)
    load_state_dict(model, host.base_weights())
    return model.train()


@pytest.fixture(scope='module', params=DETECTORS)
def detector(request):
    return request.param, tuned(request.param)


@pytest.fixture(scope='module', params=HOSTS)
def any_host(request):
    return request.param, tuned(request.param)


def losses(model, batch) -> dict:
    data = prepare(model, batch, True)
    torch.manual_seed(5)
    return model(data['inputs'], data['data_samples'], mode='loss')


def without_dropout(model):
    """Fused attention draws its dropout in another order than the host."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.
    return model


def test_losses_at_the_start_are_the_hosts_in_training_mode(any_host):
    name, model = any_host
    model = without_dropout(copy.deepcopy(model))
    base = without_dropout(copy.deepcopy(HOSTS[name].base())).train()
    for module in base.modules():  # the tuned one's are frozen
        if isinstance(module, _BatchNorm):
            module.eval()
    batch = HOSTS[name].batch()
    expected = losses(base, batch)
    found = losses(model, batch)
    assert list(found) == list(expected)
    assert_close(found, expected, **CLOSE)


def test_boxes_give_losses_of_class_box_and_iou(detector):
    _, model = detector
    for key, value in losses(model, detection_batch((2, 1))).items():
        for part in value if isinstance(value, list) else [value]:
            assert part.item() > 0, key


def test_an_image_without_boxes_gives_a_class_loss_alone(detector):
    _, model = detector
    for key, value in losses(model, detection_batch(EMPTY)).items():
        for part in value if isinstance(value, list) else [value]:
            if 'cls' in key and 'dn' not in key:
                assert part.item() > 0, key
            else:  # mmdet's own tests: nothing to regress
                assert part.item() == 0, key


def test_losses_are_those_of_every_decoder_layer(detector):
    name, model = detector
    keys = set(losses(model, detection_batch()))
    if name == 'vit_detector':
        assert keys == {'loss_cls', 'loss_bbox', 'loss_centerness'}
        return
    expected = {'loss_cls', 'loss_bbox', 'loss_iou'}
    expected |= {f'd0.{key}' for key in expected}
    two_stage = getattr(model, 'as_two_stage', False)
    if two_stage:
        expected |= {'enc_loss_cls', 'enc_loss_bbox', 'enc_loss_iou'}
    if name == 'dino':
        expected |= {
            f'{layer}dn_loss_{kind}'
            for layer in ('', 'd0.') for kind in ('cls', 'bbox', 'iou')
        }
    assert keys == expected


def test_predictions_are_the_hosts_at_the_start(detector):
    name, model = detector
    base = HOSTS[name].base()
    batch = detection_batch()
    results = []
    for each in (copy.deepcopy(model).eval(), base.eval()):
        data = prepare(each, batch, False)
        with torch.no_grad():
            results.append(
                each(data['inputs'], data['data_samples'], mode='predict'))
    ours, theirs = results
    assert len(ours) == 2
    for one, other in zip(ours, theirs):
        assert isinstance(one, DetDataSample)
        found, expected = one.pred_instances, other.pred_instances
        assert found.bboxes.shape == (len(found), 4) and len(found)
        if name in DETRS:
            assert len(found) == QUERIES
        assert found.labels.max() < CLASSES
        assert_close(found.scores, expected.scores, **CLOSE)
        assert_close(found.bboxes, expected.bboxes, rtol=1e-3, atol=1e-2)
        assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize('name', DETRS)
def test_raw_output_is_scores_and_boxes_of_each_layer(name):
    scores, boxes = output(tuned(name), detection_batch())[:2]
    classes = CLASSES + (name == 'detr')  # softmax has a background
    assert scores.shape == (2, 2, QUERIES, classes)  # layers, images, queries
    assert boxes.shape == (2, 2, QUERIES, 4)
    assert (boxes >= 0).all() and (boxes <= 1).all()


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_a_classifier_predicts_and_extracts(name):
    model = tuned(name).eval()
    batch = HOSTS[name].batch()
    data = prepare(model, batch, False)
    with torch.no_grad():
        features = model.extract_feat(data['inputs'])
        results = model(**data, mode='predict')
    assert [f.shape for f in features] == [(2, DIMS)]
    for result in results:
        assert isinstance(result, DataSample)
        assert result.pred_score.shape == (CLASSES, )
        assert_close(result.pred_score.sum().item(), 1.)
    assert set(losses(model, batch)) == {'loss'}


def test_bf16_autocast_runs_and_leaves_the_weights_in_float(any_host):
    name, model = any_host
    model = copy.deepcopy(model)
    batch = HOSTS[name].batch()
    with torch.autocast('cpu', torch.bfloat16):
        total = loss(model, batch)
    total.backward()
    assert math.isfinite(total.item())
    assert_close(total.item(), loss(model, batch).item(), rtol=0.3, atol=0.3)
    for module in model.modules():
        if isinstance(module, Tuner):
            for parameter in module.parameters():
                assert parameter.dtype is torch.float
                assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_a_classifier_in_bf16_runs(name):
    # mmdet's detectors make their reference points in single precision.
    model = tuned(name).to(torch.bfloat16).eval()
    data = prepare(model, HOSTS[name].batch(), False)
    out = model(data['inputs'].to(torch.bfloat16), mode='tensor')
    assert out.dtype is torch.bfloat16 and torch.isfinite(out).all()


def test_a_deep_copy_is_a_model_of_its_own(any_host):
    name, model = any_host
    model = copy.deepcopy(model)
    copied = copy.deepcopy(model)
    batch = HOSTS[name].batch()
    expected = output(model, batch)
    train_steps(model, [batch] * 2)
    assert_close(output(copied, batch), expected, rtol=0, atol=0)
    with disable_tuning(copied):
        assert_close(
            output(copied, batch),
            output(HOSTS[name].base(), batch),
            rtol=1e-5,
            atol=1e-5)
    # and it guards what it loads itself
    state = HOSTS[name].base_weights()
    victim = [k for k in state if 'norm' in k or '.ln' in k][-1]
    state[victim + '_other'] = state.pop(victim)
    with pytest.raises(KeyError):
        load_state_dict(copied, state)


def test_an_exponential_moving_average_follows(any_host):
    name, model = any_host
    model = copy.deepcopy(model)
    average = ExponentialMovingAverage(model, momentum=0.5)
    before = {n: p.clone() for n, p in model.named_parameters()}
    train_steps(model, [HOSTS[name].batch()])
    average.update_parameters(model)  # the first is a copy
    train_steps(model, [HOSTS[name].batch()])
    average.update_parameters(model)
    averaged = dict(average.module.named_parameters())
    moved = [n for n, p in model.named_parameters() if p.requires_grad]
    for key, parameter in model.named_parameters():
        if key not in moved:
            assert torch.equal(averaged[key], before[key]), key
    assert any(not torch.equal(averaged[k], before[k]) for k in moved)


def test_a_state_dict_and_a_whole_model_survive_a_file(any_host):
    name, model = any_host
    batch = HOSTS[name].batch()
    expected = output(copy.deepcopy(model), batch)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = tuned(name)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_close(output(other, batch), expected, rtol=0, atol=0)
    if name == 'layers':
        whole = pickle.loads(pickle.dumps(model))
        assert_close(output(whole, batch), expected, rtol=0, atol=0)


def test_mmengines_optimizer_gets_what_is_trained(any_host):
    name, model = any_host
    model = copy.deepcopy(model)
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1),
            paramwise_cfg=dict(
                norm_decay_mult=0., custom_keys={'tuners': dict(lr_mult=2)})))
    held = {
        id(p)
        for group in wrapper.optimizer.param_groups for p in group['params']
        if p.requires_grad
    }
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    rates = {
        id(group['params'][0]): group['lr']
        for group in wrapper.optimizer.param_groups
    }
    for module in model.modules():
        if isinstance(module, Tuner):
            assert all(rates[id(p)] == 2e-3 for p in module.parameters())
    wrapper.update_params(loss(model, HOSTS[name].batch()))


def test_a_vit_takes_a_base_of_another_image_size():
    # mmpretrain resizes the position encoding while it loads.
    cfg = vit_config(img_size=32)
    del cfg['type']
    base = ETVisionTransformer(**cfg)
    large = ETVisionTransformer(**dict(cfg, img_size=48), tuning=TUNING)
    load_state_dict(large, base.state_dict())
    assert large.pos_embed.shape == (1, 37, DIMS)
    assert_close(large.pos_embed[:, 0], base.pos_embed[:, 0])
    assert large(torch.randn(1, 3, 48, 48))[0].shape == (1, DIMS)


def test_frozen_stages_of_a_vit_stay_frozen():
    cfg = vit_config(img_size=32)
    del cfg['type']
    model = ETVisionTransformer(**cfg, frozen_stages=1, tuning=TUNING)
    model.train()
    assert torch.isfinite(model(torch.randn(1, 3, 32, 32))[0]).all()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all('.tuners.' in n for n in trained)


@pytest.mark.parametrize('name', CLASSIFIERS + ['detr', 'deformable'])
def test_a_host_without_a_tuning_is_the_host(name):
    host = HOSTS[name]
    from mmdet.registry import MODELS as MMDET
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS as MMPRETRAIN
    scope = 'mmpretrain' if host.root else 'mmdet'
    with DefaultScope.overwrite_default_scope(scope):
        model = (MMPRETRAIN if host.root else MMDET).build(host.config())
        model.init_weights()
    assert list(model.state_dict()) == list(host.base().state_dict())
    assert all(p.requires_grad for p in model.parameters())
    model.load_state_dict(host.base_weights())
    batch = host.batch()
    assert_close(
        output(model, batch), output(host.base(), batch), rtol=0, atol=0)
