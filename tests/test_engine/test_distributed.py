"""What several processes tell each other."""
import copy
import logging
import warnings

import pytest
import torch
from hosts import HOSTS, prepare, total
from torch.distributed import GradBucket
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from etta_mm import count_parameters
from etta_mm.engine import ETFullyShardedDataParallel
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
    torch.multiprocessing.spawn(
        shard_every_host, (str(tmp_path / 'store'), ), nprocs=2)
