"""Many tunings on one base: loaded beside each other, switched, or mixed."""
from contextlib import ExitStack, contextmanager
from typing import Dict, List, Optional, Sequence, Tuple, Union

from torch import nn

from ..checkpoints.tuned_checkpoint import tuned_roots
from ..layers.routed import put, take_class
from ..tuners import Tuner
from .loaded_tuning import LoadedTuning, load_beside
from .mixed_batch import check_number_of_images, route_batch


class TuningBank:
    """Several tunings of one base, in the memory of the base plus theirs.

    Switching sets references to the tensors of a tuning, in a time that grows
    with their number; the base's are neither copied nor written, and without
    a tuning the model is the base itself. The bank is for inference: it puts
    the model into eval and freezes its parameters.

    Args:
        model (nn.Module): The base with its weights loaded, not tuned (a
            tuned host with ``tuning=None``, or the plain host), on the device
            where it stays.

    Raises:
        ValueError: If the model is tuned already.

    Example:
        >>> bank = TuningBank(model)
        >>> bank.load('digits', 'digits.safetensors')
        >>> bank.load('letters', 'letters.safetensors')
        >>> bank.use('digits')
        >>> with bank.per_sample(['digits', 'letters', None]):
        ...     model.test_step(batch_of_three)
    """

    def __init__(self, model: nn.Module) -> None:
        if tuned_roots(model) or any(
                isinstance(m, Tuner) for m in model.modules()):
            raise ValueError(
                f'{type(model).__name__} is tuned; a bank needs the base: '
                'build the model with tuning=None, load its weights, then '
                'load the tunings into the bank')
        model.eval()  # which returns nothing in backbones of mmdet and mmpretrain
        self.model = model.requires_grad_(False)
        self._modules = dict(model.named_modules())
        self._place = self._device_and_type()
        self._tunings: Dict[str, LoadedTuning] = {}
        self._active = None
        self._awaited = []  # what the ends of with blocks will bring back
        self._undo = ExitStack()  # closing it brings the base back

    @property
    def names(self) -> Tuple[str, ...]:
        """The tunings, in the order in which they were loaded."""
        return tuple(self._tunings)

    @property
    def active(self) -> Union[str, Tuple[Optional[str], ...], None]:
        """The tuning in use, None for the base; inside ``per_sample`` those
        of the images."""
        return self._active

    def metadata(self, name: str) -> dict:
        """The metadata of a tuning's file.

        Args:
            name (str): The tuning.

        Raises:
            KeyError: If there is no such tuning.
        """
        return self._get(name).metadata

    def num_bytes(self, name: str) -> int:
        """The memory that a tuning takes beside the base, in bytes.

        Args:
            name (str): The tuning.

        Raises:
            KeyError: If there is no such tuning.
        """
        return self._get(name).num_bytes

    def load(self,
             name: str,
             path,
             classes: Optional[Sequence[str]] = None,
             modules: Optional[Dict[str, nn.Module]] = None) -> dict:
        """Load a tuned checkpoint; it may be tuned in another way than those
        that are there.

        After an error the bank is what it was.

        Args:
            name (str): What to call it.
            path (str | Path): A file that ``save_tuned`` wrote.
            classes (Sequence[str], optional): What its classes should be.
                Defaults to None: not compared, since each tuning has its own.
            modules (dict, optional): By name, modules of the type of the
                base's and of other shapes, to stand in for them: the head for
                other classes. Their tensors come from the file; they may be
                on the meta device. They are copied. Defaults to None.

        Returns:
            dict: The metadata of the file.

        Raises:
            FileNotFoundError: If there is no such file.
            KeyError: If the model has no module of a name in ``modules``.
            TypeError: If the name is no string, or a module no module of the
                type of the base's.
            ValueError: If the name is taken, or for the reasons of
                :func:`~etta_mm.load_tuned`.
        """
        if not isinstance(name, str):
            raise TypeError(f'the name of a tuning is a string, not {name!r}')
        if name in self._tunings:
            raise ValueError(f'there is a tuning {name!r} already; take '
                             'another name, or remove it first')
        with self.use(None):
            tuning = load_beside(self.model, path, classes, modules or {})
        self._tunings[name] = tuning
        return tuning.metadata

    def remove(self, name: str) -> None:
        """Forget a tuning; its memory is free when nobody else holds it.

        Args:
            name (str): The tuning.

        Raises:
            KeyError: If there is no such tuning.
            ValueError: If it is in use, or will be at the end of a ``with``.
        """
        self._get(name)
        if name in _names(self._active):
            raise ValueError(f'{name!r} is in use; switch to another tuning '
                             'or to the base (use(None)) first')
        if any(name in _names(state) for state in self._awaited):
            raise ValueError(f'{name!r} was in use before a with block and '
                             'will be in use again at its end; remove it '
                             'behind the block')
        del self._tunings[name]

    def use(self, name: Optional[str]):
        """Switch to a tuning, or with None to the base: its exact output.

        Args:
            name (str, optional): The tuning.

        Returns:
            ContextManager: Used in a ``with``, it switches back at the end.

        After an error the bank is what it was.

        Raises:
            KeyError: If there is no such tuning.
            ValueError: If the model was moved or cast since.
        """
        before = self._active
        self._install(name)
        return self._back_to(before)

    @contextmanager
    def per_sample(self, names: Sequence[Optional[str]]):
        """Run batches whose images use different tunings.

        After an error the bank is what it was.

        Args:
            names (Sequence[str | None]): The tuning of each image of the
                batch; None is the base.

        Raises:
            KeyError: If there is no such tuning.
            TypeError: If ``names`` is a string.
            ValueError: If there are no names, the model is in training mode
                or was moved, or a module that stands in is no head; where
                the model runs, if there is not a name for each image, or the
                batch cannot be told from the other dimensions at a layer
                where the tunings differ.
        """
        if isinstance(names, str):
            raise TypeError(f'per_sample takes a name for each image, not the '
                            f'string {names!r}; for one tuning, use({names!r})')
        names = tuple(names)
        if not names:
            raise ValueError('per_sample needs a name for each image of the '
                             'batch, and got none')
        if self.model.training:
            raise ValueError('the model is in training mode, and a bank is '
                             'for inference; call eval() first')
        before = self._active
        self._install(names)
        with self._back_to(before):
            yield self

    @contextmanager
    def _back_to(self, state):
        """At the end, have what ``state`` says."""
        self._awaited.append(state)
        try:
            yield self
        finally:
            self._awaited.remove(state)
            self._install(state)

    def _get(self, name: str) -> LoadedTuning:
        if name not in self._tunings:
            raise KeyError(f'there is no tuning {name!r}; the bank has ' +
                           (', '.join(map(repr, self._tunings)) or 'none'))
        return self._tunings[name]

    def _device_and_type(self) -> tuple:
        first = next(self.model.parameters())
        return first.device, first.dtype

    def _install(self, state) -> None:
        """Have what ``state`` asks for; after an error, what there was."""
        for name in _names(state):
            self._get(name)
        if self._device_and_type() != self._place:
            raise ValueError(
                f'the model was on {self._place} and is on '
                f'{self._device_and_type()}; move it before a bank is made of '
                'it')
        before = self._active
        try:
            self._put_in(state)
        except BaseException:
            self._put_in(before)
            raise

    def _put_in(self, state) -> None:
        """Bring the base back, then what ``state`` asks for."""
        self._undo.close()
        self._active = None
        tunings = {name: self._get(name) for name in _names(state)}
        for tuning in tunings.values():
            tuning.eval()  # the model's eval() does not reach it outside
        with ExitStack() as stack:
            if isinstance(state, tuple):
                check_number_of_images(stack, self._modules, state)
            if isinstance(state, tuple) and len(set(state)) > 1:
                route_batch(stack, self._modules, state, tunings)
            elif tunings:
                self._switch(stack, *tunings.values())
            self._undo = stack.pop_all()
        self._active = state

    def _switch(self, stack: ExitStack, tuning: LoadedTuning) -> None:
        for path, module in tuning.modules.items():
            for holder, key in tuning.holders[path]:
                put(stack, self._modules[holder]._modules, key, module)
        for name, (cls, tuners) in tuning.sublayers.items():
            module = self._modules[name]
            take_class(stack, module, cls)
            put(stack, module._modules, 'tuners', tuners)
        for name, tensors in tuning.tensors.items():
            if tuning.stands_in(name):
                continue
            module = self._modules[name]
            for key, tensor in tensors.items():
                put(
                    stack, module._parameters
                    if key in module._parameters else module._buffers, key,
                    tensor)
        meta = tuning.metadata['info'].get('dataset_meta')
        if isinstance(meta, dict):
            put(stack, vars(self.model), 'dataset_meta', meta)


def _names(state) -> List[str]:
    """The tunings of what can be active: of one, of each image, of none."""
    names = state if isinstance(state, tuple) else (state, )
    return [name for name in names if name is not None]
