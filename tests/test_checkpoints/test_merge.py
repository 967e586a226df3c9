"""LoRA folds into the base exactly; nothing else does."""
import copy

import pytest
import torch
from hosts import HOSTS, output
from mmcv.cnn.bricks.transformer import MultiheadAttention
from torch import nn
from torch.testing import assert_close

from etta_mm import apply_tuning, tuned_state_dict
from etta_mm.checkpoints import merge_tuning

LORA = dict(type='LoRA', rank=2, alpha=3)
ADAPTER = dict(type='ParallelAdapter', bottleneck_dims=3)
NAMES = ['detr', 'deformable', 'vit', 'vit_swiglu', 'conditional_detr',
         'layers']


def build(host, tuning):
    """A model with the base's weights and tuners that have been trained."""
    torch.manual_seed(1)
    model = host.build(copy.deepcopy(tuning))
    model.load_state_dict(host.base_weights(), strict=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.tuners.' in name:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize('name', NAMES)
def test_the_plain_host_with_folded_weights_is_the_tuned_model(name):
    host = HOSTS[name]
    model = build(host, dict(ffn=LORA, attn=LORA))
    expected = output(model, host.batch())
    folded, left = merge_tuning(model)
    assert folded and not left
    plain = copy.deepcopy(host.base())
    plain.load_state_dict(model.state_dict(), strict=True)
    assert_close(output(plain, host.batch()), expected, rtol=1e-4, atol=1e-4)
    assert_close(output(model, host.batch()), expected, rtol=1e-4, atol=1e-4)
    base = output(host.base(), host.batch())
    with pytest.raises(AssertionError):
        assert_close(base, expected, rtol=1e-2, atol=1e-2)


def test_projections_that_are_not_packed_are_folded_each_into_its_own():
    """Keys and values of other widths than the queries."""
    torch.manual_seed(0)
    model = nn.ModuleList([
        MultiheadAttention(8, 2, kdim=6, vdim=8, batch_first=True)]).eval()
    query, key, value = (torch.randn(2, n, d)
                         for n, d in ((3, 8), (5, 6), (5, 8)))
    apply_tuning(model, dict(attn=LORA))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if '.tuners.' in name:
                parameter.normal_(std=0.5)
    expected = model[0](query, key, value)
    folded, left = merge_tuning(model)
    assert folded and not left
    assert_close(model[0](query, key, value), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_folded_stays_and_is_named():
    host = HOSTS['detr']
    tuning = dict(
        ffn=[ADAPTER, LORA], attn=dict(type='ScaledPrefix', num_prefix=2))
    model = build(host, tuning)
    expected = output(model, host.batch())
    folded, left = merge_tuning(model)
    assert set(left) == {'ParallelAdapter', 'ScaledPrefix'}
    assert 'encoder.layers.0.ffn.tuners.parallel_adapter' in left[
        'ParallelAdapter']
    assert len(folded) == 8
    assert_close(output(model, host.batch()), expected, rtol=1e-4, atol=1e-4)
    # and what stays loads into a model of the tuning that it now has
    assert [cfg['type'] for cfg in model.tuning['ffn']] == ['ParallelAdapter']
    other = host.build(copy.deepcopy(model.tuning))
    other.load_state_dict(model.state_dict(), strict=True)
    assert tuned_state_dict(other).keys() == tuned_state_dict(model).keys()


def test_without_a_lora_there_is_nothing_to_fold():
    model = build(HOSTS['detr'], dict(ffn=ADAPTER))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='no LoRA.*ParallelAdapter cannot'):
        merge_tuning(model)
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_weight_that_layers_share_is_not_changed():
    host = HOSTS['layers']
    model = copy.deepcopy(host.base())
    ffns = [m for m in model.modules() if type(m).__name__ == 'FFN']
    ffns[1].layers[0][0].weight = ffns[0].layers[0][0].weight
    apply_tuning(model, dict(ffn=LORA))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='share'):
        merge_tuning(model)
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_half_precision_is_rounded_once():
    host = HOSTS['vit']
    model = build(host, dict(ffn=LORA))
    linear = next(m for m in model.modules()
                  if isinstance(m, nn.Linear) and hasattr(m, 'tuners'))
    model.half()
    tuner = linear.tuners['lora']
    expected = (linear.weight.double() + tuner.up.double()
                @ tuner.down.double() * 1.5).half()
    merge_tuning(model)
    assert torch.equal(linear.weight, expected)
