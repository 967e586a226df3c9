"""How tuners sit in a sublayer."""
import re
from typing import List, Tuple

from mmengine.model import ModuleDict
from torch import Tensor

from ..tuners import (ConvAdapter, ParallelAdapter, ScaledPrefix,
                      SerialAdapter, Tuner, build_tuner, tuner_class)

#: The tuners that :meth:`TunedSublayer.adapt` puts into the forward pass.
ADAPTERS = (ParallelAdapter, SerialAdapter, ConvAdapter)


class TunedSublayer:
    """Mixin that gives a sublayer its tuners.

    It stands before the frozen parent among the bases and adds one child,
    ``tuners``; the parent's parameters keep their names. The sublayer's output
    is the paper's shared form, a residual ``h + s * Δh`` around the frozen h.

    A module of the parent's exact type becomes tuned by taking this class
    (see :func:`tune_sublayer`), so what holds a reference to it, and its hooks
    and parameters, stay as they are.

    Args:
        tuning (dict | list[dict], optional): Config of a tuner, or of several.
            Defaults to None, the parent as it is.
        *args, **kwargs: The parent's.
    """

    site: str  # 'ffn', 'attn', 'conv', or 'linear' of the layers below them
    resting = 0  # contexts of disable_tuning that are open

    def __init__(self, *args, tuning=None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.add_tuners(tuning)

    def __getstate__(self) -> dict:
        """A copy, or a pickle, is of the sublayer at work: no context of
        disable_tuning will end for it."""
        return {
            key: value
            for key, value in vars(self).items()
            if key != 'resting'
        }

    def add_tuners(self, tuning) -> None:
        """Add the tuners that ``tuning`` describes.

        Raises:
            ValueError: If a tuner cannot stand here, or twice.
        """
        self.tuners = ModuleDict()
        for cfg in as_list(tuning):
            cls = tuner_class(cfg)
            check_site(cls, self.site)
            self.add_tuner(cls, cfg)

    def add_tuner(self, cls: type, cfg: dict) -> None:
        """Add one tuner; a sublayer overrides it for those that need more."""
        known = (*ADAPTERS, ScaledPrefix)
        if not issubclass(cls, known):
            raise ValueError(
                f'{cls.__name__} is a tuner that no forward pass knows: derive '
                'it from ' + ', '.join(base.__name__ for base in known))
        # One name for both prefixes: two in one attention are too many.
        name = 'prefix' if issubclass(cls, ScaledPrefix) else _snake_case(
            cls.__name__)
        sizes = {
            size: getattr(self, size)
            for size in ('embed_dims', 'num_heads') if hasattr(self, size)
        }
        self._own(name, build_tuner(cfg, **sizes))

    def _own(self, name: str, tuner: Tuner) -> None:
        if name in self.tuners:
            raise ValueError(f'{type(tuner).__name__} stands twice in one '
                             f'{type(self).__name__}; one tuner of a type is '
                             'allowed in a sublayer')
        like = next((p for key, p in self.named_parameters()
                     if p.is_floating_point() and not key.startswith('tuners.')),
                    None)
        # On the meta device it is for a file, whose values give it memory.
        if like is not None and not any(p.is_meta for p in tuner.parameters()):
            tuner.to(device=like.device, dtype=like.dtype)
        self.tuners[name] = tuner.train(self.training)

    @property
    def tuning_enabled(self) -> bool:
        return not self.resting

    @property
    def active_tuners(self) -> Tuple[Tuner, ...]:
        """The tuners that take part in the forward pass."""
        return tuple(self.tuners.values()) if self.tuning_enabled else ()

    def has_tuner(self, *kinds: type) -> bool:
        """Whether one of ``kinds`` takes part in the forward pass."""
        return any(isinstance(tuner, kinds) for tuner in self.active_tuners)

    def adapt(self, x: Tensor, h: Tensor) -> Tensor:
        """Add what the adapters learned to the frozen output.

        Args:
            x (Tensor): Input of the sublayer, any shape (..., embed_dims); of
                a block (bs, c, h, w).
            h (Tensor): Its frozen output before the residual, same shape.

        Returns:
            Tensor: ``h + s * Δh``, same shape.
        """
        for tuner in self.active_tuners:
            if isinstance(tuner, ParallelAdapter):
                h = h + tuner(x)
        for tuner in self.active_tuners:
            if isinstance(tuner, (SerialAdapter, ConvAdapter)):
                h = h + tuner(h)
        return h


def as_list(tuning) -> List[dict]:
    """The tuners of one site as a list: of None, of one, of several."""
    if tuning is None:
        return []
    return list(tuning) if isinstance(tuning, (list, tuple)) else [tuning]


def check_site(cls: type, site: str) -> None:
    """Check that a tuner can stand at a site.

    Raises:
        ValueError: If it cannot.
    """
    if site in cls.sites:
        return
    if cls.sites == ('attn', ):
        why = ('a prefix needs an attention, and this is none; name it under '
               'attn')
    elif cls.sites == ('conv', ):
        why = ('it works on feature maps, behind the blocks of a ResNet; name '
               'it under conv')
    else:
        why = ('it works on tokens, in a transformer; the tuner of a '
               "convolutional backbone is conv=dict(type='ConvAdapter', "
               'bottleneck_dims=...)')
    raise ValueError(f'{site}={cls.__name__}: {why}')


def _snake_case(name: str) -> str:
    return re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower()
