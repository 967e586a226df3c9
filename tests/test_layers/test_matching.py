"""Matching a batch together gives what mmdet gives image by image."""
import copy
import pickle

import pytest
import torch
from hosts import HOSTS, detection_batch, prepare
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from mmengine.structures import InstanceData
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

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
    return model(data['inputs'], data['data_samples'], mode='loss')


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
    for parameter, other in zip(ours.parameters(), theirs.parameters()):
        assert_close(parameter.grad, other.grad)


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
    calls, cost = [], BatchMatching._cost
    monkeypatch.setattr(matching, 'CPU_PAIRS', pairs)
    monkeypatch.setattr(BatchMatching, '_cost',
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


class Operations(TorchDispatchMode):
    """Counts what is called: on a GPU, mostly a kernel each."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


def operations(head, images: int) -> int:
    """What the targets of ``images`` images take."""
    outputs = random_outputs(head, [2] * images)
    with Operations() as counted:
        head.get_targets(*outputs)
    return counted.number


def test_more_images_take_hardly_more_operations():
    head = built('detr').bbox_head
    apart = operations(head, 8)
    match_batches(head)
    few, many = operations(head, 1), operations(head, 8)
    assert many < few + 4 * 8  # their parts of the targets
    assert many < apart / 5


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
