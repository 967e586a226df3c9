"""Starting a run and what happens in it: options, checks, hooks."""
from .budget import Budget, solve_bottleneck
from .checkpoint_hook import AtomicCheckpointHook
from .meta_model import build_on_meta
from .optim_constructor import GroupedOptimWrapperConstructor
from .parameter_report_hook import ParameterReportHook
from .parameters import ParameterReport, count_parameters
from .processes_hook import ProcessesHook
from .schedule_check_hook import ScheduleCheckHook
from .sharded_model import ETFullyShardedDataParallel
from .sharding import ETFSDPStrategy
from .training_state_hook import TrainingStateHook
from .tuned_checkpoint_hook import TunedCheckpointHook

__all__ = [
    'AtomicCheckpointHook', 'Budget', 'ETFSDPStrategy',
    'ETFullyShardedDataParallel', 'GroupedOptimWrapperConstructor',
    'ParameterReport', 'ParameterReportHook', 'ProcessesHook',
    'ScheduleCheckHook', 'TrainingStateHook', 'TunedCheckpointHook',
    'build_on_meta', 'count_parameters', 'solve_bottleneck'
]
