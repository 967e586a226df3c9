"""The convolutional stem stands where a patch convolution stood."""
import pytest
import torch
from mmcv.cnn.bricks.transformer import PatchEmbed
from torch import nn

from etta_mm.models import ConvStem


@pytest.mark.parametrize('patch_size', [2, 4, 8])
def test_it_gives_the_patches_of_a_patch_embedding(patch_size):
    embed = PatchEmbed(
        in_channels=3,
        embed_dims=16,
        conv_type='ConvStem',
        kernel_size=patch_size,
        stride=patch_size,
        input_size=32)
    tokens, size = embed(torch.randn(2, 3, 32, 32))
    side = 32 // patch_size
    assert tuple(size) == (side, side) == tuple(embed.init_out_size)
    assert tokens.shape == (2, side * side, 16)


def test_it_has_one_strided_convolution_for_each_halving():
    stem = ConvStem(3, 16, kernel_size=8, stride=8)
    strides = [m.stride for m in stem.modules() if isinstance(m, nn.Conv2d)]
    assert strides == [(2, 2)] * 3 + [(1, 1)]


@pytest.mark.parametrize('wrong', [
    dict(kernel_size=6, stride=6),
    dict(kernel_size=8, stride=4),
    dict(kernel_size=(8, 4), stride=(8, 4)),
    dict(padding=1),
    dict(dilation=2),
    dict(out_channels=6),
])
def test_what_is_no_patch_is_refused(wrong):
    given = dict(in_channels=3, out_channels=16, kernel_size=8, stride=8)
    with pytest.raises(ValueError):
        ConvStem(**{**given, **wrong})
