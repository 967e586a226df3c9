"""Base weights as safetensors, through mmengine's loaders."""
import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from etta_mm import apply_tuning
from etta_mm.engine import save_base

DIMS = 4


class Tiny(BaseModule):

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.ffn = FFN(DIMS, 8)
        self.norm = nn.BatchNorm1d(DIMS)


def tiny():
    model = Tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        model.norm.running_mean.normal_(std=1e3)
    model.norm.num_batches_tracked += 70000  # too large for half precision
    return model


@pytest.mark.parametrize('dtype', [torch.half, torch.float, torch.bfloat16])
def test_weights_are_rounded_and_statistics_are_kept(tmp_path, dtype):
    model = tiny()
    path = save_base(model, tmp_path / 'base.safetensors', dtype)
    stored = load_file(str(path))
    assert set(stored) == set(model.state_dict())
    buffers = dict(model.named_buffers())
    for name, tensor in model.state_dict().items():
        if name in buffers:
            assert torch.equal(stored[name], tensor)
        else:
            assert stored[name].dtype is dtype
            assert torch.equal(stored[name], tensor.to(dtype))


def test_half_precision_is_the_default(tmp_path):
    stored = load_file(str(save_base(tiny(), tmp_path / 'b.safetensors')))
    assert stored['norm.weight'].dtype is torch.half


def test_mmengine_loads_it_by_name(tmp_path):
    model = tiny()
    path = save_base(model, tmp_path / 'base.safetensors', torch.float)
    checkpoint = CheckpointLoader.load_checkpoint(str(path))
    assert_close(dict(checkpoint['state_dict']), dict(model.state_dict()))
    other = Tiny()
    load_checkpoint(other, str(path))
    assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert other.norm.weight.dtype is torch.float


def test_init_cfg_loads_it(tmp_path):
    model = tiny()
    path = save_base(model, tmp_path / 'base.safetensors', torch.float)
    other = Tiny(dict(type='Pretrained', checkpoint=str(path)))
    other.init_weights()
    assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_tuned_model_loads_it_as_its_base(tmp_path):
    model = tiny()
    path = save_base(model, tmp_path / 'base.safetensors')
    tuned = apply_tuning(
        Tiny(), dict(ffn=dict(type='ParallelAdapter', bottleneck_dims=2)))
    load_checkpoint(tuned, str(path))
    expected = {k: v.half().float() for k, v in model.named_parameters()}
    state = tuned.state_dict()
    assert_close({k: state[k] for k in expected}, expected, rtol=0, atol=0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.safetensors'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'none.safetensors'))


def test_a_tied_parameter_is_stored_under_both_names(tmp_path):
    model = nn.ModuleDict(dict(a=nn.Linear(2, 2)))
    model['b'] = model['a']
    stored = load_file(str(save_base(model, tmp_path / 'b.safetensors')))
    assert set(stored) == {'a.weight', 'a.bias', 'b.weight', 'b.bias'}
