"""Tools start as a user's do: without transformers, which only the tests need
and which mmengine, mmdet and mmpretrain take seconds to import where it is."""
import importlib.metadata
import sys

PEER = 'transformers'
_distribution = importlib.metadata.distribution


def distribution(name):
    if name == PEER:
        raise importlib.metadata.PackageNotFoundError(name)
    return _distribution(name)


sys.modules[PEER] = None
importlib.metadata.distribution = distribution
