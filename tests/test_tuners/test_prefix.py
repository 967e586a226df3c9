"""The parallel prefix is worked through in blocks, and gives the same."""
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from etta_mm.tuners import ScaledPrefix
from etta_mm.tuners import prefix as module

DIMS, HEADS, NUM_PREFIX, BS, CHUNK = 8, 2, 3, 3, 5
CLOSE = dict(rtol=1e-5, atol=1e-6)


@pytest.fixture
def prefix(monkeypatch):
    monkeypatch.setattr(module, 'MAX_QUERIES', CHUNK)
    monkeypatch.setattr(module, 'CHUNK', CHUNK)
    monkeypatch.setattr(module, 'MIN_CHUNK', CHUNK - 1)
    torch.manual_seed(0)
    prefix = ScaledPrefix(DIMS, HEADS, NUM_PREFIX, scale=0.7)
    torch.nn.init.normal_(prefix.value)
    return prefix


def plain(prefix: ScaledPrefix, query: torch.Tensor) -> torch.Tensor:
    """The equation, head by head."""
    width = DIMS // HEADS
    outs = []
    for head in range(HEADS):
        own = slice(head * width, (head + 1) * width)
        logits = query[..., own] @ prefix.key[:, own].T / width**0.5
        outs.append(logits.softmax(-1) @ prefix.value[:, own])
    return prefix.scale(torch.cat(outs, -1))


# A batch in one block, as on a CPU, and in chunks, as on a GPU: of the shortest
# length; some and a rest; of the longest.
@pytest.mark.parametrize('way', ['forward', '_attend_in_chunks'])
@pytest.mark.parametrize('num_queries', [CHUNK - 1, CHUNK + 2, 2 * CHUNK])
def test_blocks_of_queries_give_the_equation_and_its_gradients(
        prefix, num_queries, way):
    query = torch.randn(BS, num_queries, DIMS, requires_grad=True)
    gradient = torch.randn(BS, num_queries, DIMS)
    wanted = [query, *prefix.parameters()]
    out, expected = getattr(prefix, way)(query), plain(prefix, query)
    assert_close(out, expected, **CLOSE)
    assert_close(
        torch.autograd.grad(out, wanted, gradient),
        torch.autograd.grad(expected, wanted, gradient), **CLOSE)


class Queries(TorchFunctionMode):
    """Notes the shapes of what goes into a fused attention."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


# The shapes of another device than the CPU are those of the meta device.
def test_no_block_of_the_backward_pass_is_long(prefix):
    query = torch.randn(BS, 2 * CHUNK + 1, DIMS, device='meta')
    with Queries() as seen:
        prefix.to('meta')(query)
    assert sum(shape[0] * shape[2] for shape in seen.shapes) == BS * len(
        query[0])
    assert max(shape[2] for shape in seen.shapes) <= CHUNK


@pytest.mark.parametrize('num_queries, lengths', [
    (16, [(12, 4)]),
    (20, [(12, 5)]),
    (11, [(6, 5), (1, 3)]),
])
def test_blocks_are_of_one_length_if_there_is_one(prefix, num_queries,
                                                  lengths):
    query = torch.randn(BS, num_queries, DIMS, device='meta')
    with Queries() as seen:
        prefix.to('meta')(query)
    assert [shape[::2] for shape in seen.shapes] == lengths


def test_a_forward_pass_alone_takes_an_image_at_once(prefix):
    query = torch.randn(BS, 2 * CHUNK + 1, DIMS, device='meta')
    with Queries() as seen, torch.no_grad():
        prefix.to('meta')(query)
    assert seen.shapes == [(BS, HEADS, 2 * CHUNK + 1, DIMS // HEADS)]


def test_a_cpu_takes_the_batch_at_once(prefix):
    with Queries() as seen:
        prefix(torch.randn(BS, 2 * CHUNK + 1, DIMS))
    assert seen.shapes == [(1, HEADS, BS * (2 * CHUNK + 1), DIMS // HEADS)]
