"""The losses of all decoder layers of a DETR, computed together.

Parent: mmdet's ``DETRHead.loss_by_feat_single``, which is called for one layer
after the other: on a GPU most of the kernels of a step with a frozen base, each
for a few hundred boxes. All layers match the same numbers of boxes, so that they
share their divisors, too. Deviations: a loss's own weight is applied before the
sum, and the divisors are found once; under autocast boxes are compared in single
precision, where mmdet's are in half. Losses of other queries (two-stage's,
denoising) come layer by layer, as ever.
"""
from typing import Dict, List

import torch
from mmdet.models.dense_heads import DETRHead
from mmdet.models.losses import (CIoULoss, CrossEntropyLoss, DIoULoss,
                                 FocalLoss, GIoULoss, IoULoss, L1Loss,
                                 SmoothL1Loss)
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.utils import reduce_mean
from mmengine.dist import get_world_size
from torch import Tensor

#: Losses that, for every element by itself, are what they add to the sum.
ELEMENTWISE = dict(
    loss_cls=(CrossEntropyLoss, FocalLoss),
    loss_bbox=(L1Loss, SmoothL1Loss),
    loss_iou=(IoULoss, GIoULoss, DIoULoss, CIoULoss))


def has_known_losses(head: DETRHead) -> bool:
    """Whether the losses of a layer are mmdet's and sums of their elements."""
    return (type(head).loss_by_feat_single is DETRHead.loss_by_feat_single
            and all(
                type(getattr(head, name)) in types
                and getattr(head, name).reduction == 'mean'
                for name, types in ELEMENTWISE.items()))


def losses_of_layers(head: DETRHead, scores: Tensor, boxes: Tensor,
                     targets: tuple, sizes: Tensor) -> Dict[str, Tensor]:
    """The losses of every layer, under mmdet's names.

    Args:
        head (DETRHead): Whose losses and weights of the background are used.
        scores (Tensor): Logits, of shape (bs, num_layers, num_queries,
            cls_out_channels).
        boxes (Tensor): Boxes as (cx, cy, w, h) in [0, 1], of shape (bs,
            num_layers, num_queries, 4).
        targets (tuple): Of the bs * num_layers * num_queries queries: labels,
            box targets (cx, cy, w, h) in [0, 1], box weights, and how many
            are matched.
        sizes (Tensor): (w, h, w, h) in pixels, of shape (bs, 4).

    Returns:
        dict[str, Tensor]: ``loss_cls``, ``loss_bbox`` and ``loss_iou`` of the
        last layer, and those of the others from ``d0.loss_cls`` on.
    """
    labels, box_targets, box_weights, num_pos = targets
    # mmcv's focal loss on CUDA has no logarithm in half precision of a
    # probability that it rounds to 0 or 1.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    num_layers = scores.size(1)
    # Each layer matches as many: every box, or every query.
    num_pos = num_pos / num_layers
    num_neg = len(labels) / num_layers - num_pos
    box_divisor = _mean_over_processes(num_pos, scores)
    cls_divisor = num_pos + num_neg * head.bg_cls_weight
    cls_divisor = _mean_over_processes(
        cls_divisor, scores) if head.sync_cls_avg_factor else max(
            cls_divisor, 1)

    factors = sizes[:, None, None].expand_as(boxes).flatten(0, 2)
    boxes = boxes.flatten(0, 2)
    elements = dict(
        loss_cls=(head.loss_cls(
            scores.flatten(0, 2), labels,
            reduction_override='none'), cls_divisor),
        loss_bbox=(head.loss_bbox(
            boxes, box_targets, reduction_override='none') * box_weights,
                   box_divisor),
        loss_iou=(head.loss_iou(
            bbox_cxcywh_to_xyxy(boxes) * factors,
            bbox_cxcywh_to_xyxy(box_targets) * factors,
            reduction_override='none') * box_weights[:, 0], box_divisor))
    losses = {}
    for name, (loss, divisor) in elements.items():
        # In single precision, as mmdet's, whose weights of the elements are.
        sums = loss.view(len(sizes), num_layers, -1).sum(
            (0, 2), dtype=torch.promote_types(loss.dtype, torch.float32))
        sums = sums / (divisor + torch.finfo(torch.float32).eps)
        # No views to autograd: a head may scale one of them in place.
        losses[name] = sums.unsafe_split(1)
        # mmdet's have a dimension where a synchronized divisor above 1 has.
        if name != 'loss_cls' or not head.sync_cls_avg_factor:
            losses[name] = [loss.squeeze(0) for loss in losses[name]]
    return _named(losses)


def _mean_over_processes(number: float, like: Tensor):
    """The mean over all processes, at least 1, without a wait for the device."""
    if get_world_size() == 1:
        return max(number, 1)
    return reduce_mean(
        like.new_full((), number, dtype=torch.float32)).clamp(1)


def _named(losses: Dict[str, List[Tensor]]) -> Dict[str, Tensor]:
    named = {name: layers[-1] for name, layers in losses.items()}
    for number in range(len(losses['loss_cls']) - 1):
        named.update({
            f'd{number}.{name}': layers[number]
            for name, layers in losses.items()
        })
    return named
