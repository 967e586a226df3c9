"""A tuned checkpoint in memory, beside its base."""
import copy
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from mmengine.model import ModuleDict
from torch import Tensor, nn

from ..checkpoints.tuned_checkpoint import load_tuned
from ..checkpoints.tuned_file import read_tuned
from ..layers.derived import own_class
from ..layers.sublayer import TunedSublayer
from ..listing import listing


@dataclass
class LoadedTuning:
    """What one file adds to the base, or puts in place of a part of it.

    Attributes:
        metadata (dict): Of the file.
        sublayers (dict): Class and tuners of each tuned sublayer, by name.
        tensors (dict): Parameters and buffers of the layers that are trained
            in full, by the name of the layer and their own.
        modules (dict): Modules that stand in for the base's, by name.
        holders (dict): For each of these, the names of the modules that hold
            the base's, and its names there.
    """
    metadata: dict
    sublayers: Dict[str, Tuple[type, ModuleDict]] = field(default_factory=dict)
    tensors: Dict[str, Dict[str, Tensor]] = field(default_factory=dict)
    modules: Dict[str, nn.Module] = field(default_factory=dict)
    holders: Dict[str, List[Tuple[str, str]]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Its memory: every tensor once."""
        found = [t for own in self.tensors.values() for t in own.values()]
        for module in self._own_modules():
            found += [*module.parameters(), *module.buffers()]
        return sum(t.nbytes for t in {id(t): t for t in found}.values())

    def eval(self) -> None:
        """Put its tuners, and the modules that stand in, into eval."""
        for module in self._own_modules():
            module.eval()

    def _own_modules(self) -> Iterator[nn.Module]:
        yield from (tuners for _, tuners in self.sublayers.values())
        yield from self.modules.values()

    def stands_in(self, name: str) -> bool:
        """Whether the module of that name lies in one that was replaced."""
        return any(f'{name}.'.startswith(f'{path}.') for path in self.modules)


def load_beside(base: nn.Module, path, classes: Optional[Sequence[str]],
                modules: Dict[str, nn.Module]) -> LoadedTuning:
    """Load a tuned checkpoint without a change to its base.

    :func:`load_tuned` does it, on a copy of the base's structure with the
    memory of the base.

    Args:
        base (nn.Module): The base, not tuned.
        path (str | Path): A file that ``save_tuned`` wrote.
        classes (Sequence[str], optional): What its classes should be.
        modules (dict): Modules that stand in for the base's, by name.

    Raises:
        FileNotFoundError: If there is no such file.
        KeyError: If the base has no module of a name in ``modules``.
        TypeError: If a module there has another type than the base's.
        ValueError: If it has other tensors than the base's, or for the
            reasons of ``load_tuned``.
    """
    _check_modules(base, modules)
    _, tensors = read_tuned(path)
    tuned = _copy(base, tensors, modules)
    metadata = load_tuned(tuned, path, classes)
    return _take(base, tuned, metadata, tensors, modules)


def _check_modules(base: nn.Module, modules: Dict[str, nn.Module]) -> None:
    names = dict(base.named_modules())
    for path, module in modules.items():
        if not path or path not in names:
            raise KeyError(f'{type(base).__name__} has no module {path!r}; its '
                           'modules are ' +
                           ', '.join(n for n, _ in base.named_children()))
        if own_class(module) is not own_class(names[path]):
            raise TypeError(
                f'{path} is a {type(names[path]).__name__}, and what should '
                f'stand in for it a {type(module).__name__}; only sizes may '
                'differ')
        differ = sorted(
            set(module.state_dict()) ^ set(names[path].state_dict()))
        if differ:
            raise ValueError(
                f'{path} and what should stand in for it have not the same '
                f'tensors: {len(differ)} are in one only, '
                f'{listing(differ)}; only sizes may differ')


def _copy(base: nn.Module, tensors: Dict[str, Tensor],
          modules: Dict[str, nn.Module]) -> nn.Module:
    """``base`` on the same memory, but for ``tensors`` and ``modules``, which
    have their own."""
    memo = {}
    for key, tensor in (*base.named_parameters(remove_duplicate=False),
                        *base.named_buffers(remove_duplicate=False)):
        is_ours = key in tensors and not any(
            key.startswith(f'{path}.') for path in modules)
        if id(tensor) in memo and not is_ours:
            continue  # shared
        data = tensor.detach()
        data = data.clone() if is_ours else data
        if isinstance(tensor, nn.Parameter):
            # With a flag of its own, which tuning sets.
            data = nn.Parameter(data, tensor.requires_grad)
        memo[id(tensor)] = data
    model = copy.deepcopy(base, memo)
    vars(model).pop('dataset_meta', None)  # the classes of the base
    for path, module in modules.items():
        module = copy.deepcopy(module)
        module.eval()
        if _is_without_memory(module):
            device = next(base.parameters()).device
            module.to_empty(device=device)
            _fill(module, base.get_submodule(path), path, tensors)
        for holder, key in _holders(model, path):
            model.get_submodule(holder)._modules[key] = module
    # The base is frozen. What is trained and not in the file is thus taken for
    # the base's, and missed there.
    return model


def _fill(module: nn.Module, stood_for: nn.Module, path: str,
          tensors: Dict[str, Tensor]) -> None:
    """Give a module of new memory the base's values where the file has none:
    those of what was frozen beside what was trained."""
    values = _tensors(stood_for)
    absent = []
    for key, tensor in _tensors(module).items():
        if f'{path}.{key}' in tensors:
            continue
        if values[key].shape == tensor.shape:
            tensor.copy_(values[key])
        else:
            absent.append(key)
    if absent:
        raise ValueError(
            f'the file has no values for {listing(absent)} of {path}, and '
            'those of the base are of other sizes; give a module that is not '
            'on the meta device')


def _tensors(module: nn.Module) -> Dict[str, Tensor]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {key: tensor.detach() for key, tensor in named}


def _is_without_memory(module: nn.Module) -> bool:
    return any(p.is_meta for p in module.parameters())


def _holders(model: nn.Module, path: str) -> List[Tuple[str, str]]:
    """The names of the modules that hold the one at ``path``, and its names
    there."""
    held = model.get_submodule(path)
    return [(name, key) for name, module in model.named_modules()
            for key, child in module._modules.items() if child is held]


def _take(base: nn.Module, tuned: nn.Module, metadata: dict,
          tensors: Dict[str, Tensor],
          modules: Dict[str, nn.Module]) -> LoadedTuning:
    """Take from the tuned copy what is not the base's, frozen: it is there to
    predict, and a pass outside of ``no_grad`` should keep no graph."""
    tuned.requires_grad_(False)
    state = tuned.state_dict(keep_vars=True)
    ours = {id(state[key]) for key in tensors}
    tuning = LoadedTuning(metadata)
    for path, module in modules.items():
        tuning.holders[path] = _holders(base, path)
        tuning.modules[path] = tuned.get_submodule(path)
    names = {name for name, _ in base.named_modules()}
    for name, module in tuned.named_modules():
        if name not in names:
            continue  # a tuner
        if isinstance(module, TunedSublayer) and not tuning.stands_in(name):
            tuning.sublayers[name] = type(module), module.tuners
        own = {
            key: t
            for key, t in (*module._parameters.items(),
                           *module._buffers.items()) if id(t) in ours
        }
        if own:
            tuning.tensors[name] = own
    return tuning
