"""What a config says, by name or in Python style by class, and options over it.
"""
from typing import Optional

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings


def type_name(cfg) -> Optional[str]:
    """The name of the ``type`` of ``cfg``; None if it is no config or has none.

    ``type='AmpOptimWrapper'`` and ``type=AmpOptimWrapper`` are the same to
    mmengine.
    """
    found = cfg.get('type') if isinstance(cfg, dict) else None
    return getattr(found, '__name__', found)


def merge_options(cfg: Config, options: Optional[dict]) -> None:
    """Merge ``--cfg-options``, and import what they add to ``custom_imports``:
    mmengine imports only what the file names.

    Args:
        cfg (Config): Changed in place.
        options (dict, optional): Dotted keys and values; None for none.
    """
    if not options:
        return
    cfg.merge_from_dict(options)
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
