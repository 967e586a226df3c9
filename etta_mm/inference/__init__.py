"""Trained models in use: many tunings, pictures, export."""
from .bank import TuningBank

__all__ = ['TuningBank']
