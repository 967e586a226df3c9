"""Matching a batch together, and its losses, give what mmdet gives image by
image and layer by layer."""
import copy
import pickle

import pytest
import torch
from hosts import HOSTS, detection_batch, prepare
from mmdet.models.dense_heads import DETRHead
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from mmengine.structures import InstanceData
from torch.testing import assert_close

from etta_mm.benchmark import count_calls
from etta_mm.layers import match_batches, matching
from etta_mm.layers.matching import BatchMatching

DETECTORS = ('detr', 'deformable', 'deformable_refine', 'deformable_twostage',
             'conditional_detr', 'dab_detr', 'dino')
QUERIES = 12
CLOSE = dict(rtol=1e-6, atol=1e-6)
NUM_ITEMS = {
    'boxes in both': (5, 2),
    'none in one': (0, 3),
    'none at all': (0, 0),
    'more boxes than queries': (40, 1)
}


def built(name: str):
    host = HOSTS[name]
    model = copy.deepcopy(host.base())  # which other tests share
    load_state_dict(model, host.base_weights())
    return model.train()


def losses(model, num_items) -> dict:
    torch.manual_seed(0)
    data = prepare(model, detection_batch(num_items), True)
    torch.manual_seed(0)  # DINO draws noise
    values = model(data['inputs'], data['data_samples'], mode='loss')
    # With a synchronized divisor mmdet's have a dimension if it is above 1.
    return {name: value.mean() for name, value in values.items()}


@pytest.mark.parametrize('num_items', NUM_ITEMS.values(), ids=NUM_ITEMS)
@pytest.mark.parametrize('name', DETECTORS)
def test_losses_and_gradients_are_those_of_mmdet(name, num_items):
    theirs = built(name)
    ours = copy.deepcopy(theirs)
    assert match_batches(ours) == 1
    values, expected = losses(ours, num_items), losses(theirs, num_items)
    assert_close(values, expected)
    for model, found in ((ours, values), (theirs, expected)):
        sum(found.values()).backward()
    for (key, parameter), other in zip(ours.named_parameters(),
                                       theirs.parameters()):
        # The backbone's are sums of what cancels out.
        loose = dict(rtol=1e-4, atol=2e-4) if 'backbone' in key else {}
        assert_close(parameter.grad, other.grad, **loose)


def random_outputs(head, num_items) -> tuple:
    """What ``get_targets`` takes, for images of different sizes."""
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(len(num_items), QUERIES, 4, generator=generator)
    scores = torch.randn(
        len(num_items), QUERIES, head.cls_out_channels, generator=generator)
    shapes = [(60 + 20 * i, 100 - 15 * i) for i in range(len(num_items))]
    truth = []
    for number, (height, width) in zip(num_items, shapes):
        size = torch.tensor([width, height] * 2)
        ends = torch.rand(number, 2, 2, generator=generator).sort(1).values
        labels = torch.randint(head.num_classes, (number, ),
                               generator=generator)
        truth.append(
            InstanceData(bboxes=ends.flatten(1) * size, labels=labels))
    return (list(scores), list(boxes), truth,
            [dict(img_shape=shape) for shape in shapes])


@pytest.mark.parametrize('num_items', NUM_ITEMS.values(), ids=NUM_ITEMS)
@pytest.mark.parametrize('name', ['detr', 'deformable'])
def test_targets_are_those_of_mmdet(name, num_items):
    head = built(name).bbox_head
    outputs = random_outputs(head, num_items)
    expected = head.get_targets(*outputs)
    match_batches(head)
    assert_close(head.get_targets(*outputs), expected, **CLOSE)


def test_a_tuned_host_matches_a_batch_unless_told_otherwise():
    tuning = dict(ffn=dict(type='LoRA', rank=2))
    assert isinstance(HOSTS['detr'].build(tuning).bbox_head, BatchMatching)
    assert isinstance(HOSTS['dino'].build(tuning).bbox_head, BatchMatching)
    config = dict(HOSTS['detr'].config(), tuning=tuning, batch_matching=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert not isinstance(MODELS.build(config).bbox_head, BatchMatching)


# Of 12 queries and (0, 5, 0, 2, 0) boxes: all at once, and each image alone.
@pytest.mark.parametrize('pairs, groups', [(60 * 7, 1), (1, 2)])
def test_groups_of_images_have_the_targets_of_mmdet(monkeypatch, pairs,
                                                    groups):
    head = built('detr').bbox_head
    outputs = random_outputs(head, (0, 5, 0, 2, 0))
    expected = head.get_targets(*outputs)
    match_batches(head)
    calls, cost = [], matching._cost
    monkeypatch.setattr(matching, 'CPU_PAIRS', pairs)
    monkeypatch.setattr(matching, '_cost',
                        lambda *args: calls.append(args) or cost(*args))
    assert_close(head.get_targets(*outputs), expected, **CLOSE)
    assert len(calls) == groups


def test_half_precision_is_matched_in_single():
    head = built('deformable').bbox_head
    scores, boxes, *truth = random_outputs(head, (5, 2, 4))
    scores, boxes = ([t.bfloat16() for t in ts] for ts in (scores, boxes))
    expected = head.get_targets([t.float() for t in scores],
                                [t.float() for t in boxes], *truth)
    match_batches(head)
    assert_close(head.get_targets(scores, boxes, *truth), expected, **CLOSE)


def test_an_assigner_that_is_replaced_later_is_asked():
    head = built('detr').bbox_head
    match_batches(head)

    class Other(type(head.assigner)):

        def assign(self, *args, **kwargs):
            raise KeyError('asked')

    head.assigner.__class__ = Other
    with pytest.raises(KeyError, match='asked'):
        head.get_targets(*random_outputs(head, (5, 2)))


def calls_of_targets(head, images: int) -> int:
    outputs = random_outputs(head, [2] * images)
    return count_calls(lambda: head.get_targets(*outputs))


def test_the_targets_of_more_images_take_hardly_more_calls():
    head = built('detr').bbox_head
    apart = calls_of_targets(head, 8)
    match_batches(head)
    few, many = calls_of_targets(head, 1), calls_of_targets(head, 8)
    assert many < few + 4 * 8  # each image's part of the costs is cut out
    assert many < apart / 5


def layer_outputs(head, num_layers: int) -> tuple:
    """What ``DETRHead.loss_by_feat`` takes, for two images."""
    scores, boxes, *truth = random_outputs(head, (5, 2))
    factors = torch.linspace(0.5, 1, num_layers).view(-1, 1, 1, 1)
    return (*((torch.stack(t) * factors).requires_grad_()
              for t in (scores, boxes)), *truth)


def calls_of_losses(head, num_layers: int) -> int:
    outputs = layer_outputs(head, num_layers)
    return count_calls(
        lambda: sum(head.loss_by_feat(*outputs).values()).backward())


def test_the_losses_of_more_layers_take_hardly_more_calls():
    head = built('detr').bbox_head
    apart = calls_of_losses(head, 6)
    match_batches(head)
    few, many = calls_of_losses(head, 1), calls_of_losses(head, 6)
    assert many <= few + 6 * 5  # a layer has three losses to add up
    assert many < apart / 4


def total(losses: dict) -> torch.Tensor:
    return sum(loss.sum() for loss in losses.values())


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(loss_cls=dict(type='FocalLoss', use_sigmoid=True)),
        dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True)),
        dict(loss_bbox=dict(type='SmoothL1Loss', beta=0.1)),
        dict(loss_iou=dict(type='IoULoss', mode='linear')),
        dict(loss_iou=dict(type='DIoULoss')),
        dict(loss_iou=dict(type='CIoULoss', loss_weight=3.)),
        # What is not a sum of its elements' is left to mmdet.
        dict(loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True)),
        dict(loss_iou=dict(type='BoundedIoULoss')),
        dict(loss_bbox=dict(type='L1Loss', reduction='none')),
    ],
    ids=lambda settings: '-'.join(v['type'] for v in settings.values()))
def test_the_losses_of_every_kind_are_those_of_mmdet(settings):
    head = built('detr').bbox_head
    for name, config in settings.items():
        setattr(head, name, MODELS.build(config))
    if settings.get('loss_cls'):  # one of them may be for sigmoids
        head.cls_out_channels = head.num_classes
    outputs = layer_outputs(head, 3)
    expected = head.loss_by_feat(*outputs)
    leaves = outputs[:2]
    gradients = torch.autograd.grad(total(expected), leaves)
    match_batches(head)
    values = head.loss_by_feat(*outputs)
    assert list(values) == list(expected)
    assert_close(values, expected, **CLOSE)
    assert_close(
        torch.autograd.grad(total(values), leaves), gradients, **CLOSE)


@pytest.mark.parametrize('name', ['detr', 'deformable'])
def test_a_loss_has_the_dimensions_that_mmdets_has(name):
    head = built(name).bbox_head  # deformable: a synchronized divisor
    outputs = layer_outputs(head, 2)
    expected = DETRHead.loss_by_feat(head, *outputs)
    match_batches(head)
    assert_close(BatchMatching.loss_by_feat(head, *outputs), expected)


def test_losses_of_half_precision_are_computed_in_single():
    head = built('deformable').bbox_head
    scores, boxes, *truth = layer_outputs(head, 2)
    scores = scores.bfloat16()
    expected = DETRHead.loss_by_feat(head, scores.float(), boxes, *truth)
    match_batches(head)
    found = BatchMatching.loss_by_feat(head, scores, boxes, *truth)
    assert found['loss_cls'].dtype == torch.float32
    assert_close(found, expected, **CLOSE)


def test_layers_that_are_no_one_tensor_are_left_to_mmdet():
    head = built('detr').bbox_head
    scores, boxes, *truth = layer_outputs(head, 2)
    expected = head.loss_by_feat(scores, boxes, *truth)
    match_batches(head)
    assert_close(
        head.loss_by_feat(list(scores), list(boxes), *truth), expected,
        **CLOSE)


def test_a_head_may_scale_a_loss_in_place():
    head = built('deformable').bbox_head
    outputs = layer_outputs(head, 2)
    match_batches(head)
    losses = BatchMatching.loss_by_feat(head, *outputs)
    whole = torch.autograd.grad(
        losses['loss_cls'].sum() + losses['loss_iou'],
        outputs[:2],
        retain_graph=True)
    for name in ('loss_cls', 'loss_iou'):
        losses[name] *= 0.5
    half = torch.autograd.grad(losses['loss_cls'].sum() + losses['loss_iou'],
                               outputs[:2])
    assert_close([2 * gradient for gradient in half], list(whole), **CLOSE)


def test_an_image_without_queries_has_no_targets():
    head = built('detr').bbox_head
    scores, boxes, *truth = random_outputs(head, (5, 2))
    scores[1], boxes[1] = scores[1][:0], boxes[1][:0]
    expected = head.get_targets(scores, boxes, *truth)
    match_batches(head)
    assert_close(head.get_targets(scores, boxes, *truth), expected, **CLOSE)


#: Boxes of the two images of each of two processes.
OF_RANKS = [((5, 2), (0, 0)), ((0, 3), (40, 1)), ((0, 0), (0, 0))]


def losses_of_rank(rank: int, store: str) -> None:
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    for name in ('detr', 'deformable'):
        theirs = built(name)
        ours = copy.deepcopy(theirs)
        match_batches(ours)
        for num_items in OF_RANKS:
            assert_close(
                losses(ours, num_items[rank]), losses(theirs,
                                                      num_items[rank]))


def test_processes_share_the_mean_of_their_numbers_of_boxes(tmp_path):
    torch.multiprocessing.start_processes(
        losses_of_rank, (str(tmp_path / 'store'), ),
        nprocs=2,
        start_method='fork')


def test_losses_of_a_layer_that_are_a_heads_own_are_asked_for():
    head = built('detr').bbox_head

    class Other(type(head)):

        def loss_by_feat_single(self, *args, **kwargs):
            return [2 * loss for loss in super().loss_by_feat_single(
                *args, **kwargs)]

    outputs = layer_outputs(head, 2)
    expected = head.loss_by_feat(*outputs)
    head.__class__ = Other
    assert match_batches(head) == 1
    assert_close(
        head.loss_by_feat(*outputs),
        {name: 2 * loss for name, loss in expected.items()}, **CLOSE)


def test_what_a_head_makes_of_the_losses_of_all_layers_stays():
    head = built('detr').bbox_head

    class Other(type(head)):

        def loss_by_feat(self, *args, **kwargs):
            return dict(super().loss_by_feat(*args, **kwargs), more=1)

    head.__class__ = Other
    outputs = layer_outputs(head, 6)
    expected = head.loss_by_feat(*outputs)
    apart = count_calls(lambda: head.loss_by_feat(*outputs))
    assert match_batches(head) == 1
    assert_close(head.loss_by_feat(*outputs), expected, **CLOSE)
    assert count_calls(lambda: head.loss_by_feat(*outputs)) < apart / 4


def test_a_head_with_an_assigner_of_its_own_kind_is_left_as_it_is():
    model = built('detr')

    class Other(type(model.bbox_head.assigner)):
        pass

    model.bbox_head.assigner.__class__ = Other
    assert match_batches(model) == 0
    assert not isinstance(model.bbox_head, BatchMatching)


def test_a_model_is_matched_once_and_survives_a_pickle():
    model = built('detr')
    names = list(model.state_dict())
    assert [match_batches(model), match_batches(model)] == [1, 0]
    again = pickle.loads(pickle.dumps(model.bbox_head))
    assert type(again) is type(model.bbox_head)
    assert list(model.state_dict()) == names
    assert list(again.state_dict()) == list(model.bbox_head.state_dict())
