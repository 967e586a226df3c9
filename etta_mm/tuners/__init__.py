"""What is learned: adapters, prefixes, LoRA."""
from .adapter import ParallelAdapter, SerialAdapter
from .base import Tuner
from .builder import build_tuner, tuner_class
from .conv_adapter import ConvAdapter
from .lora import LoRA
from .prefix import Prefix, ScaledPrefix

__all__ = [
    'ConvAdapter', 'LoRA', 'ParallelAdapter', 'Prefix', 'ScaledPrefix',
    'SerialAdapter', 'Tuner', 'build_tuner', 'tuner_class'
]
