"""The registered ET models, one for each host."""
from .conv_stem import ConvStem
from .deformable_detr import ETDeformableDETR
from .detr import ETDETR
from .host import TunedHost
from .vision_transformer import ETVisionTransformer

__all__ = [
    'ConvStem', 'ETDETR', 'ETDeformableDETR', 'ETVisionTransformer',
    'TunedHost'
]
