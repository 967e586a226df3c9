"""The loss at step 0 of each tuner, against that of the base."""
import copy
from typing import Dict, List

import torch
from mmdet.models import ResNet
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner, load_checkpoint

from ..layers import apply_tuning, disable_tuning
from ..markdown import table

CONV = 'convolutional adapter'  # of hosts with a ResNet
#: Sizes as in a small budget: the loss at the start depends on them only for
#: the prefixes that are not the identity there.
TUNERS = {
    'parallel adapter': dict(
        ffn=dict(type='ParallelAdapter', bottleneck_dims=56)),
    'serial adapter': dict(ffn=dict(type='SerialAdapter', bottleneck_dims=56)),
    'LoRA, attention': dict(attn=dict(type='LoRA', rank=8)),
    'LoRA, FFN': dict(ffn=dict(type='LoRA', rank=8)),
    'scaled prefix, parallel': dict(
        attn=dict(type='ScaledPrefix', num_prefix=8)),
    'scaled prefix, concat, s = 0.1': dict(
        attn=dict(
            type='ScaledPrefix',
            num_prefix=8,
            composition='concat',
            scale=0.1)),
    'scaled prefix, concat, s = 1': dict(
        attn=dict(type='ScaledPrefix', num_prefix=8, composition='concat')),
    'scaled prefix, concat, s = 4': dict(
        attn=dict(
            type='ScaledPrefix', num_prefix=8, composition='concat', scale=4.)),
    'standard prefix': dict(attn=dict(type='Prefix', num_prefix=8)),
    CONV: dict(conv=dict(type='ConvAdapter', bottleneck_dims=8)),
    'ETTA': dict(
        ffn=dict(type='ParallelAdapter', bottleneck_dims=56),
        attn=dict(type='ScaledPrefix', num_prefix=8)),
}


@torch.no_grad()
def initial_losses(cfg: Config, num_batches: int = 8) -> List[dict]:
    """Losses of the first training batches, before any step.

    Normalisation and dropout are those of evaluation, so that the tuners
    alone make the difference.

    Args:
        cfg (Config): The config of a run with ``load_from``.
        num_batches (int): Batches to average over. Defaults to 8.

    Returns:
        list[dict]: For each of ``TUNERS`` that has a place in the model:
        ``tuner``, ``base_loss`` (of the base), ``loss`` (with the tuner) and ``disabled_loss`` (with it
        disabled).
    """
    cfg = copy.deepcopy(cfg)
    owner = cfg.model if 'tuning' in cfg.model else cfg.model.backbone
    owner.tuning = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        load_checkpoint(model, cfg.load_from, 'cpu', logger='silent')
        torch.manual_seed(0)
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        batches = [
            batch for batch, _ in zip(loader, range(num_batches))
        ]
        base_loss = _loss(model, batches)
        rows = []
        has_blocks = any(isinstance(m, ResNet) for m in model.modules())
        for name, tuning in TUNERS.items():
            if name == CONV and not has_blocks:
                continue
            tuned = copy.deepcopy(model)
            torch.manual_seed(0)
            apply_tuning(tuned, tuning)
            row = dict(
                tuner=name, base_loss=base_loss, loss=_loss(tuned, batches))
            with disable_tuning(tuned):
                row['disabled_loss'] = _loss(tuned, batches)
            rows.append(row)
    return rows


def _loss(model, batches) -> float:
    model.eval()
    model.training = True  # of this module alone: detectors ask before a loss
    total = 0.
    for batch in batches:
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        losses = model(**data, mode='loss')
        total += model.parse_losses(losses)[0].item()
    return total / len(batches)


def initial_loss_page(hosts: Dict[str, List[dict]]) -> str:
    """The Markdown page of the rows of several hosts.

    Args:
        hosts (dict): What :func:`initial_losses` gave, by name of the host.
    """
    rows = [['base', *(f'{r[0]["base_loss"]:.4f}' for r in hosts.values())]]
    for name in TUNERS:
        cells = []
        for found in hosts.values():
            row = next((r for r in found if r['tuner'] == name), None)
            cells.append('–' if row is None else f'{row["loss"]:.4f} '
                         f'({row["loss"] - row["base_loss"]:+.1e})')
        rows.append([name, *cells])
    largest = max(
        abs(row['disabled_loss'] - row['base_loss']) for r in hosts.values()
        for row in r)
    return '\n'.join([
        '# The loss at step 0', '',
        'Printed base, first batches of handwritten Glyphs, before any step: '
        'mean loss, and in brackets the difference from the base. '
        'Normalisation and dropout are those of evaluation, so the tuners '
        'alone make the difference.', '',
        *table(['', *hosts], rows), '',
        'Adapters, LoRA and prefixes in parallel start as the identity: they '
        'differ by rounding at most. A prefix by concatenation takes softmax '
        'mass from the first step on, so it does not; its values start near '
        'zero, and s only scales them. With the tuners disabled the loss is '
        'that of the base, '
        f'the largest difference being {largest:.1g}.', '', '## Again', '',
        '```shell', 'python tools/initial_loss.py', '```', ''
    ])
