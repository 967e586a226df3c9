"""Where cuDNN's attention errs, it is not asked."""
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from etta_mm.tuners import ScaledPrefix
from etta_mm.tuners.attend import _without_cudnn, attend

SHAPE = (2, 8, 5, 32)  # (bs, num_heads, n, d_head)


class Asked(TorchFunctionMode):
    """Notes at each attention whether torch may ask cuDNN, computing nothing."""

    def __init__(self):
        super().__init__()
        self.cudnn, self.others = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.cudnn.append(torch.backends.cuda.cudnn_sdp_enabled())
            self.others.append((torch.backends.cuda.flash_sdp_enabled(),
                                torch.backends.cuda.mem_efficient_sdp_enabled(),
                                torch.backends.cuda.math_sdp_enabled()))
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('mask', [None, 'bool', 'float'])
@pytest.mark.parametrize('scale', [None, 0.3])
def test_a_trace_has_the_plain_equation(mask, scale):
    q, k, v = torch.randn(3, *SHAPE)
    if mask is not None:
        mask = torch.randn(2, 1, 5, 5) if mask == 'float' else ~torch.eye(
            5, dtype=torch.bool)

    def run(*given):
        return attend(*given, mask, scale=scale)

    traced = torch.jit.trace(run, (q, k, v))
    assert 'scaled_dot_product_attention' not in str(traced.graph)
    assert_close(traced(q, k, v), run(q, k, v))


@pytest.mark.parametrize('device, given, may', [
    ('cuda', dict(), True),
    ('cuda', dict(scale=0.3), True),
    ('cuda', dict(dropout=0.1), False),
    ('cuda', dict(mask=True), False),
    ('cuda', dict(expanded=True), False),
    ('cpu', dict(dropout=0.1, mask=True), True),
    # Single precision cuDNN does not know.
    ('cuda', dict(dtype=torch.float32, dropout=0.1), True),
], ids=str)
def test_cudnn_is_not_asked_where_it_errs(device, given, may):
    given = dict(given)
    kind = dict(device=device, dtype=given.pop('dtype', torch.float16))
    with FakeTensorMode():
        q = torch.empty(SHAPE, **kind)
        k = v = torch.empty(1, *SHAPE[1:], **kind).expand(
            SHAPE) if given.pop('expanded', False) else torch.empty_like(q)
        if given.get('mask'):
            given['mask'] = torch.ones(2, 1, 5, 5, device=device).bool()
        with Asked() as asked:
            assert attend(q, k, v, **given).shape == SHAPE
    assert asked.cudnn == [may]
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize('backend, cudnn, others', [
    (SDPBackend.MATH, False, (False, False, True)),
    (SDPBackend.FLASH_ATTENTION, False, (True, False, False)),
    (SDPBackend.CUDNN_ATTENTION, True, (False, False, False)),
], ids=str)
def test_kernels_that_are_switched_off_stay_so(backend, cudnn, others):
    with FakeTensorMode(), sdpa_kernel(backend), Asked() as asked:
        q = torch.empty(SHAPE, device='cuda', dtype=torch.float16)
        attend(q, q, q, dropout=0.1)
    assert (asked.cudnn, asked.others) == ([cudnn], [others])


def test_threads_leave_the_setting_as_it_was():
    """One enters while the other is inside, and leaves after it."""
    inside, entered = threading.Barrier(2, timeout=20), threading.Event()

    def first():
        with _without_cudnn():
            inside.wait()
            entered.wait(0.2)  # without a lock, the second is in by then

    def second():
        inside.wait()
        with _without_cudnn():
            entered.set()
            time.sleep(0.1)

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_prefix_is_among_them():
    prefix = ScaledPrefix(256, 8, num_prefix=50, composition='parallel')
    with FakeTensorMode(allow_non_fake_inputs=True), Asked() as asked:
        prefix.to('cuda')(torch.empty(2, 9, 256, device='cuda').half())
    assert asked.cudnn == [False]


def test_autocast_makes_half_precision_of_single():
    with FakeTensorMode(), Asked() as asked:
        q = torch.empty(SHAPE, device='cuda')
        torch.set_autocast_enabled('cuda', True)  # autocast asks for a GPU
        try:
            attend(q, q, q, dropout=0.1)
        finally:
            torch.set_autocast_enabled('cuda', False)
    assert asked.cudnn == [False]


def test_it_is_the_equation():
    q, k, v = (torch.randn(2, 4, n, 8, dtype=torch.double) for n in (3, 5, 5))
    mask = torch.randn(2, 1, 3, 5, dtype=torch.double)
    expected = (0.7 * q @ k.transpose(-1, -2) + mask).softmax(-1) @ v
    assert_close(attend(q, k, v, mask, scale=0.7), expected)
    assert_close(attend(q, k, v), (q @ k.transpose(-1, -2) / 8**0.5
                                   ).softmax(-1) @ v)
