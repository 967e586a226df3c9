from .bank import TuningBank

__all__ = ['TuningBank']
