"""ET-ViT."""
from mmcv.cnn.bricks import DropPath
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.registry import MODELS

from .host import TunedHost


@MODELS.register_module()
class ETVisionTransformer(TunedHost, VisionTransformer):
    """Vision Transformer tuned with adapters, prefixes or LoRA.

    Parent: ``mmpretrain.models.VisionTransformer``. Deviations: those of
    :class:`~etta_mm.models.host.TunedHost`; the rates of its drop paths are
    floats, where numpy's would break the compiler's graph. It is a backbone:
    the head that stands behind it belongs to the classifier and is trained.

    Args:
        tuning (dict, optional): See :func:`etta_mm.apply_tuning`. Defaults to
            None.
        *args, **kwargs: Those of ``mmpretrain.models.VisionTransformer``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, DropPath):
                module.drop_prob = float(module.drop_prob)
