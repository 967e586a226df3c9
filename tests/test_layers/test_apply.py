"""Tuning a model that somebody has made: as it stands, in code."""
import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from hosts import randomise
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from etta_mm import (apply_tuning, count_parameters, disable_tuning,
                     load_tuned, save_tuned)
from etta_mm.checkpoints import read_metadata
from etta_mm.layers import ETFFN, ETMultiheadAttention
from etta_mm.tuners import Tuner

DIMS = 8
ADAPTER = dict(type='ParallelAdapter', bottleneck_dims=4)
TUNINGS = dict(
    adapter=dict(ffn=ADAPTER, attn=ADAPTER),
    prefix=dict(attn=dict(type='ScaledPrefix', num_prefix=2)),
    lora=dict(ffn=dict(type='LoRA', rank=2), attn=dict(type='LoRA', rank=2)))


class NotLinear(nn.Linear):
    """May compute something else."""


class Net(nn.Module):

    def __init__(self):
        super().__init__()
        self.attn = MultiheadAttention(DIMS, 2, batch_first=True)
        self.ffn = FFN(DIMS, 16)
        self.head = nn.Linear(DIMS, 3)

    def init_weights(self, value=0.):
        self.head.bias.data.fill_(value)

    def forward(self, x):
        return self.head(self.ffn(self.attn(x)))


def x(**kwargs):
    return torch.randn(2, 5, DIMS, **kwargs)


def test_tuners_take_the_mode_of_what_they_join():
    model = Net().eval()
    apply_tuning(model, dict(ffn=dict(ADAPTER, dropout=0.5)))
    randomise(model)
    given = x()
    assert_close(model(given), model(given), rtol=0, atol=0)
    assert model.train().ffn.tuners.parallel_adapter.training


def test_a_where_may_be_a_part_of_a_name():
    model = apply_tuning(Net(), dict(ffn=ADAPTER, where='fn$'))
    assert isinstance(model.ffn, ETFFN)


@pytest.mark.parametrize('tuning', TUNINGS)
@pytest.mark.parametrize('to', [
    dict(dtype=torch.float64), dict(dtype=torch.bfloat16), dict(device='meta')
], ids=['double', 'bfloat16', 'meta'])
def test_tuners_take_the_place_and_the_type_of_what_they_join(
        tuning, to, tmp_path):
    model = Net().to(**to)
    apply_tuning(model, TUNINGS[tuning])
    given = x(**to)
    assert model(given).to(given).shape == (2, 5, 3)
    assert {(p.device, p.dtype) for p in model.parameters()} == {
        (given.device, given.dtype)}
    if not given.is_meta:  # and a file of it fits a base like it
        base = {k: v for k, v in model.state_dict().items()
                if '.tuners.' not in k}
        path = save_tuned(model, tmp_path / 'a.safetensors')
        other = Net().to(**to)
        other.load_state_dict(base)
        load_tuned(other, path)
        assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_numbers_may_be_numpys(tmp_path):
    model = apply_tuning(Net(), dict(ffn=dict(
        ADAPTER, bottleneck_dims=np.int64(4), scale=np.float32(2))))
    path = save_tuned(model, tmp_path / 'a.safetensors', epoch=np.int64(3))
    metadata = read_metadata(path)
    assert metadata['info']['epoch'] == 3
    cfg, = metadata['roots']['']['tuning']['ffn']
    assert (cfg['bottleneck_dims'], cfg['scale']) == (4, 2.)


def test_contexts_without_tuning_may_overlap():
    model = apply_tuning(Net(), TUNINGS['adapter'])
    first, second = disable_tuning(model), disable_tuning(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model.ffn.tuning_enabled
    second.__exit__(None, None, None)
    assert model.ffn.tuning_enabled and model.attn.tuning_enabled

    def rest():
        for _ in range(200):
            with disable_tuning(model):
                pass

    threads = [threading.Thread(target=rest) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert model.ffn.tuning_enabled and not model.ffn.resting


@pytest.mark.parametrize('duplicate', [
    copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))
], ids=['deepcopy', 'pickle'])
def test_a_copy_made_while_the_tuners_rest_does_not_rest(duplicate):
    model = apply_tuning(Net(), TUNINGS['adapter']).eval()
    randomise(model)
    given = x()
    with disable_tuning(model):
        other = duplicate(model)
        at_rest = model(given)
    with pytest.raises(AssertionError):
        assert_close(at_rest, model(given))
    assert_close(other(given), model(given), rtol=0, atol=0)
    with disable_tuning(other), disable_tuning(model):
        assert_close(other(given), model(given), rtol=0, atol=0)


def test_sublayers_of_ours_without_a_tuner_get_theirs():
    """Such as a model has that builds its layers from config."""
    model = Net()
    model.ffn, model.attn = ETFFN(DIMS, 16), ETMultiheadAttention(DIMS, 2)
    with pytest.raises(ValueError, match='leaves nothing to train|conv'):
        apply_tuning(model, dict(ffn=ADAPTER, conv=dict(
            type='ConvAdapter', bottleneck_dims=2)))
    assert not len(model.ffn.tuners)
    apply_tuning(model, TUNINGS['adapter'])
    assert list(model.ffn.tuners) == list(model.attn.tuners) == [
        'parallel_adapter'
    ]


def test_an_error_takes_back_what_sublayers_of_ours_were_given():
    model = Net()
    model.ffn = ETFFN(DIMS, 16)
    model.ffn.layers[1] = nn.utils.skip_init(NotLinear, 16, DIMS)
    with pytest.raises(ValueError, match='NotLinear'):
        apply_tuning(model, dict(attn=ADAPTER, ffn=[ADAPTER, TUNINGS['lora']['ffn']]))
    assert not any(isinstance(m, Tuner) for m in model.modules())
    assert not len(model.ffn.tuners)
    assert type(model.attn) is MultiheadAttention


def test_a_name_is_a_name_whatever_a_regular_expression_makes_of_it():
    model = Net()
    model.add_module('a+b', nn.Linear(DIMS, DIMS))
    apply_tuning(model, dict(ffn=ADAPTER, train='a+b'))
    assert model.get_submodule('a+b').weight.requires_grad


def test_a_part_that_a_host_gives_a_second_name_later_loads_under_both():
    """As DDQ-DETR's decoder gets branches of the head when it first trains."""
    model = apply_tuning(Net(), dict(TUNINGS['adapter'], train='head'))
    randomise(model)
    state = model.state_dict()
    tensors = {key: state[key] for key in ('head.weight', 'head.bias')}
    for key, tensor in tensors.items():
        state[f'decoder.{key.partition(".")[2]}'] = tensor.clone()
    other = apply_tuning(Net(), dict(TUNINGS['adapter'], train='head'))
    other.load_state_dict(state)
    assert_close(other.head.weight, model.head.weight, rtol=0, atol=0)
    state['decoder.bias'] += 1
    with pytest.raises(KeyError, match='decoder.bias'):
        other.load_state_dict(state)
    # Nor is one of two strangers the other's second name.
    strangers = {f'{name}.x.y': torch.zeros(2) for name in ('one', 'other')}
    with pytest.raises(KeyError, match='one.x.y, other.x.y'):
        other.load_state_dict(dict(model.state_dict(), **strangers))


def test_a_name_in_train_is_no_beginning_of_others():
    model = Net()
    model.head_extra = nn.Linear(DIMS, 3)
    apply_tuning(model, dict(ffn=ADAPTER, train='head'))
    assert model.head.weight.requires_grad
    assert not model.head_extra.weight.requires_grad


@pytest.mark.parametrize('name', ['neck', 'second'])
def test_a_shared_module_is_trained_by_either_name(name):
    model = Net()
    model.neck = nn.Sequential(FFN(DIMS, 16), nn.BatchNorm1d(DIMS))
    model.second = model.neck
    apply_tuning(model, dict(ffn=ADAPTER, train=[name]))
    assert type(model.neck[0]) is FFN and model.train().neck[1].training
    assert all(p.requires_grad for p in model.neck.parameters())


class Double(nn.Linear):

    def forward(self, given):
        return 2 * super().forward(given)


@pytest.mark.parametrize('change', [
    lambda ffn: ffn.layers.__setitem__(1, Double(16, DIMS)),
    lambda ffn: parametrizations.weight_norm(ffn.layers[1])
], ids=['subclass', 'parametrized'])
def test_lora_leaves_layers_that_compute_something_else(change):
    model = Net().eval()
    change(model.ffn)
    given = x()
    expected = model(given)
    with pytest.raises(ValueError, match='nn.Linear, not .*where='):
        apply_tuning(model, TUNINGS['lora'])
    assert_close(model(given), expected, rtol=0, atol=0)


@MODELS.register_module()
class BiasTuner(Tuner):
    """Of a family that no sublayer knows."""
    sites = ('ffn', )

    def __init__(self, embed_dims):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(embed_dims))

    def reset_parameters(self):
        nn.init.zeros_(self.bias)


def test_a_tuner_that_no_forward_pass_knows_is_an_error():
    with pytest.raises(ValueError, match='BiasTuner.*ParallelAdapter'):
        apply_tuning(Net(), dict(ffn=dict(type='BiasTuner')))


def test_init_weights_keeps_its_arguments():
    model = apply_tuning(Net(), TUNINGS['adapter'])
    model.init_weights(value=3.)
    assert (model.head.bias == 3).all()


def test_old_gradients_move_nothing_that_is_frozen():
    model = Net()
    model(x()).sum().backward()
    apply_tuning(model, dict(ffn=ADAPTER, train=['head']))
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        'head.weight', 'head.bias'}


def test_a_report_of_nothing():
    assert '0.00' in str(count_parameters(nn.ReLU()))
