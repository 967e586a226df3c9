"""The embedded benchmark, and checks of the data that a config names."""
from .glyphs import CLASSES, make_glyphs

__all__ = ['CLASSES', 'make_glyphs']
