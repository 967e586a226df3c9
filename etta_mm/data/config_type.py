"""What the ``type`` of a config names: as a class, and by name."""
from typing import Optional

from mmengine.registry import Registry


def found_type(cfg: dict, registry: Registry) -> Optional[type]:
    """The type that a config names; None if there is none of that name.

    Args:
        cfg (dict): The config of a data set, a metric or a part of a model.
        registry (Registry): mmengine's own, of which the others are children.
    """
    found = cfg.get('type')
    if isinstance(found, str):
        with registry.switch_scope_and_registry(None) as current:
            found = current.get(found)
    return found


def unscoped_name(cfg) -> str:
    """The name of the type of a config, without a scope; '' where there is
    none, or no config.

    ``'AmpOptimWrapper'``, ``'mmengine.AmpOptimWrapper'`` and the class are the
    same to mmengine's registries.
    """
    found = (cfg.get('type') if isinstance(cfg, dict) else None) or ''
    return str(getattr(found, '__name__', found)).rpartition('.')[2]
