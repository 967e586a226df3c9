"""One method, measured: a tiny case of the benchmark."""
import subprocess
import sys

import pytest
import torch

from etta_mm.benchmark import count_flops
from etta_mm.benchmark.cases import Case
from etta_mm.benchmark.measure import measure
from etta_mm.benchmark.memory import freed_memory_returned
from etta_mm.benchmark.methods import METHODS


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


FREED = """
import psutil, torch
from etta_mm.benchmark.memory import freed_memory_returned
size = 2**22
torch.ones(size)  # glibc keeps in its heap what is no larger from now on
with freed_memory_returned():
    tensors = [torch.ones(size // 4) for _ in range(32)]
    before = psutil.Process().memory_info().rss
    del tensors[::2]
    assert before - psutil.Process().memory_info().rss > 15 * size
"""


def test_what_is_freed_is_no_longer_resident():
    # In a process of its own, whose heap has no holes yet.
    subprocess.run([sys.executable, '-c', FREED], check=True)
