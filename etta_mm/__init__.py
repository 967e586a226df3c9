"""Fine-tune transformers of OpenMMLab by training a few percent of them."""
from .engine import (ParameterReport, TuningBank, count_parameters, load_tuned,
                     save_tuned, solve_bottleneck, tuned_state_dict,
                     tuned_weights)
from .layers import apply_tuning, disable_tuning
from .models import ETDETR, ETDeformableDETR, ETVisionTransformer, TunedHost
from .version import __version__

__all__ = [
    'ETDETR', 'ETDeformableDETR', 'ETVisionTransformer', 'ParameterReport',
    'TunedHost', 'TuningBank', '__version__', 'apply_tuning',
    'count_parameters', 'disable_tuning', 'load_tuned', 'save_tuned',
    'solve_bottleneck', 'tuned_state_dict', 'tuned_weights'
]
