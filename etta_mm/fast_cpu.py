"""Import this module to compute deformable attention faster on a CPU.

In a config:

.. code-block:: python

    custom_imports = dict(imports=['etta_mm', 'etta_mm.fast_cpu'])

It puts :func:`etta_mm.layers.sampling.sample` in the place of mmcv's fallback
for machines without a GPU, for every model of the process; what that cannot do
(half precision, tracing, compilation) is left to mmcv, and so is CUDA.
"""
import torch
from mmcv.ops import multi_scale_deform_attn as mmcv_module

from .layers.sampling import can_sample, sample

fallback = mmcv_module.multi_scale_deformable_attn_pytorch


def sample_if_possible(value, value_spatial_shapes, sampling_locations,
                       attention_weights):
    """The faster way, or mmcv's where that is none."""
    function = fallback
    # The exported models' sizes are plain numbers.
    if torch.is_tensor(value_spatial_shapes) and can_sample(value, sampling_locations, attention_weights):
        function = sample
    return function(value, value_spatial_shapes, sampling_locations,
                    attention_weights)


mmcv_module.multi_scale_deformable_attn_pytorch = sample_if_possible
