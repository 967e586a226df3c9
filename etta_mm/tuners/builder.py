"""Build a tuner from the few numbers that a config gives."""
import inspect
from difflib import get_close_matches

from mmengine.registry import MODELS

from .adapter import ParallelAdapter, SerialAdapter
from .base import Tuner
from .conv_adapter import ConvAdapter
from .lora import LoRA
from .prefix import Prefix, ScaledPrefix

TUNERS = (ParallelAdapter, SerialAdapter, ScaledPrefix, Prefix, LoRA,
          ConvAdapter)


def tuner_class(cfg: dict) -> type:
    """The class that ``cfg['type']`` names.

    Raises:
        TypeError: If ``cfg`` is no dict with a ``type``.
        KeyError: If no tuner has that name.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(f'a tuner is a dict with a type, such as '
                        f"dict(type='ParallelAdapter', bottleneck_dims=64), "
                        f'not {cfg!r}')
    cls = cfg['type']
    if isinstance(cls, str):
        cls = MODELS.get(cls)
    if not (inspect.isclass(cls) and issubclass(cls, Tuner)):
        names = [c.__name__ for c in TUNERS]
        near = get_close_matches(str(cfg['type']), names, n=1)
        raise KeyError(
            f'there is no tuner {cfg["type"]!r}; ' +
            (f'did you mean {near[0]!r}? ' if near else '') +
            f'The tuners are {", ".join(names)}.')
    return cls


def build_tuner(cfg: dict, **site) -> Tuner:
    """Build the tuner of ``cfg`` for one sublayer.

    Args:
        cfg (dict): ``type`` and the arguments that are the user's.
        **site: What the sublayer knows: ``embed_dims``, ``num_heads``,
            ``in_dims``, ``out_dims``. A tuner takes those it has a use for.

    Raises:
        TypeError: If ``cfg`` lacks an argument or has one too many.
        KeyError: If no tuner has that name.
    """
    cls = tuner_class(cfg)
    taken = inspect.signature(cls.__init__).parameters
    given = {name: value for name, value in cfg.items() if name != 'type'}
    own = [name for name in taken if name not in site and name != 'self']
    required = [
        name for name in own if taken[name].default is inspect.Parameter.empty
    ]
    wrong = sorted(set(given) - set(own))
    absent = [name for name in required if name not in given]
    if wrong or absent:
        raise TypeError(
            f'{cls.__name__} ' +
            (f'has no argument {", ".join(wrong)}' if wrong else
             f'needs {", ".join(absent)}') +
            f'; its arguments are {", ".join(own)}' +
            ('. What a config inherits is merged into what it says; '
             '_delete_=True beside type leaves it out' if wrong else ''))
    return cls(**{k: v for k, v in site.items() if k in taken}, **given)
