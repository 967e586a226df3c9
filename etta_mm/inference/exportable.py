"""Models as plain modules that an exporter can trace: images in, scores out.

Deviations of the exported detectors from their hosts: padding comes as a
tensor, not with the data samples, and the sizes of the feature maps are plain
numbers, which are fixed by the size of the images; the number of images stays
free. Deformable attention always takes mmcv's PyTorch path.
"""
import copy
from functools import lru_cache
from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmdet.models.detectors import (DeformableDETR, DetectionTransformer,
                                    GroundingDINO)
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import Tensor, nn

from ..layers.derived import Derived, derived_class

try:  # OneDL's mmpretrain alone has it
    from mmpretrain.models.heads import RegressionHead
except ImportError:
    RegressionHead = ()


class ExportedClassifier(nn.Module):
    """Images to class scores, or to the values of a regression.

    Args:
        model (ImageClassifier): The classifier; it stays as it is.

    Raises:
        TypeError: If its head is of neither kind of mmpretrain.
    """

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        if not isinstance(model.head, (ClsHead, MultiLabelClsHead)):
            raise TypeError(
                f'the head of the {type(model).__name__}, a '
                f'{type(model.head).__name__}, cannot be exported: what can be '
                "are mmpretrain's ClsHead, MultiLabelClsHead and their heirs")
        self.host = copy.deepcopy(model).eval()

    def forward(self, images: Tensor) -> Tuple[Tensor]:
        """Classify images.

        Args:
            images (Tensor): Normalised, (bs, 3, h, w).

        Returns:
            tuple[Tensor]: Scores of the classes in [0, 1], or the values of a
            regression, (bs, num_classes).
        """
        found = self.host(images, mode='tensor')
        if isinstance(self.host.head, RegressionHead):
            return (found, )
        if isinstance(self.host.head, MultiLabelClsHead):
            return (found.sigmoid(), )
        return (found.softmax(-1), )


class ExportedDetector(nn.Module):
    """Images to boxes and class logits.

    Args:
        model (DetectionTransformer): A detector of DETR's or Deformable
            DETR's line; it stays as it is.
    """

    def __init__(self, model: DetectionTransformer) -> None:
        super().__init__()
        self.host = copy.deepcopy(model).eval()
        mixin = (_MultiLevel if isinstance(model, DeformableDETR) else
                 _SingleLevel)
        self.host.__class__ = derived_class(mixin, type(model))
        for module in self.host.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.__class__ = _static_class(type(module))

    def forward(self,
                images: Tensor,
                masks: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Detect objects.

        Args:
            images (Tensor): Normalised, (bs, 3, h, w).
            masks (Tensor, optional): Boolean, True where an image is padded,
                (bs, h, w). Defaults to None: no image is.

        Returns:
            tuple[Tensor]: Boxes (bs, num_queries, 4) as (cx, cy, w, h) in
            [0, 1] of the image without its padding, and the logits of the
            classes (bs, num_queries, num_classes, + 1 for the background
            where the host's classification is a softmax).
        """
        host = self.host
        # The mixins take the masks where the host takes data samples.
        logits, boxes = host.bbox_head(
            **host.forward_transformer(host.extract_feat(images), masks))
        return boxes[-1], logits[-1]


class StaticDeformableAttention(MultiScaleDeformableAttention):
    """mmcv's deformable attention with the levels' sizes as plain numbers.

    The parent takes them as a tensor and splits by its values, which no
    exporter knows.
    """

    def forward(self,
                query: Tensor,
                key: Optional[Tensor] = None,
                value: Optional[Tensor] = None,
                identity: Optional[Tensor] = None,
                query_pos: Optional[Tensor] = None,
                key_padding_mask: Optional[Tensor] = None,
                reference_points: Optional[Tensor] = None,
                spatial_shapes: List[Tuple[int, int]] = (),
                **kwargs) -> Tensor:
        """As the parent's, with ``spatial_shapes`` as pairs (h, w)."""
        identity = query if identity is None else identity
        value = query if value is None else value
        x = query if query_pos is None else query + query_pos
        if not self.batch_first:
            x, value = x.transpose(0, 1), value.transpose(0, 1)
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.)
        samples = (self.num_heads, self.num_levels, self.num_points)
        # (bs, num_queries, num_heads, num_levels, num_points, 2)
        offsets = self.sampling_offsets(x).unflatten(-1, (*samples, 2))
        weights = self.attention_weights(x).unflatten(
            -1, (self.num_heads, -1)).softmax(-1).unflatten(-1, samples[1:])
        points = reference_points[:, :, None, :, None]
        if points.size(-1) == 2:
            sizes = x.new_tensor([(w, h) for h, w in spatial_shapes])
            locations = points + offsets / sizes[:, None]
        else:
            locations = points[..., :2] + (
                offsets / self.num_points * points[..., 2:] * 0.5)
        h = self.output_proj(
            multi_scale_deformable_attn_pytorch(
                value.unflatten(-1, (self.num_heads, -1)), spatial_shapes,
                locations, weights))
        if not self.batch_first:
            h = h.transpose(0, 1)
        return self.dropout(h) + identity


class _SingleLevel(Derived):
    """Mixin: DETR's tokens, with the padding as a tensor."""

    prefix = 'Exported'

    def pre_transformer(self, feats: Tuple[Tensor], masks: Optional[Tensor]):
        """feats: (bs, dim, h', w'), the last counts; masks: (bs, h, w)."""
        feat, pos, mask = _tokens(self, feats[-1], masks)
        return (dict(feat=feat, feat_pos=pos, feat_mask=mask),
                dict(memory_pos=pos, memory_mask=mask))


class _MultiLevel(Derived):
    """Mixin: Deformable DETR's tokens, likewise."""

    prefix = 'Exported'

    def pre_transformer(self, feats: Tuple[Tensor], masks: Optional[Tensor]):
        """feats: (bs, dim, h', w') of each level; masks: (bs, h, w)."""
        levels = [_tokens(self, feat, masks) for feat in feats]
        pos = [pos + embed for (_, pos, _), embed in zip(
            levels, self.level_embed)]
        ratios = feats[0].new_ones(feats[0].size(0), len(feats), 2)
        mask = None
        if masks is not None:
            mask = torch.cat([mask for *_, mask in levels], 1)
            ratios = torch.stack([
                self.get_valid_ratio(_resized(masks, feat)) for feat in feats
            ], 1)
        shared = dict(
            spatial_shapes=[tuple(feat.shape[-2:]) for feat in feats],
            level_start_index=None,  # for the CUDA op alone
            valid_ratios=ratios)
        return (dict(
            feat=torch.cat([feat for feat, *_ in levels], 1),
            feat_pos=torch.cat(pos, 1),
            feat_mask=mask,
            **shared), dict(memory_mask=mask, **shared))


def _resized(masks: Tensor, feat: Tensor) -> Tensor:
    """masks (bs, h, w) at the size of feat: boolean (bs, h', w')."""
    return F.interpolate(
        masks[:, None].to(feat.dtype), size=feat.shape[-2:])[:, 0].bool()


def _tokens(host: DetectionTransformer, feat: Tensor,
            masks: Optional[Tensor]) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """(bs, dim, h', w') -> tokens and positions (bs, h' * w', dim), and which
    are padding (bs, h' * w')."""
    mask = None if masks is None else _resized(masks, feat)
    pos = host.positional_encoding(mask, input=feat)
    return (feat.flatten(2).transpose(1, 2), pos.flatten(2).transpose(1, 2),
            None if mask is None else mask.flatten(1))


@lru_cache(maxsize=None)
def _static_class(cls: type) -> type:
    """``cls``, with the static attention as what it calls its parent's."""
    if cls is MultiScaleDeformableAttention:
        return StaticDeformableAttention
    return type(
        f'Static{cls.__name__}', (cls, StaticDeformableAttention),
        dict(parent_forward=staticmethod(StaticDeformableAttention.forward)))


def exportable(model: nn.Module) -> nn.Module:
    """A copy of ``model``, in eval, that takes images and returns tensors.

    Args:
        model (nn.Module): An ``ImageClassifier`` of mmpretrain, or a
            ``DetectionTransformer`` of mmdet.

    Returns:
        nn.Module: :class:`ExportedClassifier` or :class:`ExportedDetector`.

    Raises:
        TypeError: If it is neither, takes a text besides images, or has a
            head of another kind.
    """
    if isinstance(model, ImageClassifier):
        return ExportedClassifier(model)
    if isinstance(model, DetectionTransformer) and not isinstance(
            model, GroundingDINO):  # which takes a text besides
        return ExportedDetector(model)
    raise TypeError(
        f'{type(model).__name__} cannot be exported: what can be are '
        "mmpretrain's ImageClassifier and mmdet's DetectionTransformer "
        '(DETR, Deformable DETR and what inherits from them, but Grounding '
        'DINO, which takes a text besides images)')
