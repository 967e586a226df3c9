"""Prepare a base for a batch whose images use different tunings."""
from contextlib import ExitStack
from typing import Dict, Iterable, List, Optional, Sequence

from mmcv.ops import MultiScaleDeformableAttention
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..layers.plan import TUNED_CLASSES
from ..layers.routed import UNITS, route_tensors, route_tuners, route_unit
from ..layers.routing import Routing
from .loaded_tuning import LoadedTuning


def route_batch(stack: ExitStack, modules: Dict[str, nn.Module],
                names: Sequence[Optional[str]],
                tunings: Dict[str, LoadedTuning]) -> None:
    """Route each image of a batch through its tuning.

    Args:
        stack (ExitStack): Closing it brings the base back.
        modules (dict): The modules of the base by name.
        names (Sequence[str | None]): The tuning of each image; None is the
            base.
        tunings (dict): Those that are named.

    Raises:
        ValueError: If a module that stands in for the base's is no head.
    """
    for name, tuning in tunings.items():
        for path in tuning.modules:
            if not isinstance(modules[path], UNITS):
                raise ValueError(
                    f'{path}, for which {name!r} has another module, is no '
                    'head, so per_sample cannot route it; run each tuning by '
                    'itself (use)')
    routing = Routing(names, _batch_first(modules))
    for name in _union(t.sublayers for t in tunings.values()):
        routes = {
            n: t.sublayers[name]
            for n, t in tunings.items() if name in t.sublayers
        }
        cls = next(iter(routes.values()))[0]
        route_tuners(stack, modules[name], cls,
                     {n: tuners
                      for n, (_, tuners) in routes.items()},
                     _layout(modules, name, cls, routing), routing, name)
    owners = _union(t.tensors for t in tunings.values())
    for name in owners:
        route_tensors(
            stack, modules[name],
            {n: t.tensors[name]
             for n, t in tunings.items() if name in t.tensors}, routing,
            name or 'the model')
    for path in _union(_units(modules, name) for name in owners):
        route_unit(
            stack, modules[path],
            {n: t.modules[path]
             for n, t in tunings.items() if path in t.modules}, routing, path
            or 'the model')


def check_number_of_images(stack: ExitStack, modules: Dict[str, nn.Module],
                           names: Sequence[Optional[str]]) -> None:
    """Refuse a batch of another number of images when the model is called.

    Where all images use one tuning no layer needs the number, and none would
    notice.

    Args:
        stack (ExitStack): Closing it ends that.
        modules (dict): The modules of the base by name.
        names (Sequence[str | None]): The tuning of each image.
    """
    batch_first = isinstance(modules[''], BaseModel) or _batch_first(modules)

    def check(module: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs = args[0] if args else kwargs.get('inputs')
        if isinstance(inputs, Tensor):
            # (bs, c, h, w), or (a, b, d) with the layout of the attentions
            if batch_first or inputs.dim() > 3:
                sizes = inputs.shape[:1]
            elif batch_first is False and inputs.dim() == 3:
                sizes = inputs.shape[1:2]
            else:
                sizes = inputs.shape[:2]
        elif isinstance(inputs, (list, tuple)):
            sizes = [len(inputs)]
        else:
            return
        if len(names) not in sizes:
            raise ValueError(
                f'{type(module).__name__} is given a batch of '
                f'{" or ".join(map(str, sizes))} images, and per_sample a '
                f'tuning for {len(names)}; give one name for each image')

    hook = modules[''].register_forward_pre_hook(check, with_kwargs=True)
    stack.callback(hook.remove)


def _batch_first(modules: Dict[str, nn.Module]) -> Optional[bool]:
    """The layout that the attentions agree on, if they do."""
    layouts = {
        getattr(m, 'batch_first', True)
        for m in modules.values() if type(m) in TUNED_CLASSES
        and TUNED_CLASSES[type(m)].site == 'attn'
    }
    return layouts.pop() if len(layouts) == 1 else None


def _layout(modules: Dict[str, nn.Module], name: str, cls: type,
            routing: Routing) -> Optional[bool]:
    """Whether the input of a sublayer is batch first, if that is known."""
    if cls.site == 'attn':
        return getattr(modules[name], 'batch_first', True)
    parent = modules[name.rpartition('.')[0]]
    if isinstance(parent, MultiScaleDeformableAttention):
        return True  # whatever the layout around it
    return routing.batch_first


def _units(modules: Dict[str, nn.Module], name: str) -> List[str]:
    """The outermost head around a layer; of the model's own parameters, the
    model."""
    if isinstance(modules[name], BaseModel):
        return [name]
    parts = name.split('.')
    paths = ['.'.join(parts[:i + 1]) for i in range(len(parts))]
    return [p for p in paths if isinstance(modules[p], UNITS)][:1]


def _union(groups: Iterable[Iterable[str]]) -> List[str]:
    return list(dict.fromkeys(name for group in groups for name in group))
