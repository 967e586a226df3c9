"""How far every setting is from the eager model in single precision.

The bounds are those of the table in docs/exactness.md, which this file, run as
a script, measures anew and writes::

    python tests/test_exactness.py
"""
import copy
import multiprocessing
import os
import re
import sys
import tempfile
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, Iterator

import pytest
import torch
from hosts import HOSTS, detection_batch, prepare
from mmdet.registry import MODELS as MMDET
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as MMPRETRAIN
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from etta_mm.inference.export import (example_inputs, export_onnx,
                                      export_program, onnx_difference)
from etta_mm.inference.exportable import exportable

DOCS = Path(__file__).parent.parent / 'docs/exactness.md'
SYSTEMS = dict(vit='ET-ViT', detr='ET-DETR', deformable='ET-Deformable DETR')
TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=6),
    attn=dict(type='ScaledPrefix', num_prefix=3))
MOMENTUM = 0.1
STEPS = 3
ROW = re.compile(r'^\| (.+?) \| (.+?) \| (.+) \| (\S+) \|$', re.M)


# ------------------------------------------------------------------- models
@lru_cache(maxsize=None)
def weights(name: str) -> dict:
    """The base's random weights, and tuners none of which is zero."""
    state = plain(name).state_dict()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in state.items():
        if '.tuners.' in key:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return state | HOSTS[name].base_weights()


def plain(name: str, **switches) -> nn.Module:
    cfg = HOSTS[name].config()
    tuned, registry, scope = cfg, MMDET, 'mmdet'
    if name == 'vit':
        tuned, registry, scope = cfg['backbone'], MMPRETRAIN, 'mmpretrain'
    tuned.update(tuning=copy.deepcopy(TUNING), **switches)
    with DefaultScope.overwrite_default_scope(scope):
        return registry.build(cfg)


def build(name: str, **switches) -> nn.Module:
    """The system in eval, with the switches of ``TunedHost``."""
    model = plain(name, **switches)
    model.load_state_dict(weights(name))
    return model.eval()


def tensors(outputs) -> list:
    """Tensors of any nesting, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [t for item in outputs for t in tensors(item)]


def difference(found, expected) -> float:
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert pairs and all(e.abs().max() > 0 for _, e in pairs)
    return max((f.cpu().double() - e.double()).abs().max().item()
               for f, e in pairs)


def output(model: Callable, name: str, **image_options):
    """Scores, or boxes and logits, of a batch of padded images."""
    host = build(name)
    data = prepare(host, HOSTS[name].batch(), False)
    images = data['inputs'].to(**image_options)
    with torch.no_grad():
        return model(images, data['data_samples'], mode='tensor')


def gradients(model: nn.Module, name: str) -> list:
    """Of the sum of all losses, by the tuners' parameters."""
    host = getattr(model, 'module', model).train()
    torch.manual_seed(0)  # of dropout
    return backward(model, prepare(host, HOSTS[name].batch(), True))


def gradients_of(images: slice, model: nn.Module, name: str) -> list:
    """As ``gradients``, of some images and without dropout.

    The images have as many boxes each, so that the loss of a batch is the mean
    of theirs; they are padded before they are chosen.
    """
    batch = HOSTS[name].batch() if name == 'vit' else detection_batch((2, 2))
    host = getattr(model, 'module', model).eval()
    host.training = True  # its parts are not: they have the dropout
    data = prepare(host, batch, True)
    return backward(model, {key: value[images] for key, value in data.items()})


def backward(model: nn.Module, data: dict) -> list:
    host = getattr(model, 'module', model)
    losses = model(data['inputs'], data['data_samples'], mode='loss')
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    return [p.grad for p in host.parameters() if p.requires_grad]


# ----------------------------------------------------------------- settings
def unfolded(name: str) -> float:
    return difference(
        output(build(name, fold_norms=False), name), output(build(name), name))


def contiguous(name: str) -> float:
    return difference(
        output(build(name, channels_last=False), name),
        output(build(name), name))


def channels_last(name: str) -> float:
    model = build(name).to(memory_format=torch.channels_last)
    return difference(
        output(model, name, memory_format=torch.channels_last),
        output(build(name), name))


def autocast(name: str, dtype: torch.dtype, device: str = 'cpu') -> float:
    with torch.autocast(device, dtype):
        found = output(build(name).to(device), name, device=device)
    return difference(found, output(build(name), name))


def bf16(name: str) -> float:
    return autocast(name, torch.bfloat16)


def fp16(name: str) -> float:
    return autocast(name, torch.float16)


def fp16_cuda(name: str) -> float:
    return autocast(name, torch.float16, 'cuda')


def aot_eager(name: str) -> float:
    torch._dynamo.reset()
    compiled = torch.compile(build(name), backend='aot_eager')
    return difference(output(compiled, name), output(build(name), name))


def exported_inputs(name: str, module: nn.Module) -> dict:
    size = (32, 32) if name == 'vit' else (64, 48)
    return example_inputs(module, size, with_masks=name != 'vit')


def inductor(name: str) -> float:
    torch._dynamo.reset()
    module = exportable(build(name))
    inputs = exported_inputs(name, module)
    with torch.no_grad():
        return difference(
            torch.compile(module, fullgraph=True)(**inputs), module(**inputs))


def exported(name: str) -> float:
    module = exportable(build(name))
    inputs = exported_inputs(name, module)
    program = export_program(
        module, tuple(inputs['images'].shape[-2:]), 'masks' in inputs)
    with torch.no_grad():
        return difference(program.module()(**inputs), module(**inputs))


def onnx(name: str) -> float:
    module = exportable(build(name))
    inputs = exported_inputs(name, module)
    size, with_masks = tuple(inputs['images'].shape[-2:]), 'masks' in inputs
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(
            export_program(module, size, with_masks), f'{folder}/model.onnx')
        return onnx_difference(module, path, size, 3, with_masks)


def checkpointed(name: str) -> float:
    return difference(
        gradients(build(name, with_cp=True), name),
        gradients(build(name), name))


def matched_apart(name: str) -> float:
    return difference(
        gradients(build(name, batch_matching=False), name),
        gradients(build(name), name))


def gradients_of_rank(rank: int, folder: str) -> Dict[str, list]:
    """What one of two processes, with one of the two images, has of each
    system."""
    fill_registries()
    torch.distributed.init_process_group(
        'gloo',
        init_method=f'file://{folder}/store',
        timeout=timedelta(minutes=5),
        rank=rank,
        world_size=2)
    try:
        return {
            name: gradients_of(
                slice(rank, rank + 1), DistributedDataParallel(build(name)),
                name)
            for name in SYSTEMS
        }
    finally:
        torch.distributed.destroy_process_group()


@lru_cache(maxsize=None)
def gradients_of_two_processes() -> Dict[str, list]:
    with tempfile.TemporaryDirectory() as folder:
        other = multiprocessing.get_context('spawn').Process(
            target=gradients_of_rank, args=(1, folder), daemon=True)
        other.start()
        found = gradients_of_rank(0, folder)
        other.join()
    assert other.exitcode == 0
    return found


def distributed(name: str) -> float:
    return difference(gradients_of_two_processes()[name],
                      gradients_of(slice(None), build(name), name))


def averages(name: str) -> Iterator[tuple]:
    """Name, EMA and the same in double precision, of each parameter."""
    model = build(name)
    ema = ExponentialMovingAverage(model, momentum=MOMENTUM)
    start = {k: p.detach().clone() for k, p in model.named_parameters()}
    precise = {key: p.double() for key, p in start.items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        gradients(model, name)
        nn.utils.clip_grad_norm_(trained, 1.)
        optimizer.step()
        ema.update_parameters(model)
        for key, parameter in model.named_parameters():
            now = parameter.detach().double()
            # The first update takes the weights as they are.
            precise[key] = now if step == 0 else (
                (1 - MOMENTUM) * precise[key] + MOMENTUM * now)
    for key, parameter in ema.module.named_parameters():
        yield key, parameter.detach(), precise[key], start[key]


def averaged(name: str) -> float:
    return max((found.double() - expected).abs().max().item()
               for _, found, expected, _ in averages(name))


#: The rows of the table: what is set, and what is compared.
SETTINGS: Dict[str, Callable] = {
    '`fold_norms=False`': unfolded,
    '`channels_last=False`': contiguous,
    '`.to(memory_format=torch.channels_last)`': channels_last,
    'AMP, bfloat16': bf16,
    'AMP, float16': fp16,
    'AMP, float16, CUDA': fp16_cuda,
    "`torch.compile`, 'aot_eager'": aot_eager,
    "`torch.compile`, 'inductor'": inductor,
    '`torch.export`': exported,
    'ONNX, onnxruntime': onnx,
    '`with_cp=True`': checkpointed,
    '`batch_matching=False`': matched_apart,
    'DDP, gloo, 2 processes': distributed,
    'EMA, 3 steps': averaged,
}
#: Rows that tests/test_inference/test_export.py holds to the same bounds.
TESTED_ELSEWHERE = ('`torch.export`', 'ONNX, onnxruntime')
#: Rows that compile C++ for minutes.
SLOW = ("`torch.compile`, 'inductor'", )
#: Rows that need a GPU, and what stands in the table until one was there.
ON_GPU = ('AMP, float16, CUDA', )
NOT_MEASURED = '-'


def table() -> dict:
    """The rows of the table in the docs, by their setting."""
    rows = {row[1]: row for row in ROW.finditer(DOCS.read_text())}
    return {name: rows[name] for name in SETTINGS if name in rows}


@pytest.mark.parametrize('name', SYSTEMS)
@pytest.mark.parametrize(
    'setting', [
        pytest.param(key, marks=[pytest.mark.gpu] if key in ON_GPU else [])
        for key in SETTINGS if key not in TESTED_ELSEWHERE
    ])
def test_a_setting_stays_within_the_bound_of_the_docs(setting, name):
    if setting in SLOW and not os.environ.get('ETTA_SLOW_TESTS'):
        pytest.skip('compiles C++ for minutes; set ETTA_SLOW_TESTS=1')
    if setting in ON_GPU and not torch.cuda.is_available():
        pytest.skip('needs a GPU')
    assert SETTINGS[setting](name) <= float(table()[setting][4])


def test_the_measured_values_in_the_docs_are_within_their_bounds():
    assert list(table()) == list(SETTINGS)
    for row in table().values():
        measured = row[3].split(' | ')
        assert len(measured) == len(SYSTEMS)
        if row[1] in ON_GPU and set(measured) == {NOT_MEASURED}:
            continue
        assert max(map(float, measured)) <= float(row[4]), row[1]


def test_half_precision_is_really_used():
    for setting in (bf16, fp16):
        assert all(setting(name) > 1e-5 for name in SYSTEMS)


def test_two_processes_share_gradients_that_differ_from_image_to_image():
    for name in SYSTEMS:
        one, both = (gradients_of(images, build(name), name)
                     for images in (slice(0, 1), slice(None)))
        bound = float(table()['DDP, gloo, 2 processes'][4])
        assert difference(one, both) > 100 * bound


def test_ema_leaves_the_base_bit_equal_and_moves_the_tuners():
    for name in SYSTEMS:
        for key, found, _, start in averages(name):
            if '.tuners.' in key:
                assert not torch.equal(found, start), key
            elif not key.startswith('head.'):  # a classifier's is trained
                assert torch.equal(found, start), key


def fill_registries() -> None:
    import mmdet.models  # noqa: F401
    import mmpretrain.models  # noqa: F401

    import etta_mm  # noqa: F401
    torch.set_num_threads(1)


def main() -> None:
    """Measure all rows, or those named, and write them into the docs."""
    fill_registries()
    for setting in sys.argv[1:] or SETTINGS:
        if setting in ON_GPU and not torch.cuda.is_available():
            print(setting, 'needs a GPU')
            continue
        row = table()[setting]
        measured = [f'{SETTINGS[setting](name):.1e}' for name in SYSTEMS]
        DOCS.write_text(DOCS.read_text().replace(
            row[0], f'| {setting} | {row[2]} | {" | ".join(measured)} | '
            f'{row[4]} |'))
        print(setting, *measured, flush=True)


if __name__ == '__main__':
    sys.exit(main())
