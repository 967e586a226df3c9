"""The methods of the benchmark: how a case is fine-tuned."""
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, Dict

import torch
from torch import nn

from ..checkpoints import save_tuned
from ..features.cached_features import CachedFeatures
from ..features.feature_cache import FeatureCache
from ..layers.sampling import fast_sampling
from . import peers
from .cases import Case, Contestant
from .floor import to_floor


def etta(bottleneck_dims: int = 400, num_prefix: int = 50) -> dict:
    """ETTA's tuning; the defaults are the paper's sizes."""
    return dict(
        ffn=dict(type='ParallelAdapter', bottleneck_dims=bottleneck_dims),
        attn=dict(type='ScaledPrefix', num_prefix=num_prefix))


def save_state(model: nn.Module) -> Callable[[Path], None]:
    return lambda path: torch.save(model.state_dict(), path)


def base(case: Case) -> Contestant:
    """The untouched model, forward only."""
    model = case.build(case.config())
    return case.contestant(model, save_state(model), trains=False)


def full(case: Case) -> Contestant:
    """All parameters, but those the zoo config freezes."""
    model = case.build(case.config())
    return case.contestant(model, save_state(model))


def full_et(case: Case) -> Contestant:
    """Full fine-tuning in ETTA's host: with the fused attentions, the batch
    matching and the dropout that need no frozen base."""
    model = tuned_model(case, {}, train=['.*'])
    return case.contestant(model, save_state(model))


def head_only(case: Case) -> Contestant:
    """The head alone."""
    if case.is_detection:
        return tuned(case, {})
    model = case.build(case.config())
    model.backbone.requires_grad_(False)
    return case.contestant(model, save_state(model.head))


def tuned_model(case: Case,
                tuning: dict,
                train: tuple = (),
                **switches) -> nn.Module:
    """The case's model in its ET host; of a detector, the head is trained
    unless ``train`` says what."""
    config = case.config()
    if train or case.is_detection:
        tuning = dict(tuning, train=train or ['bbox_head'])
    if case.is_detection:
        config.update(type=f'ET{config.type}', tuning=tuning, **switches)
    else:
        config.backbone.update(
            type='ETVisionTransformer', tuning=tuning, **switches)
    return case.build(config)


def tuned(case: Case, tuning: dict, **switches) -> Contestant:
    """A tuned model: of a detector, the head is trained too."""
    model = tuned_model(case, tuning, **switches)
    return case.contestant(model, lambda path: save_tuned(model, path))


def etta_cached(case: Case) -> Contestant:
    """ETTA behind the feature cache, which knows the training batch from the
    first step on."""
    model = tuned_model(case, etta())
    folder = TemporaryDirectory()
    CachedFeatures(model, FeatureCache(folder.name)).attach()

    def save(path: Path, folder=folder) -> None:  # keeps the folder alive
        save_tuned(model, path)

    return case.contestant(model, save)


def floor(case: Case) -> Contestant:
    """ETTA's model with one scalar in the place of the lowest tuner."""
    model = to_floor(tuned_model(case, etta()))
    return case.contestant(model, lambda path: torch.save({}, path))


def hf_peft_lora(case: Case) -> Contestant:
    """peft's LoRA with as many parameters as ETTA's tuners have."""
    model = tuned_model(replace(case, device='meta'), etta())
    return peers.hf_peft_lora(
        case,
        sum(p.numel() for name, p in model.named_parameters()
            if '.tuners.' in name))


def fast_cpu(method: Callable[[Case], Contestant]) -> Callable:
    """``method`` with the sampling of :mod:`etta_mm.fast_cpu`, and that of
    the other methods of the process left as it is."""

    def contestant(case: Case) -> Contestant:
        plain = method(case)
        return replace(
            plain,
            loss=fast_sampling()(plain.loss),
            infer=lambda batch: fast_sampling()(plain.infer(batch)))

    return contestant


def _of(tuning: dict, **switches) -> Callable[[Case], Contestant]:
    return lambda case: tuned(case, tuning, **switches)


#: The methods by name, in the order of the tables.
METHODS: Dict[str, Callable[[Case], Contestant]] = dict(
    base=base,
    floor=floor,
    head=head_only,
    etta=_of(etta()),
    etta_cached=etta_cached,
    etta_unfolded=_of(etta(), fold_norms=False),
    etta_with_cp=_of(etta(), with_cp=True),
    etta_with_cp_6=_of(etta(), with_cp=6),
    serial=_of(dict(ffn=dict(type='SerialAdapter', bottleneck_dims=400))),
    lora=_of(dict(attn=dict(type='LoRA', rank=peers.RANK))),
    prefix=_of(dict(attn=dict(type='Prefix', num_prefix=50))),
    full=full,
    full_et=full_et,
    floor_fast_cpu=fast_cpu(floor),
    etta_fast_cpu=fast_cpu(_of(etta())),
    full_fast_cpu=fast_cpu(full),
    hf_peft_lora=hf_peft_lora,
    mmpretrain_lora=peers.mmpretrain_lora,
)


def methods_of(case: Case) -> list:
    """Names of the methods that exist for ``case``."""
    absent = ({'mmpretrain_lora'} if case.is_detection else
              {'etta_cached', 'etta_unfolded'})
    if case.device != 'cpu' or not case.name.startswith('deformable'):
        absent |= {name for name in METHODS if name.endswith('_fast_cpu')}
    return [name for name in METHODS if name not in absent]
