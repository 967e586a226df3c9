from .base_weights import save_base
from .parameter_report_hook import ParameterReportHook
from .parameters import ParameterReport, count_parameters
from .tuned_checkpoint import (load_tuned, read_metadata, save_tuned,
                               tuned_state_dict)
from .tuned_checkpoint_hook import TunedCheckpointHook

__all__ = [
    'ParameterReport', 'ParameterReportHook', 'TunedCheckpointHook',
    'count_parameters', 'load_tuned', 'read_metadata', 'save_base',
    'save_tuned', 'tuned_state_dict'
]
