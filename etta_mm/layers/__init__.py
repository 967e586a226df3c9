from .attention import ETMultiheadAttention, ETViTAttention
from .deformable import ETMultiScaleDeformableAttention
from .ffn import ETFFN, ETSwiGLUFFN
from .tuning import apply_tuning, disable_tuning, start_tuners

__all__ = [
    'ETFFN', 'ETMultiScaleDeformableAttention', 'ETMultiheadAttention',
    'ETSwiGLUFFN', 'ETViTAttention', 'apply_tuning', 'disable_tuning',
    'start_tuners'
]
