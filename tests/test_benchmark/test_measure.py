"""One method, measured: a tiny case of the benchmark."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hosts import backward_kinds
from mmcv.cnn.bricks.transformer import FFN
from torch import nn

from etta_mm.benchmark import count_calls, count_flops
from etta_mm.benchmark.cases import Case
from etta_mm.benchmark.measure import (Rival, compile_parts, measure,
                                       time_in_turn)
from etta_mm.benchmark import memory
from etta_mm.benchmark.methods import METHODS
from etta_mm.benchmark.report import PARTS
from etta_mm.layers.folding import ConvNorm


@pytest.fixture(scope='module')
def measured():
    case = Case('vit_b16', (32, 32), batch=2, depth=1)
    return {
        method: measure(case, method, steps=1, warmup=0)
        for method in ('base', 'head', 'etta', 'full')
    }


def test_operations_grow_with_what_is_trained(measured):
    assert 'flops' not in measured['base']
    assert 0 < measured['head']['flops'] < measured['full']['flops']
    assert measured['head']['flops'] < measured['etta']['flops']


def test_calls_are_counted_where_there_is_a_step(measured):
    assert 'calls' not in measured['base']
    assert 0 < measured['head']['calls'] < measured['etta']['calls']


def test_calls_are_those_of_forward_and_backward_but_not_views():
    weight = torch.ones(3, 4, requires_grad=True)
    # ReLU and sum, the one to start from, and the ReLU's gradient.
    assert count_calls(lambda: weight.t().relu().sum().backward()) == 4


def test_full_fine_tuning_in_ettas_host_trains_the_same():
    def trained(method: str) -> set:
        case = Case('detr_r50', (64, 64), batch=1, depth=1)
        model = METHODS[method](case).model
        return {n for n, p in model.named_parameters() if p.requires_grad}

    assert trained('full_et') == trained('full')


def test_every_method_has_its_times_and_sizes(measured):
    for method, found in measured.items():
        assert len(found['forward_s']) == 1 and found['forward_s'][0] > 0
        assert (found['backward_s'][0] > 0) == (method != 'base')
        assert set(found['latency_s']) == {1, 8}
        assert found['checkpoint_bytes'] > 0
        assert found['gradient_bytes'] == 4 * found['trained']


def test_behind_the_cache_a_step_is_the_transformers_alone():
    case = Case('detr_r50', (64, 64), batch=2, depth=1)
    plain, cached = (METHODS[name](case) for name in ('etta', 'etta_cached'))
    first, writing, reading = (
        count_flops(lambda: contestant.loss().backward())
        for contestant in (plain, cached, cached))
    features = count_flops(
        lambda: plain.model.extract_feat(torch.zeros(2, 3, 64, 64)))
    assert first == writing == reading + features


def test_no_norm_is_folded_anew_in_what_is_timed(monkeypatch):
    case = Case('detr_r50', (64, 64), batch=1, depth=1)
    rival = Rival(METHODS['etta'](case), 'cpu', 'float32')
    rival.step(), rival.infer(1)  # the warm-up
    folds = []
    fold = ConvNorm._fold
    monkeypatch.setattr(ConvNorm, '_fold',
                        lambda *args: folds.append(1) or fold(*args))
    rival.infer(1)
    assert not folds
    rival.step(), folds.clear(), rival.step()
    assert not folds


def test_fast_sampling_is_that_of_its_methods_alone():
    """Also where those of all methods share a process."""
    case = Case('deformable', (64, 64), batch=1, depth=1)
    fast, plain = (METHODS[name](case) for name in ('full_fast_cpu', 'full'))
    losses = [contestant.loss() for contestant in (fast, plain)]
    kinds = [backward_kinds(loss) for loss in losses]
    assert ['_SampleBackward' in found for found in kinds] == [True, False]
    assert ['GridSampler2DBackward0' in found
            for found in kinds] == [False, True]


def test_rivals_take_turns_forwards_and_backwards():
    case = Case('vit_b16', (32, 32), batch=2, depth=1)
    turns = []

    class Noted(Rival):

        def step(self):
            turns.append(self.name)
            return super().step()

    rivals = {}
    for name in ('base', 'etta'):
        rivals[name] = Noted(METHODS[name](case), 'cpu', 'float32')
        rivals[name].name = name
    times = time_in_turn(rivals, steps=2, warmup=1)
    assert turns == ['base', 'etta', 'etta', 'base', 'base', 'etta']
    for name, found in times.items():
        assert [len(found[part]) for part in PARTS] == [2, 2, 2]
        assert (min(found['backward_s']) > 0) == (name == 'etta')
        assert {b: len(t) for b, t in found['latency_s'].items()} == {1: 2, 8: 2}


class Layer(nn.Module):
    """What holds a feed-forward network."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.ffn = FFN(dims, 8)

    def forward(self, x):
        return self.ffn(x)


def test_every_layer_is_compiled_however_many_there_are():
    """And not only the first eight, as by default."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with torch._dynamo.config.patch(
            recompile_limit=8, fail_on_recompile_limit_hit=False):
        for dims in range(4, 16):
            host = nn.ModuleDict(dict(
                layers=nn.ModuleList([Layer(dims)]), backbone=nn.Identity()))
            compile_parts(host, backend=backend, dynamic=False)
            host['layers'][0](torch.rand(2, 3, dims))
    torch._dynamo.reset()
    assert len(graphs) == 12


def test_the_tool_times_together_what_does_not_fail(tmp_path):
    """Such as where the packages of a peer are not installed."""
    root = Path(__file__).parents[2]
    absent = root / 'tests/test_tools/without_peers'
    subprocess.run([
        sys.executable, root / 'tools/benchmark.py', '--cases', 'vit_b16',
        '--methods', 'base', 'hf_peft_lora', 'etta', '--image-size', '32',
        '--batch', '1', '--steps', '2', '--warmup', '0', '--rounds', '1',
        '--device', 'cpu', '--fork', '--together', '--out', tmp_path
    ], check=True, cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(absent)))  # yapf: disable
    runs = json.loads((tmp_path / 'benchmark.json').read_text())['runs']
    runs = {run['method']: run for run in runs}
    assert 'ModuleNotFoundError' in runs.pop('hf_peft_lora')['error']
    assert list(runs) == ['base', 'etta']
    for run in runs.values():
        assert 'error' not in run
        assert len(run['forward_s']) == len(run['latency_s']['8']) == 2
        assert run['peak_bytes'] > run['weight_bytes']


FREED = """
import importlib.util, sys
import psutil, torch
spec = importlib.util.spec_from_file_location('memory', sys.argv[1])
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
size = 2**22
torch.ones(size)  # glibc keeps in its heap what is no larger from now on
with memory.freed_memory_returned():
    tensors = [torch.ones(size // 4) for _ in range(32)]
    before = psutil.Process().memory_info().rss
    del tensors[::2]
    assert before - psutil.Process().memory_info().rss > 15 * size
"""


def test_what_is_freed_is_no_longer_resident():
    # In a process of its own, whose heap has no holes yet.
    subprocess.run([sys.executable, '-c', FREED, memory.__file__], check=True)
