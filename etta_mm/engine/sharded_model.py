"""A model whose frozen base is cut to pieces, one for each process (FSDP).

What is frozen is sharded: each process holds its part, and a layer's parts are
brought together for as long as the layer is computed. What is trained is small
and stays whole in every process; its gradients are averaged after the backward
pass, as DDP does.

Deviations from mmengine's ``MMFullyShardedDataParallel``, which shards all
parameters alike: a unit of FSDP computes the gradients of all its parameters
or of none, so frozen ones beside trained ones would cost what full fine-tuning
costs; and it refuses scalars, such as a learned scale.

Source: mmengine 0.10.12 (OneDL)
`model/wrappers/fully_sharded_distributed.py`.
"""
from contextlib import contextmanager
from functools import partial
from typing import Optional

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce_params, broadcast
from mmengine.model import MMFullyShardedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import nn
from torch.autograd import Variable
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from ..layers import transformer_layers
from ..listing import listing

#: What FSDP puts into the names of the parameters below a unit.
UNIT = '_fsdp_wrapped_module.'


def plain_name(name: str) -> str:
    """The name of a parameter as it is without FSDP.

    Args:
        name (str): Its name in a model that may be sharded.
    """
    return name.replace(UNIT, '')


@MODEL_WRAPPERS.register_module()
class ETFullyShardedDataParallel(MMFullyShardedDataParallel):
    """Shard what is frozen, average the gradients of what is trained.

    The units are the backbone and the transformer layers, and the rest.

    Args:
        module (nn.Module): A tuned model.
        device_id (int, optional): The GPU; on a CPU it is passed over.
        auto_wrap_policy (str | dict | Callable, optional): Other units. Each
            must be used by calling it alone. Defaults to None.
        **kwargs: Those of ``MMFullyShardedDataParallel``.

    Raises:
        ValueError: If nothing is frozen, or nothing is trained.
    """

    def __init__(self,
                 module: nn.Module,
                 device_id: Optional[int] = None,
                 auto_wrap_policy=None,
                 **kwargs) -> None:
        trained = [p for p in module.parameters() if p.requires_grad]
        frozen = sum(1 for p in module.parameters() if not p.requires_grad)
        if not trained or not frozen:
            raise ValueError(
                f'{type(module).__name__} has {len(trained)} trained and '
                f'{frozen} frozen parameters, and only a frozen base is '
                'sharded here; give the model a tuning, or train it with '
                'mmengine\'s FSDPStrategy or without a strategy')
        device = torch.device(get_device())
        if device.type == 'cpu':
            device_id = device
        for tensor in (*trained, *module.buffers()):  # FSDP moves the rest
            tensor.data = tensor.data.to(device)
            broadcast(tensor.data)
        if auto_wrap_policy is None:
            units = {*transformer_layers(module)} - {module}
            units.update(m for n, m in module.named_children()
                         if n == 'backbone')
            auto_wrap_policy = partial(
                lambda_auto_wrap_policy, lambda_fn=units.__contains__)
        super().__init__(
            module,
            device_id=device_id,
            auto_wrap_policy=auto_wrap_policy,
            ignored_states=trained,
            **kwargs)
        self._trained = trained
        self._accumulates = False  # inside no_sync
        self._averages = True  # the gradients of the latest forward pass
        self._is_queued = False
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._queue)

    @contextmanager
    def no_sync(self):
        """Accumulate the gradients of forward passes in here without
        averaging them."""
        self._accumulates = True
        try:
            with super().no_sync():
                yield
        finally:
            self._accumulates = False

    def forward(self, *args, **kwargs):
        """As the model's."""
        self._averages = not self._accumulates
        return super().forward(*args, **kwargs)

    def _queue(self, parameter: nn.Parameter) -> None:
        """Have the gradients averaged at the end of this backward pass, in
        the same order in every process."""
        if self._averages and not self._is_queued:
            self._is_queued = True
            Variable._execution_engine.queue_callback(self._average)

    def _average(self) -> None:
        self._is_queued = False
        without = [p.shape for p in self._trained if p.grad is None]
        if without:
            raise RuntimeError(
                f'{len(without)} of {len(self._trained)} trained parameters, '
                f'of shapes {listing([tuple(s) for s in without])}, got no '
                'gradient in this step; train what the loss depends on only')
        all_reduce_params([p.grad for p in self._trained], op='mean')
