from .bank import TuningBank
from .base_weights import save_base
from .budget import Budget, solve_bottleneck
from .checkpoint_hook import AtomicCheckpointHook
from .feature_cache_hook import FeatureCacheHook
from .merge import merge_tuning
from .meta_model import build_on_meta
from .optim_constructor import GroupedOptimWrapperConstructor
from .parameter_report_hook import ParameterReportHook
from .parameters import ParameterReport, count_parameters
from .schedule_check_hook import ScheduleCheckHook
from .sharded_model import ETFullyShardedDataParallel
from .sharding import ETFSDPStrategy
from .training_state_hook import TrainingStateHook
from .tuned_checkpoint import (load_tuned, read_metadata, save_tuned,
                               tuned_state_dict)
from .tuned_checkpoint_hook import TunedCheckpointHook
from .tuned_weights import tuned_weights

__all__ = [
    'AtomicCheckpointHook', 'Budget', 'ETFSDPStrategy',
    'ETFullyShardedDataParallel', 'FeatureCacheHook',
    'GroupedOptimWrapperConstructor', 'ParameterReport',
    'ParameterReportHook', 'ScheduleCheckHook', 'TrainingStateHook',
    'TunedCheckpointHook', 'TuningBank', 'build_on_meta', 'count_parameters', 'load_tuned',
    'merge_tuning', 'read_metadata', 'save_base', 'save_tuned',
    'solve_bottleneck', 'tuned_state_dict', 'tuned_weights'
]
