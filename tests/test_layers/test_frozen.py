"""A frozen norm stays in eval and computes what its own class computes."""
import copy
import pickle

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmcv.ops import SyncBatchNorm
from mmengine.model import revert_sync_batchnorm
from torch import nn
from torch.testing import assert_close

from etta_mm import apply_tuning, disable_tuning
from etta_mm.layers.frozen import freeze_statistics

EXACT = dict(rtol=0, atol=0)


class NormAct(nn.BatchNorm2d):
    """As timm's ``BatchNormAct2d``: an activation of its own."""

    def __init__(self, num_features):
        super().__init__(num_features)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


class Statistics(nn.Module):
    """Running statistics without torch's parent, as mmcv's ``SyncBatchNorm``
    has them."""

    def __init__(self, num_features):
        super().__init__()
        self.register_buffer('running_mean', torch.ones(num_features))

    def forward(self, x):
        if self.training:
            self.running_mean += 1
        return x - self.running_mean[:, None, None]


class Net(nn.Module):

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), norm(8)
        self.ffn = FFN(8, 16)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return self.ffn(x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize('norm', [NormAct, Statistics])
def test_what_the_class_of_a_norm_adds_stays(norm):
    torch.manual_seed(0)
    model, x = Net(norm).eval(), torch.randn(2, 3, 8, 8)
    expected = model(x)
    apply_tuning(model, dict(ffn=dict(type='ParallelAdapter',
                                      bottleneck_dims=4)))
    statistics = model.norm.running_mean.clone()
    for mode in (False, True):
        model.train(mode)
        assert isinstance(model.norm, norm) and not model.norm.training
        assert_close(model(x), expected)
    assert_close(model.norm.running_mean, statistics, **EXACT)
    with disable_tuning(model):
        assert_close(model(x), expected, **EXACT)


@pytest.mark.parametrize('norm', [nn.SyncBatchNorm, SyncBatchNorm])
def test_a_frozen_norm_stays_so_where_nothing_is_synchronised(
        norm, monkeypatch):
    """mmengine's Runner takes synchronised norms out in one process."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda group: 1)
    plain, x = Net(nn.BatchNorm2d), torch.randn(2, 3, 8, 8)
    for tensor in (*plain.norm.parameters(), plain.norm.running_mean):
        nn.init.normal_(tensor)
    model = Net(norm)
    model.load_state_dict(plain.state_dict())
    expected = plain.eval()(x)
    apply_tuning(model, dict(train=['ffn']))
    before = copy.deepcopy(model.state_dict())
    model = revert_sync_batchnorm(model).train()
    assert not model.norm.training
    assert_close(model(x), expected)
    assert_close(model.state_dict(), before, **EXACT)


@pytest.mark.parametrize('copied', [
    copy.deepcopy, lambda norm: pickle.loads(pickle.dumps(norm))
], ids=['copy', 'pickle'])
def test_a_copy_is_as_frozen(copied):
    norm, x = NormAct(3), torch.randn(2, 3, 4, 4)
    freeze_statistics(norm)
    other = copied(norm).train()
    assert type(other) is type(norm) and not other.training
    assert_close(other(x), norm(x), **EXACT)


def test_statistics_of_any_norm_stay():
    norm, x = nn.InstanceNorm1d(4, track_running_stats=True), torch.rand(2, 4, 9)
    freeze_statistics(norm)
    before = copy.deepcopy(norm.state_dict())
    assert_close(norm.train()(x), x, rtol=0, atol=1e-5)  # mean 0, variance 1
    assert_close(norm.state_dict(), before, **EXACT)


def test_a_norm_without_statistics_is_none_to_freeze():
    for norm in (nn.BatchNorm2d(3, track_running_stats=False),
                 nn.InstanceNorm2d(3), nn.LayerNorm(3)):
        kind = type(norm)
        freeze_statistics(norm)
        assert type(norm) is kind and norm.train().training


def test_a_norm_without_its_statistics_yet_is_an_error():
    with pytest.raises(TypeError, match='LazyBatchNorm2d.*run the model'):
        freeze_statistics(nn.LazyBatchNorm2d())


def test_what_holds_other_modules_is_left_to_them():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3))
    model.register_buffer('running_mean', torch.zeros(3))
    freeze_statistics(model)
    assert type(model) is nn.Sequential and model.train()[0].training
    script = torch.jit.script(nn.BatchNorm1d(3))
    freeze_statistics(script)
    assert script.train().training
