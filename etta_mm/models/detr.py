"""ET-DETR."""
from mmdet.models.detectors import DETR
from mmdet.registry import MODELS

from .host import TunedHost


@MODELS.register_module()
class ETDETR(TunedHost, DETR):
    """DETR tuned with adapters, prefixes or LoRA.

    Parent: ``mmdet.models.DETR``. Deviations: those of
    :class:`~etta_mm.models.host.TunedHost`.

    Args:
        tuning (dict, optional): See :func:`etta_mm.apply_tuning`. Defaults to
            None.
        *args, **kwargs: Those of ``mmdet.models.DETR``.
    """
