"""Deformable attention's sampling on a CPU, against mmcv's."""
import multiprocessing

import pytest
import torch
from mmcv.ops import multi_scale_deform_attn
from mmcv.ops.multi_scale_deform_attn import \
    multi_scale_deformable_attn_pytorch as reference
from torch.testing import assert_close

from etta_mm.layers.sampling import can_sample, fast_sampling, sample

SHAPES = torch.tensor([[7, 5], [1, 3], [2, 2]])
CLOSE = dict(rtol=1e-5, atol=1e-5)


def inputs(dtype=torch.float32, bs=2, num_queries=150, spread=1.4, seed=0):
    """Points in and around the maps, so that many have no pixel."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=dtype)

    keys = int(SHAPES.prod(1).sum())
    value = uniform(bs, keys, 4, 6) - 0.5
    locations = (uniform(bs, num_queries, 4, 3, 2, 2) - 0.5) * spread + 0.5
    attention = uniform(bs, num_queries, 4, 3, 2)
    return [x.requires_grad_() for x in (value, locations, attention)]


def both(value, locations, attention):
    return [
        function(value, SHAPES, locations, attention)
        for function in (sample, reference)
    ]


@pytest.mark.parametrize('spread', [0.5, 1.4, 5.])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_output_and_gradients_are_mmcvs(dtype, spread):
    tensors = inputs(dtype, spread=spread)
    ours, theirs = both(*tensors)
    assert_close(ours, theirs, **CLOSE)
    weight = torch.randn(ours.shape, dtype=dtype)
    assert_close(
        torch.autograd.grad((ours * weight).sum(), tensors),
        torch.autograd.grad((theirs * weight).sum(), tensors), **CLOSE)


def test_gradients_are_those_of_differences():
    torch.autograd.gradcheck(
        lambda *x: sample(x[0], SHAPES, *x[1:]),
        inputs(torch.float64, bs=1, num_queries=2))


@pytest.mark.parametrize('wanted', [(0, ), (1, ), (2, ), (1, 2)])
def test_only_the_gradients_asked_for(wanted):
    tensors = inputs()
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i in wanted)
    leaves = [tensors[i] for i in wanted]
    ours, theirs = both(*tensors)
    assert_close(
        torch.autograd.grad(ours.sum(), leaves),
        torch.autograd.grad(theirs.sum(), leaves), **CLOSE)


def test_points_that_are_no_numbers_give_what_is_no_number():
    value, locations, attention = inputs()
    with torch.no_grad():
        locations[0, 3] = float('nan')
        locations[1, 5] = 1e12
    ours = sample(value, SHAPES, locations, attention)
    assert ours[0, 3].isnan().all()
    assert_close(ours[1, 5], torch.zeros_like(ours[1, 5]))
    assert not ours[1].isnan().any()


def test_what_is_kept_for_the_backward_pass_is_less_than_mmcvs():
    kept = []
    for function in (sample, reference):
        value, locations, attention = inputs(num_queries=400)
        value = torch.randn(2, value.shape[1], 4, 32).requires_grad_()
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x: sizes.setdefault(
                    x.untyped_storage().data_ptr(),
                    (x, x.untyped_storage().nbytes())) and x, lambda x: x):
            function(value, SHAPES, locations, attention)
        kept.append(sum(size for _, size in sizes.values()))
    assert kept[0] < 0.7 * kept[1]


def test_half_precision_is_left_to_mmcv():
    value, locations, attention = inputs()
    assert can_sample(value, locations, attention)
    assert not can_sample(value.bfloat16(), locations, attention)
    assert not can_sample(value.to('meta'), locations, attention)


def test_it_is_on_within_the_context_only():
    value, locations, attention = inputs()
    kinds = [multi_scale_deform_attn.multi_scale_deformable_attn_pytorch]
    with fast_sampling():
        out = multi_scale_deform_attn.multi_scale_deformable_attn_pytorch(
            value, SHAPES, locations, attention)
    kinds += [multi_scale_deform_attn.multi_scale_deformable_attn_pytorch]
    assert kinds == [reference, reference]
    assert type(out.grad_fn).__name__ == '_SampleBackward'


def test_a_config_switches_it_on():
    code = '''
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
layer = MultiScaleDeformableAttention(16, 4, 1, 2, batch_first=True).eval()
args = dict(reference_points=torch.rand(2, 12, 1, 2),
            spatial_shapes=torch.tensor([[3, 4]]),
            level_start_index=torch.tensor([0]))
x = torch.randn(2, 12, 16)
names = lambda: [n.name() for n in walk(layer(x, **args).grad_fn)]
def walk(node, seen=None):
    seen = set() if seen is None else seen
    if node is None or node in seen:
        return
    seen.add(node)
    yield node
    for child, _ in node.next_functions:
        yield from walk(child, seen)
before = layer(x, **args)
assert any('GridSampler' in n for n in names())
import_modules_from_strings(['etta_mm', 'etta_mm.fast_cpu'])
assert not any('GridSampler' in n for n in names())
torch.testing.assert_close(layer(x, **args), before, rtol=1e-5, atol=1e-5)
with torch.autocast('cpu', torch.bfloat16):
    layer(x, **args)
# The exported models' sizes are plain numbers.
from etta_mm.inference.exportable import StaticDeformableAttention
before = layer(x, **args)
layer.__class__ = StaticDeformableAttention
args['spatial_shapes'] = [(3, 4)]
torch.testing.assert_close(layer(x, **args), before, rtol=1e-5, atol=1e-5)
'''
    # It is for a whole process, of which this one is none.
    fork = multiprocessing.get_context('fork').Process(
        target=exec, args=(code, {}))
    fork.start()
    fork.join()
    assert fork.exitcode == 0
