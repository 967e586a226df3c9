"""Tools start as a user's do: without transformers, which only the tests need
and which mmengine, mmdet and mmpretrain take seconds to import where it is."""
import importlib.metadata
import sys
from contextlib import suppress

PEER = 'transformers'
sources = [importlib.metadata]
with suppress(ImportError):  # open-mmlab's mmpretrain asks this one
    import importlib_metadata
    sources.append(importlib_metadata)


def hide(source) -> None:
    """Have ``source`` know no such distribution."""
    known = source.distribution

    def distribution(name):
        if name == PEER:
            raise source.PackageNotFoundError(name)
        return known(name)

    source.distribution = distribution


for source in sources:
    hide(source)
sys.modules[PEER] = None
