from .glyphs import CLASSES, make_glyphs

__all__ = ['CLASSES', 'make_glyphs']
