"""Classes that are made of a mixin and a module's own class, at run time.

A module takes such a class in place, so that its parameters keep their names.
"""
from functools import lru_cache

from torch import nn


class Derived:
    """Base of the mixins; ``prefix`` stands before the name of the class."""

    prefix: str

    def __reduce_ex__(self, protocol):
        """Pickle by the module's own class: this one has no importable name."""
        given = vars(type(self)).get('derived_from')
        if given is None:  # a class that was made of this one
            return super().__reduce_ex__(protocol)
        return _new, given, self.__dict__


@lru_cache(maxsize=None)
def derived_class(mixin: type, cls: type) -> type:
    """The class ``cls`` behind ``mixin``; where the mixin has a parent that
    ``cls`` descends from, it stands before that parent."""
    bases = (mixin, cls)
    if issubclass(mixin, nn.Module):
        bases = (mixin, ) if issubclass(mixin, cls) else (cls, mixin)
    return type(f'{mixin.prefix}{cls.__name__}', bases,
                dict(derived_from=(mixin, cls)))


def own_class(module: nn.Module) -> type:
    """The class of ``module``; where it has taken a derived one, its own."""
    return vars(type(module)).get('derived_from', (type(module), ))[-1]


def _new(mixin: type, cls: type) -> nn.Module:
    cls = derived_class(mixin, cls)
    return cls.__new__(cls)
