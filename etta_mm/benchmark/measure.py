"""Measure one method on one case, in a process of its own."""
import resource
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Hashable, List

import torch
from torch import nn

from ..layers import transformer_layers
from .calls import count_calls
from .cases import Case, Contestant
from .floor import count_flops
from .memory import freed_memory_returned, num_bytes, saved_bytes
from .methods import METHODS

INFERENCE_BATCHES = (1, 8)
#: Steps until all that a step needs is there: the optimizer's state comes with
#: the first.
MEMORY_STEPS = 2
#: More than the layers of all methods together have kinds.
MAX_GRAPHS = 250


class Clock:
    """Seconds between laps, with the device's work done.

    Args:
        device (str): The device that is waited for.
    """

    def __init__(self, device: str) -> None:
        self.wait = (
            partial(torch.cuda.synchronize, device)
            if device.startswith('cuda') else lambda: None)
        self.lap()

    def lap(self) -> float:
        self.wait()
        now = time.perf_counter()
        seconds = now - getattr(self, '_last', now)
        self._last = now
        return seconds


def measure(case: Case,
            method: str,
            steps: int,
            warmup: int,
            dtype: str = 'float32',
            compiled: bool = False,
            started: float = None) -> dict:
    """All measures of one method.

    Args:
        case (Case): The case.
        method (str): One of ``METHODS``.
        steps (int): Training steps that are timed, and forward passes of each
            batch size of the inference.
        warmup (int): Steps before them.
        dtype (str): 'float32', or what autocast computes in.
        compiled (bool): Compile the backbone and the transformer layers.
        started (float, optional): When the process was started, as
            ``time.time()``.

    Returns:
        dict: Times in seconds, sizes in bytes.
    """
    on_gpu = case.device.startswith('cuda')
    # On a CPU all that can be read is a process's peak: memory comes first.
    own_memory = nullcontext if on_gpu else freed_memory_returned
    before = _peak(case.device)
    with own_memory():
        contestant = METHODS[method](case)
    ready = time.time()
    if compiled:
        compile_parts(contestant.model)
    parameters = list(contestant.model.parameters())
    result = dict(
        case=case.name,
        method=method,
        total=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad) *
        contestant.trains,
        start_s=None if started is None else ready - started)
    rival = Rival(contestant, case.device, dtype)
    with own_memory():
        for _ in range(MEMORY_STEPS):
            rival.step()
    result.update(rival.sizes(), peak_bytes=_peak(case.device) - before)
    result.update(time_in_turn(dict(rival=rival), steps, warmup)['rival'])
    if contestant.trains:
        contestant.model.train()
        with rival.autocast():
            result['activation_bytes'] = saved_bytes(contestant.model,
                                                     contestant.loss)
            result['flops'] = count_flops(lambda: contestant.loss().backward(),
                                          fused=on_gpu)
            result['calls'] = count_calls(
                lambda: contestant.loss().backward())
            contestant.model.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'checkpoint.safetensors'
        contestant.save(path)
        result['checkpoint_bytes'] = path.stat().st_size
    return result


def compile_parts(model: nn.Module, **kwargs) -> None:
    """Compile what can be compiled whole: the layers of an OpenMMLab model
    and its convolutional backbone, or a peer's model.

    All of a process are one function to the compiler, which after a few graphs
    of one would run the others as they are and say so in a log alone: it may
    make many, and then ends in an error.

    Args:
        model (nn.Module): Compiled in place.
        **kwargs: Those of ``torch.compile``.
    """
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    layers = transformer_layers(model)
    for layer in layers:
        layer.compile(**kwargs)
    backbone = getattr(model, 'backbone', None)
    if not layers:
        model.compile(**kwargs)
    elif not transformer_layers(backbone):
        backbone.compile(**kwargs)


def _peak(device: str) -> int:
    """Highest memory so far: the allocator's, or the process's resident."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Rival:
    """A contestant with its optimizer, ready for steps.

    Args:
        contestant (Contestant): The contestant.
        device (str): Its device.
        dtype (str): As :func:`measure` has it.
    """

    def __init__(self, contestant: Contestant, device: str,
                 dtype: str) -> None:
        self.contestant = contestant
        self.autocast = nullcontext if dtype == 'float32' else (
            lambda: torch.autocast(device.split(':')[0], getattr(torch, dtype)
                                   ))
        self.trained = [
            p for p in contestant.model.parameters() if p.requires_grad
        ]
        self.optimizer = torch.optim.AdamW(  # as in configs/etta
            self.trained, lr=1e-5, fused=True) if contestant.trains else None
        self.clock = Clock(device)
        self.gradient_bytes = 0
        self._infer = {}

    def step(self) -> List[float]:
        """A step's seconds: forward, backward and optimizer."""
        clock, trains = self.clock, self.contestant.trains
        if not self.contestant.model.training:  # or it folds its norms anew
            self.contestant.model.train()
        clock.lap()
        with self.autocast(), torch.set_grad_enabled(trains):
            loss = self.contestant.loss()
        laps = [clock.lap(), 0., 0.]
        if trains:
            loss.backward()
            laps[1] = clock.lap()
            self.gradient_bytes = num_bytes(
                p.grad for p in self.trained if p.grad is not None)
            clock.lap()
            self.optimizer.step()
            self.optimizer.zero_grad()
            laps[2] = clock.lap()
        return laps

    def infer(self, batch: int) -> float:
        """Seconds of a forward pass of ``batch`` images."""
        if self.contestant.model.training:
            self.contestant.model.eval()
        if batch not in self._infer:
            self._infer = {batch: self.contestant.infer(batch)}
        self.clock.lap()
        with torch.no_grad(), self.autocast():
            self._infer[batch]()
        return self.clock.lap()

    def sizes(self) -> dict:
        """Bytes of the weights, of their gradients and of what the optimizer
        keeps, once there was a step."""
        model = self.contestant.model
        state = self.optimizer.state if self.contestant.trains else {}
        return dict(
            weight_bytes=num_bytes((*model.parameters(), *model.buffers())),
            gradient_bytes=self.gradient_bytes,
            optimizer_bytes=num_bytes(t for s in state.values()
                                      for t in s.values()
                                      if torch.is_tensor(t)))


def time_in_turn(rivals: Dict[str, Rival], steps: int,
                 warmup: int) -> Dict[str, dict]:
    """Times of several rivals, of whom each makes a step in its turn.

    Args:
        rivals (dict[str, Rival]): Whom to time.
        steps (int): Steps of each, and forward passes of each batch size of
            the inference.
        warmup (int): Steps before them.

    Returns:
        dict[str, dict]: For each, lists of seconds: ``forward_s``,
        ``backward_s``, ``optimizer_s``, and ``latency_s`` by batch size.
    """
    laps = in_turn(rivals, lambda rival: rival.step(), steps, warmup)
    latencies = {
        batch: in_turn(rivals, lambda rival: rival.infer(batch), steps, warmup)
        for batch in INFERENCE_BATCHES
    }
    return {
        name: dict(
            zip(('forward_s', 'backward_s', 'optimizer_s'),
                map(list, zip(*laps[name]))),
            latency_s={batch: found[name]
                       for batch, found in latencies.items()})
        for name in rivals
    }


def in_turn(rivals: Dict[Hashable, Rival], timed: Callable[[Rival], Any],
            times: int, warmup: int) -> Dict[Hashable, list]:
    """What ``timed`` returns for each rival, once in every turn, so that a
    machine whose speed changes treats all alike.

    Every other turn goes through the rivals backwards.

    Args:
        rivals (dict[Hashable, Rival]): Whom to time.
        timed (Callable): What each does in its turn; returns its time.
        times (int): The turns that count.
        warmup (int): Turns before them.
    """
    found = {name: [] for name in rivals}
    for number in range(warmup + times):
        for name in list(rivals)[::-1 if number % 2 else 1]:
            seconds = timed(rivals[name])
            if number >= warmup:
                found[name].append(seconds)
    return found
