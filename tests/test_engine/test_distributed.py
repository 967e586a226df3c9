"""What several processes tell each other."""
import copy
import logging
import os
import socket
import warnings
from pathlib import Path

import pytest
import torch
from hosts import HOSTS, prepare, total
from mmengine.registry import DATASETS
from torch.distributed import GradBucket
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from trainer import DIMS, NoisyData
from trainer import base as save_the_base
from trainer import config

from etta_mm import count_parameters
from etta_mm.engine import ETFullyShardedDataParallel
from etta_mm.engine.launch import build_runner
from etta_mm.engine.sharded_model import plain_name
from etta_mm.layers import checkpoint_layers
from etta_mm.tuners import Tuner

TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=16),
    attn=dict(type='ScaledPrefix', num_prefix=3))


def tuned(name: str) -> torch.nn.Module:
    """A host with its tuning, in training."""
    tuning = copy.deepcopy(TUNING)
    if HOSTS[name].head:
        tuning['train'] = [HOSTS[name].head]
    torch.manual_seed(1)
    return HOSTS[name].build(tuning).train()


def gradients(model: torch.nn.Module, wrapped, batch: dict) -> dict:
    torch.manual_seed(2)  # the dropout of all is the same
    data = prepare(model, batch, True)
    losses = wrapped(data['inputs'], data['data_samples'], mode='loss')
    total(losses).backward()
    return {
        plain_name(n): p.grad
        for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.fixture
def gloo(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def count_and_keep(
        sent: list,
        bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A communication hook of DDP that notes what it is given."""
    sent.append((bucket.buffer().numel(), bucket.parameters()))
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


@pytest.mark.parametrize('name', HOSTS)
def test_ddp_communicates_the_trained_parameters_and_nothing_else(name, gloo):
    host, model = HOSTS[name], tuned(name)
    wrapped = DistributedDataParallel(
        model, find_unused_parameters=False, broadcast_buffers=False)
    sent = []
    wrapped.register_comm_hook(sent, count_and_keep)
    owners = [m for m in model.modules() if isinstance(m, Tuner)]
    owners.append(model.get_submodule(host.head or 'head'))
    trained = {id(p) for owner in owners for p in owner.parameters()}
    for _ in range(2):  # a parameter without a gradient stops the second
        sent.clear()
        gradients(model, wrapped, host.batch())
        assert {id(p) for _, params in sent for p in params} == trained
        assert sum(size for size, _ in sent) == count_parameters(
            model).trainable


def in_two_processes(function, *args) -> None:
    """Call a function with a rank and ``args`` in each, all imports done."""
    torch.multiprocessing.start_processes(
        function, args, nprocs=2, start_method='fork')


def shard_every_host(rank: int, store: str) -> None:
    """What one of two processes does: the gradients of every host, sharded
    and whole, with and without checkpointed activations."""
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    for name, host in HOSTS.items():
        model = tuned(name)
        expected = gradients(model, model, host.batch())
        for with_cp in (False, True):
            model = tuned(name)
            if with_cp:
                checkpoint_layers(model)
            sharded = ETFullyShardedDataParallel(model)
            found = gradients(model, sharded, host.batch())
            assert len(list(sharded.fsdp_modules(sharded))) > 1, name
            assert_close(
                found,
                expected,
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text: f'{name}, with_cp={with_cp}: {text}')


def test_a_sharded_host_has_the_gradients_of_a_whole_one(tmp_path):
    in_two_processes(shard_every_host, str(tmp_path / 'store'))


@DATASETS.register_module()
class QuietData(NoisyData):
    """The same vectors in every process and every epoch."""

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(
            inputs=torch.randn(DIMS, generator=generator), labels=index % 2)


def train_in_two_halves(rank: int, folder: Path, port: int) -> None:
    """What one of two processes does: a training that is stopped while
    gradients are accumulated, resumed, and one that is not stopped."""
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))

    def run(name, epochs, **changes):
        cfg = config(
            folder / name, folder / 'base.safetensors', epochs,
            launcher='pytorch', custom_hooks=[], val_cfg=None,
            val_dataloader=None, val_evaluator=None,
            optim_wrapper=dict(
                type='OptimWrapper', accumulative_counts=3,
                optimizer=dict(type='SGD', lr=0.5)),
            default_hooks=dict(checkpoint=dict(
                type='CheckpointHook', interval=1)), **changes)
        cfg.train_dataloader.dataset.type = 'QuietData'
        runner = build_runner(cfg)
        runner.model.module.dropout.p = 0.
        runner.train()

    run('whole', 2)
    # 2 of 3 batches that make a step have been seen.
    run('parts', 2, resume=True, load_from=str(folder / 'whole/epoch_1.pth'))
    if rank == 0:
        assert_close(*(torch.load(
            folder / name / 'epoch_2.pth', weights_only=False)['state_dict']
                       for name in ('whole', 'parts')))


def test_of_accumulated_gradients_each_process_goes_on_with_the_mean(tmp_path):
    save_the_base(tmp_path)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    in_two_processes(train_in_two_halves, tmp_path, port)
