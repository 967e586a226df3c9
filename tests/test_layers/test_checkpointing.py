"""Checkpointed activations: the same gradients from fewer saved bytes."""
import copy
import pickle

import pytest
import torch
from hosts import HOSTS, loss, output, rev_vit
from mmdet.registry import MODELS as MMDET
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as MMPRETRAIN
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from etta_mm.layers import (checkpoint_layers, checkpointing,
                            transformer_layers)
from etta_mm.layers.checkpointing import Checkpointed
from etta_mm.layers.derived import derived_class

NUM_LAYERS = dict(
    detr=4, deformable=4, deformable_twostage=4, vit=2, vit_swiglu=2,
    conditional_detr=4, dab_detr=4, dino=4)
TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=16, dropout=0.2),
    attn=dict(type='ScaledPrefix', num_prefix=3))


def tuned(name: str) -> nn.Module:
    host = HOSTS[name]
    torch.manual_seed(1)
    tuning = dict(copy.deepcopy(TUNING))
    if host.head:
        tuning['train'] = [host.head]
    return host.build(tuning).train()


def gradients(model: nn.Module, batch: dict) -> dict:
    torch.manual_seed(3)  # the dropout of both is the same
    loss(model, batch).backward()
    return {
        n: p.grad
        for n, p in model.named_parameters() if p.grad is not None
    }


def saved_bytes(model: nn.Module, batch: dict) -> int:
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss(model, batch)
    return sum(size for size, _ in storages.values())


@pytest.fixture(scope='module', params=NUM_LAYERS)
def pair(request):
    """Name, the model and its checkpointed twin."""
    plain = tuned(request.param)
    twin = copy.deepcopy(plain)
    checkpoint_layers(twin)
    return request.param, plain, twin


def test_every_transformer_layer_is_checkpointed(pair):
    name, plain, twin = pair
    found = [m for m in twin.modules() if isinstance(m, Checkpointed)]
    assert len(found) == NUM_LAYERS[name]
    assert not any(isinstance(m, Checkpointed) for m in plain.modules())
    assert list(twin.state_dict()) == list(plain.state_dict())


def test_gradients_are_those_without_it(pair):
    name, plain, twin = pair
    batch = HOSTS[name].batch()
    expected = gradients(copy.deepcopy(plain), batch)
    found = gradients(copy.deepcopy(twin), batch)
    assert any('tuners' in key for key in found)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_torch_sees_the_device_of_every_checkpointed_layer(pair, monkeypatch):
    """Of what has no place of its own it does not look: the masks of a dropout
    would be others the second time, on a GPU."""
    name, _, twin = pair
    places = []

    def noted(function, *args, **kwargs):
        places.append(any(torch.is_tensor(arg) for arg in args))
        return torch_checkpoint(function, *args, **kwargs)

    monkeypatch.setattr(checkpointing, 'checkpoint', noted)
    loss(copy.deepcopy(twin), HOSTS[name].batch())
    assert len(places) >= NUM_LAYERS[name] and all(places)


def test_fewer_bytes_are_saved(pair):
    name, plain, twin = pair
    batch = HOSTS[name].batch()
    assert saved_bytes(twin, batch) < saved_bytes(plain, batch)


def test_evaluation_is_untouched(pair):
    name, plain, twin = pair
    batch = HOSTS[name].batch()
    assert_close(
        output(copy.deepcopy(twin), batch),
        output(copy.deepcopy(plain), batch),
        rtol=0,
        atol=0)


def test_a_checkpointed_model_can_be_pickled(pair):
    _, _, twin = pair
    again = pickle.loads(pickle.dumps(twin))
    assert [type(m).__name__ for m in again.modules()
            ] == [type(m).__name__ for m in twin.modules()]
    layer = next(m for m in again.modules() if isinstance(m, Checkpointed))
    assert isinstance(layer, Checkpointed)


def test_a_class_made_of_a_checkpointed_layer_stays_what_it_is_when_copied():
    layer = nn.TransformerEncoderLayer(4, 2)
    layer.__class__ = derived_class(Checkpointed, type(layer))
    layer.__class__ = type('Made', (type(layer), ), {})
    assert type(copy.deepcopy(layer)) is type(layer)


@pytest.mark.parametrize('name', ['detr', 'deformable', 'vit'])
def test_one_switch_of_the_host_turns_it_on(name):
    cfg = HOSTS[name].config()
    is_vit = HOSTS[name].root
    (cfg['backbone'] if is_vit else cfg).update(with_cp=True)
    registry, scope = ((MMPRETRAIN, 'mmpretrain') if is_vit else
                       (MMDET, 'mmdet'))
    with DefaultScope.overwrite_default_scope(scope):
        model = registry.build(cfg)
    assert sum(isinstance(m, Checkpointed)
               for m in model.modules()) == NUM_LAYERS[name]


def test_checkpointing_twice_is_checkpointing_once():
    model = tuned('vit')
    assert checkpoint_layers(model) == checkpoint_layers(model) == 2
    for layer in transformer_layers(model):
        assert type(layer).__mro__.count(Checkpointed) == 1


@pytest.mark.parametrize('name', ['detr', 'vit'])
def test_some_layers_save_less_than_all_and_more_than_none(name):
    batch, plain = HOSTS[name].batch(), tuned(name)
    half = copy.deepcopy(plain)
    assert checkpoint_layers(half, NUM_LAYERS[name] // 2) == NUM_LAYERS[
        name] // 2
    first, *_, last = transformer_layers(half)
    assert isinstance(first, Checkpointed)
    assert not isinstance(last, Checkpointed)
    whole = copy.deepcopy(plain)
    checkpoint_layers(whole)
    none, some, all_ = (
        saved_bytes(model, batch) for model in (plain, half, whole))
    assert all_ < some < none
    assert_close(
        gradients(half, batch), gradients(plain, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('number', [0, -1, 3])
def test_a_number_of_layers_that_there_is_not_is_an_error(number):
    cfg = HOSTS['vit'].config()
    cfg['backbone'].update(with_cp=number)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        with pytest.raises(ValueError, match=f'with_cp={number}: .* has 2'):
            MMPRETRAIN.build(cfg)


def test_a_model_without_transformer_layers_is_an_error():
    with pytest.raises(ValueError, match='with_cp=True would save nothing'):
        checkpoint_layers(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize('rate', ['drop_rate', 'drop_path_rate', 'attn'])
def test_a_layer_that_seeds_its_own_dropout_is_refused(rate):
    """RevViT's: its second forward pass would have other masks."""

    def model(value):
        return rev_vit(**{rate: value} if rate != 'attn' else dict(
            layer_cfgs=dict(attn_drop_rate=value)))

    assert checkpoint_layers(model(0.)) == 2
    refused = model(0.5)
    with pytest.raises(ValueError, match='set drop_path_rate'):
        checkpoint_layers(refused)
    assert not any(isinstance(m, Checkpointed) for m in refused.modules())
