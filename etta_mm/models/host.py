"""What the tuned hosts share."""
import copy
from typing import Optional

from ..layers import apply_tuning, start_tuners


class TunedHost:
    """Mixin that lets a host be tuned from its config.

    It stands before the host among the bases::

        @MODELS.register_module()
        class ETDINO(TunedHost, DINO):
            pass

    Deviations from every host: it takes ``tuning``; its config is copied
    before the host, which may write into it, sees it; after the host's
    ``init_weights``, which initialises whatever lies below it, the tuners
    start over.

    Args:
        tuning (dict, optional): See :func:`etta_mm.apply_tuning`. Defaults to
            None: the host as it is, for full fine-tuning.
        *args, **kwargs: The host's.
    """

    def __init__(self, *args, tuning: Optional[dict] = None, **kwargs) -> None:
        super().__init__(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        if tuning is not None:
            apply_tuning(self, tuning)

    def train(self, mode: bool = True):
        """As the host's, but return self, which backbones of mmdet and
        mmpretrain forget."""
        super().train(mode)
        return self

    def init_weights(self) -> None:
        """Initialise the host, then start the tuners."""
        super().init_weights()
        start_tuners(self)
