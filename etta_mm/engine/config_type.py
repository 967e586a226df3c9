"""What a config says that a thing is: by name, or in Python style by class."""
from typing import Optional


def type_name(cfg) -> Optional[str]:
    """The name of the ``type`` of ``cfg``; None if it is no config or has none.

    ``type='AmpOptimWrapper'`` and ``type=AmpOptimWrapper`` are the same to
    mmengine.
    """
    found = cfg.get('type') if isinstance(cfg, dict) else None
    return getattr(found, '__name__', found)
