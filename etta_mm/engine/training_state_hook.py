"""What mmengine's checkpoints lack for a resumed training to be the same."""
from itertools import islice
from typing import Iterator, Optional, Tuple

import torch
from mmengine.dist import all_reduce_dict, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from ..checkpoints.wrapper import unwrapped
from .random_state import random_state, set_random_state
from .resumed_settings import check_schedules, differences, warning
from .sharded_model import plain_name

STATE_KEY = 'training_state'


@HOOKS.register_module()
class TrainingStateHook(Hook):
    """Resume a training at the end of an epoch as if it had not stopped.

    mmengine restores weights, optimizer, schedulers and averages. This hook
    adds, under ``training_state`` of the checkpoint, the random generators,
    the seed of the sampler and gradients that are accumulated so far. A
    validation leaves the generators where they were, since a resumed training
    does not run it again. A training by epochs that was saved within one goes
    on with the batches that it has not seen; mmengine would begin the epoch
    again, behind the end of its schedules.

    In one process whose data loader has no ``persistent_workers``, the
    weights are equal bit for bit. In several, each keeps the generators that
    its seed gives, and of accumulated gradients all go on from the mean.
    Settings of the config that the checkpoint's take the place of are warned of.
    """

    # After all that draws random numbers.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._before_val = None
        self._resumed = None
        self._gradients = None  # the mean of all processes, before a save
        self._is_first = True  # whether no epoch has begun
        self._epoch = self._epoch_start = 0  # and its first iteration

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the state to the checkpoint.

        Args:
            runner (Runner): The runner of the training.
            checkpoint (dict): What is saved.
        """
        checkpoint[STATE_KEY] = dict(
            random=self._before_val or random_state(),
            sampler_seed=getattr(_sampler(runner), 'seed', None),
            **self._position(runner, checkpoint['meta']),
            gradient_scale=_gradient_scale(runner),
            gradients={
                name: gradient.cpu()
                for name, gradient in (_gradients(runner) if self._gradients is
                                       None else self._gradients).items()
            })
        for schedule in _schedules(checkpoint):  # which makes it anew
            for key in [k for k, v in schedule.items() if callable(v)]:
                del schedule[key]

    def before_any_save(self, runner) -> None:
        """Bring the accumulated gradients of all processes together, of which
        one alone saves.

        Args:
            runner (Runner): The runner of the training.
        """
        self._gradients = _gradients(runner)
        if self._gradients and get_world_size() > 1:
            # What one process did not use, another may have.
            self._gradients = {
                name: self._gradients.get(name, torch.zeros_like(p))
                for name, p in _trained(runner)
            }
            all_reduce_dict(self._gradients, 'mean')

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the state of a training that is resumed.

        Args:
            runner (Runner): The runner of the training.
            checkpoint (dict): What is loaded.

        Raises:
            ValueError: If it has not the states of the schedules.
        """
        if not runner._resume:
            return
        self._resumed = checkpoint.get(STATE_KEY)
        check_schedules(runner, checkpoint)
        found = differences(runner, checkpoint)
        if found:
            runner.logger.warning(warning(found))
        if 'ema_state_dict' in checkpoint and not any(
                isinstance(hook, EMAHook) for hook in runner.hooks):
            runner.logger.warning(
                'The checkpoint is of a training with EMAHook, and this one has '
                'none: it goes on from the averaged weights. Put the hook back '
                'into custom_hooks to go on from the trained ones.')

    def before_train(self, runner) -> None:
        """Go on with the same order of the data and the same gradients.

        Args:
            runner (Runner): The runner of the training.
        """
        if runner._resume and _is_over(runner.train_loop):
            runner.logger.warning(
                f'Resumed behind the end, in epoch {runner.epoch}, iteration '
                f'{runner.iter}: there is nothing left to train. To train '
                'longer, give the checkpoint as load_from, without --resume, '
                'and a schedule for what is to come.')
        if runner._resume:
            _count_on(runner, self._resumed)
        if self._resumed is None:
            return
        sampler, seed = _sampler(runner), self._resumed['sampler_seed']
        if seed is not None and hasattr(sampler, 'seed'):
            sampler.seed = seed
        # Made before the runner took the seed of the checkpoint.
        start = getattr(runner.train_dataloader, 'worker_init_fn', None)
        if 'seed' in getattr(start, 'keywords', {}):
            start.keywords['seed'] = runner.seed
        gradients, scale = self._resumed['gradients'], _gradient_scale(runner)
        scale /= self._resumed['gradient_scale']
        for name, parameter in _trained(runner):
            if name in gradients:
                parameter.grad = scale * gradients[name].to(parameter)

    def before_train_epoch(self, runner) -> None:
        """Go on with the same random numbers.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._resumed is not None and get_world_size() == 1:
            set_random_state(self._resumed['random'])
        skipped = _skip_seen(runner, self._resumed) if self._is_first else 0
        self._resumed, self._is_first = None, False
        self._epoch, self._epoch_start = runner.epoch, runner.iter - skipped

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        """Forget the gradients that were brought together.

        Args:
            runner (Runner): The runner of the training.
            *args, **kwargs: Unused.
        """
        self._gradients = None

    def _position(self, runner, meta: dict) -> dict:
        """How many batches there are in an epoch, and how many of the one that
        the checkpoint stands in have been seen."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return {}
        is_over = meta['epoch'] > self._epoch
        return dict(
            num_batches=len(runner.train_dataloader),
            seen=0 if is_over else meta['iter'] - self._epoch_start)

    def before_val(self, runner) -> None:
        """Remember the generators.

        Args:
            runner (Runner): The runner of the training.
        """
        self._before_val = random_state()

    def after_val(self, runner) -> None:
        """Put the generators back.

        Args:
            runner (Runner): The runner of the training.
        """
        set_random_state(self._before_val)
        self._before_val = None


def _trained(runner) -> Iterator[Tuple[str, nn.Parameter]]:
    """What is trained, by the names of a model without wrappers."""
    for name, parameter in unwrapped(runner.model).named_parameters():
        if parameter.requires_grad:
            yield plain_name(name), parameter


def _gradients(runner) -> dict:
    """What is accumulated so far, by name."""
    return {
        name: p.grad.detach().clone()
        for name, p in _trained(runner) if p.grad is not None
    }


def _gradient_scale(runner) -> float:
    """What gradients are multiplied by while they are accumulated: in mixed
    precision that of the loss."""
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    return 1. if scaler is None else scaler.get_scale()


def _schedules(checkpoint: dict) -> Iterator[dict]:
    """The states of the schedules of one optimizer or of several."""
    states = checkpoint.get('param_schedulers') or []
    for group in states.values() if isinstance(states, dict) else [states]:
        yield from group


class _Rest:
    """A batch sampler that leaves out its first batches once."""

    def __init__(self, batch_sampler, number: int) -> None:
        self.batch_sampler, self.number = batch_sampler, number

    def __iter__(self):
        number, self.number = self.number, 0
        return islice(iter(self.batch_sampler), number, None)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __getattr__(self, name: str):
        return getattr(self.batch_sampler, name)


def _num_seen(runner, resumed: Optional[dict]) -> int:
    """How many batches the epoch that is resumed has seen; 0 if it had another
    number of them (other data, batch size, or number of processes): what it has
    seen is not known then."""
    loader = runner.train_dataloader
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return 0  # mmengine's IterBasedTrainLoop leaves them out itself
    if (resumed or {}).get('num_batches') != len(loader):
        return 0  # or it is not known, in a checkpoint of mmengine itself
    number = resumed['seen']
    is_known = 0 < number <= len(loader) and loader.batch_sampler is not None
    return number if is_known else 0


def _skip_seen(runner, resumed: Optional[dict]) -> int:
    """Leave out what the epoch that is resumed has seen. Returns how many
    batches that are."""
    loader, number = runner.train_dataloader, _num_seen(runner, resumed)
    if number:
        runner.logger.info(f'Epoch {runner.epoch + 1} goes on behind {number} '
                           f'of its {len(loader)} batches.')
        # DataLoader forbids the plain assignment; nothing has read it yet.
        vars(loader)['batch_sampler'] = _Rest(loader.batch_sampler, number)
    return number


def _count_on(runner, resumed: Optional[dict]) -> None:
    """Count the iterations that are left from those that there were, which may
    have been of other batches: gradients are accumulated by this number."""
    loop = runner.train_loop
    if not isinstance(loop, EpochBasedTrainLoop):
        return
    seen = _num_seen(runner, resumed)
    left = (loop.max_epochs - loop.epoch) * len(loop.dataloader) - seen
    if loop.iter + left != loop.max_iters:
        loop._max_iters = loop.iter + left
        runner.optim_wrapper.initialize_count_status(
            runner.model, loop.iter, loop.max_iters)


def _is_over(loop) -> bool:
    if isinstance(loop, EpochBasedTrainLoop):
        return loop.epoch >= loop.max_epochs
    return loop.iter >= loop.max_iters


def _sampler(runner):
    """The sampler of the training data, which may be inside a batch sampler.
    """
    loader = runner.train_dataloader
    batch_sampler = getattr(loader, 'batch_sampler', None)
    return getattr(batch_sampler, 'sampler', None) or getattr(
        loader, 'sampler', None)
