"""Measure one method on one case, in a process of its own."""
import resource
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Callable, List

import torch
from torch import nn

from ..layers import transformer_layers
from .cases import Case, Contestant
from .floor import count_flops
from .memory import freed_memory_returned, num_bytes, saved_bytes
from .methods import METHODS

INFERENCE_BATCHES = (1, 8)
#: Steps until all that a step needs is there: the optimizer's state comes with
#: the first.
MEMORY_STEPS = 2


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
    autocast = nullcontext if dtype == 'float32' else (
        lambda: torch.autocast(case.device.split(':')[0],
                               getattr(torch, dtype)))
    parameters = list(contestant.model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    result = dict(
        case=case.name,
        method=method,
        total=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained) * contestant.trains,
        start_s=None if started is None else ready - started)
    train = partial(_train, contestant, trained, autocast, case)
    with own_memory():
        train(0, MEMORY_STEPS)
    result['peak_bytes'] = _peak(case.device) - before
    result.update(train(steps, warmup))
    if contestant.trains:
        with autocast():
            result['activation_bytes'] = saved_bytes(contestant.model,
                                                     contestant.loss)
            result['flops'] = count_flops(lambda: contestant.loss().backward(),
                                          fused=on_gpu)
            contestant.model.zero_grad()
    result['latency_s'] = _latency(contestant, autocast, case, steps, warmup)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'checkpoint.safetensors'
        contestant.save(path)
        result['checkpoint_bytes'] = path.stat().st_size
    return result


def compile_parts(model: nn.Module) -> None:
    """Compile what can be compiled whole: the layers of an OpenMMLab model
    and its convolutional backbone, or a peer's model."""
    layers = list(transformer_layers(model))
    for layer in layers:
        layer.compile()
    backbone = getattr(model, 'backbone', None)
    if not layers:
        model.compile()
    elif not any(True for _ in transformer_layers(backbone)):
        backbone.compile()


def _peak(device: str) -> int:
    """Highest memory so far: the allocator's, or the process's resident."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _train(contestant: Contestant, trained: list, autocast: Callable,
           case: Case, steps: int, warmup: int) -> dict:
    times = dict(forward_s=[], backward_s=[], optimizer_s=[])
    optimizer = torch.optim.AdamW(
        trained, lr=1e-5) if contestant.trains else None
    clock = Clock(case.device)
    gradient_bytes = 0
    for step in range(warmup + steps):
        clock.lap()
        with autocast(), torch.set_grad_enabled(contestant.trains):
            loss = contestant.loss()
        laps = [clock.lap(), 0., 0.]
        if contestant.trains:
            loss.backward()
            laps[1] = clock.lap()
            gradient_bytes = num_bytes(
                p.grad for p in trained if p.grad is not None)
            clock.lap()
            optimizer.step()
            optimizer.zero_grad()
            laps[2] = clock.lap()
        if step >= warmup:
            for name, lap in zip(times, laps):
                times[name].append(lap)
    state = optimizer.state if contestant.trains else {}
    model = contestant.model
    return dict(
        times,
        weight_bytes=num_bytes((*model.parameters(), *model.buffers())),
        gradient_bytes=gradient_bytes,
        optimizer_bytes=num_bytes(t for s in state.values()
                                  for t in s.values() if torch.is_tensor(t)))


def _latency(contestant: Contestant, autocast: Callable, case: Case,
             steps: int, warmup: int) -> dict:
    contestant.model.eval()
    latency = {}
    for batch in INFERENCE_BATCHES:
        infer = contestant.infer(batch)
        seconds: List[float] = []
        clock = Clock(case.device)
        for step in range(warmup + steps):
            clock.lap()
            with torch.no_grad(), autocast():
                infer()
            lap = clock.lap()
            if step >= warmup:
                seconds.append(lap)
        latency[batch] = seconds
    return latency
