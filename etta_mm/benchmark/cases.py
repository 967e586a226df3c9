"""The cases of the benchmark: a zoo model at its real size, and a batch."""
import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Optional, Tuple

import mmdet.models  # noqa: F401  (fills the registry)
import mmpretrain.models  # noqa: F401
import torch
from mmdet.registry import MODELS as MMDET
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS as MMPRETRAIN
from mmpretrain.structures import DataSample
from torch import Tensor, nn

DEFORMABLE = 'deformable_detr/deformable-detr{}_r50_16xb2-50e_coco.py'
#: Case to the scope and the name of its zoo config.
CASES = {
    'detr_r50': ('mmdet', 'detr/detr_r50_8xb2-150e_coco.py'),
    'detr_r101': ('mmdet', 'detr/detr_r101_8xb2-500e_coco.py'),
    'deformable': ('mmdet', DEFORMABLE.format('')),
    'deformable_refine': ('mmdet', DEFORMABLE.format('-refine')),
    'deformable_twostage': ('mmdet', DEFORMABLE.format('-refine-twostage')),
    'vit_b16': ('mmpretrain',
                'vision_transformer/vit-base-p16_64xb64_in1k.py'),
    'vit_l16': ('mmpretrain',
                'vision_transformer/vit-large-p16_64xb64_in1k.py'),
}
BOXES_PER_IMAGE = 7  # COCO's average


@lru_cache(maxsize=None)
def _zoo_model(name: str) -> dict:
    return get_config(name).model


@dataclass
class Contestant:
    """One method on one case, ready to be measured.

    Attributes:
        model (nn.Module): The model, on its device.
        loss (Callable): The loss of the training batch, a scalar.
        infer (Callable): From a batch size to the network's output, without
            post-processing.
        save (Callable): Writes to a path what must be kept of a training.
        trains (bool): Whether there is a backward pass.
    """
    model: nn.Module
    loss: Callable[[], Tensor]
    infer: Callable
    save: Callable
    trains: bool = True


@dataclass
class Case:
    """A zoo model and the size of its input.

    Args:
        name (str): One of :data:`CASES`.
        image_size (tuple, optional): (h, w) in pixels. Defaults to 800 x 1216
            for detection and 224 x 224 for classification.
        batch (int): Images of a step. Defaults to 2.
        device (str): Defaults to 'cpu'.
        depth (int, optional): Layers of the vision transformer, or of the
            encoder and of the decoder each. Defaults to the zoo config's.

    Raises:
        KeyError: If there is no such case.
    """
    name: str
    image_size: Optional[Tuple[int, int]] = None
    batch: int = 2
    device: str = 'cpu'
    depth: Optional[int] = None

    def __post_init__(self) -> None:
        if self.name not in CASES:
            raise KeyError(f'there is no case {self.name}; the cases are '
                           f'{", ".join(CASES)}')
        self.scope, self.config_name = CASES[self.name]
        if self.image_size is None:
            self.image_size = (800, 1216) if self.is_detection else (224, 224)

    @property
    def is_detection(self) -> bool:
        return self.scope == 'mmdet'

    def config(self) -> dict:
        """The model of the zoo config, without its pre-trained weights."""
        model = copy.deepcopy(_zoo_model(f'{self.scope}::{self.config_name}'))
        model.backbone.init_cfg = None
        if not self.is_detection:
            model.backbone.img_size = self.image_size
            model.data_preprocessor = dict(
                type='ClsDataPreprocessor', mean=[127.] * 3, std=[60.] * 3)
            model.train_cfg = None
        if self.depth and self.is_detection:
            model.encoder.num_layers = model.decoder.num_layers = self.depth
        elif self.depth:
            arch = VisionTransformer.arch_zoo[model.backbone.arch]
            model.backbone.arch = dict(arch, num_layers=self.depth)
        return model

    def build(self, config: dict) -> nn.Module:
        """The model of ``config`` on the device, in training mode."""
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(self.scope):
            model = (MMDET if self.is_detection else MMPRETRAIN).build(config)
        if self.is_detection:  # whose level embedding is raw memory till then
            model.init_weights()
        model.to(self.device).train()
        return model

    def data(self, model: nn.Module, batch: int, training: bool) -> dict:
        """A random batch as the model takes it."""
        if self.is_detection:
            raw = demo_mm_inputs(
                batch, [(3, *self.image_size)] * batch,
                num_items=[BOXES_PER_IMAGE] * batch,
                num_classes=80)
        else:
            raw = dict(
                inputs=torch.randint(0, 256, (batch, 3, *self.image_size)),
                data_samples=[
                    DataSample().set_gt_label(i % 1000) for i in range(batch)
                ])
        return model.data_preprocessor(raw, training)

    def contestant(self, model: nn.Module, save: Callable,
                   **kwargs) -> Contestant:
        """Wrap a model of mmdet or mmpretrain."""
        data = self.data(model, self.batch, True)

        def loss() -> Tensor:
            losses = model(data['inputs'], data['data_samples'], mode='loss')
            return model.parse_losses(losses)[0]

        def infer(batch: int):
            given = self.data(model, batch, False)
            return lambda: model(
                given['inputs'], given['data_samples'], mode='tensor')

        return Contestant(model, loss, infer, save, **kwargs)
