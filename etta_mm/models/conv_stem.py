"""A convolutional stem that takes the place of a ViT's patch convolution.

Deviations from the source: the patch size gives the number of stride-2
convolutions (the source always has four, for patches of 16), and every one of
them doubles the channels.
"""
from mmcv.cnn import ConvModule
from mmengine.model import Sequential
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from torch import nn


# mmcv looks conv layers up in the root registry, not in mmpretrain's.
@MODELS.register_module()
class ConvStem(Sequential):
    r"""Stride-2 convolutions that embed the patches of an image step by step.

    A drop-in for the convolution of a patch embedding: with
    :math:`p = 2^n` the patch size and :math:`d` the output channels,

    .. math:: \mathrm{conv}_{1\times 1} \circ
        (\mathrm{relu} \circ \mathrm{BN} \circ \mathrm{conv}_{3\times 3,
        \mathrm{stride}\,2})^n

    where the i-th of the n convolutions has :math:`d / 2^{n-i}` channels.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output, d; divisible by
            ``2 ** (n - 1)``.
        kernel_size (int | tuple): The patch size in pixels, ``2 ** n``.
        stride (int | tuple): The same as ``kernel_size``.
        padding (int | tuple): Must be 0. The 3x3 convolutions pad themselves.
        dilation (int | tuple): Must be 1.
        bias (bool): Whether the 1x1 convolution has a bias; the others are
            followed by a BatchNorm. Defaults to True.

    Raises:
        ValueError: If ``kernel_size`` is no square of a power of two or differs
            from ``stride``, if ``padding`` or ``dilation`` is set, or if
            ``out_channels`` cannot be halved n - 1 times.

    Source: Xiao et al. 2021, "Early Convolutions Help Transformers See
    Better", section 3 and appendix A, https://arxiv.org/abs/2106.14881.

    Example:
        >>> backbone = dict(
        >>>     type='VisionTransformer', img_size=32, patch_size=8,
        >>>     patch_cfg=dict(conv_type='ConvStem'))
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 kernel_size,
                 stride=1,
                 padding=0,
                 dilation=1,
                 bias: bool = True):
        kernel_size, stride = to_2tuple(kernel_size), to_2tuple(stride)
        patch_size = kernel_size[0]
        num_convs = patch_size.bit_length() - 1
        if (kernel_size[1] != patch_size or patch_size < 2
                or patch_size != 2**num_convs):
            raise ValueError(
                f'kernel_size={kernel_size}: ConvStem halves the image in each '
                'of its convolutions, so the patch must be a square whose side '
                'is a power of two (2, 4, 8, 16, ...)')
        if stride != kernel_size:
            raise ValueError(
                f'stride={stride} differs from kernel_size={kernel_size}: '
                'ConvStem embeds patches that do not overlap; set both to the '
                'patch size')
        if to_2tuple(padding) != (0, 0) or to_2tuple(dilation) != (1, 1):
            raise ValueError(
                f'padding={padding}, dilation={dilation}: ConvStem takes only '
                'padding=0 and dilation=1; pad the image to a multiple of the '
                'patch size instead')
        if out_channels % 2**(num_convs - 1):
            raise ValueError(
                f'out_channels={out_channels}: for patches of {patch_size} '
                f'pixels it must be a multiple of {2**(num_convs - 1)}, since '
                f'each of the {num_convs} convolutions doubles the channels')
        widths = [
            out_channels // 2**(num_convs - 1 - i) for i in range(num_convs)
        ]
        convs = [
            # (bs, c, h, w) -> (bs, width, h / 2, w / 2)
            ConvModule(
                c, width, 3, stride=2, padding=1, norm_cfg=dict(type='BN'))
            for c, width in zip([in_channels] + widths, widths)
        ]
        super().__init__(*convs, nn.Conv2d(out_channels, out_channels, 1,
                                           bias=bias))
