"""What a model cannot be trained with is said before the run starts."""
import pytest
from hosts import HOSTS
from mmengine.config import Config

from etta_mm.engine import check_model as module
from etta_mm.engine.check_model import check_model

BFLOAT16 = dict(type='AmpOptimWrapper', dtype='bfloat16')


def config(name: str, **optim_wrapper) -> Config:
    return Config(
        dict(
            model=HOSTS[name].config(),
            default_scope='mmdet',
            optim_wrapper=optim_wrapper))


def test_a_focal_loss_in_bfloat16_is_refused_on_a_gpu(monkeypatch):
    check_model(config('deformable', **BFLOAT16))  # CPU: mmdet's own loss
    monkeypatch.setattr(module, 'get_device', lambda: 'cuda')
    with pytest.raises(ValueError, match="dtype='bfloat16'.*float16"):
        check_model(config('deformable', **BFLOAT16))


@pytest.mark.parametrize('name, changes', [('detr', {}),
                                           ('deformable', dict(dtype='float16')),
                                           ('deformable',
                                            dict(type='OptimWrapper'))])
def test_what_has_a_kernel_is_not_refused(monkeypatch, name, changes):
    monkeypatch.setattr(module, 'get_device', lambda: 'cuda')
    check_model(config(name, **dict(BFLOAT16, **changes)))
