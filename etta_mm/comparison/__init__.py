"""Methods compared by trainings: plans, runs, pages of results."""
from .initial_loss import initial_loss_page, initial_losses
from .overview import overview, replace_table, total_cost
from .plan import Plan, Point, Run
from .plan_file import read_plan
from .replay_time import replay_time, replay_time_page
from .report import write_report
from .results import choose, read_rows, summarize, write_rows
from .runner import BusyError, Comparison
from .settings import Settings, resolve
from .slots import Slot, find_slots

__all__ = [
    'BusyError', 'Comparison', 'Plan', 'Point', 'Run', 'Settings', 'Slot',
    'choose', 'find_slots', 'initial_loss_page', 'initial_losses', 'overview',
    'read_plan', 'read_rows', 'replace_table', 'replay_time',
    'replay_time_page', 'resolve', 'summarize', 'total_cost', 'write_report',
    'write_rows'
]
