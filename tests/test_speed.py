"""Speed without a clock: operations, kept bytes, graph breaks, copies.

The floor is what any fine-tuning with a frozen base must do: the forward pass
of everything, and the gradient of the activations from the loss down to the
lowest tuner.
"""
import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from hosts import DIMS, HEADS, HOSTS, backward_kinds, loss, prepare
from mmcv.cnn.bricks.transformer import FFN
from mmengine.analysis import FlopAnalyzer
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.testing import assert_close

from etta_mm.benchmark import (count_calls, count_flops, saved_bytes, to_floor,
                               tuner_flops)
from etta_mm.layers import (ETFFN, ETMultiheadAttention, ETViTAttention,
                            transformer_layers)
from etta_mm.tuners import ScaledPrefix, Tuner

ADAPTER = dict(type='ParallelAdapter', bottleneck_dims=16)
PREFIX = dict(type='ScaledPrefix', num_prefix=3)
ETTA = dict(ffn=ADAPTER, attn=PREFIX)
ET_HOSTS = ('detr', 'deformable', 'deformable_refine', 'deformable_twostage',
            'vit')
DETECTORS = ET_HOSTS[:-1]
MARGIN = 1.1
#: All that tuning an attention can hold, in as few modules as there are.
ATTN_TUNERS = [
    PREFIX, ADAPTER,
    dict(type='SerialAdapter', bottleneck_dims=4),
    dict(type='LoRA', rank=2)
]
FFN_TUNERS = ATTN_TUNERS[1:]
CONCAT = [dict(type='Prefix', num_prefix=3)]


def built(name: str, tuning, with_head: bool = False) -> nn.Module:
    """The host in training mode; the head is trained only on demand."""
    host = HOSTS[name]
    tuning = copy.deepcopy(tuning)
    if tuning and with_head and host.head:
        tuning['train'] = host.head
    torch.manual_seed(0)
    model = host.build(tuning)
    load_state_dict(model, host.base_weights())
    return model.train()


def step_flops(model: nn.Module, name: str) -> int:
    torch.manual_seed(0)
    return count_flops(lambda: loss(model, HOSTS[name].batch()).backward())


@pytest.mark.parametrize('name', ET_HOSTS)
def test_a_step_does_no_more_than_the_floor_and_the_tuners_own_work(name):
    model = built(name, ETTA)
    batch = HOSTS[name].batch()
    own = tuner_flops(model, lambda: loss(model, batch))
    floor = step_flops(to_floor(built(name, ETTA)), name)
    assert own > 0
    assert step_flops(model, name) <= MARGIN * floor + own
    assert floor < step_flops(built(name, None), name)


@pytest.mark.parametrize('name', ET_HOSTS)
def test_mmengine_counts_the_base_and_the_tuners(name):

    def counted(tuning) -> int:
        model = built(name, tuning).eval()
        data = prepare(model, HOSTS[name].batch(), False)
        model.forward = partial(
            model.forward, data_samples=data['data_samples'])
        found = FlopAnalyzer(model, (data['inputs'], ))
        return found.unsupported_ops_warnings(False).total()

    base = counted(None)
    own = counted(ETTA) - base
    model = built(name, ETTA)
    expected = tuner_flops(model, lambda: loss(model, HOSTS[name].batch()))
    # Three times what it adds to the forward pass, a product two operations.
    # Of a masked attention of mmcv, mmengine misses one product (baddbmm).
    assert_close(float(own), expected / 6, rtol=0.1, atol=0)
    assert base < counted(dict(ffn=ADAPTER, where='layers.0')) < base + own


@pytest.mark.parametrize('name', ET_HOSTS)
def test_the_floor_trains_one_scalar_and_what_train_names(name):
    floor = to_floor(built(name, ETTA, with_head=True))
    loss(floor, HOSTS[name].batch()).backward()
    trained = {n: p for n, p in floor.named_parameters() if p.requires_grad}
    ours = [n for n in trained if n.endswith('.floor')]
    assert len(ours) == 1
    assert trained[ours[0]].grad is not None
    assert all('head' in n for n in trained if n not in ours)
    assert not any(isinstance(m, Tuner) for m in floor.modules())


def test_a_model_without_tuners_has_no_floor():
    with pytest.raises(ValueError, match='has no tuner'):
        to_floor(HOSTS['detr'].base())


@pytest.mark.parametrize('name', DETECTORS)
def test_backbone_and_neck_run_without_a_graph_below_the_lowest_tuner(name):
    model = built(name, ETTA, with_head=True)
    data = prepare(model, HOSTS[name].batch(), True)
    features = model.extract_feat(data['inputs'])
    assert not any(feature.requires_grad for feature in features)
    assert saved_bytes(model, lambda: model.extract_feat(data['inputs'])) == 0


@pytest.mark.parametrize('name', DETECTORS)
def test_attentions_without_a_tuner_are_fused_as_well(name, monkeypatch):
    model = built(name, dict(ffn=ADAPTER))

    def forward(*args, **kwargs):
        pytest.fail('an attention forms its weights')

    monkeypatch.setattr(nn.MultiheadAttention, 'forward', forward)
    loss(model, HOSTS[name].batch()).backward()


@pytest.mark.parametrize('name,share', [('detr', 0.5), ('deformable', 0.6),
                                        ('deformable_refine', 0.6),
                                        ('deformable_twostage', 0.8),
                                        ('vit', 0.8)])
def test_etta_keeps_fewer_bytes_than_full_fine_tuning(name, share):
    batch = HOSTS[name].batch()
    ours, full = (
        saved_bytes(model, lambda: loss(model, batch))
        for model in (built(name, ETTA, with_head=True), built(name, None)))
    assert 0 < ours < share * full


# With two decoder layers; with six as in the zoo, a detector's share is less.
@pytest.mark.parametrize('name,share', [('detr', 0.7), ('deformable', 0.72),
                                        ('deformable_refine', 0.73),
                                        ('deformable_twostage', 0.8),
                                        ('vit', 1.1)])
def test_a_step_calls_fewer_operators_than_full_fine_tuning(name, share):
    batch = HOSTS[name].batch()

    def step(model) -> None:
        torch.manual_seed(0)
        loss(model, batch).backward()

    calls = []
    for model in (built(name, ETTA, with_head=True), built(name, None)):
        step(model)  # folds the norms
        calls.append(count_calls(lambda: step(model)))
    assert calls[0] < share * calls[1]


@pytest.mark.parametrize('name', ET_HOSTS)
def test_no_relu_of_a_transformer_writes_into_a_view(name):
    """The backward pass of that copies whole tensors; mmcv's writes."""
    # Without LoRA, whose sum is no view.
    model = built(name, dict(ffn=dict(type='ParallelAdapter',
                                      bottleneck_dims=3)))
    for module in transformer_layers(model):
        for ffn in (m for m in module.modules() if isinstance(m, FFN)):
            x = torch.randn(2, 5, ffn.embed_dims, requires_grad=True)
            assert 'CopySlices' not in backward_kinds(ffn(x).sum())
            plain = FFN(ffn.embed_dims, 8)
            assert 'CopySlices' in backward_kinds(plain(x).sum())


@pytest.mark.parametrize('tuners', [ATTN_TUNERS, CONCAT],
                         ids=['parallel', 'concat'])
@pytest.mark.parametrize('training', [True, False])
def test_a_tuned_softmax_attention_breaks_no_graph(tuners, training):
    x = torch.randn(2, 5, DIMS)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    layer = ETMultiheadAttention(DIMS, HEADS, batch_first=True, tuning=tuners)
    layer.train(training)
    report = torch._dynamo.explain(layer)(
        x, query_pos=x, key_padding_mask=hidden)
    assert report.graph_break_count == 0, report.break_reasons


@pytest.mark.parametrize('tuners', [ATTN_TUNERS, CONCAT],
                         ids=['parallel', 'concat'])
def test_a_tuned_vit_attention_breaks_no_graph(tuners):
    tuning = dict(attn=tuners)
    layer = next(m for m in built('vit', tuning).modules()
                 if isinstance(m, ETViTAttention))
    report = torch._dynamo.explain(layer)(torch.randn(2, 5, DIMS))
    assert report.graph_break_count == 0, report.break_reasons


def test_a_tuned_feed_forward_network_breaks_no_graph():
    layer = ETFFN(DIMS, 24, tuning=FFN_TUNERS)
    report = torch._dynamo.explain(layer)(torch.randn(2, 5, DIMS))
    assert report.graph_break_count == 0, report.break_reasons


def test_a_parallel_prefix_is_kept_once_for_the_whole_batch():
    num_prefix, batch_size = 7, 32
    prefix = ScaledPrefix(DIMS, HEADS, num_prefix)
    query = torch.randn(batch_size, 1, DIMS)
    kept = []

    def pack(tensor):
        if num_prefix in tensor.shape[-2:] and DIMS // HEADS in tensor.shape:
            kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        prefix(query)
    assert kept and max(kept) == 4 * num_prefix * DIMS


def test_a_concatenated_prefix_is_broadcast_into_the_keys_at_once():
    # One copy, the concatenation itself: none of the prefix before it.
    num_prefix, batch_size = 7, 32
    layer = ETMultiheadAttention(
        DIMS,
        HEADS,
        batch_first=True,
        tuning=dict(type='Prefix', num_prefix=num_prefix))
    copies = []

    class Copies(torch.utils._python_dispatch.TorchDispatchMode):

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if (torch.is_tensor(out)
                    and out.shape == (batch_size, HEADS, num_prefix,
                                      DIMS // HEADS)):
                copies.append(out.untyped_storage().nbytes())
            return out

    with Copies(), torch.no_grad():
        layer(torch.randn(batch_size, 5, DIMS))
    assert copies and max(copies) == 4 * num_prefix * DIMS


def test_counting_saved_bytes_keeps_nothing_alive():
    # A relu keeps its output, whose graph keeps the weight.
    model = nn.Linear(4, 4)
    weight = weakref.ref(model.weight)
    assert saved_bytes(model, lambda: model(torch.ones(2, 4)).relu()) > 0
    del model
    gc.collect()
    assert weight() is None
