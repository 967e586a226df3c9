"""A tiny trainer that writes checkpoints, for killing and resuming."""
import copy
import itertools
import random
from contextlib import suppress

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn

from etta_mm import TunedHost
from etta_mm.checkpoints import save_base
from etta_mm.engine.launch import build_runner

DIMS = 4
NUM_ITEMS = 11  # batches of 3, 3, 3 and 2: a batch norm needs two
COUNT = itertools.count()  # runners of one name share a message hub


class Plain(BaseModel):
    """An FFN, a batch norm, dropout and a head that stands twice."""

    def __init__(self):
        super().__init__()
        self.ffn = FFN(DIMS, 8)
        self.norm = nn.BatchNorm1d(DIMS)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.ModuleList([nn.Linear(DIMS, 2)] * 2)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = torch.stack(inputs) if isinstance(inputs, list) else inputs
        scores = self.head[0](self.dropout(self.norm(self.ffn(x))))
        if mode == 'loss':
            return dict(
                loss=nn.functional.cross_entropy(scores,
                                                 torch.as_tensor(labels)))
        return list(scores)


@MODELS.register_module()
class ETPlain(TunedHost, Plain):
    """The tuned trainer's model."""


@DATASETS.register_module()
class NoisyData(torch.utils.data.Dataset):
    """Vectors with noise from every random generator there is."""
    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return NUM_ITEMS

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        noise = torch.rand(DIMS) + np.random.rand() + random.random()
        return dict(
            inputs=torch.randn(DIMS, generator=generator) + 0.1 * noise,
            labels=index % 2)


@METRICS.register_module()
class Norm(BaseMetric):
    """A metric that goes up and down, from the random inputs."""

    def process(self, data_batch, data_samples):
        self.results.append(float(sum(s.sum() for s in data_samples)))

    def compute_metrics(self, results):
        return dict(norm=sum(results))


def base(folder):
    """The base's checkpoint."""
    torch.manual_seed(0)
    return save_base(Plain(), folder / 'base.safetensors', torch.float)


def config(work_dir, base, max_epochs, seed=0, **changes) -> Config:
    """The config of a run; later items go over earlier ones."""
    loader = dict(
        batch_size=3,
        num_workers=0,
        dataset=dict(type='NoisyData'),
        sampler=dict(type='DefaultSampler', shuffle=True))
    cfg = dict(
        model=dict(
            type='ETPlain',
            tuning=dict(
                ffn=dict(type='ParallelAdapter', bottleneck_dims=3),
                train=['head', 'norm'])),
        work_dir=str(work_dir),
        load_from=str(base),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs, val_interval=1),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='Adam', lr=0.05)),
        param_scheduler=[dict(type='ExponentialLR', gamma=0.95)],
        val_dataloader=copy.deepcopy(loader),
        val_cfg=dict(),
        val_evaluator=dict(type='Norm'),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook',
                interval=1,
                max_keep_ckpts=1,
                save_best='norm',
                rule='greater')),
        custom_hooks=[dict(type='TunedCheckpointHook')],
        randomness=dict(seed=seed),
        default_scope='mmengine',
        experiment_name=f'{work_dir.name}-{next(COUNT)}')
    cfg.update(changes)
    return Config(cfg)


class Stopped(Exception):
    """What an interrupted training ends with."""


class Stop(Hook):
    """Stop in the middle of the epoch after ``epochs``."""

    def __init__(self, epochs):
        self.epochs = epochs

    def after_train_iter(self, runner, batch_idx, **kwargs):
        if runner.epoch == self.epochs and batch_idx == 1:
            raise Stopped


def train(work_dir, base, max_epochs, stop_after=None, **changes):
    """Train, or start to, and return the runner."""
    runner = build_runner(config(work_dir, base, max_epochs, **changes))
    if stop_after is not None:
        runner.register_hook(Stop(stop_after))
    with suppress(Stopped):
        runner.train()
    return runner
