"""Dropout on a CPU: the distribution and the products are torch's."""
import copy

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import Dropout
from mmcv.cnn.bricks.transformer import FFN
from torch import nn
from torch.testing import assert_close

from etta_mm import apply_tuning
from etta_mm.benchmark.memory import saved_bytes
from etta_mm.layers import dropout as packed
from etta_mm.layers.dropout import (PackedDropout, attention_with_dropout,
                                    pack_dropouts, packed_dropout)

NUMBER = 200_003  # no multiple of the decisions of a draw


@pytest.mark.parametrize('p', [0.1, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_rest_scaled(p):
    torch.manual_seed(0)
    x = torch.rand(NUMBER, dtype=torch.float64) + 1
    out = packed_dropout(x, p)
    kept = out != 0
    four_deviations = 4 * (p * (1 - p) / NUMBER)**0.5
    assert abs(1 - kept.double().mean().item() - p) < four_deviations
    # 0.1 is 6554 of 65536: off by a part in ten thousand
    assert_close(out[kept], x[kept] / (1 - p), rtol=1e-4, atol=0)


def test_decisions_are_independent_of_their_neighbours():
    torch.manual_seed(0)
    kept = (packed_dropout(torch.ones(NUMBER), 0.5) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8):
        product = 4 * (kept[distance:] * kept[:-distance]).mean().item()
        assert abs(product) < 4 * NUMBER**-0.5


@pytest.mark.parametrize('p', [0.1, 0.37])
def test_the_expectation_is_the_input(p, monkeypatch):
    """Over all levels that a decision can draw, each once."""
    levels = torch.arange(-2**15, 2**15).to(torch.int16)
    monkeypatch.setattr(torch.Tensor, 'random_',
                        lambda self, *a: self.copy_(levels.view(torch.int64)))
    out = packed_dropout(torch.ones(2**16, dtype=torch.float64), p)
    assert_close(out.mean().item(), 1., rtol=1e-12, atol=0)


def test_a_seed_gives_the_same_mask_again_and_the_next_draw_another():
    x = torch.ones(3, 67)
    torch.manual_seed(5)
    first, second = packed_dropout(x, 0.5), packed_dropout(x, 0.5)
    torch.manual_seed(5)
    assert_close(packed_dropout(x, 0.5), first, rtol=0, atol=0)
    assert not torch.equal(first, second)


def test_the_gradient_passes_where_the_value_did():
    x = torch.rand(5, 7, dtype=torch.float64).add_(1).requires_grad_()
    out = packed_dropout(x, 0.5)
    grad = torch.rand_like(out)
    out.backward(grad)
    assert_close(x.grad, grad * (out / x).detach())


def test_it_is_the_identity_in_eval_and_at_zero_and_nothing_at_one():
    x = torch.rand(4, 5)
    assert_close(PackedDropout(0.5).eval()(x), x, rtol=0, atol=0)
    assert_close(PackedDropout(0.)(x), x, rtol=0, atol=0)
    assert_close(PackedDropout(1.)(x), torch.zeros_like(x), rtol=0, atol=0)
    assert_close(packed_dropout(x, 1e-9), x, rtol=0, atol=1e-6)


def test_a_decision_takes_a_byte_until_the_backward_pass():
    x = torch.rand(100, 100, requires_grad=True)

    def saved(layer):
        return saved_bytes(layer, lambda: layer(x).sum())

    assert saved(PackedDropout(0.5)) == x.numel()
    assert saved(nn.Dropout(0.5)) == 4 * x.numel()


@pytest.mark.parametrize('form', [None, 'bool', 'float', 'blind'])
@pytest.mark.parametrize('scale', [None, 0.3])
def test_attention_is_torchs_with_the_same_weights_dropped(
        form, scale, monkeypatch):
    """Against the function behind ``scaled_dot_product_attention`` that takes
    the decisions as an argument; with a query that sees no key as well."""
    q, k, v = (
        torch.randn(2, 3, n, 4, dtype=torch.float64, requires_grad=True)
        for n in (5, 7, 7))
    mask = None
    if form:
        mask = torch.rand(2, 1, 5, 7) < 0.6
        mask[..., 0] = True
        if form == 'blind':
            mask[1, :, 2] = False
        if form == 'float':
            mask = torch.randn(2, 1, 5, 7, dtype=q.dtype).masked_fill(
                ~mask, -torch.inf)
            mask[0, :, 3] = -torch.inf
    kept = torch.rand(2, 3, 5, 7) < 0.5
    monkeypatch.setattr(packed, '_kept', lambda shape, dropped: kept)

    def run(function):
        out = function()
        return (out, *torch.autograd.grad(out.square().sum(), (q, k, v)))

    added = mask
    if form in ('bool', 'blind'):  # what scaled_dot_product_attention does
        added = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(
            ~mask, -torch.inf)
    expected = run(lambda: torch.ops.aten._scaled_dot_product_attention_math(
        q, k, v, added, 0.5, False, kept, scale=scale)[0])
    with torch.autograd.detect_anomaly():  # no NaN on the way, either
        found = run(
            lambda: attention_with_dropout(q, k, v, mask, 0.5, scale))
    for ours, theirs in zip(found, expected):
        assert_close(ours, theirs)


def test_the_dropouts_of_a_tuned_model_are_packed_and_others_left_alone():

    class OwnDropout(nn.Dropout):
        pass

    ffn = FFN(8, 16, ffn_drop=0.1, dropout_layer=dict(type='Dropout',
                                                      drop_prob=0.1))
    others = nn.ModuleList(
        [nn.Dropout(0.1, inplace=True), OwnDropout(0.1), nn.Dropout2d(0.1)])
    types = [type(m) for m in others]
    model = nn.ModuleList([ffn, others])
    assert type(ffn.dropout_layer) is Dropout
    tuner = dict(type='ParallelAdapter', bottleneck_dims=4, dropout=0.1)
    apply_tuning(model, dict(ffn=tuner))
    assert [type(m) for m in others] == types
    assert type(ffn.dropout_layer) is PackedDropout
    assert not any(type(m) is nn.Dropout for m in ffn.modules())
    assert type(ffn.tuners['parallel_adapter'].dropout) is PackedDropout


def test_a_compiler_and_other_devices_get_torchs_dropout():
    x = torch.ones(4, 5, device='meta')
    assert packed_dropout(x, 0.5).shape == x.shape
    layer = PackedDropout(0.5)
    compiled = torch.compile(copy.deepcopy(layer), backend='aot_eager',
                             fullgraph=True)
    torch.manual_seed(0)
    out = compiled(torch.ones(64, 64))
    torch.manual_seed(0)
    assert_close(out, F.dropout(torch.ones(64, 64), 0.5))


def test_pack_dropouts_reaches_every_depth():
    model = nn.Sequential(nn.Sequential(nn.Dropout(0.2)), nn.Dropout(0.3))
    pack_dropouts(model)
    assert [m.p for m in model.modules()
            if type(m) is PackedDropout] == [0.2, 0.3]
