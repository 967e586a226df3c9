"""Softmax attentions: against their parents, and against a transcription."""
import copy
import math

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmpretrain.models.utils import MultiheadAttention as ViTAttention
from torch import nn
from torch.testing import assert_close

from etta_mm import apply_tuning, disable_tuning
from etta_mm.layers import ETMultiheadAttention, ETViTAttention
from etta_mm.layers.dropout import pack_dropouts
from etta_mm.tuners import build_tuner

DIMS = 8
HEADS = 2
BS = 2
QUERIES = 5
KEYS = 7
NUM_PREFIX = 3
SCALE = 1.7
PREFIX = dict(type='ScaledPrefix', num_prefix=NUM_PREFIX, scale=SCALE)
CLOSE = dict(rtol=1e-4, atol=1e-4)


def random_parameters(module: nn.Module) -> nn.Module:
    """Every parameter at random, so that nothing is zero by accident."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim():  # a learned scale keeps its value
                parameter.normal_(std=0.7)
    return module


def pair(tuning=PREFIX, **kwargs):
    """mmcv's attention and ours with the same base weights."""
    # mmcv writes into its default of dropout_layer, so it is given here.
    kwargs = dict(
        dict(embed_dims=DIMS, num_heads=HEADS, dropout_layer=None), **kwargs)
    parent = random_parameters(MultiheadAttention(**kwargs)).eval()
    ours = random_parameters(ETMultiheadAttention(**kwargs, tuning=tuning))
    ours.load_state_dict(parent.state_dict(), strict=False)
    return parent, ours.eval()


def tensors(batch_first: bool, num_queries=QUERIES, num_keys=KEYS, dims=DIMS):
    """A query and a key of each length, and position encodings of both."""

    def one(n, d):
        return torch.randn((BS, n, d) if batch_first else (n, BS, d))

    return (one(num_queries, DIMS), one(num_keys, dims),
            one(num_queries, DIMS), one(num_keys, dims))


# Every query sees a key: a row that is hidden entirely is NaN in the parent.
def _bool_mask(*shape):
    mask = torch.rand(shape) < 0.5
    mask[..., 0] = False
    return mask


MASKS = dict(
    none=lambda q, k: {},
    attn_bool_2d=lambda q, k: dict(attn_mask=_bool_mask(q, k)),
    attn_float_2d=lambda q, k: dict(attn_mask=torch.randn(q, k)),
    attn_bool_3d=lambda q, k: dict(attn_mask=_bool_mask(BS * HEADS, q, k)),
    attn_float_3d=lambda q, k: dict(attn_mask=torch.randn(BS * HEADS, q, k)),
    padding=lambda q, k: dict(key_padding_mask=_bool_mask(BS, k)),
    padding_float=lambda q, k: dict(key_padding_mask=torch.randn(BS, k)),
    both_bool=lambda q, k: dict(
        attn_mask=_bool_mask(q, k), key_padding_mask=_bool_mask(BS, k)),
    both_bool_3d=lambda q, k: dict(
        attn_mask=_bool_mask(BS * HEADS, q, k),
        key_padding_mask=_bool_mask(BS, k)),
    both_float=lambda q, k: dict(
        attn_mask=torch.randn(q, k), key_padding_mask=torch.randn(BS, k)),
    float_and_bool=lambda q, k: dict(
        attn_mask=torch.randn(q, k), key_padding_mask=_bool_mask(BS, k)),
)
EACH_MASK = pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
EACH_LAYOUT = pytest.mark.parametrize('batch_first', [True, False])


def transcription(ours, query, key, value, query_pos, key_pos, masks,
                  composition):
    """The paper's equations, one image and one head at a time.

    Masked logits get -inf, the prefix joins by the gated form with an explicit
    λ ('concat') or by a plain sum ('parallel').
    """
    if not ours.batch_first:
        query, key, value, query_pos, key_pos = (
            None if t is None else t.transpose(0, 1)
            for t in (query, key, value, query_pos, key_pos))
    x = query if query_pos is None else query + query_pos
    keys = key if key_pos is None else key + key_pos
    attn = ours.attn
    w_q, w_k, w_v = attn.in_proj_weight.chunk(3)
    b_q, b_k, b_v = attn.in_proj_bias.chunk(3)
    prefix = ours.tuners['prefix']
    d = DIMS // HEADS
    out = torch.zeros(BS, QUERIES, DIMS)
    for image in range(BS):
        for head in range(HEADS):
            own = slice(head * d, (head + 1) * d)
            q = (x[image] @ w_q.T + b_q)[:, own]
            k = (keys[image] @ w_k.T + b_k)[:, own]
            v = (value[image] @ w_v.T + b_v)[:, own]
            logits = q @ k.T / math.sqrt(d)
            mask = masks.get('attn_mask')
            if mask is not None:
                mask = mask if mask.dim() == 2 else mask[image * HEADS + head]
                logits = _masked(logits, mask)
            if 'key_padding_mask' in masks:
                logits = _masked(logits, masks['key_padding_mask'][image])
            on_prefix = q @ prefix.key[:, own].T / math.sqrt(d)
            frozen = logits.softmax(-1) @ v
            learned = on_prefix.softmax(-1) @ prefix.value[:, own]
            if composition == 'parallel':
                out[image, :, own] = frozen + SCALE * learned
            else:
                mass = on_prefix.exp().sum(-1, keepdim=True)
                share = mass / (mass + logits.exp().sum(-1, keepdim=True))
                out[image, :, own] = ((1 - share) * frozen +
                                      SCALE * share * learned)
    out = query + attn.out_proj(out)
    return out if ours.batch_first else out.transpose(0, 1)


def _masked(logits, mask):
    if mask.dtype == torch.bool:
        return logits.masked_fill(mask, -math.inf)
    return logits + mask


@EACH_MASK
@EACH_LAYOUT
def test_without_tuning_it_is_mmcvs_attention(mask, batch_first):
    parent, ours = pair(batch_first=batch_first)
    query, key, query_pos, key_pos = tensors(batch_first)
    inputs = dict(query_pos=query_pos, key_pos=key_pos, **mask(QUERIES, KEYS))
    expected = parent(query, key, key, **inputs)
    with disable_tuning(ours):
        assert_close(ours(query, key, key, **inputs), expected, **CLOSE)
    with pytest.raises(AssertionError):
        assert_close(ours(query, key, key, **inputs), expected, **CLOSE)


@EACH_LAYOUT
@pytest.mark.parametrize('call', [
    dict(),
    dict(query_pos=True),
    dict(key=True),
    dict(key=True, value=True),
    dict(key=True, query_pos=True),
    dict(key=True, key_pos=True),
    dict(key=True, value=True, query_pos=True, key_pos=True),
    dict(key=True, value=True, identity=True),
    dict(residual=True),  # its older name
    dict(value='query'),
    dict(key='query', value='query', query_pos=True, key_pos='query_pos'),
    dict(key='query', value='query', query_pos=True, key_pos=True),
    dict(key='query', value='query', key_pos=True),
    dict(key_pos=True, query_pos=True),
], ids=lambda call: '+'.join(f'{k}={v}' for k, v in call.items()) or 'query')
def test_defaults_of_key_value_and_positions_are_mmcvs(call, batch_first):
    parent, ours = pair(batch_first=batch_first)
    call = dict(call)
    num_keys = KEYS if call.get('key') is True else QUERIES
    query, key, query_pos, key_pos = tensors(batch_first, num_keys=num_keys)
    own = dict(
        key=key,
        value=torch.randn_like(key),
        query_pos=query_pos,
        key_pos=key_pos,
        identity=torch.randn_like(query),
        residual=torch.randn_like(query))
    same = dict(query=query, query_pos=query_pos)
    inputs = {
        name: own[name] if given is True else same[given]
        for name, given in call.items()
    }
    expected = parent(query, **inputs)
    with disable_tuning(ours):
        assert_close(ours(query, **inputs), expected, **CLOSE)


@pytest.mark.parametrize('sizes', [
    dict(kdim=6, vdim=10),
    dict(kdim=6, vdim=6),
    dict(vdim=10),
    dict(bias=False),
    dict(kdim=6, vdim=10, bias=False),
], ids=str)
@EACH_LAYOUT
def test_other_widths_of_key_and_value_and_no_bias(sizes, batch_first):
    parent, ours = pair(batch_first=batch_first, **sizes)
    query, key, _, _ = tensors(batch_first, dims=sizes.get('kdim', DIMS))
    value = torch.randn(*key.shape[:2], sizes.get('vdim', DIMS))
    expected = parent(query, key, value)
    with disable_tuning(ours):
        assert_close(ours(query, key, value), expected, **CLOSE)
    assert ours(query, key, value).shape == expected.shape


@EACH_MASK
@EACH_LAYOUT
@pytest.mark.parametrize('composition', ['parallel', 'concat'])
def test_the_prefix_joins_by_its_formula(composition, batch_first, mask):
    _, ours = pair(
        dict(PREFIX, composition=composition), batch_first=batch_first)
    query, key, query_pos, key_pos = tensors(batch_first)
    value = torch.randn_like(key)
    masks = mask(QUERIES, KEYS)
    assert_close(
        ours(
            query,
            key,
            value,
            query_pos=query_pos,
            key_pos=key_pos,
            **masks),
        transcription(ours, query, key, value, query_pos, key_pos, masks,
                      composition), **CLOSE)


def test_a_standard_prefix_is_the_concatenation_with_scale_one():
    _, scaled = pair(dict(PREFIX, scale=1., composition='concat'))
    _, standard = pair(dict(type='Prefix', num_prefix=NUM_PREFIX))
    state = scaled.state_dict()
    assert state.pop('tuners.prefix.scale.weight') == 1
    standard.load_state_dict(state)
    query, key, _, _ = tensors(False)
    assert_close(standard(query, key), scaled(query, key), **CLOSE)


def test_a_prefix_is_seen_where_every_key_is_hidden():
    _, ours = pair(dict(PREFIX, composition='concat'))
    query, key, _, _ = tensors(False)
    hidden = torch.ones(BS, KEYS, dtype=torch.bool)
    out = ours(query, key, key_padding_mask=hidden)
    prefix = ours.tuners['prefix']
    q = torch.nn.functional.linear(query, ours.attn.in_proj_weight[:DIMS],
                                   ours.attn.in_proj_bias[:DIMS])
    only = prefix(q.transpose(0, 1)).transpose(0, 1)
    assert_close(out, query + ours.attn.out_proj(only), **CLOSE)


@pytest.mark.parametrize('additional_key',
                         ['add_zero_attn', 'add_bias_kv'])
def test_an_attention_with_a_key_of_its_own_stays_as_it_is(additional_key):
    attention = MultiheadAttention(DIMS, HEADS, dropout_layer=None)
    attention.attn = nn.MultiheadAttention(DIMS, HEADS, **{additional_key: True})
    model = nn.ModuleList([attention, FFN(DIMS, 4)])
    apply_tuning(model, dict(ffn=dict(type='LoRA', rank=2)))
    assert type(attention) is MultiheadAttention


@pytest.mark.parametrize('composition', [None, 'concat'])
def test_attention_dropout_zeroes_weights_and_rescales_the_rest(composition):
    # Equal logits and one-hot values: the output shows each weight by itself.
    tuning = composition and dict(
        PREFIX, num_prefix=4, scale=1., composition=composition)
    ours = ETMultiheadAttention(16, 2, attn_drop=0.5, tuning=tuning)
    num_keys = 8 - 4 * bool(tuning)
    values = torch.eye(8)[:, None].expand(8, 2, 8).flatten(1)
    if tuning:
        with torch.no_grad():
            ours.tuners['prefix'].value.copy_(values[num_keys:])
    none = torch.zeros(1, 50, 16)
    weights = ours.attend(none, torch.zeros(1, num_keys, 16),
                          values[None, :num_keys], None, 0.5)
    kept = weights != 0
    assert_close(weights[kept], torch.full_like(weights[kept], 2 / 8))
    assert 0.4 < kept.float().mean() < 0.6
    assert kept.flatten(0, 1).any(0).all()  # a prefix is dropped, too
    assert not kept.flatten(0, 1).all(0).any()


def test_attention_dropout_is_there_in_training_only():
    _, ours = pair(tuning=None, attn_drop=0.5)
    query, key, _, _ = tensors(False)
    assert_close(ours(query, key), ours(query, key), rtol=0, atol=0)
    ours.train()
    assert not torch.allclose(ours(query, key), ours(query, key))


@pytest.mark.parametrize('drop', [
    dict(proj_drop=0.5),
    dict(dropout_layer=dict(type='Dropout', drop_prob=0.5)),
], ids=str)
def test_output_dropout_is_before_the_residual(drop):
    _, ours = pair(tuning=PREFIX, **drop)
    query, key, _, _ = tensors(False)
    whole = ours(query, key) - query
    ours.train()
    dropped = ours(query, key) - query
    kept = dropped.abs() > 1e-5
    assert kept.any() and not kept.all()
    assert_close(dropped[kept], 2 * whole[kept], **CLOSE)


@EACH_LAYOUT
def test_adapters_join_before_the_residual(batch_first):
    tuning = [
        dict(type='ParallelAdapter', bottleneck_dims=3, scale=SCALE),
        dict(type='SerialAdapter', bottleneck_dims=4)
    ]
    parent, ours = pair(tuning, batch_first=batch_first)
    query, key, query_pos, key_pos = tensors(batch_first)
    inputs = dict(query_pos=query_pos, key_pos=key_pos)
    h = parent(query, key, identity=torch.zeros(()), **inputs)
    parallel = ours.tuners['parallel_adapter']
    serial = ours.tuners['serial_adapter']
    h = h + SCALE * parallel.up(parallel.down(query + query_pos).relu())
    h = h + serial.up(serial.down(h).relu())
    assert_close(ours(query, key, **inputs), query + h, **CLOSE)


# -------------------------------------------------------- mmpretrain's layer
def vit_pair(tuning, **kwargs):
    parent = random_parameters(
        ViTAttention(embed_dims=DIMS, num_heads=HEADS, **kwargs)).eval()
    ours = copy.deepcopy(parent)
    apply_tuning(nn.ModuleList([ours]), dict(attn=tuning))
    with torch.no_grad():
        for parameter in ours.tuners.parameters():
            if parameter.dim():
                parameter.normal_(std=0.7)
    assert type(ours) is ETViTAttention
    return parent, ours.eval()


@pytest.mark.parametrize('kwargs', [
    dict(),
    dict(attn_drop=0.9),
    dict(qkv_bias=False),
    dict(layer_scale_init_value=0.5),
    dict(qk_scale=0.1),
    dict(proj_bias=False),
], ids=str)
def test_without_tuning_it_is_mmpretrains_attention(kwargs):
    parent, ours = vit_pair(PREFIX, **kwargs)
    x = torch.randn(BS, QUERIES, DIMS)
    with disable_tuning(ours):
        assert_close(ours(x), parent(x), **CLOSE)
    with pytest.raises(AssertionError):
        assert_close(ours(x), parent(x), **CLOSE)


@pytest.mark.parametrize('kwargs', [dict(proj_drop=0.5),
                                    dict(dropout_layer=dict(
                                        type='DropPath', drop_prob=0.5))],
                         ids=str)
def test_vit_output_dropout_is_the_parents_with_the_same_seed(kwargs):
    parent, ours = vit_pair(PREFIX, **kwargs)
    pack_dropouts(parent)
    parent.train(), ours.train()
    x = torch.randn(BS, QUERIES, DIMS)
    torch.manual_seed(3)
    expected = parent(x)
    torch.manual_seed(3)
    with disable_tuning(ours):
        assert_close(ours(x), expected, **CLOSE)


def test_vit_value_shortcut_is_the_parents():
    parent = random_parameters(
        ViTAttention(
            embed_dims=DIMS, num_heads=1, input_dims=6, v_shortcut=True))
    ours = copy.deepcopy(parent)
    apply_tuning(nn.ModuleList([ours]), dict(attn=PREFIX))
    x = torch.randn(BS, QUERIES, 6)
    with disable_tuning(ours):
        assert_close(ours.eval()(x), parent.eval()(x), **CLOSE)


@pytest.mark.parametrize('composition', ['parallel', 'concat'])
def test_vit_prefix_joins_by_its_formula(composition):
    _, ours = vit_pair(dict(PREFIX, composition=composition))
    mmcv = ETMultiheadAttention(
        DIMS, HEADS, batch_first=True,
        tuning=dict(PREFIX, composition=composition)).eval()
    state = ours.state_dict()
    names = {
        'qkv.weight': 'attn.in_proj_weight',
        'qkv.bias': 'attn.in_proj_bias',
        'proj.weight': 'attn.out_proj.weight',
        'proj.bias': 'attn.out_proj.bias'
    }
    mmcv.load_state_dict({names.get(k, k): v for k, v in state.items()})
    x = torch.randn(BS, QUERIES, DIMS)
    assert_close(
        x + ours(x),
        transcription(mmcv, x, x, x, None, None, {}, composition), **CLOSE)


@pytest.mark.parametrize('composition', ['parallel', 'concat'])
def test_vit_prefix_has_the_scale_of_the_logits(composition):
    """mmpretrain divides by d_head ** -0.5 where a qk_scale is set, whatever
    that is; without one it multiplies, which needs larger queries for the same
    logits."""
    _, ours = vit_pair(
        dict(PREFIX, composition=composition), qk_scale=0.3)
    plain = ETViTAttention(DIMS, HEADS, tuning=dict(
        PREFIX, composition=composition)).eval()
    plain.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for tensor in (plain.qkv.weight, plain.qkv.bias):
            tensor[:DIMS] *= DIMS // HEADS
    x = torch.randn(BS, QUERIES, DIMS)
    assert_close(ours(x), plain(x), **CLOSE)


def test_vit_adapter_is_outside_the_layer_scale():
    parent, ours = vit_pair(
        dict(type='ParallelAdapter', bottleneck_dims=3, scale=SCALE),
        layer_scale_init_value=0.5)
    x = torch.randn(BS, QUERIES, DIMS)
    adapter = ours.tuners['parallel_adapter']
    assert_close(
        ours(x),
        parent(x) + SCALE * adapter.up(adapter.down(x).relu()), **CLOSE)


@pytest.mark.parametrize('tuner, std', [
    (dict(type='ScaledPrefix'), 1.),
    (dict(type='ScaledPrefix', key_std=0.1), 0.1),
    (dict(type='Prefix'), 0.02),
])
def test_the_keys_start_at_their_standard_deviation(tuner, std):
    prefix = build_tuner(
        dict(tuner, num_prefix=100), embed_dims=64, num_heads=4)
    assert_close(prefix.key.std().item(), std, rtol=0.05, atol=0)
