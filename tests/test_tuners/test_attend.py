"""Where cuDNN's attention errs, it is not asked."""
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from etta_mm.tuners import ScaledPrefix
from etta_mm.tuners.attend import attend

SHAPE = (2, 8, 5, 32)  # (bs, num_heads, n, d_head)


class Asked(TorchFunctionMode):
    """Notes at each attention whether torch may ask cuDNN, computing nothing."""

    def __init__(self):
        super().__init__()
        self.cudnn = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.cudnn.append(torch.backends.cuda.cudnn_sdp_enabled())
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


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
