"""What only a GPU can show: ``pytest tests -m gpu``.

The tiny hosts in single precision on both devices, mixed precision against it,
compiled layers against eager ones, and memory as the allocator counts it.
"""
import copy

import pytest
import torch
import torch.nn.functional as F
from hosts import HOSTS, loss, output, prepare
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch)
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from etta_mm import TuningBank, save_tuned
from etta_mm.benchmark.cases import Case
from etta_mm.benchmark.measure import compile_parts, measure
from etta_mm.features.cached_features import CachedFeatures
from etta_mm.features.feature_cache import FeatureCache
from etta_mm.features.image_hash import image_hashes
from etta_mm.layers import checkpoint_layers
from etta_mm.layers.layer_losses import losses_of_layers
from etta_mm.tuners import ScaledPrefix
from etta_mm.tuners.attend import attend

DEVICE = 'cuda'
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
]
TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=6),
    attn=dict(type='ScaledPrefix', num_prefix=3))
SYSTEMS = ('vit', 'detr', 'deformable', 'deformable_refine',
           'deformable_twostage')
CLOSE = dict(rtol=1e-3, atol=1e-4)
STEPS = 4


@pytest.fixture(autouse=True)
def single_precision():
    """Products of ten bits less would hide what is compared."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, value in zip(backends, before):
        backend.allow_tf32 = value


def build(name: str) -> nn.Module:
    """A host with the base's random weights and tuners none of which is 0."""
    model = HOSTS[name].build(copy.deepcopy(TUNING))
    generator = torch.Generator().manual_seed(0)
    state = {
        key: 0.3 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in model.state_dict().items() if '.tuners.' in key
    }
    model.load_state_dict(state | HOSTS[name].base_weights())
    return model.eval()


def gradients(model: nn.Module, batch: dict) -> list:
    """Without dropout, whose masks differ between devices."""
    model.eval()
    model.training = True
    found = loss(model, batch)
    found.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    return [found.detach(), *grads]


def cpu(tensors):
    """The same nest of tensors in the host's memory."""
    if isinstance(tensors, Tensor):
        return tensors.detach().cpu()
    return [cpu(tensor) for tensor in tensors if tensor is not None]


@pytest.mark.parametrize('name', SYSTEMS)
def test_what_is_computed_again_has_the_same_dropout(name):
    found = []
    plain = HOSTS[name].build(
        dict(TUNING, ffn=dict(TUNING['ffn'], dropout=0.3))).to(DEVICE)
    again = copy.deepcopy(plain)
    checkpoint_layers(again)
    batch = HOSTS[name].batch()
    for model in (plain, again):
        torch.manual_seed(0)
        loss(model.train(), batch).backward()
        found.append({
            key: p.grad
            for key, p in model.named_parameters() if p.requires_grad
        })
    assert_close(*found, **CLOSE)


def test_the_cuda_op_samples_as_the_cpu_path_does():
    shapes = torch.tensor([[7, 5], [1, 3], [2, 2]])
    starts = torch.tensor([0, 35, 38])
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape, low=0., high=1.) -> Tensor:
        values = torch.rand(shape, generator=generator)
        return (low + (high - low) * values).requires_grad_()

    given = (leaf(2, 42, 4, 8, low=-1.), leaf(2, 150, 4, 3, 4, 2, low=-.2,
                                              high=1.2),
             leaf(2, 150, 4, 3, 4))
    expected = multi_scale_deformable_attn_pytorch(given[0], shapes, *given[1:])
    weight = torch.randn(expected.shape, generator=generator)
    moved = [t.detach().to(DEVICE).requires_grad_() for t in given]
    found = MultiScaleDeformableAttnFunction.apply(
        moved[0], shapes.to(DEVICE), starts.to(DEVICE), *moved[1:], 64)
    assert_close(cpu(found), cpu(expected), rtol=1e-5, atol=1e-5)
    assert_close(
        cpu(torch.autograd.grad((found * weight.to(DEVICE)).sum(), moved)),
        cpu(torch.autograd.grad((expected * weight).sum(), given)),
        rtol=1e-4,
        atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('num_keys', [33, 50, 64, 113, 192])
@pytest.mark.parametrize('given', ['nothing', 'mask', 'prefix'])
def test_attention_of_real_sizes_is_that_of_single_precision(
        dtype, num_keys, given):
    """Heads of 32 reach kernels that those of the tiny hosts do not."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def leaf(*shape) -> Tensor:
        return torch.randn(shape, device=DEVICE, generator=generator)

    bs = 1 if given == 'prefix' else 3  # which no image has a copy of
    leaves = leaf(3, 8, 200, 32), leaf(bs, 8, num_keys, 32), leaf(
        bs, 8, num_keys, 32)
    mask = None
    if given == 'mask':
        mask = torch.rand(3, 1, 1, num_keys, device=DEVICE) < 0.7
        mask[..., 0] = True
    weight = leaf(3, 8, 200, 32)
    found = []
    for kind in (dtype, torch.float32):
        q, k, v = (t.to(dtype).to(kind).requires_grad_() for t in leaves)
        keys, values = (t.expand(3, -1, -1, -1) for t in (k, v))
        if kind == dtype:
            out = attend(q, keys, values, mask)
        else:
            with sdpa_kernel(SDPBackend.MATH):
                out = F.scaled_dot_product_attention(
                    q, keys.contiguous(), values.contiguous(), mask)
        found.append([
            t.float() for t in (out, *torch.autograd.grad(
                (out.float() * weight).sum(), (q, k, v)))
        ])
    for half, single in zip(*found):
        assert_close(half, single, rtol=0,
                     atol=0.02 * single.abs().max().item())


@pytest.mark.parametrize('dtype', [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('num_queries', [5000, 5003])
def test_a_prefix_in_blocks_is_that_of_the_cpu(num_queries, dtype):
    """Of so many queries that they go through in several."""
    torch.manual_seed(0)
    prefix = ScaledPrefix(256, 8, num_prefix=50, composition='parallel').train()
    nn.init.normal_(prefix.value)
    query = torch.randn(2, num_queries, 256)
    weight = torch.randn(2, num_queries, 256)

    def run(device: str) -> list:
        tuner = copy.deepcopy(prefix).to(device)
        x = query.to(device).requires_grad_()
        with torch.autocast('cuda', dtype, enabled=dtype is not None):
            out = tuner(x)
        (out.float() * weight.to(device)).sum().backward()
        return [t.detach().float().cpu() for t in (
            out, x.grad, tuner.key.grad, tuner.value.grad)]

    bound = 1e-4 if dtype is None else 0.02
    for found, expected in zip(run(DEVICE), run('cpu')):
        assert_close(found, expected, rtol=0,
                     atol=bound * expected.abs().max().item())


def test_logits_far_below_zero_have_gradients():
    """cuDNN's were NaN: pytorch#196678."""
    q, k, v = (torch.randn(1, 1, 64, 32, device=DEVICE) for _ in range(3))
    q[..., 0], k[..., 0] = 1., -120 * 32**0.5
    leaves = [t.half().requires_grad_() for t in (q, k, v)]
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool, device=DEVICE)
    attend(*leaves, mask).sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_weights_are_dropped_at_the_rate_that_is_given(dtype):
    """And not at the next sixteenth: pytorch#174245."""
    q, k = (torch.zeros(4, 8, n, 64, device=DEVICE, dtype=dtype)
            for n in (500, 64))
    v = torch.eye(64, device=DEVICE, dtype=dtype).expand_as(k).contiguous()
    dropped = (attend(q, k, v, dropout=0.1) == 0).float().mean().item()
    assert dropped == pytest.approx(0.1, abs=0.003)


def test_a_focal_loss_of_logits_that_half_rounds_to_certainty_is_finite():
    head = copy.deepcopy(build('deformable').bbox_head).to(DEVICE)
    num_layers, num_queries = 2, 4
    scores = torch.full((1, num_layers, num_queries, head.cls_out_channels),
                        -20., dtype=torch.float16, device=DEVICE)
    scores[..., 0] = 20.
    scores.requires_grad_()
    boxes = torch.rand(1, num_layers, num_queries, 4, device=DEVICE)
    number = num_layers * num_queries
    targets = (torch.zeros(number, dtype=torch.long, device=DEVICE),
               boxes.view(number, 4), torch.ones(number, 4, device=DEVICE),
               number)
    losses = losses_of_layers(head, scores, boxes, targets,
                              torch.full((1, 4), 64., device=DEVICE))
    sum(losses.values()).sum().backward()
    assert torch.isfinite(losses['loss_cls']).all()
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize('name', SYSTEMS)
def test_outputs_losses_and_gradients_are_the_cpus(name):
    batch = HOSTS[name].batch()
    model, moved = build(name), build(name).to(DEVICE)
    assert_close(
        cpu(output(moved, batch)), cpu(output(model, batch)), **CLOSE)
    assert_close(
        cpu(gradients(moved, batch)), cpu(gradients(model, batch)), **CLOSE)


def train(name: str, wrapper: type, **kwargs):
    """The losses of a few steps on one batch, and the model behind them."""
    torch.manual_seed(0)
    model = build(name).to(DEVICE)
    model.training = True
    batch = HOSTS[name].batch()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3)
    wrapper = wrapper(optimizer=optimizer, **kwargs)
    losses = []
    for _ in range(STEPS):
        with wrapper.optim_context(model):
            found = loss(model, batch)
        wrapper.update_params(found)
        losses.append(found.item())
    return torch.tensor(losses), model


# mmcv's focal loss has no bfloat16 on CUDA.
@pytest.mark.parametrize('name, dtype', [
    ('vit', 'float16'), ('vit', 'bfloat16'), ('detr', 'float16'),
    ('detr', 'bfloat16'), ('deformable', 'float16')
])
def test_mixed_precision_trains_as_single_precision_does(name, dtype):
    scale = dict(init_scale=256.) if dtype == 'float16' else 1.
    single, _ = train(name, OptimWrapper)
    mixed, model = train(name, AmpOptimWrapper, dtype=dtype, loss_scale=scale)
    assert_close(mixed, single, rtol=2e-2, atol=2e-2)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    base = HOSTS[name].base_weights()
    start = build(name).state_dict()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert not torch.equal(parameter.cpu(), start[key]), key
        else:
            assert torch.equal(parameter.cpu(), base[key]), key


@pytest.mark.parametrize('name', ['vit', 'detr', 'deformable'])
def test_compiled_layers_are_the_eager_ones(name):
    torch._dynamo.reset()
    batch = HOSTS[name].batch()
    model, compiled = build(name).to(DEVICE), build(name).to(DEVICE)
    compile_parts(compiled)
    assert_close(
        cpu(output(compiled, batch)), cpu(output(model, batch)), **CLOSE)
    assert_close(
        cpu(gradients(compiled, batch)), cpu(gradients(model, batch)), **CLOSE)


@pytest.mark.parametrize('name', ['vit', 'detr'])
def test_compiled_layers_are_close_to_the_eager_ones_in_half_precision(name):
    """As one vector: fused operations leave roundings out."""
    torch._dynamo.reset()
    batch = HOSTS[name].batch()
    model, compiled = build(name).to(DEVICE), build(name).to(DEVICE)
    compile_parts(compiled)
    with torch.autocast(DEVICE, torch.bfloat16):
        expected, found = (
            gradients(m, batch)[1:] for m in (model, compiled))
    wanted, given = (
        torch.cat([grad.flatten() for grad in cpu(tensors)])
        for tensors in (expected, found))
    assert given.dtype == wanted.dtype == torch.float32
    assert (given - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.uint8])
def test_hashes_of_images_are_the_cpus(dtype):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 37, 41, generator=generator).mul(255).to(dtype)
    assert image_hashes('base', images.to(DEVICE)) == image_hashes(
        'base', images)


@pytest.mark.parametrize('name', ['detr', 'deformable'])
@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_features_are_the_same_whether_written_or_read(name, dtype, tmp_path):
    model = build(name).to(DEVICE).train()
    features = CachedFeatures(model, FeatureCache(tmp_path, dtype)).attach()
    images = prepare(model, HOSTS[name].batch(), True)['inputs']
    written, read = model.extract_feat(images), model.extract_feat(images)
    assert features.hits == features.misses == len(images)
    for one, other in zip(written, read, strict=True):
        assert one.device == other.device == images.device
    assert_close(read, written, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['vit', 'detr', 'deformable'])
def test_a_batch_of_two_tunings_is_the_cpus(name, tmp_path):
    path = tmp_path / 'mine.safetensors'
    save_tuned(build(name), path)
    found = []
    for device in ('cpu', DEVICE):
        model = HOSTS[name].build(None)
        model.load_state_dict(HOSTS[name].base_weights())
        bank = TuningBank(model.to(device))
        bank.load('mine', path)
        with bank.per_sample(['mine', None]):
            found.append(cpu(output(model, HOSTS[name].batch())))
    assert_close(*found, **CLOSE)


@pytest.mark.parametrize('name', ['detr_r50', 'deformable', 'vit_l16'])
def test_the_allocator_sees_the_memory_that_is_saved(name):
    """Without the weights: these are equal, and of a small batch most."""
    size = (224, 224) if name.startswith('vit') else (480, 640)
    peaks = {}
    for method in ('etta', 'full'):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        found = measure(Case(name, size, 4, DEVICE), method, 2, 1)
        peaks[method] = found['peak_bytes'] - found['weight_bytes']
    assert peaks['etta'] < 0.75 * peaks['full']
