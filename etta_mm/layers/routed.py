"""Modules that serve a batch whose images go through different tunings.

The frozen layers see the whole batch. Where tunings differ, the images are
grouped by tuning (:class:`~.routing.Routing`), each group goes through its
own, and the rows are put back in their order:

- in a tuned sublayer, what the tuners add (:class:`RoutedSublayer`);
- at a layer that is trained in full, its own parameters and statistics
  (:class:`RoutedLayer`);
- at a head, everything inside, since heads count their classes in places that
  no rule covers (:class:`RoutedUnit`).

As elsewhere in this room, a module takes its class in place, here until an
``ExitStack`` is closed.
"""
from contextlib import ExitStack, contextmanager
from typing import Callable, Dict, Hashable, Optional

from mmdet.models.dense_heads import DETRHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from mmengine.model import BaseModel, ModuleDict
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import Tensor, nn

from ..tuners import (ConvAdapter, LoRA, ParallelAdapter, ScaledPrefix,
                      SerialAdapter)
from .derived import Derived, derived_class, own_class
from .routing import Routing

_MISSING = object()


def put(stack: ExitStack, mapping: dict, key: str, value) -> None:
    """Set ``mapping[key]`` until ``stack`` is closed."""
    old = mapping.get(key, _MISSING)
    if old is _MISSING:
        stack.callback(mapping.pop, key, None)
    else:
        stack.callback(mapping.__setitem__, key, old)
    mapping[key] = value


def take_class(stack: ExitStack, module: nn.Module, cls: type) -> None:
    """Give ``module`` the class ``cls`` until ``stack`` is closed."""
    stack.callback(setattr, module, '__class__', type(module))
    module.__class__ = cls


class Routed(Derived):
    """What the routed modules share: ``routing`` and, for errors, ``where``."""

    prefix = 'Routed'
    routing: Routing
    where: str


class RoutedSublayer(Routed):
    """Mixin of a tuned sublayer with the tuners of several tunings.

    ``tuner_routes`` holds them by tuning. ``tuners`` is empty but while the
    images of one tuning are computed, so what is frozen comes once for all.
    """

    tuner_routes: Dict[Hashable, ModuleDict]
    sublayer_batch_first: Optional[bool]

    @contextmanager
    def _tuned(self):
        """Have the tuners of the images that are on their way now."""
        with ExitStack() as stack:
            tuners = self.tuner_routes.get(self.routing.inside)
            if tuners is not None:
                put(stack, self._modules, 'tuners', tuners)
            yield

    def has_tuner(self, *kinds: type) -> bool:
        """Whether a tuning has one of ``kinds``."""
        return any(
            isinstance(tuner, kinds) for tuners in self.tuner_routes.values()
            for tuner in tuners.values())

    def _route(self, method: Callable, inputs: tuple, dim, *kinds: type):
        """Call ``method`` of the sublayer with each tuning's tuners, if any
        tuning has one of ``kinds``."""

        def call(*inputs):
            with self._tuned():
                return method(*inputs)

        if self.routing.is_inside:
            return call(*inputs)
        if not self.has_tuner(*kinds):
            return method(*inputs)
        if dim is None:
            dim = self.routing.batch_dim(inputs[0], self.where,
                                         self.sublayer_batch_first)
        return self.routing.split(call, inputs, lambda x: dim, lambda x: dim,
                                  self.where)

    def adapt(self, x: Tensor, h: Tensor) -> Tensor:
        return self._route(super().adapt, (x, h), None, ParallelAdapter,
                           SerialAdapter, LoRA, ConvAdapter)

    def add_prefix(self, x: Tensor, h: Tensor) -> Tensor:
        return self._route(super().add_prefix, (x, h), 0, ScaledPrefix)

    def _lora(self, name: str, x: Tensor, projected: Tensor) -> Tensor:
        method = super()._lora
        return self._route(lambda x, projected: method(name, x, projected),
                           (x, projected), 0, LoRA)

    def attend(self, q, k, v, mask, dropout, scale=None) -> Tensor:
        method = super().attend
        # (bs, num_heads, num_queries, num_keys), or without the first two
        masks = () if mask is None or mask.dim() < 4 else (mask, )

        def attend(q, k, v, *masks):
            return method(q, k, v, masks[0] if masks else mask, dropout, scale)

        return self._route(attend, (q, k, v, *masks), 0, ScaledPrefix)


class RoutedLayer(Routed):
    """Mixin of a layer whose own parameters or buffers differ.

    ``tensor_routes`` holds them, by their name and by tuning. Whoever reads
    one gets that of the images on their way, and an error, not the base's,
    where images of several tunings are.
    """

    tensor_routes: Dict[str, Dict[Hashable, Tensor]]

    def forward(self, *args, **kwargs):
        if self.routing.is_inside:
            return super().forward(*args, **kwargs)
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            cls = own_class(self).__name__
            raise ValueError(
                f'{self.where} ({cls}) is trained in full and takes more than '
                'one tensor; which of them are batches is not known, so it '
                'cannot be routed: run each tuning by itself (use)')
        dim = self.routing.batch_dim(args[0], self.where)
        return self.routing.split(super().forward, args, lambda x: dim,
                                  lambda x: dim, self.where)

    def __getattr__(self, name: str):
        routes = self.__dict__['tensor_routes'].get(name)
        if routes is None:
            return super().__getattr__(name)
        if self.routing.is_inside:
            return routes[self.routing.inside]
        raise ValueError(
            f'{self.where}.{name} differs between {list(routes)} and is read '
            'for the whole batch at once, so it cannot be routed: run each '
            'tuning by itself (use)')


class RoutedUnit(Routed):
    """Mixin of a module inside of which the tunings go apart.

    ``module_routes`` holds what stands in for it, by tuning.
    """

    module_routes: Dict[Hashable, nn.Module]

    def forward(self, *args, **kwargs):
        return self._by_tuning('forward', super().forward, args, kwargs)

    def predict(self, *args, **kwargs):
        return self._by_tuning('predict', super().predict, args, kwargs)

    def _by_tuning(self, name: str, method: Callable, args: tuple,
                   kwargs: dict):

        def call(args, kwargs):
            other = self.module_routes.get(self.routing.inside)
            if other is not None:
                return getattr(other, name)(*args, **kwargs)
            return method(*args, **kwargs)

        if self.routing.is_inside:
            return call(args, kwargs)
        take = _batch_dim_of_detr if isinstance(self, DETRHead) else _first
        merge = None if isinstance(self, _WITHOUT_TENSORS) else take
        # Each argument for itself: a lone list is no batch.
        values = [*args, *kwargs.values()]
        return self.routing.split(
            lambda *values: call(values[:len(args)],
                                 dict(zip(kwargs, values[len(args):]))),
            tuple(values), take, merge, f'{self.where}.{name}')


def _first(x: Tensor) -> int:
    return 0


def _batch_dim_of_detr(x: Tensor) -> int:
    """Of (num_layers, bs, num_queries, d) or (bs, num_queries, d)."""
    return 1 if x.dim() == 4 else 0


#: Modules whose inputs and outputs are known.
UNITS = (DETRHead, BaseDenseHead, BaseRoIHead, ClsHead, MultiLabelClsHead)
#: Of these the outputs are only known where they are a list of images.
_WITHOUT_TENSORS = (BaseRoIHead, BaseModel)


def _route(stack: ExitStack, module: nn.Module, mixin: type, routing: Routing,
           where: str, **routes) -> None:
    take_class(stack, module, derived_class(mixin, type(module)))
    for name, value in dict(routing=routing, where=where, **routes).items():
        put(stack, vars(module), name, value)


def route_tuners(stack: ExitStack, module: nn.Module, cls: type,
                 routes: Dict[Hashable, ModuleDict],
                 batch_first: Optional[bool], routing: Routing,
                 where: str) -> None:
    """Give a sublayer the tuners of several tunings.

    Args:
        stack (ExitStack): Takes them away again.
        module (nn.Module): The frozen sublayer.
        cls (type): Its tuned class.
        routes (dict): Its tuners by tuning.
        batch_first (bool, optional): The layout of its input.
        routing (Routing): Which image goes where.
        where (str): Its name.
    """
    take_class(stack, module, cls)
    put(stack, module._modules, 'tuners', ModuleDict())
    _route(
        stack,
        module,
        RoutedSublayer,
        routing,
        where,
        tuner_routes=routes,
        sublayer_batch_first=batch_first)


def route_tensors(stack: ExitStack, module: nn.Module,
                  routes: Dict[Hashable, Dict[str, Tensor]], routing: Routing,
                  where: str) -> None:
    """Give a layer the parameters and buffers of several tunings.

    Args:
        stack (ExitStack): Takes them away again.
        module (nn.Module): The layer.
        routes (dict): Its tensors by tuning and name; what a tuning lacks is
            the base's.
        routing (Routing): Which image goes where.
        where (str): Its name.
    """
    names = dict.fromkeys(n for tensors in routes.values() for n in tensors)
    own = {**module._parameters, **module._buffers}
    tensor_routes = {
        name: {
            tuning: routes.get(tuning, {}).get(name, own[name])
            for tuning in routing.rows
        }
        for name in names
    }
    _route(
        stack, module, RoutedLayer, routing, where, tensor_routes=tensor_routes)


def route_unit(stack: ExitStack, module: nn.Module,
               routes: Dict[Hashable, nn.Module], routing: Routing,
               where: str) -> None:
    """Let the tunings go apart inside a head.

    Args:
        stack (ExitStack): Ends it.
        module (nn.Module): The head.
        routes (dict): What stands in for it, by tuning.
        routing (Routing): Which image goes where.
        where (str): Its name.
    """
    _route(stack, module, RoutedUnit, routing, where, module_routes=routes)
