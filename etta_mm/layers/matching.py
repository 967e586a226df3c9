"""The matching of a DETR's head, for many images at once.

Parent: any ``DETRHead`` of mmdet whose targets are the parent's own. Deviations:
mmdet matches image by image, layer by layer, which on a GPU is dozens of small
kernels and several waits for the device for each, more than the rest of the
head. Here the costs of a group of images, with the queries of all decoder layers,
are computed as one matrix, by the head's own match costs, and read once; targets
are written for all together, and so are losses. In single precision the result is
the same; under autocast mmdet computes costs and targets in half precision, and
this in single.

Like the sublayers, a head takes its class in place.
"""
from typing import Dict, Iterator, List, Optional

import torch
from mmdet.models.dense_heads import DETRHead
from mmdet.models.task_modules.assigners import (BBoxL1Cost,
                                                 ClassificationCost,
                                                 FocalLossCost,
                                                 HungarianAssigner, IoUCost)
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .derived import Derived, derived_class
from .layer_losses import has_known_losses, losses_of_layers

#: Costs that look at one pair of a prediction and a box, and, after both are
#: scaled alike, give the same.
PAIRWISE = (BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost)
#: Pairs of one group of images. Those across images are computed in vain: a CPU
#: takes about as long for this many as for the calls of one group, and a GPU
#: waits for every group.
CPU_PAIRS, GPU_PAIRS = 2**15, 2**22


class BatchMatching(Derived, DETRHead):
    """Mixin of a head that matches the images of a batch together.

    It stands where its parent stands, behind what the head's own class makes
    of the parent's losses.
    """

    prefix = 'BatchMatching'

    def loss_by_feat(
            self,
            all_layers_cls_scores: Tensor,
            all_layers_bbox_preds: Tensor,
            batch_gt_instances: List[InstanceData],
            batch_img_metas: List[dict],
            batch_gt_instances_ignore: Optional[List[InstanceData]] = None
    ) -> Dict[str, Tensor]:
        """As the parent's.

        Args:
            all_layers_cls_scores (Tensor): Logits, of shape (num_layers, bs,
                num_queries, cls_out_channels).
            all_layers_bbox_preds (Tensor): Boxes as (cx, cy, w, h) in [0, 1],
                of shape (num_layers, bs, num_queries, 4).
            batch_gt_instances (list[InstanceData]): As in ``get_targets``.
            batch_img_metas (list[dict]): As in ``get_targets``.
            batch_gt_instances_ignore (list[InstanceData], optional): None.

        Returns:
            dict[str, Tensor]: The losses of every layer.
        """
        if (batch_gt_instances_ignore is not None or not has_known_costs(self)
                or not has_known_losses(self)
                or not torch.is_tensor(all_layers_cls_scores)
                or not torch.is_tensor(all_layers_bbox_preds)):
            return super().loss_by_feat(
                all_layers_cls_scores, all_layers_bbox_preds,
                batch_gt_instances, batch_img_metas, batch_gt_instances_ignore)
        # (bs, num_layers, num_queries, ...)
        scores, boxes = (
            t.transpose(0, 1).contiguous()
            for t in (all_layers_cls_scores, all_layers_bbox_preds))
        bs, num_layers, num_queries = boxes.shape[:3]
        sizes = _sizes(batch_img_metas, boxes)
        targets = _targets(self, scores.flatten(0, 2), boxes.flatten(0, 2),
                           [num_layers * num_queries] * bs, num_layers,
                           batch_gt_instances, batch_img_metas, sizes)
        return losses_of_layers(self, scores, boxes, targets, sizes)

    def get_targets(self, cls_scores_list: List[Tensor],
                    bbox_preds_list: List[Tensor],
                    batch_gt_instances: List[InstanceData],
                    batch_img_metas: List[dict]) -> tuple:
        """As the parent's.

        Args:
            cls_scores_list (list[Tensor]): Logits of each image, of shape
                (num_queries, num_classes).
            bbox_preds_list (list[Tensor]): Boxes of each image, of shape
                (num_queries, 4), as (cx, cy, w, h) in [0, 1].
            batch_gt_instances (list[InstanceData]): ``bboxes`` (num_gts, 4) as
                (x1, y1, x2, y2) in pixels, and ``labels`` (num_gts, ).
            batch_img_metas (list[dict]): With ``img_shape``, (h, w).

        Returns:
            tuple: Lists, an item an image, of labels (num_queries, ), label
            weights, box targets (num_queries, 4; normalized cx, cy, w, h) and
            box weights, then the numbers of matched and of other queries.
        """
        if not has_known_costs(self):  # they may have been replaced
            return super().get_targets(cls_scores_list, bbox_preds_list,
                                       batch_gt_instances, batch_img_metas)
        num_queries = [len(boxes) for boxes in bbox_preds_list]
        *targets, num_pos = _targets(
            self, torch.cat(cls_scores_list), torch.cat(bbox_preds_list),
            num_queries, 1, batch_gt_instances, batch_img_metas,
            _sizes(batch_img_metas, bbox_preds_list[0]))
        targets.insert(1, torch.ones_like(targets[2][:, 0]))
        return (*(list(t.split(num_queries)) for t in targets), num_pos,
                sum(num_queries) - num_pos)


def _targets(head: DETRHead, scores: Tensor, boxes: Tensor,
             num_queries: List[int], num_layers: int,
             batch_gt_instances: List[InstanceData],
             batch_img_metas: List[dict], sizes: Tensor) -> tuple:
    """Targets of all queries of a batch.

    Args:
        head (DETRHead): Whose assigner is asked.
        scores (Tensor): Logits, of shape (n, num_classes).
        boxes (Tensor): As (cx, cy, w, h) in [0, 1], of shape (n, 4).
        num_queries (list[int]): How many of the n are of each image.
        num_layers (int): In how many parts, one after the other, an image's
            are matched.
        batch_gt_instances, batch_img_metas: As in ``get_targets``.
        sizes (Tensor): (w, h, w, h) in pixels, of shape (bs, 4).

    Returns:
        tuple: Labels (n, ), box targets (n, 4; normalized cx, cy, w, h), box
        weights (n, 4) and the number of matched queries.
    """
    scores, boxes = scores.detach(), boxes.detach()
    num_gts = [len(gts) for gts in batch_gt_instances]
    gt_boxes = torch.cat([gts.bboxes for gts in batch_gt_instances])
    gt_labels = torch.cat([gts.labels for gts in batch_gt_instances])
    # (num_gts of the batch, 4): the boxes of every image in [0, 1]
    targets = gt_boxes / torch.cat([
        size.to(gt_boxes.dtype).expand(number, 4)
        for size, number in zip(sizes, num_gts)
    ])
    rows, columns = [], []
    for queries, gts in _groups(num_queries, num_gts, boxes.is_cuda):
        cost = _cost(head.assigner, scores[queries[0]:queries[-1]],
                     boxes[queries[0]:queries[-1]], targets[gts[0]:gts[-1]],
                     gt_labels[gts[0]:gts[-1]], batch_img_metas, sizes)
        own = [
            cost[row - queries[0]:end - queries[0],
                 column - gts[0]:last - gts[0]] for row, end, column, last
            in zip(queries, queries[1:], gts, gts[1:])
        ]
        read = torch.cat([c.flatten() for c in own]).cpu().split(
            [c.numel() for c in own])
        for c, values, row, column in zip(own, read, queries, gts):
            # (num_layers, num_queries of a layer, num_gts)
            layers = values.view(num_layers, len(c) // num_layers,
                                 c.size(1)).numpy()
            for layer in layers:
                matched = linear_sum_assignment(layer)
                rows += (matched[0] + row).tolist()
                columns += (matched[1] + column).tolist()
                row += len(layer)
    rows, columns = torch.tensor(
        [rows, columns], dtype=torch.long).to(
            boxes.device, non_blocking=True)
    labels = gt_labels.new_full((len(boxes), ), head.num_classes)
    labels[rows] = gt_labels[columns]
    box_targets = gt_boxes.new_zeros(boxes.shape)
    box_targets[rows] = bbox_xyxy_to_cxcywh(targets)[columns]
    box_weights = torch.zeros_like(box_targets)
    box_weights[rows] = 1.
    return labels, box_targets, box_weights, len(rows)


def _cost(assigner: HungarianAssigner, scores: Tensor, boxes: Tensor,
          targets: Tensor, labels: Tensor, metas: List[dict],
          sizes: Tensor) -> Tensor:
    """The cost of every query of a group with every box of it, of shape
    (num_queries of the group, num_gts of the group)."""
    # The costs take boxes in pixels and the size of one image. Scaled alike,
    # boxes keep their overlaps and their normalized distances, so that one
    # size serves all.
    shape = tuple(
        max(lengths) for lengths in zip(*(meta['img_shape']
                                          for meta in metas)))
    scores, boxes, targets = (
        t.to(torch.promote_types(t.dtype, torch.float32))
        for t in (scores, boxes, targets))
    factor = sizes.amax(0)
    predictions = InstanceData(
        scores=scores, bboxes=bbox_cxcywh_to_xyxy(boxes) * factor)
    truth = InstanceData(bboxes=targets * factor, labels=labels)
    return sum(
        cost(
            pred_instances=predictions,
            gt_instances=truth,
            img_meta=dict(img_shape=shape))
        for cost in assigner.match_costs)


def _sizes(metas: List[dict], like: Tensor) -> Tensor:
    """(w, h, w, h) of each image in pixels, of shape (bs, 4)."""
    return torch.tensor(
        [[*meta['img_shape'][::-1]] * 2 for meta in metas],
        dtype=torch.float32).to(
            like.device, non_blocking=True)


def _groups(num_queries: List[int], num_gts: List[int],
            on_gpu: bool) -> Iterator[tuple]:
    """Ends of the queries and of the boxes of each image, from the first's
    start on, for each group of consecutive images with a box in it."""
    limit = GPU_PAIRS if on_gpu else CPU_PAIRS
    queries, gts = [0], [0]
    for more_queries, more_gts in zip(num_queries, num_gts):
        pairs = (queries[-1] - queries[0] + more_queries) * (
            gts[-1] - gts[0] + more_gts)
        if pairs > limit and len(queries) > 1:
            if gts[-1] > gts[0]:
                yield queries, gts
            queries, gts = queries[-1:], gts[-1:]
        queries = [*queries, queries[-1] + more_queries]
        gts = [*gts, gts[-1] + more_gts]
    if gts[-1] > gts[0]:
        yield queries, gts


def match_batches(model: nn.Module) -> int:
    """Match the images of a batch together in every DETR head of ``model``.

    In place: a head changes its class, parameters keep their names. A head
    with an assigner, a cost or targets of its own kind is left as it is.

    Args:
        model (nn.Module): Any model.

    Returns:
        int: The number of heads.
    """
    heads = [
        m for m in model.modules()
        if isinstance(m, DETRHead) and has_known_costs(m)
        and type(m).get_targets is DETRHead.get_targets
        and type(m)._get_targets_single is DETRHead._get_targets_single
    ]
    for head in heads:
        head.__class__ = derived_class(BatchMatching, type(head))
    return len(heads)


def has_known_costs(head: DETRHead) -> bool:
    """Whether the assigner of ``head`` is mmdet's, with pairwise costs."""
    assigner = getattr(head, 'assigner', None)
    return type(assigner) is HungarianAssigner and all(
        type(cost) in PAIRWISE and not getattr(cost, 'binary_input', False)
        for cost in assigner.match_costs)
