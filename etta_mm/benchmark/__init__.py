"""Methods compared by time, memory and operations."""
from .calls import count_calls
from .floor import count_flops, to_floor, tuner_flops
from .memory import num_bytes, saved_bytes

__all__ = [
    'count_calls', 'count_flops', 'num_bytes', 'saved_bytes', 'to_floor',
    'tuner_flops'
]
