"""Feed-forward networks: against their parents, and from the equations."""
import copy

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmpretrain.models.utils import SwiGLUFFN, SwiGLUFFNFused
from torch import nn
from torch.testing import assert_close

from etta_mm import apply_tuning, disable_tuning

DIMS = 8
HIDDEN = 12
SCALE = 1.7
PARALLEL = dict(type='ParallelAdapter', bottleneck_dims=3, scale=SCALE)
SERIAL = dict(type='SerialAdapter', bottleneck_dims=4)
LORA = dict(type='LoRA', rank=2, alpha=6)
CLOSE = dict(rtol=1e-4, atol=1e-4)

PARENTS = {
    'ffn': lambda **k: FFN(DIMS, HIDDEN, **k),
    'three layers': lambda **k: FFN(DIMS, HIDDEN, num_fcs=3, **k),
    'layer scale': lambda **k: FFN(
        DIMS, HIDDEN, layer_scale_init_value=0.5, **k),
    'swiglu': lambda **k: SwiGLUFFN(DIMS, HIDDEN, **k),
    'swiglu, norm, layer scale': lambda **k: SwiGLUFFN(
        DIMS, HIDDEN, norm_cfg=dict(type='LN'), layer_scale_init_value=0.5,
        **k),
}
EACH_PARENT = pytest.mark.parametrize('make', PARENTS.values(), ids=PARENTS)


def pair(make, tuning, **kwargs):
    parent = make(**kwargs)
    with torch.no_grad():
        for parameter in parent.parameters():
            parameter.normal_(std=0.7)
    ours = copy.deepcopy(parent)
    apply_tuning(nn.ModuleList([ours]), dict(ffn=tuning))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.7)
    return parent.eval(), ours.eval()


@EACH_PARENT
@pytest.mark.parametrize('add_identity', [True, False])
@pytest.mark.parametrize('with_identity', [True, False])
def test_without_tuning_it_is_the_parent(make, add_identity, with_identity):
    parent, ours = pair(
        make, [PARALLEL, SERIAL, LORA], add_identity=add_identity)
    x = torch.randn(2, 5, DIMS)
    identity = torch.randn_like(x) if with_identity else None
    with disable_tuning(ours):
        assert_close(
            ours(x, identity), parent(x, identity), rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_close(ours(x, identity), parent(x, identity), **CLOSE)


def test_the_fused_swiglu_is_the_parent_without_tuning():
    parent, ours = pair(lambda: SwiGLUFFNFused(DIMS, HIDDEN), PARALLEL)
    x = torch.randn(2, 5, DIMS)
    with disable_tuning(ours):
        assert_close(ours(x), parent(x), rtol=0, atol=0)


@EACH_PARENT
@pytest.mark.parametrize('add_identity', [True, False])
def test_adapters_join_by_their_equations(make, add_identity):
    parent, ours = pair(make, [SERIAL, PARALLEL], add_identity=add_identity)
    x = torch.randn(2, 5, DIMS)
    identity = torch.randn_like(x)
    h = parent(x, torch.zeros(()))
    adapter = ours.tuners['parallel_adapter']
    h = h + SCALE * adapter.up(adapter.down(x).relu())
    adapter = ours.tuners['serial_adapter']
    h = h + adapter.up(adapter.down(h).relu())
    assert_close(
        ours(x, identity), identity + h if add_identity else h, **CLOSE)


@EACH_PARENT
def test_lora_updates_every_linear_layer(make):
    parent, ours = pair(make, LORA)
    tuned = dict(ours.named_modules())
    with torch.no_grad():  # the update merged into the parent's weights
        for name, linear in parent.named_modules():
            if isinstance(linear, nn.Linear):
                lora = tuned[name].tuners['lora']
                linear.weight += 6 / 2 * lora.up @ lora.down
    x = torch.randn(2, 5, DIMS)
    assert_close(ours(x), parent(x), **CLOSE)


@EACH_PARENT
def test_dropout_is_the_parents_with_the_same_seed(make):
    parent, ours = pair(
        make, PARALLEL, dropout_layer=dict(type='DropPath', drop_prob=0.5))
    x = torch.randn(6, 5, DIMS)
    parent.train(), ours.train()
    torch.manual_seed(3)
    expected = parent(x)
    torch.manual_seed(3)
    with disable_tuning(ours):
        assert_close(ours(x), expected, rtol=0, atol=0)


def test_drop_path_drops_the_adapter_with_the_frozen_part():
    _, ours = pair(
        PARENTS['ffn'],
        PARALLEL,
        dropout_layer=dict(type='DropPath', drop_prob=0.5))
    x = torch.randn(16, 5, DIMS)
    whole = ours(x) - x
    ours.train()
    dropped = ours(x) - x
    kept = dropped.flatten(1).abs().amax(1) > 0
    assert kept.any() and not kept.all()
    assert_close(dropped[kept], 2 * whole[kept], rtol=1e-4, atol=1e-5)


def test_the_residual_has_the_older_name_that_the_parent_knows():
    parent, ours = pair(PARENTS['ffn'], PARALLEL)
    x, residual = torch.randn(2, 2, 5, DIMS)
    assert_close(ours(x, residual=residual), ours(x, identity=residual))
    with disable_tuning(ours):
        assert_close(ours(x, residual=residual), parent(x, residual=residual))


def test_a_swiglu_without_a_residual_raises_and_names_the_remedy():
    model = nn.ModuleList([SwiGLUFFN(DIMS, HIDDEN, out_dims=4)])
    with pytest.raises(ValueError, match='where='):
        apply_tuning(model, dict(ffn=PARALLEL))
    assert type(model[0]) is SwiGLUFFN
