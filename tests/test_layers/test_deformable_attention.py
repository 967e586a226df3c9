"""Deformable attention: against its parent, and from the parts."""
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import \
    multi_scale_deformable_attn_pytorch
from torch.testing import assert_close

from etta_mm import disable_tuning
from etta_mm.benchmark import count_calls, count_flops
from etta_mm.layers import ETMultiScaleDeformableAttention

DIMS = 8
HEADS = 2
BS = 2
QUERIES = 5
POINTS = 3
SHAPES = torch.tensor([[3, 4], [2, 2]])
STARTS = torch.tensor([0, 12])
KEYS = 16
NUM_PREFIX = 3
SCALE = 1.7
PREFIX = dict(type='ScaledPrefix', num_prefix=NUM_PREFIX, scale=SCALE)
ADAPTER = dict(type='ParallelAdapter', bottleneck_dims=3, scale=SCALE)
CLOSE = dict(rtol=1e-4, atol=1e-4)

EACH_CASE = pytest.mark.parametrize('batch_first', [True, False])
EACH_REFERENCE = pytest.mark.parametrize('coordinates', [2, 4])
EACH_PADDING = pytest.mark.parametrize('padded', [True, False])


def pair(tuning, **kwargs):
    kwargs = dict(
        dict(
            embed_dims=DIMS,
            num_heads=HEADS,
            num_levels=2,
            num_points=POINTS,
            dropout=0.), **kwargs)
    parent = MultiScaleDeformableAttention(**kwargs).eval()
    ours = ETMultiScaleDeformableAttention(**kwargs, tuning=tuning).eval()
    with torch.no_grad():
        for parameter in (*parent.parameters(), *ours.parameters()):
            if parameter.dim():  # a learned scale keeps its value
                parameter.normal_(std=0.7)
    ours.load_state_dict(parent.state_dict(), strict=False)
    return parent, ours


def inputs(batch_first, coordinates, padded) -> dict:

    def one(n):
        return torch.randn((BS, n, DIMS) if batch_first else (n, BS, DIMS))

    hidden = torch.zeros(BS, KEYS, dtype=torch.bool)
    hidden[1, 9:14] = True
    return dict(
        query=one(QUERIES),
        value=one(KEYS),
        query_pos=one(QUERIES),
        key_padding_mask=hidden if padded else None,
        reference_points=torch.rand(BS, QUERIES, 2, coordinates),
        spatial_shapes=SHAPES,
        level_start_index=STARTS)


def inner(parent, query, value, query_pos, key_padding_mask, reference_points,
          **_):
    """What the parent computes before its output projection, batch first."""
    x = query + query_pos
    value = parent.value_proj(value)
    if key_padding_mask is not None:
        value = value.masked_fill(key_padding_mask[..., None], 0.)
    offsets = parent.sampling_offsets(x).view(BS, QUERIES, HEADS, 2, POINTS, 2)
    weights = parent.attention_weights(x).view(BS, QUERIES, HEADS, -1)
    weights = weights.softmax(-1).view(BS, QUERIES, HEADS, 2, POINTS)
    where = reference_points[:, :, None, :, None]
    if reference_points.size(-1) == 2:
        sizes = SHAPES.flip(1)[None, None, None, :, None]
        where = where + offsets / sizes
    else:
        where = where[..., :2] + offsets / POINTS * where[..., 2:] * 0.5
    return multi_scale_deformable_attn_pytorch(
        value.view(BS, KEYS, HEADS, -1), SHAPES, where, weights)


def plain_prefix(prefix, x):
    """``Attn(x, P_k, P_v)``, one head at a time, without the scale."""
    d = DIMS // HEADS
    heads = []
    for head in range(HEADS):
        own = slice(head * d, (head + 1) * d)
        logits = x[..., own] @ prefix.key[:, own].T / math.sqrt(d)
        heads.append(logits.softmax(-1) @ prefix.value[:, own])
    return torch.cat(heads, -1)


@EACH_CASE
@EACH_REFERENCE
@EACH_PADDING
def test_without_tuning_it_is_the_parent(batch_first, coordinates, padded):
    parent, ours = pair([PREFIX, ADAPTER], batch_first=batch_first)
    given = inputs(batch_first, coordinates, padded)
    with disable_tuning(ours):
        assert_close(ours(**given), parent(**given), rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_close(ours(**given), parent(**given), **CLOSE)


@EACH_CASE
@EACH_REFERENCE
@EACH_PADDING
def test_the_prefix_passes_the_output_projection(batch_first, coordinates,
                                                 padded):
    parent, ours = pair(PREFIX, batch_first=batch_first)
    given = inputs(batch_first, coordinates, padded)
    result = ours(**given)
    if not batch_first:
        result = result.transpose(0, 1)
        given.update({
            k: given[k].transpose(0, 1)
            for k in ('query', 'value', 'query_pos')
        })
    x = given['query'] + given['query_pos']
    attended = inner(parent, **given)
    attended = attended + SCALE * plain_prefix(ours.tuners['prefix'], x)
    assert_close(result, given['query'] + parent.output_proj(attended),
                 **CLOSE)


@EACH_CASE
def test_a_prefix_pays_for_no_projection_of_its_own(batch_first):
    parent, ours = pair(PREFIX, batch_first=batch_first)
    given = inputs(batch_first, 2, False)
    prefix = 2 * BS * QUERIES * 2 * NUM_PREFIX * DIMS  # q P_k^T and P_v
    assert count_flops(lambda: ours(**given)) == count_flops(
        lambda: parent(**given)) + prefix


def test_a_prefix_takes_three_calls_more_than_the_parent():
    parent, ours = pair(PREFIX, batch_first=True)
    given = inputs(True, 2, False)
    assert count_calls(lambda: ours(**given)) <= count_calls(
        lambda: parent(**given)) + 3  # s * P_v, the attention and the sum


def test_compiled_it_is_interrupted_by_nothing_but_its_parent():
    parent, ours = pair([PREFIX, ADAPTER], batch_first=True)
    given = inputs(True, 2, True)
    assert_close(
        torch.compile(ours, backend='eager')(**given), ours(**given), **CLOSE)
    found, expected = ({
        reason.reason
        for reason in torch._dynamo.explain(layer)(**given).break_reasons
    } for layer in (ours, parent))
    assert found == expected


def test_threads_that_share_a_layer_do_not_share_a_prefix():
    _, ours = pair(PREFIX, batch_first=True)
    cases = [inputs(True, 2, True) for _ in range(8)]
    expected = [ours(**case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            found = list(pool.map(lambda case: ours(**case), cases))
            assert_close(found, expected)


@pytest.mark.parametrize('tuning', [
    dict(PREFIX, composition='concat'),
    dict(type='Prefix', num_prefix=NUM_PREFIX)
], ids=['concat', 'standard'])
def test_a_concat_prefix_takes_the_parallel_composition(tuning):
    parent, ours = pair(tuning, batch_first=True)
    given = inputs(True, 2, True)
    x = given['query'] + given['query_pos']
    scale = tuning.get('scale', 1.)
    attended = inner(parent, **given)
    attended = attended + scale * plain_prefix(ours.tuners['prefix'], x)
    assert_close(
        ours(**given), given['query'] + parent.output_proj(attended), **CLOSE)


@EACH_CASE
@pytest.mark.parametrize('tuning', [PREFIX, ADAPTER], ids=lambda t: t['type'])
def test_the_residual_is_identity_where_it_is_given(tuning, batch_first):
    parent, ours = pair(tuning, batch_first=batch_first)
    given = inputs(batch_first, 2, True)
    identity = torch.randn_like(given['query'])
    assert_close(
        ours(**given, identity=identity),
        ours(**given) - given['query'] + identity, **CLOSE)


def test_the_residual_has_the_older_name_that_the_parent_knows():
    parent, ours = pair(PREFIX, batch_first=True)
    given = inputs(True, 2, True)
    residual = torch.randn_like(given['query'])
    assert_close(
        ours(**given, residual=residual), ours(**given, identity=residual))


@pytest.mark.parametrize('position', [True, False])
def test_value_defaults_to_the_query_as_in_the_parent(position):
    """Without its position encoding."""
    parent, ours = pair([PREFIX, ADAPTER], batch_first=True)
    given = inputs(True, 2, True)
    given.update(
        query=torch.randn(BS, KEYS, DIMS),
        value=None,
        query_pos=torch.randn(BS, KEYS, DIMS) if position else None,
        reference_points=torch.rand(BS, KEYS, 2, 2))
    with disable_tuning(ours):
        assert_close(ours(**given), parent(**given), rtol=0, atol=0)
    assert ours(**given).shape == given['query'].shape


@EACH_CASE
def test_adapters_join_before_the_residual(batch_first):
    serial = dict(type='SerialAdapter', bottleneck_dims=4)
    parent, ours = pair([ADAPTER, serial], batch_first=batch_first)
    given = inputs(batch_first, 2, True)
    h = parent(**given) - given['query']
    x = given['query'] + given['query_pos']
    adapter = ours.tuners['parallel_adapter']
    h = h + SCALE * adapter.up(adapter.down(x).relu())
    adapter = ours.tuners['serial_adapter']
    h = h + adapter.up(adapter.down(h).relu())
    assert_close(ours(**given), given['query'] + h, **CLOSE)


def test_lora_updates_the_value_and_the_output_projection():
    parent, ours = pair(dict(type='LoRA', rank=2, alpha=6), batch_first=True)
    given = inputs(True, 4, True)
    with torch.no_grad():  # the update merged into the parent's weights
        for name in ('value_proj', 'output_proj'):
            lora = getattr(ours, name).tuners['lora']
            getattr(parent, name).weight += 6 / 2 * lora.up @ lora.down
    assert_close(ours(**given), parent(**given), **CLOSE)


def test_the_output_dropout_is_the_parents_with_the_same_seed():
    parent, ours = pair(ADAPTER, batch_first=True, dropout=0.5)
    parent.train(), ours.train()
    given = inputs(True, 2, True)
    torch.manual_seed(3)
    expected = parent(**given)
    torch.manual_seed(3)
    with disable_tuning(ours):
        assert_close(ours(**given), expected, rtol=0, atol=0)


def test_a_prefix_with_a_narrow_value_projection_raises():
    with pytest.raises(ValueError, match='value_proj_ratio'):
        ETMultiScaleDeformableAttention(
            DIMS, HEADS, value_proj_ratio=0.5, tuning=PREFIX)
