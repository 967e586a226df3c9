"""ET-Deformable DETR."""
from mmdet.models.detectors import DeformableDETR
from mmdet.registry import MODELS

from .host import TunedHost


@MODELS.register_module()
class ETDeformableDETR(TunedHost, DeformableDETR):
    """Deformable DETR tuned with adapters, prefixes or LoRA.

    Parent: ``mmdet.models.DeformableDETR`` (plain, with box refinement or
    two-stage). Deviations: those of
    :class:`~etta_mm.models.host.TunedHost`.

    Args:
        tuning (dict, optional): See :func:`etta_mm.apply_tuning`. Defaults to
            None.
        *args, **kwargs: Those of ``mmdet.models.DeformableDETR``.
    """
