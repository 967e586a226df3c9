"""What a step costs with the feature cache, counted."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from etta_mm.benchmark import count_flops
from etta_mm.benchmark.cached_step import cached_step
from etta_mm.engine import build_on_meta

GLYPHS = Path(__file__).parents[2] / 'configs/glyphs'
SIZE = (32, 48)  # pixels, height and width


def config(name: str) -> Config:
    return Config.fromfile(GLYPHS / f'{name}.py')


def test_the_cache_saves_the_forward_pass_of_backbone_and_neck():
    cfg = config('et_detr_glyphs')
    step = cached_step(cfg, SIZE)
    cfg.model.fold_norms = False
    model = build_on_meta(cfg)
    images = torch.zeros(1, 3, *SIZE, device='meta')
    features = count_flops(lambda: model.extract_feat(images))
    assert step.without_cache - step.with_cache == features > 0


def test_the_bytes_are_those_of_the_features():
    step = cached_step(config('et_detr_glyphs'), SIZE)
    numel = 128 * 2 * 3  # a stride of 16
    assert step.bytes_on_disk == dict(
        float16=2 * numel, bfloat16=2 * numel, float32=4 * numel)


def test_the_config_is_as_it_was():
    cfg, same = config('et_detr_glyphs'), config('et_detr_glyphs')
    cached_step(cfg, SIZE)
    assert cfg.to_dict() == same.to_dict()


def test_trained_norms_are_refused():
    with pytest.raises(ValueError, match='holds trained parameters'):
        cached_step(config('et_deformable_detr_glyphs'), SIZE)


def test_deformable_attention_is_not_counted_on_the_meta_device():
    cfg = config('et_deformable_detr_glyphs')
    cfg.model.tuning.train = ['bbox_head']
    with pytest.raises(ValueError, match="take device='cpu'"):
        cached_step(cfg, SIZE)
