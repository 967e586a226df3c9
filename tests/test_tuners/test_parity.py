"""Tuners against plain transcriptions, and LoRA against HF peft."""
import copy

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmpretrain.models.utils import MultiheadAttention as ViTAttention
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from etta_mm import apply_tuning
from etta_mm.tuners import (ConvAdapter, LoRA, ParallelAdapter, Prefix,
                            ScaledPrefix, SerialAdapter)

DIMS = 8
HEADS = 2
HIDDEN = 12
BOTTLENECK = 5
NUM_PREFIX = 3
RANK = 2
ALPHA = 6.
CLOSE = dict(rtol=1e-4, atol=1e-4)


def randomise(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.7)
    return module


# ------------------------------------------------------------------ adapters
@pytest.mark.parametrize('scale, learn', [(1., False), (0.3, False),
                                          (-2, False), (0.3, True)])
def test_a_parallel_adapter_is_its_equation(scale, learn):
    adapter = ParallelAdapter(DIMS, BOTTLENECK, scale, learn)
    if learn:
        assert adapter.scale.weight == scale
    else:
        assert not list(adapter.scale.parameters())
    start = adapter.scale.weight.item() if learn else scale
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if not name.startswith('scale'):
                parameter.normal_()
    x = torch.randn(2, 7, DIMS)
    hidden = torch.relu(x @ adapter.down.weight.T + adapter.down.bias)
    expected = start * (hidden @ adapter.up.weight.T + adapter.up.bias)
    assert_close(adapter(x), expected, **CLOSE)


def test_a_serial_adapter_is_its_equation():
    adapter = randomise(SerialAdapter(DIMS, BOTTLENECK))
    h = torch.randn(2, 7, DIMS)
    hidden = torch.relu(h @ adapter.down.weight.T + adapter.down.bias)
    assert_close(
        adapter(h), hidden @ adapter.up.weight.T + adapter.up.bias, **CLOSE)


def test_an_adapter_drops_behind_the_relu_and_in_training_only():
    adapter = randomise(ParallelAdapter(DIMS, BOTTLENECK, dropout=0.5))
    x = torch.randn(2, 7, DIMS)
    hidden = torch.relu(adapter.down(x))
    torch.manual_seed(3)
    dropped = nn.functional.dropout(hidden, 0.5)
    torch.manual_seed(3)
    assert_close(adapter.train()(x), adapter.up(dropped), **CLOSE)
    assert_close(adapter.eval()(x), adapter.up(hidden), **CLOSE)


@pytest.mark.parametrize('adapter', [
    ParallelAdapter(DIMS, BOTTLENECK, 4., True),
    SerialAdapter(DIMS, BOTTLENECK),
    LoRA(DIMS, HIDDEN, RANK),
], ids=lambda a: type(a).__name__)
def test_the_update_starts_at_zero_and_starts_over(adapter):
    x = torch.randn(2, 7, DIMS)
    for _ in range(2):
        assert not adapter(x).any()
        assert adapter.down.any() if isinstance(
            adapter, LoRA) else adapter.down.weight.any()
        if isinstance(adapter, ParallelAdapter):
            assert adapter.scale.weight == 4.
        randomise(adapter)
        assert adapter(x).any()
        adapter.init_weights()


def test_a_conv_adapter_starts_at_zero_and_kaiming_uniform():
    torch.manual_seed(3)
    adapter = ConvAdapter(DIMS, 64)
    x = torch.randn(2, DIMS, 5, 5)
    for _ in range(2):
        assert not adapter(x).any()
        # a = sqrt(5): uniform within 1 / sqrt(fan_in)
        for conv, fan_in in ((adapter.down, DIMS), (adapter.depth, 9)):
            assert not conv.bias.any()
            assert 0.8 < conv.weight.abs().max() * fan_in**0.5 <= 1
        randomise(adapter)
        assert adapter(x).any()
        adapter.init_weights()


def test_the_down_projection_starts_kaiming_uniform():
    torch.manual_seed(3)
    weight = ParallelAdapter(DIMS, BOTTLENECK).down.weight
    bound = DIMS**-0.5  # a = sqrt(5): uniform within 1 / sqrt(fan_in)
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.8 * bound
    weight = LoRA(DIMS, HIDDEN, 4).down
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.8 * bound


# ------------------------------------------------------------------ prefixes
@pytest.mark.parametrize('composition, value_std', [('parallel', 0.),
                                                    ('concat', 0.02)])
def test_a_scaled_prefix_starts_as_documented(composition, value_std):
    prefix = ScaledPrefix(
        256, 4, num_prefix=64, scale=2., composition=composition)
    for _ in range(2):
        assert abs(prefix.key.std().item() - 1) < 0.05
        assert abs(prefix.value.std().item() - value_std) < 0.05 * 0.02
        assert prefix.scale.weight == 2.
        randomise(prefix)
        prefix.init_weights()


def test_a_standard_prefix_starts_small():
    prefix = Prefix(256, 4, num_prefix=64)
    assert abs(prefix.key.std().item() - 0.02) < 1e-3
    assert abs(prefix.value.std().item() - 0.02) < 1e-3
    assert not prefix.is_identity_at_start


def test_a_parallel_prefix_is_a_scaled_softmax_over_its_keys():
    # The shared form: softmax in place of relu, P_k and P_v for W_down, W_up.
    prefix = randomise(ScaledPrefix(DIMS, HEADS, NUM_PREFIX, scale=0.3))
    query = torch.randn(2, 7, DIMS)
    heads = []
    for q, k, v in zip(query.chunk(HEADS, -1), prefix.key.chunk(HEADS, -1),
                       prefix.value.chunk(HEADS, -1)):
        weights = (q @ k.T / (DIMS // HEADS)**0.5).softmax(-1)
        heads.append(weights @ v)
    assert_close(
        prefix(query), prefix.scale.weight * torch.cat(heads, -1), **CLOSE)


# ---------------------------------------------------------------------- LoRA
def wrapped(model: nn.Module, targets, rank=RANK, alpha=ALPHA):
    """``model`` with HF peft's LoRA, all of it at random."""
    model = get_peft_model(
        copy.deepcopy(model),
        LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'lora_' in name:
                parameter.normal_(std=0.7)
    return model.eval()


def copy_lora(ours: LoRA, theirs) -> None:
    with torch.no_grad():
        ours.down.copy_(theirs.lora_A['default'].weight)
        ours.up.copy_(theirs.lora_B['default'].weight)


@pytest.mark.parametrize('rank, alpha', [(2, 6.), (2, 2.), (3, 1), (3, None)])
def test_lora_at_an_ffn_is_pefts(rank, alpha):
    base = randomise(FFN(DIMS, HIDDEN))
    theirs = wrapped(base, ['layers.0.0', 'layers.1'], rank, alpha or rank)
    ours = nn.ModuleList([copy.deepcopy(base)])
    apply_tuning(ours, dict(ffn=dict(type='LoRA', rank=rank, alpha=alpha)))
    peft_layers = dict(theirs.base_model.model.named_modules())
    for name in ('layers.0.0', 'layers.1'):
        copy_lora(ours[0].get_submodule(name).tuners['lora'],
                  peft_layers[name])
    x = torch.randn(2, 7, DIMS)
    assert_close(ours[0](x), theirs(x), **CLOSE)
    assert (ours[0](x) - base(x)).abs().max() > 0.1


class PlainAttention(nn.Module):
    """mmpretrain's attention with q, k and v as three linear layers, so that
    peft can update the first and the last."""

    def __init__(self, attention: ViTAttention) -> None:
        super().__init__()
        self.proj = copy.deepcopy(attention.proj)
        for i, name in enumerate('qkv'):
            linear = nn.Linear(DIMS, DIMS)
            with torch.no_grad():
                linear.weight.copy_(attention.qkv.weight.chunk(3)[i])
                linear.bias.copy_(attention.qkv.bias.chunk(3)[i])
            setattr(self, name, linear)

    def forward(self, x):
        q, k, v = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear in (self.q, self.k, self.v))
        weights = (q @ k.mT / (DIMS // HEADS)**0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def test_lora_at_a_vits_attention_is_pefts():
    base = randomise(ViTAttention(DIMS, HEADS)).eval()
    plain = PlainAttention(base)
    x = torch.randn(2, 7, DIMS)
    assert_close(plain(x), base(x), **CLOSE)
    theirs = wrapped(plain, ['q', 'v'])
    ours = nn.ModuleList([copy.deepcopy(base)])
    apply_tuning(ours, dict(attn=dict(type='LoRA', rank=RANK, alpha=ALPHA)))
    for name in 'qv':
        copy_lora(ours[0].tuners[f'lora_{name}'],
                  getattr(theirs.base_model.model, name))
    assert_close(ours[0](x), theirs(x), **CLOSE)
    assert (ours[0](x) - base(x)).abs().max() > 0.1
