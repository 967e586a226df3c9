"""Train with a frozen base that is cut to pieces (FSDP), from a config.

Deviations from mmengine's ``FSDPStrategy``:

- frozen parameters are sharded and trained ones are whole, see
  :mod:`etta_mm.engine.sharded_model`; so the optimizer and its state are those
  of DDP, and checkpoints those of one process;
- it runs on CPUs, too (gloo);
- what is loaded is checked as without FSDP, and copied unit by unit;
- checkpoints are whole (``state_dict_cfg='full'``) and written atomically.

Source: mmengine 0.10.12 (OneDL) `_strategy/fsdp.py`.
"""
import copy
import re
from typing import Callable, Iterator, Optional, Tuple

import torch
from mmengine._strategy import BaseStrategy
from mmengine._strategy.fsdp import FSDPStrategy
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.optim import build_optim_wrapper
from mmengine.registry import STRATEGIES
from torch import Tensor, nn

from ..checkpoints.atomic import appearing_whole
from ..checkpoints.new_parts import drop_new
from ..checkpoints.wrapper import unwrapped
from .sharded_model import plain_name


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of ``model`` without its numbers.

    Args:
        model (nn.Module): Any model. What it shares, the copy shares.
    """
    memo = {
        id(p): nn.Parameter(torch.empty_like(p, device='meta'),
                            p.requires_grad)
        for p in model.parameters()
    }
    memo.update((id(b), torch.empty_like(b, device='meta'))
                for b in model.buffers())
    return copy.deepcopy(model, memo)


def structure(runner) -> nn.Module:
    """The model of a run, unwrapped and with parameters of their real shape;
    of a sharded one a copy without numbers.

    Args:
        runner (Runner): The runner of the training.
    """
    strategy = getattr(runner, 'strategy', None)
    if isinstance(strategy, ETFSDPStrategy):
        return strategy.structure
    return unwrapped(runner.model)


@STRATEGIES.register_module()
class ETFSDPStrategy(FSDPStrategy):
    """Shard the frozen base of a tuned model.

    A config trains with it by

        runner_type = 'FlexibleRunner'
        strategy = dict(type='ETFSDPStrategy')

    Args:
        model_wrapper (dict, optional): Arguments of
            :class:`~etta_mm.engine.ETFullyShardedDataParallel`. Defaults to None.
        state_dict_cfg (str): 'full', nothing else.
        **kwargs: Those of mmengine's ``FSDPStrategy``.

    Raises:
        ValueError: If checkpoints are to be cut to pieces.
    """

    def __init__(self,
                 *,
                 model_wrapper: Optional[dict] = None,
                 state_dict_cfg: str = 'full',
                 **kwargs) -> None:
        if state_dict_cfg != 'full':
            raise ValueError(
                f'state_dict_cfg={state_dict_cfg!r}: a checkpoint of a tuned '
                "model is written whole. Leave it out, or set 'full'")
        wrapper = dict(type='ETFullyShardedDataParallel')
        super().__init__(
            model_wrapper=wrapper | (model_wrapper or {}),
            state_dict_cfg=state_dict_cfg,
            **kwargs)

    def prepare(self, model, *, optim_wrapper=None, **kwargs):
        """As the parent's, but build the optimizer before the names and
        shapes of the parameters change.

        Args:
            model (nn.Module | dict): The model.
            optim_wrapper (OptimWrapper | dict, optional): The optimizer.
            **kwargs: The parent's.
        """
        if not self._prepared:
            model = self.build_model(model)
            if isinstance(optim_wrapper, dict):
                optim_wrapper = build_optim_wrapper(model, optim_wrapper)
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def build_optim_wrapper(self, optim_wrapper, model=None):
        """It is built already, and its parameters are the model's."""
        return optim_wrapper

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        self.structure = on_meta(model)
        return super()._wrap_model(model)

    def model_state_dict(self) -> dict:
        """All weights, on the CPU of the main process; empty in others.

        torch's own gathering (``offload_to_cpu``) frees on a CPU what it has
        just gathered, and ends in a segmentation fault (2.11.0).
        """
        names = self.structure.state_dict()
        found = {}
        for _ in self._units(writeback=False):
            if is_main_process():
                found.update(
                    (name, tensor.to('cpu', copy=True))
                    for name, tensor in _tensors(self.model)
                    if name in names and tensor.shape == names[name].shape
                    and name not in found)
        return {name: found[name] for name in names if is_main_process()}

    def optim_state_dict(self) -> dict:
        """That of the optimizer, as without FSDP."""
        return BaseStrategy.optim_state_dict(self)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load what :meth:`optim_state_dict` returned, or DDP saved."""
        BaseStrategy.load_optim_state_dict(self, state_dict)

    def whole_model(self, state_dict: dict) -> nn.Module:
        """The model as it is without FSDP, with these weights.

        Args:
            state_dict (dict): Weights; what they lack stays without numbers.
        """
        model = on_meta(self.structure)
        model.load_state_dict(state_dict, strict=False, assign=True)
        return model

    def load_checkpoint(self,
                        filename: str,
                        *,
                        map_location='cpu',
                        callback: Optional[Callable] = None,
                        **kwargs) -> dict:
        """As the parent's, but on the CPU where no other device is asked for:
        a resumed base may be too large for a GPU as a whole.

        Args:
            filename (str): The file. Weights alone will do.
            map_location (str | Callable): Where to; 'default' is 'cpu'.
            callback (Callable, optional): What may change the checkpoint.
            **kwargs: The parent's.
        """

        def prepare(checkpoint: dict) -> None:
            if 'state_dict' not in checkpoint:
                weights = dict(checkpoint)
                checkpoint.clear()
                checkpoint['state_dict'] = weights
            if callback is not None:
                callback(checkpoint)

        return super().load_checkpoint(
            filename,
            map_location='cpu' if map_location == 'default' else map_location,
            callback=prepare,
            **kwargs)

    def load_model_state_dict(
            self,
            state_dict: dict,
            *,
            strict: bool = False,
            revise_keys: list = [(r'^module.', '')],
    ) -> None:
        """Check the weights, then copy to each process its part.

        Args:
            state_dict (dict): Weights of the base or of the tuned model.
            strict (bool): Unused: a tuned model is always strict with its
                base.
            revise_keys (list): Patterns of keys and what replaces them.

        Raises:
            KeyError, ValueError: If they do not fit.
        """
        for pattern, replacement in revise_keys:
            state_dict = {
                re.sub(pattern, replacement, key): value
                for key, value in state_dict.items()
            }
        new = drop_new(self.structure, state_dict)
        if new:
            print_log(
                'trained in full and of another shape than in the checkpoint, '
                f'so from its own start: {", ".join(new)}', 'current')
        given = {
            name: tensor
            for name, tensor in self.whole_model(state_dict).state_dict().
            items() if not tensor.is_meta
        }
        for _ in self._units(writeback=True):
            for name, tensor in _tensors(self.model):
                source = given.get(name)
                if source is not None and source.shape == tensor.shape:
                    tensor.copy_(source)

    def _units(self, writeback: bool) -> Iterator[nn.Module]:
        """Each unit, with its parameters whole in the meantime: those of the
        others are flat parts, or whole by chance if the shapes are equal."""
        for unit in self.model.fsdp_modules(self.model):
            with self.model.summon_full_params(
                    unit, recurse=False, writeback=writeback):
                yield unit

    def save_checkpoint(self, filename: str, **kwargs) -> None:
        """As the parent's, whole or not at all.

        Args:
            filename (str): The file.
            **kwargs: The parent's.
        """
        # Of the processes, the main one alone writes.
        if '://' in filename or not is_main_process():
            super().save_checkpoint(filename, **kwargs)
            return
        with appearing_whole(filename) as temporary:
            super().save_checkpoint(str(temporary), **kwargs)


def _tensors(model: nn.Module) -> Iterator[Tuple[str, Tensor]]:
    """Parameters and buffers under their plain names, detached."""
    for name, tensor in (*model.named_parameters(remove_duplicate=False),
                         *model.named_buffers(remove_duplicate=False)):
        yield plain_name(name), tensor.detach()
