"""Matching a batch together gives what mmdet gives image by image."""
import copy
import pickle

import pytest
import torch
from hosts import HOSTS, detection_batch, prepare
from mmengine.runner.checkpoint import load_state_dict
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from etta_mm.models import matching
from etta_mm.models.matching import BatchMatching, match_batches

DETECTORS = ('detr', 'deformable', 'deformable_refine', 'deformable_twostage',
             'conditional_detr', 'dab_detr', 'dino')
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


@pytest.mark.parametrize('num_items', NUM_ITEMS.values(), ids=NUM_ITEMS)
@pytest.mark.parametrize('name', ['detr', 'deformable'])
def test_targets_are_those_of_mmdet(name, num_items):
    model = built(name)
    head, queries, bs = model.bbox_head, 12, len(num_items)
    data = prepare(model, detection_batch(num_items), True)['data_samples']
    torch.manual_seed(1)
    outputs = (list(torch.randn(bs, queries, head.cls_out_channels)),
               list(torch.rand(bs, queries, 4)),
               [sample.gt_instances for sample in data],
               [sample.metainfo for sample in data])
    expected = head.get_targets(*outputs)
    match_batches(model)
    assert_close(head.get_targets(*outputs), expected, rtol=1e-6, atol=1e-6)


def test_too_many_pairs_are_matched_image_by_image(monkeypatch):
    model = built('detr')
    expected = losses(model, (5, 2))
    match_batches(model)
    monkeypatch.setattr(matching, 'MAX_PAIRS', 0)
    monkeypatch.setattr(BatchMatching, '_cost', None)
    assert_close(losses(model, (5, 2)), expected)


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
    model = built('detr')
    data = prepare(model, detection_batch(), True)['data_samples']
    sample = next(s for s in data if len(s.gt_instances))
    outputs = (list(torch.randn(images, 12, head.cls_out_channels)),
               list(torch.rand(images, 12, 4)),
               [sample.gt_instances] * images, [sample.metainfo] * images)
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
