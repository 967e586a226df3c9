"""What several processes tell each other."""
import copy

import pytest
import torch
from hosts import HOSTS, prepare, total
from torch.distributed import GradBucket
from torch.nn.parallel import DistributedDataParallel

from etta_mm import count_parameters
from etta_mm.tuners import Tuner

TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=16),
    attn=dict(type='ScaledPrefix', num_prefix=3))


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
    host = HOSTS[name]
    tuning = copy.deepcopy(TUNING)
    if host.head:
        tuning['train'] = [host.head]
    model = host.build(tuning).train()
    wrapped = DistributedDataParallel(
        model, find_unused_parameters=False, broadcast_buffers=False)
    sent = []
    wrapped.register_comm_hook(sent, count_and_keep)
    owners = [m for m in model.modules() if isinstance(m, Tuner)]
    owners.append(model.get_submodule(host.head or 'head'))
    trained = {id(p) for owner in owners for p in owner.parameters()}
    for _ in range(2):  # a parameter without a gradient stops the second
        sent.clear()
        data = prepare(model, host.batch(), True)
        losses = wrapped(data['inputs'], data['data_samples'], mode='loss')
        total(losses).backward()
        assert {id(p) for _, params in sent for p in params} == trained
        assert sum(size for size, _ in sent) == count_parameters(
            model).trainable
