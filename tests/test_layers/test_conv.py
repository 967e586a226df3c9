"""Adapters behind the blocks of a ResNet."""
import copy

import pytest
import torch
from hosts import HOSTS, output, randomise
from mmdet.models import ResNet
from torch import nn
from torch.testing import assert_close

from etta_mm import apply_tuning, disable_tuning
from etta_mm.layers import fold_frozen_norms
from etta_mm.layers.folding import FoldedConv2d
from etta_mm.tuners import ConvAdapter

CLOSE = dict(rtol=1e-4, atol=1e-4)
CONV = dict(type='ConvAdapter', bottleneck_dims=3)
IMAGES = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def resnet(depth: int, frozen_stages: int = -1) -> nn.Module:
    model = ResNet(depth, base_channels=4, frozen_stages=frozen_stages)
    randomise(model)
    model.eval()  # which mmdet's ResNet does not return from
    return model


def blocks(model: nn.Module):
    return [
        getattr(model, f'layer{stage}')[i] for stage in range(1, 5)
        for i in range(len(getattr(model, f'layer{stage}')))
    ]


@pytest.mark.parametrize('depth', [18, 50])
def test_a_block_is_its_parent_and_the_adapter_behind_it(depth):
    model = resnet(depth)
    plain = copy.deepcopy(model)
    randomise(apply_tuning(model, dict(conv=CONV)), seed=1)
    # The base goes through randomise as well: copy what is its.
    plain.load_state_dict(model.state_dict(), strict=False)
    x = IMAGES.new_ones(2, 4, 10, 14)
    for tuned, parent in zip(blocks(model), blocks(plain)):
        h = parent(x)
        tuner = tuned.tuners['conv_adapter']
        hidden = nn.functional.conv2d(h, tuner.down.weight, tuner.down.bias)
        hidden = nn.functional.conv2d(
            hidden, tuner.depth.weight, tuner.depth.bias, padding=1, groups=3)
        change = nn.functional.conv2d(
            hidden.relu(), tuner.up.weight, tuner.up.bias)
        assert change.abs().max() > 1e-3
        assert_close(tuned(x), h + change, **CLOSE)
        x = h


def test_frozen_stages_get_no_adapter():
    model = apply_tuning(resnet(18, frozen_stages=2), dict(conv=CONV))
    model.train()
    tuned = [name for name, m in model.named_modules()
             if isinstance(m, ConvAdapter)]
    assert tuned == [f'layer{s}.{i}.tuners.conv_adapter' for s in (3, 4)
                     for i in (0, 1)]
    assert all(p.requires_grad for n, p in model.named_parameters()
               if '.tuners.' in n)


def test_a_frozen_model_gets_the_same_adapters():
    # Whoever loads a tuned file for inference may have frozen all of it.
    model = apply_tuning(resnet(18).requires_grad_(False), dict(conv=CONV))
    assert sum(isinstance(m, ConvAdapter) for m in model.modules()) == 8


def test_all_stages_frozen_is_an_error():
    with pytest.raises(ValueError, match='conv=ConvAdapter matches no'):
        apply_tuning(resnet(18, frozen_stages=4), dict(conv=CONV))


def test_the_norms_of_tuned_blocks_are_folded():
    model = apply_tuning(resnet(50), dict(conv=CONV))
    expected = model(IMAGES)
    assert fold_frozen_norms(model) == 53
    assert all(m.pair.product(m) is not None for m in model.modules()
               if isinstance(m, FoldedConv2d))
    for result, wanted in zip(model(IMAGES), expected):
        assert_close(result, wanted, **CLOSE)


def test_the_tuners_of_the_backbone_rest_with_the_others():
    host = HOSTS['detr']
    model = host.build(dict(conv=CONV))
    before = output(model.eval(), host.batch())
    randomise_tuners(model)
    with disable_tuning(model):
        assert_close(output(model, host.batch()), before, rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_close(output(model, host.batch()), before, **CLOSE)


def randomise_tuners(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, ConvAdapter):
            randomise(module)
