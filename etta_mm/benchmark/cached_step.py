"""What a training step costs with its features in a cache, in operations."""
import copy
from dataclasses import dataclass
from typing import Tuple

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ..engine import build_on_meta
from ..features.cached_features import check_cacheable
from ..features.feature_cache import DTYPES
from .floor import count_flops


@dataclass
class CachedStep:
    """Operations of a step and bytes on disk, per image.

    Attributes:
        without_cache (int): Operations of the products, forward and backward.
        with_cache (int): The same where the features are known already.
        bytes_on_disk (dict): From the cache's dtype to the bytes of the
            features; a file has a header of some hundred bytes besides.
    """
    without_cache: int
    with_cache: int
    bytes_on_disk: dict


def cached_step(cfg: Config,
                image_size: Tuple[int, int],
                device: str = 'meta') -> CachedStep:
    """Count a step of the detector of ``cfg``, without its loss.

    From the image to the outputs of the head and back from their sum to all
    that is trained. Matching and losses are no products of the network.

    Args:
        cfg (Config): The config of a run.
        image_size (tuple): (h, w) in pixels.
        device (str): 'meta' computes nothing; a deformable attention needs
            'cpu', since its sizes are read from a tensor. Defaults to 'meta'.

    Raises:
        ValueError: If the features of the model cannot be cached, or the step
            needs numbers.
    """
    model = _build(cfg, device).train()
    check_cacheable(model)
    if device == 'meta' and any(
            isinstance(m, MultiScaleDeformableAttention)
            for m in model.modules()):
        raise ValueError(
            f'{type(model).__name__} reads the sizes of its feature maps from '
            "a tensor, and on device='meta' tensors hold no numbers; take "
            "device='cpu', which computes the step")
    # In training, mmdet's deformable heads put out nothing but losses. The
    # products and what is trained are the same.
    model.eval()
    images = torch.zeros(1, 3, *image_size, device=device)
    without = count_flops(lambda: _step(model, images))
    features = model.extract_feat(images)
    # What the cache does: the features are there.
    model.extract_feat = lambda batch_inputs: features
    numel = sum(feature.numel() for feature in features)
    return CachedStep(
        without, count_flops(lambda: _step(model, images)), {
            name: numel * getattr(torch, name).itemsize
            for name in DTYPES
        })


def _build(cfg: Config, device: str) -> nn.Module:
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.init_cfg = None
    if 'tuning' in cfg.model:
        # A norm is no product, and the fold asks for autocast, which the meta
        # device has not.
        cfg.model.fold_norms = False
    if device == 'meta':
        return build_on_meta(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return MODELS.build(cfg.model).to(device)


def _step(model: nn.Module, images: Tensor) -> None:
    shape = tuple(images.shape[-2:])
    samples = [
        DetDataSample(
            metainfo=dict(img_shape=shape, batch_input_shape=shape))
        for _ in images
    ]
    outputs = model(images, samples, mode='tensor')
    sum(o.sum() for o in outputs
        if torch.is_tensor(o) and o.requires_grad).backward()
