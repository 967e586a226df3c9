"""What the tuned hosts share."""
import copy
from typing import Optional, Union

from ..layers import (apply_tuning, checkpoint_layers, fold_frozen_norms,
                      match_batches)


class TunedHost:
    """Mixin that lets a host be tuned from its config.

    It stands before the host among the bases::

        @MODELS.register_module()
        class ETDINO(TunedHost, DINO):
            pass

    Deviations from every host: it takes ``tuning``, ``fold_norms``,
    ``channels_last``, ``batch_matching`` and ``with_cp``; its config is copied
    before the host, which may write into it, sees it.

    Args:
        tuning (dict, optional): See :func:`etta_mm.apply_tuning`. Defaults to
            None: the host as it is, for full fine-tuning.
        fold_norms (bool): Compute frozen batch norms together with the frozen
            convolutions before them; weights and checkpoints stay as they
            are. Defaults to True.
        channels_last (bool): Compute these with the channels last in memory,
            but in a model with RoIAlign and the like, which misread it.
            Defaults to True.
        batch_matching (bool): Match predictions and boxes of all images and
            decoder layers together in a DETR's head, and compute the losses of
            all layers together; in single precision the result is the same.
            Defaults to True. Like the two before, of a tuned host.
        with_cp (bool | int): Compute the activations of the transformer layers
            again in the backward pass instead of keeping them: less memory,
            more time. Of all layers, or of so many from the first on. Defaults
            to False.
        *args, **kwargs: The host's.
    """

    def __init__(self,
                 *args,
                 tuning: Optional[dict] = None,
                 fold_norms: bool = True,
                 channels_last: bool = True,
                 batch_matching: bool = True,
                 with_cp: Union[bool, int] = False,
                 **kwargs) -> None:
        super().__init__(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        if tuning is not None:
            apply_tuning(self, tuning)
            if fold_norms:
                fold_frozen_norms(self, channels_last)
            if batch_matching:
                match_batches(self)
        if with_cp is not False:
            checkpoint_layers(self, None if with_cp is True else with_cp)

    def train(self, mode: bool = True):
        """As the host's, but return self, which backbones of mmdet and
        mmpretrain forget."""
        super().train(mode)
        return self
