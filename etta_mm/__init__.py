"""Fine-tune transformers of OpenMMLab by training a few percent of them."""
from . import features  # noqa: F401, it registers a hook
from .checkpoints import (load_tuned, save_tuned, tuned_state_dict,
                          tuned_weights)
from .engine import ParameterReport, count_parameters, solve_bottleneck
from .inference import TuningBank
from .layers import apply_tuning, disable_tuning
from .models import ETDETR, ETDeformableDETR, ETVisionTransformer, TunedHost
from .version import __version__

__all__ = [
    'ETDETR', 'ETDeformableDETR', 'ETVisionTransformer', 'ParameterReport',
    'TunedHost', 'TuningBank', '__version__', 'apply_tuning',
    'count_parameters', 'disable_tuning', 'load_tuned', 'save_tuned',
    'solve_bottleneck', 'tuned_state_dict', 'tuned_weights'
]
