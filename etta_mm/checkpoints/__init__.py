"""What is kept of a training, and the base that it belongs to."""
from .base_weights import save_base
from .merge import merge_tuning
from .tuned_checkpoint import load_tuned, save_tuned, tuned_state_dict
from .tuned_file import read_metadata
from .tuned_weights import tuned_weights

__all__ = [
    'load_tuned', 'merge_tuning', 'read_metadata', 'save_base', 'save_tuned',
    'tuned_state_dict', 'tuned_weights'
]
