"""Every shipped config: it builds at its real size, and its header is true.

Models are built on the meta device, which knows shapes and holds no numbers, so
ViT-L/16 and DETR-R101 cost neither memory nor a download. Nothing here needs
data or weights on disk.
"""
import ast
import copy
import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (DATASETS, HOOKS, METRICS, MODELS,
                               PARAM_SCHEDULERS, TRANSFORMS, DefaultScope)
from mmengine.runner import Runner, load_checkpoint
from mmengine.utils import get_installed_path
from torch import nn
from torch.testing import assert_close

from etta_mm import TunedHost, count_parameters
from etta_mm.data.check import check_dataset
from etta_mm.data.check_evaluator import check_evaluator
from etta_mm.tuners import Tuner

ROOT = Path(__file__).parents[1] / 'configs'
ALL = sorted(
    str(path.relative_to(ROOT)) for path in ROOT.rglob('*.py')
    if not {'_base_', 'comparison'} & set(path.parts))  # plans: elsewhere
ETTA = [name for name in ALL if name.startswith('etta/')]
TWINS = [name for name in ETTA if name.endswith('_bigdetection.py')]
#: The configs that inherit the zoo directly.
ZOO = {
    'etta/et_deformable_detr_coco.py':
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'etta/et_deformable_detr_refine_coco.py':
    'mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    'etta/et_deformable_detr_twostage_coco.py':
    'mmdet::deformable_detr/'
    'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'etta/et_detr_r101_coco.py':
    'mmdet::detr/detr_r101_8xb2-500e_coco.py',
    'etta/et_detr_r50_coco.py':
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'etta/et_vit_l16_imagenet.py':
    'mmpretrain::vision_transformer/vit-large-p16_64xb64_in1k-384px.py',
}
WITHOUT_ZOO_WEIGHTS = ['etta/et_detr_r101_coco.py']
DATA_KEYS = [
    f'{split}_{part}' for split in ('train', 'val', 'test')
    for part in ('dataloader', 'evaluator', 'pipeline')
]
MOST_CODE_LINES = 20
TUNING = dict(  # the paper's best split: b = 400, l = 50
    ffn=[dict(type='ParallelAdapter', bottleneck_dims=400)],
    attn=[dict(type='ScaledPrefix', num_prefix=50)])
TRAINED = re.compile(
    r'^# Trained: ([\d,]+ of [\d,]+ parameters) \(([\d.]+) %\)$', re.MULTILINE)
NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?')
STEPS = 6000  # of a whole training; the warm-up takes 500
NUM_BIGDETECTION = 600
IMAGE_SIZE = (48, 64)  # pixels, height and width


@lru_cache(maxsize=None)
def parse(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def build(cfg: Config, device: str = 'meta') -> nn.Module:
    """The model of ``cfg``, built as the Runner builds it."""
    model = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with scope(cfg), torch.device(device):
        return MODELS.build(model)


@lru_cache(maxsize=None)
def meta_model(name: str) -> nn.Module:
    # Those of the embedded benchmark are small; mmpretrain's ResNet reads a
    # number of its own while it is built, and meta tensors have none.
    return build(parse(name), 'cpu' if name.startswith('glyphs/') else 'meta')


def scope(cfg: Config):
    return DefaultScope.overwrite_default_scope(cfg.default_scope)


def found(value, key: str):
    """What stands under ``key`` in ``value``, however deep."""
    if isinstance(value, dict):
        for k, v in value.items():
            if k == key:
                yield v
            yield from found(v, key)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from found(v, key)


def leaves(value):
    """What ``value`` holds that is neither a dict nor a list. The names of
    classes are left out: they may be digits."""
    if isinstance(value, dict):
        value = [v for k, v in value.items() if k != 'metainfo']
    if isinstance(value, (str, bytes)) or not hasattr(value, '__iter__'):
        yield value
    else:
        for v in value:
            yield from leaves(v)


def lookup(registry, name: str):
    """What ``name`` stands for in the default scope, or None."""
    with registry.switch_scope_and_registry(None) as here:
        return here.get(name)


def without(value, *keys: str):
    """A plain copy of ``value`` without ``keys`` and mmengine's own marks."""
    if isinstance(value, dict):
        return {
            k: without(v)
            for k, v in value.items() if k not in (*keys, '_scope_')
        }
    if isinstance(value, (list, tuple)):
        return [without(v) for v in value]
    return value


# Every config


@pytest.mark.parametrize('name', ALL)
def test_config_inherits(name):
    tree = ast.parse((ROOT / name).read_text())
    assigned = {
        target.id
        for node in tree.body if isinstance(node, ast.Assign)
        for target in node.targets if isinstance(target, ast.Name)
    }
    assert '_base_' in assigned


@pytest.mark.parametrize('name', ALL)
def test_numbers_are_no_strings(name):
    texts = [v for v in leaves(parse(name).to_dict()) if isinstance(v, str)]
    assert [text for text in texts if NUMBER.fullmatch(text)] == []


@pytest.mark.parametrize('name', ALL)
def test_model_builds_at_its_real_size(name):
    model = meta_model(name)
    assert count_parameters(model).trainable > 0
    tuned = list(found(parse(name).model, 'tuning'))
    assert len(tuned) == sum(
        isinstance(m, TunedHost) for m in model.modules())


@pytest.mark.parametrize('name', ALL)
def test_data_hooks_and_metrics_exist(name):
    cfg = parse(name)
    with scope(cfg):
        for loader in (cfg.train_dataloader, cfg.val_dataloader,
                       cfg.test_dataloader):
            for dataset in found(dict(loader=loader), 'dataset'):
                assert lookup(DATASETS, dataset['type']) is not None
            for transform in (t for p in found(loader, 'pipeline') for t in p):
                TRANSFORMS.build(transform)
        for hook in cfg.get('custom_hooks', []):
            HOOKS.build(hook)
        for metric in (cfg.val_evaluator, cfg.test_evaluator):
            for kind in found(metric, 'type'):
                assert lookup(METRICS, kind) is not None


@pytest.mark.parametrize('name', ALL)
def test_learning_rate_ends_with_the_training(name):
    cfg = parse(name)
    epoch_length = STEPS // cfg.train_cfg.max_epochs
    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=1.)
    schedulers = []
    for scheduler in copy.deepcopy(cfg.param_scheduler):
        with scope(cfg):
            cls = lookup(PARAM_SCHEDULERS, scheduler.pop('type'))
        if scheduler.pop('convert_to_iter_based', False):
            schedulers.append(
                cls.build_iter_from_epoch(
                    optimizer, epoch_length=epoch_length, **scheduler))
        else:
            schedulers.append(cls(optimizer, **scheduler))
    rates = []
    for step in range(1, cfg.train_cfg.max_epochs * epoch_length + 1):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or step % epoch_length == 0:
                scheduler.step()
    assert 0.8 < max(rates) <= 1  # relative to the config's
    assert rates[-1] < 0.11  # a step by ten, or a cosine
    assert rates.index(max(rates)) < len(rates) / 2


@pytest.mark.parametrize('name', ALL)
def test_header_tells_what_is_trained(name):
    headers = TRAINED.findall((ROOT / name).read_text())
    assert len(headers) == 1 if name in ETTA else len(headers) <= 1
    for counts, percent in headers:
        report = count_parameters(meta_model(name))
        assert counts == f'{report.trainable:,} of {report.total:,} parameters'
        assert percent == f'{report.percent:.2f}'


# The paper's systems


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'etta').rglob('*.py')), ids=lambda p: p.name)
def test_config_is_short(path):
    lines = [line.strip() for line in path.read_text().splitlines()]
    code = [line for line in lines if line and not line.startswith('#')]
    assert len(code) <= MOST_CODE_LINES


@pytest.mark.parametrize('name', ETTA)
def test_tuning_is_the_papers_and_the_head_is_trained(name):
    model = meta_model(name)
    host, = (m for m in model.modules() if isinstance(m, TunedHost))
    assert {k: host.tuning[k] for k in TUNING} == TUNING
    head = model.bbox_head if hasattr(model, 'bbox_head') else model.head
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in head.parameters()} | {
        id(p)
        for m in model.modules() if isinstance(m, Tuner)
        for p in m.parameters()
    }


@pytest.mark.parametrize('name', ETTA)
def test_tuners_learn_at_the_rate_that_the_config_states(name):
    # The zoo's multipliers go by substrings of names.
    cfg, model = parse(name), meta_model(name)
    optimizer = cfg.optim_wrapper.optimizer
    with scope(cfg):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(p): n for n, p in model.named_parameters()}
    seen = set()
    for group, parameter in (
        (group, parameter) for group in wrapper.optimizer.param_groups
            for parameter in group['params']):
        is_detection_head = names[id(parameter)].startswith('bbox_head.')
        factor = 0.2 if is_detection_head else 1.
        assert group['lr'] == pytest.approx(optimizer.lr * factor)
        assert group['weight_decay'] == optimizer.weight_decay
        seen.add(id(parameter))
    assert seen == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize('name', ETTA)
def test_report_and_tuned_checkpoint_are_switched_on(name):
    hooks = [hook['type'] for hook in parse(name).custom_hooks]
    assert hooks == ['ParameterReportHook', 'TunedCheckpointHook']


# Against the zoo


@pytest.mark.parametrize('name', ZOO)
def test_only_the_tuning_is_added_to_the_zoos_model(name):
    ours = without(parse(name).model)
    zoo = without(get_config(ZOO[name]).model)
    if 'bbox_head' in zoo:
        ours, zoo = without(ours, 'type', 'tuning'), without(zoo, 'type')
        # What init_cfg would fetch, load_from replaces.
        assert ours['backbone'].pop('init_cfg') is None
        zoo['backbone'].pop('init_cfg')
    else:
        ours['backbone'] = without(ours['backbone'], 'type', 'tuning')
        zoo['backbone'] = without(zoo['backbone'], 'type')
    assert ours == zoo


@pytest.mark.parametrize('name', ZOO)
def test_data_is_the_zoos(name):
    ours, zoo = parse(name), get_config(ZOO[name])
    for key in DATA_KEYS:
        if key in zoo:  # 8 GPUs x 32 is the batch of the ViT's learning rate
            allowed = ['batch_size'] if 'vit' in name else []
            assert without(ours[key], *allowed) == without(zoo[key], *allowed)


@pytest.mark.parametrize('name', ZOO)
def test_training_starts_from_the_zoos_checkpoint(name):
    package, _, path = ZOO[name].partition('::')
    folder = Path(get_installed_path(package), '.mim', 'configs')
    models = mmengine.load((folder / path).parent / 'metafile.yml')['Models']
    urls = [m['Weights'] for m in models if m['Config'] == f'configs/{path}']
    load_from = parse(name).load_from
    if name in WITHOUT_ZOO_WEIGHTS:  # if the zoo gets them, take them
        assert urls == [] and load_from == f'checkpoints/{Path(path).stem}.pth'
    else:
        # Each distribution has a host of its own; the name ends in a checksum.
        assert [Path(load_from).name] == [Path(url).name for url in urls]


@pytest.mark.parametrize('name', TWINS)
def test_twin_is_its_coco_config_with_600_classes(name):
    twin = parse(name)
    coco = parse(name.replace('_bigdetection', '_coco'))
    expected = copy.deepcopy(coco.model)
    expected.bbox_head.num_classes = NUM_BIGDETECTION
    assert without(twin.model) == without(expected)
    assert twin.load_from == coco.load_from
    assert twin.optim_wrapper == coco.optim_wrapper


# Other classes


def test_custom_head_is_new_and_everything_else_is_loaded(tmp_path):
    zoo = build(get_config(ZOO['etta/et_deformable_detr_coco.py']), 'cpu')
    model = build(parse('etta/et_deformable_detr_custom.py'), 'cpu')
    check_loading(zoo, model, tmp_path, r'bbox_head\.cls_branches\..*')


@pytest.mark.parametrize(
    'name', ['etta/et_vit_l16_cifar100.py', 'etta/et_vit_l16_custom.py'])
def test_head_of_a_vit_is_new_and_everything_else_is_loaded(name, tmp_path):
    small = dict(  # the names are those of ViT-L/16
        embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16)
    models = []
    for cfg in (get_config(ZOO['etta/et_vit_l16_imagenet.py']),
                parse(name)):
        cfg = copy.deepcopy(cfg)
        cfg.model.backbone.arch = small
        cfg.model.head.in_channels = 8
        models.append(build(cfg, 'cpu'))
    check_loading(*models, tmp_path, r'head\.layers\.head\..*')


def check_loading(zoo: nn.Module, model: nn.Module, tmp_path: Path,
                  new: str) -> None:
    """Load the weights of ``zoo`` as the Runner does, and compare them all.

    Args:
        zoo (nn.Module): The model of the checkpoint.
        model (nn.Module): The tuned model with other classes.
        tmp_path (Path): Where the checkpoint goes.
        new (str): What the names of the new tensors match.
    """
    state = zoo.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.uniform_()
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'zoo.pth')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_checkpoint(model, str(tmp_path / 'zoo.pth'), strict=False)
    after = model.state_dict()
    fresh = [k for k in state if state[k].shape != before[k].shape]
    assert fresh and all(re.fullmatch(new, key) for key in fresh)
    for key, tensor in after.items():
        loaded = key in state and key not in fresh
        assert_close(tensor, state[key] if loaded else before[key], rtol=0,
                     atol=0)
    tuners = {k for k in after if '.tuners.' in k}
    assert set(after) - set(state) == tuners


def write_coco(ann_file: str, folder: str, names: list) -> None:
    """One image with one box of the last class, in COCO's format."""
    height, width = IMAGE_SIZE
    for path in (Path(ann_file).parent, Path(folder)):
        path.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(f'{folder}/0.jpg', np.zeros((height, width, 3), np.uint8))
    Path(ann_file).write_text(
        json.dumps(
            dict(
                images=[
                    dict(id=0, file_name='0.jpg', height=height, width=width)
                ],
                annotations=[
                    dict(
                        id=0, image_id=0, category_id=len(names), iscrowd=0,
                        bbox=[0, 0, width, height], area=width * height)
                ],
                categories=[
                    dict(id=i, name=name) for i, name in enumerate(names, 1)
                ])))


def check_data(cfg: Config, names: list, num_images: int) -> None:
    """Read the data in the working directory as a training run does."""
    with scope(cfg):
        for split in ('train', 'val', 'test'):
            loader = copy.deepcopy(cfg[f'{split}_dataloader'])
            check_dataset(loader.dataset, split)
            loader.update(num_workers=0, persistent_workers=False)
            loader = Runner.build_dataloader(loader, seed=0)
            assert list(loader.dataset.metainfo['classes']) == names
            samples = [s for batch in loader for s in batch['data_samples']]
            assert len(samples) == (num_images if split == 'train' else 1)
            assert all(
                s.gt_instances.labels.tolist() == [len(names) - 1]
                for s in samples)
        for split in ('val', 'test'):
            evaluator = cfg[f'{split}_evaluator']
            check_evaluator(evaluator, split)
            METRICS.build(evaluator)


def test_custom_config_reads_data_where_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ('train', 'val'):
        write_coco(f'data/custom/annotations/{split}.json',
                   f'data/custom/{split}', ['cat', 'dog'])
    check_data(parse('etta/et_deformable_detr_custom.py'), ['cat', 'dog'], 1)


def test_custom_config_of_a_vit_reads_a_folder_for_each_class(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = parse('etta/et_vit_l16_custom.py')
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            folder = Path('data/custom', split, name)
            folder.mkdir(parents=True)
            cv2.imwrite(f'{folder}/1.jpg', np.zeros((*IMAGE_SIZE, 3), np.uint8))
    with scope(cfg):
        for split in ('train', 'val', 'test'):
            loader = copy.deepcopy(cfg[f'{split}_dataloader'])
            check_dataset(loader.dataset, split)
            loader.update(num_workers=0, persistent_workers=False)
            loader = Runner.build_dataloader(loader, seed=0)
            samples = [s for batch in loader for s in batch['data_samples']]
            assert sorted(s.gt_label.item() for s in samples) == [0, 1]
        scores = samples[0].set_pred_score([0.9, 0.1])  # two classes, no top 5
        metric = METRICS.build(cfg.val_evaluator)
        metric.process({}, [scores.to_dict()])
        assert list(metric.compute_metrics(metric.results)) == ['top1']


@pytest.mark.parametrize('name, parent, metric', [
    ('et_deformable_detr_custom', 'et_deformable_detr_coco', 'coco/bbox_mAP'),
    ('et_vit_l16_custom', 'et_vit_l16_imagenet', 'accuracy/top1'),
])
def test_a_custom_config_is_for_the_batch_of_one_gpu(name, parent, metric):
    cfg, parent = parse(f'etta/{name}.py'), parse(f'etta/{parent}.py')
    images = cfg.auto_scale_lr.base_batch_size
    assert cfg.train_dataloader.batch_size == images
    # Whoever edits the batch alone is told that the rate is for another.
    file = ROOT / f'etta/{name}.py'
    assert f'base_batch_size={images}' in file.read_text()
    ratio = images / parent.auto_scale_lr.base_batch_size
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(
        parent.optim_wrapper.optimizer.lr * ratio**0.5, rel=0.02)
    epochs = cfg.train_cfg.max_epochs
    assert cfg.param_scheduler[1].T_max == cfg.param_scheduler[1].end == epochs
    checkpoint = cfg.default_hooks.checkpoint
    assert (checkpoint.interval, checkpoint.save_best) == (1, metric)


def test_bigdetection_is_read_after_the_step_that_is_documented(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f'class {i}' for i in range(NUM_BIGDETECTION)]
    for file, folder in dict(
            bigdet_obj_train='train/Objects365',
            bigdet_oid_train='train/OpenImages',
            bigdet_lvis_train='train/LVIS',
            bigdet_val='val').items():
        write_coco(f'data/BigDetection/annotations/{file}.json',
                   f'data/BigDetection/{folder}', names)
    base = (ROOT / 'etta/_base_/bigdetection.py').read_text()
    step = re.findall(r'^#   (.*)$', base, re.MULTILINE)
    folder = Path(sys.executable).parent
    subprocess.run(['bash', '-ec', '\n'.join(step)], check=True,
                   env={**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}'})
    # The other twins inherit their loaders.
    for name in ('et_deformable_detr', 'et_detr_r50'):
        check_data(parse(f'etta/{name}_bigdetection.py'), names, 3)
