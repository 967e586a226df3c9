"""Where a tuner sits: how it joins the layers of its host."""
from .attention import ETMultiheadAttention
from .checkpointing import checkpoint_layers, transformer_layers
from .deformable import ETMultiScaleDeformableAttention
from .ffn import ETFFN, ETSwiGLUFFN
from .folding import fold_frozen_norms
from .matching import match_batches
from .tuning import apply_tuning, disable_tuning, start_tuners
from .vit_attention import ETViTAttention

__all__ = [
    'ETFFN', 'ETMultiScaleDeformableAttention', 'ETMultiheadAttention',
    'ETSwiGLUFFN', 'ETViTAttention', 'apply_tuning', 'checkpoint_layers',
    'disable_tuning', 'fold_frozen_norms', 'match_batches', 'start_tuners',
    'transformer_layers'
]
