"""Import this module to compute deformable attention faster on a CPU.

In a config:

.. code-block:: python

    custom_imports = dict(imports=['etta_mm', 'etta_mm.fast_cpu'])

It puts :func:`etta_mm.layers.sampling.sample` in the place of mmcv's fallback
for machines without a GPU, for every model of the process; what that cannot do
(half precision, tracing, compilation) is left to mmcv, and so is CUDA.
"""
from .layers.sampling import use_fast_sampling

use_fast_sampling()
