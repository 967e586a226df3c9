"""The feature cache: the same training without backbone and neck.

What is cached is known by the prepared image, so the laws are about what makes
it another one, and about what must never be cached.
"""
import copy
import errno
import itertools
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hosts import HOSTS, loss, prepare
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict
from safetensors.torch import load, save
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from etta_mm.checkpoints.fingerprint import tensors_fingerprint
from etta_mm.features import FeatureCacheHook
from etta_mm.features.cached_features import CachedFeatures
from etta_mm.features.feature_cache import GB, FeatureCache
from etta_mm.features.image_hash import image_hashes

TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=5),
    attn=dict(type='ScaledPrefix', num_prefix=3),
    train=['bbox_head'])
DETRS = ('detr', 'deformable', 'deformable_twostage', 'dab_detr')
EXACT = dict(rtol=0, atol=0)
#: Relative to the loss, and to the norm of all gradients.
HALF_LOSS, HALF_GRADIENT = 1e-3, 5e-3
NUM_IMAGES = 4
COUNT = itertools.count()  # runners of one name share a message hub


def tuned(name='detr', tuning=TUNING, **changes) -> nn.Module:
    """A tuned host with its base's weights, in training mode."""
    host = HOSTS[name]
    torch.manual_seed(1)
    model = host.build(copy.deepcopy(tuning))
    load_state_dict(model, host.base_weights())
    return model.train()


def cached(model, folder, **settings) -> CachedFeatures:
    return CachedFeatures(model, FeatureCache(folder, **settings)).attach()


def step(model, name='detr', batch=None):
    """The loss of a step and the gradients of all that is trained."""
    model.zero_grad()
    torch.manual_seed(5)  # the transformer's dropout
    value = loss(model, batch or HOSTS[name].batch())
    value.backward()
    return value.detach(), {
        n: p.grad.clone()
        for n, p in model.named_parameters() if p.grad is not None
    }


def images(model, name='detr'):
    return prepare(model, HOSTS[name].batch(), True)['inputs']


def count_calls(module) -> list:
    calls = []
    module.register_forward_hook(lambda *args: calls.append(1))
    return calls


def files(folder) -> list:
    return sorted(Path(folder).rglob('*.safetensors'))


@pytest.mark.parametrize('name', DETRS)
def test_losses_and_gradients_in_single_precision_are_those_without(
        name, tmp_path):
    model = tuned(name)
    expected = step(model, name)
    cached(model, tmp_path, dtype='float32')
    for _ in ('written', 'read'):
        assert_close(step(model, name), expected, **EXACT)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('name', DETRS)
def test_losses_and_gradients_in_half_precision_are_close(
        name, dtype, tmp_path):
    model = tuned(name)
    expected, expected_grads = step(model, name)
    cached(model, tmp_path, dtype=dtype)
    value, grads = step(model, name)
    assert_close(value, expected, rtol=HALF_LOSS, atol=0)
    difference = _norm({n: grads[n] - g for n, g in expected_grads.items()})
    assert 0 < difference < HALF_GRADIENT * _norm(expected_grads)


def _norm(tensors: dict) -> float:
    return sum(t.square().sum() for t in tensors.values()).sqrt().item()


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
def test_a_step_is_the_same_whether_the_features_are_written_or_read(
        dtype, tmp_path):
    model = tuned()
    cached(model, tmp_path, dtype=dtype)
    assert_close(step(model), step(model), **EXACT)


def test_the_second_epoch_calls_neither_backbone_nor_neck(tmp_path):
    model = tuned()
    features = cached(model, tmp_path)
    calls = count_calls(model.backbone), count_calls(model.neck)
    for _ in range(3):
        step(model)
    assert [len(c) for c in calls] == [1, 1]
    assert (features.hits, features.misses) == (4, 2)


def test_another_run_finds_what_this_one_wrote(tmp_path):
    model, other = tuned(), tuned()
    cached(model, tmp_path)
    expected = step(model)
    calls = count_calls(other.backbone)
    cached(other, tmp_path)
    assert_close(step(other), expected, **EXACT)
    assert not calls


def test_only_what_is_missing_is_computed(tmp_path):
    model = tuned()
    features = cached(model, tmp_path, dtype='float32')
    batch = images(model)
    expected = type(model).extract_feat(model, batch)
    model.extract_feat(batch[1:])
    assert_close(model.extract_feat(batch), expected, rtol=1e-5, atol=1e-6)
    assert (features.hits, features.misses) == (1, 2)


def test_the_order_in_memory_is_that_of_the_neck(tmp_path):
    model = tuned()
    batch = images(model)
    expected = type(model).extract_feat(model, batch)
    cached(model, tmp_path)
    for _ in ('written', 'read'):
        strides = [f.stride() for f in model.extract_feat(batch)]
        assert strides == [f.stride() for f in expected]


@pytest.mark.parametrize('change', [
    lambda x: x.flip(-1), lambda x: x + 1e-3, lambda x: x.double(),
    lambda x: nn.functional.pad(x, (0, 32))
], ids=['flipped', 'brighter', 'another type', 'padded'])
def test_another_image_is_a_miss(change, tmp_path):
    model = tuned()
    features = cached(model, tmp_path)
    batch = images(model)
    model.extract_feat(batch)
    features.hits = features.misses = 0
    changed = change(batch)
    model.to(changed.dtype).extract_feat(changed)
    assert (features.hits, features.misses) == (0, len(batch))


@pytest.mark.parametrize('part', ['backbone.layer1.0.conv1.weight',
                                  'backbone.layer1.0.bn1.running_mean',
                                  'neck.convs.0.conv.weight'])
def test_another_base_is_a_miss_even_when_it_is_loaded_later(part, tmp_path):
    model = tuned()
    features = cached(model, tmp_path)
    model.extract_feat(images(model))
    with torch.no_grad():
        model.state_dict()[part].view(-1)[0] += 1
    features.hits = features.misses = 0
    model.extract_feat(images(model))
    assert features.hits == 0


def test_other_settings_with_the_same_weights_are_a_miss(tmp_path):
    model, other = tuned(), tuned()
    other.backbone.layer4[0].conv1.dilation = (2, 2)
    names = {cached(m, tmp_path)._base_name() for m in (model, other)}
    assert len(names) == 2


class OnCuda(torch.Tensor):
    """Says that it is on a GPU."""
    is_cuda = True


def test_the_keys_of_a_gpu_are_made_there(tmp_path):
    model = tuned()
    features, batch = cached(model, tmp_path), images(model)
    name = features._base_name()
    assert features._keys(batch) == [
        tensors_fingerprint({name: image}) for image in batch
    ]
    assert features._keys(batch.as_subclass(OnCuda)) == image_hashes(
        name, batch)


def test_another_head_or_tuner_is_a_hit(tmp_path):
    model = tuned()
    features = cached(model, tmp_path)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model)
    optimizer.step()
    step(model)
    assert features.hits == 2


def test_autocast_and_the_type_of_the_cache_are_part_of_the_key(tmp_path):
    model = tuned()
    batch = images(model)
    cached(model, tmp_path)
    model.extract_feat(batch)
    coarse = cached(model, tmp_path, dtype='bfloat16')
    model.extract_feat(batch)
    with torch.autocast('cpu', torch.bfloat16):
        model.extract_feat(batch)
    assert coarse.hits == 0
    assert len(files(tmp_path)) == 3 * len(batch)


def test_features_come_back_in_the_type_of_autocast(tmp_path):
    model = tuned()
    batch = images(model)
    cached(model, tmp_path)
    with torch.autocast('cpu', torch.bfloat16):
        expected = type(model).extract_feat(model, batch)
        for _ in ('written', 'read'):
            given = model.extract_feat(batch)
            assert [f.dtype for f in given] == [f.dtype for f in expected]


@pytest.mark.parametrize('kept', [0, 5, 0.5, -1])
def test_a_file_cut_short_is_a_miss_and_is_written_again(kept, tmp_path):
    model = tuned()
    cached(model, tmp_path)
    expected = step(model)
    for path in files(tmp_path):
        whole = path.read_bytes()
        end = int(kept * len(whole)) if kept == 0.5 else kept
        path.write_bytes(whole[:end])
    again = cached(model, tmp_path)
    assert_close(step(model), expected, **EXACT)
    assert again.misses == 2
    step(model)
    assert again.hits == 2


def overwritten(whole: bytes) -> bytes:
    return whole[:-110] + bytes(range(100)) + whole[-10:]


@pytest.mark.parametrize('damage', [
    overwritten,
    lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
    lambda whole: whole.replace(b'[1,8,2,3]', b'[1,8,3,2]'),
    lambda whole: whole.replace(b'0.float32', b'0.float16'),
    lambda whole: whole.replace(b'0.float32', b'0.floaT32'),
    lambda whole: whole.replace(b'"F16"', b'"I16"'),
    lambda whole: save(load(whole)),
], ids=['100 bytes', 'a bit', 'a shape', 'a type', 'no type', 'a stored type',
        'without a checksum'])
def test_a_damaged_file_is_a_miss_and_is_written_again(damage, tmp_path):
    cache = FeatureCache(tmp_path)
    features = [torch.randn(1, 8, 2, 3), torch.randn(1, 8, 1, 1)]
    expected = cache.write('ab', features)
    whole = cache.path('ab').read_bytes()
    assert damage(whole) != whole
    cache.path('ab').write_bytes(damage(whole))
    assert cache.read(['ab'])[0] is None
    cache.write('ab', features)
    assert_close(cache.read(['ab'])[0], expected, **EXACT)


def test_each_of_several_processes_has_its_share_of_the_room(
        tmp_path, monkeypatch):
    monkeypatch.setattr('etta_mm.features.feature_cache.get_world_size',
                        lambda: 4)
    assert FeatureCache(tmp_path, max_gb=2)._left == 0.5 * GB


def test_the_key_knows_the_types_and_the_classes_of_the_base(tmp_path):
    rounded, cache = tuned().half().float(), FeatureCache(tmp_path)
    names = [CachedFeatures(model, cache)._base_name()
             for model in (rounded, copy.deepcopy(rounded).half())]
    rounded.neck.activation = nn.Sigmoid()
    names.append(CachedFeatures(rounded, cache)._base_name())
    rounded.neck.activation = nn.Tanh()
    names.append(CachedFeatures(rounded, cache)._base_name())
    assert len(set(names)) == 4


def test_bits_of_another_type_are_other_tensors():
    x = torch.randn(5)
    assert tensors_fingerprint({'x': x}) != tensors_fingerprint(
        {'x': x.view(torch.int32)})


def test_a_file_that_cannot_be_read_is_a_miss(tmp_path, monkeypatch):
    """Such as one that another client of a network file system replaces."""
    cache = FeatureCache(tmp_path)
    cache.write('ab', [torch.randn(1, 8, 2, 3)])

    def stale(path):
        raise OSError(errno.ESTALE, 'Stale file handle')

    monkeypatch.setattr(Path, 'read_bytes', stale)
    assert cache.read(['ab']) == [None]


def test_a_file_that_is_written_again_takes_no_more_room(tmp_path, logged):
    features = [torch.randn(1, 8, 20, 20)]
    first = FeatureCache(tmp_path)
    for key in ('ab', 'cd'):
        first.write(key, features)
    size = first.num_bytes()
    for path in files(tmp_path):
        path.write_bytes(overwritten(path.read_bytes()))
    again = FeatureCache(tmp_path, max_gb=(size + 1) / GB)
    for key in ('ab', 'cd'):
        again.write(key, features)
        assert again.read([key])[0] is not None
    assert again.num_bytes() == size and not logged()


def test_features_come_in_the_order_of_their_keys(tmp_path):
    """Files of all sizes, which take their time, and none for some keys."""
    cache = FeatureCache(tmp_path, dtype='float32')
    sizes = [2**19, 1, 0, 2**16, 1, 2**19, 0, 0, 1, 2**18, 1, 1]
    keys = [f'{i:02x}' for i in range(len(sizes))]
    expected = [
        cache.write(key, [torch.full((1, size), float(i))]) if size else None
        for i, (key, size) in enumerate(zip(keys, sizes))
    ]
    assert_close(cache.read(keys), expected, **EXACT)
    assert cache.read([]) == []


def test_features_go_to_the_device_as_they_are_stored(tmp_path):
    cache = FeatureCache(tmp_path)
    given = torch.randn(1, 2, 3, 4).contiguous(
        memory_format=torch.channels_last)
    cache.write('ab', [given])
    with RecordedMoves() as moves:
        feature, = cache.read(['ab'], 'meta')[0]
    assert feature.is_meta and feature.dtype == given.dtype
    assert feature.stride() == given.stride()
    assert moves.found == [torch.float16]


class RecordedMoves(TorchDispatchMode):
    """The types in which tensors leave the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if torch.is_tensor(result) and result.is_meta and any(
                torch.is_tensor(a) and not a.is_meta for a in args):
            self.found.append(result.dtype)
        return result


def test_a_validation_neither_reads_nor_writes(tmp_path):
    model = tuned().eval()
    batch = images(model)
    expected = model.extract_feat(batch)
    model.train()
    cached(model, tmp_path)
    model.eval()
    assert_close(model.extract_feat(batch), expected, **EXACT)
    assert not files(tmp_path)


def test_a_full_cache_takes_no_more_and_the_training_goes_on(
        tmp_path, logged):
    model = tuned()
    cached(model, tmp_path)
    expected = step(model)
    size = files(tmp_path)[0].stat().st_size
    other = tmp_path / 'small'
    small = cached(model, other, max_gb=1.5 * size / GB)
    for _ in range(3):
        assert_close(step(model), expected, **EXACT)
    assert len(files(other)) == 1 and small.cache.num_bytes() == size
    assert (small.hits, small.misses) == (2, 4)
    assert sum('takes no more images' in line for line in logged()) == 1


def test_the_files_of_other_runs_count_against_the_limit(tmp_path):
    model = tuned()
    cached(model, tmp_path)
    step(model)
    taken = FeatureCache(tmp_path).num_bytes()
    (tmp_path / 'ab').mkdir(exist_ok=True)
    cache = FeatureCache(tmp_path, max_gb=taken / GB)
    cache.write('ab', [torch.zeros(1, 3, 4, 4)])
    assert cache.read(['ab'])[0] is None and cache.num_bytes() == taken


def test_a_feature_beyond_half_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1e\\+05 is too large.*'bfloat16'"):
        FeatureCache(tmp_path).write('ab', [torch.tensor([1e5])])
    FeatureCache(tmp_path, dtype='bfloat16').write('ab', [torch.tensor([1e5])])


@pytest.mark.parametrize('settings,message', [
    (dict(dtype='int8'), "dtype='int8' cannot be stored"),
    (dict(max_gb=0), 'max_gb=0 must be a positive number'),
    (dict(max_gb=True), 'max_gb=True must be'),
    (dict(max_gb='1'), "max_gb='1' must be"),
])
def test_a_wrong_setting_is_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        FeatureCache(tmp_path, **settings)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='cannot be made'):
        FeatureCache(tmp_path / 'file' / 'below')


# ------------------------------------------------------ what is not cacheable
@pytest.mark.parametrize('train,message', [
    ('backbone', 'backbone of ETDETR holds trained parameters '
     r'\(backbone.conv1.weight, '),
    ('neck', 'neck of ETDETR holds trained parameters'),
    (r'backbone\..*\.bn1\.weight', r'bn1.weight and \d+ more'),
])
def test_a_trained_backbone_or_neck_is_refused(train, message, tmp_path):
    tuning = dict(TUNING, train=['bbox_head', train])
    with pytest.raises(ValueError, match=message):
        cached(tuned(tuning=tuning), tmp_path)


def test_moving_statistics_are_refused(tmp_path):
    model = tuned()
    model.backbone.layer1.insert(0, nn.BatchNorm2d(4).requires_grad_(False))
    with pytest.raises(ValueError, match='norms with moving statistics '
                       r'\(backbone.layer1.0\)'):
        cached(model, tmp_path)


@pytest.mark.parametrize('module', [nn.Dropout2d(0.1), nn.Dropout(0.5)])
def test_dropout_in_the_backbone_is_refused(module, tmp_path):
    model = tuned()
    model.backbone.layer1.insert(0, module)
    with pytest.raises(ValueError, match='dropout or random depth'):
        cached(model, tmp_path)


def test_dropout_that_is_off_is_cached(tmp_path):
    model = tuned()
    model.backbone.layer1.insert(0, nn.Dropout(0.0))
    cached(model, tmp_path)


class Noise(nn.Module):
    """Random, which no attribute tells."""

    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_backbone_that_draws_random_numbers_is_refused(tmp_path):
    model = tuned()
    model.backbone.layer1.insert(0, Noise())
    cached(model, tmp_path)
    with pytest.raises(ValueError, match='draw random numbers'):
        step(model)
    assert not files(tmp_path)


@pytest.mark.parametrize('unfreeze', [
    lambda m: m.backbone.conv1.weight.requires_grad_(True),
    lambda m: m.neck.convs[0].conv.weight.requires_grad_(True)
])
def test_a_backbone_unfrozen_during_the_training_is_refused(
        unfreeze, tmp_path):
    model = tuned()
    cached(model, tmp_path)
    step(model)
    unfreeze(model)
    with pytest.raises(ValueError, match='holds trained parameters'):
        step(model)


@pytest.mark.parametrize('name', ['vit', 'vit_detector'])
def test_a_backbone_with_tuners_is_refused(name, tmp_path):
    tuning = {k: v for k, v in TUNING.items() if k != 'train'}
    with pytest.raises(ValueError, match='backbone of .* holds tuners'):
        cached(tuned(name, tuning), tmp_path)


def test_a_model_without_backbone_is_refused(tmp_path):
    with pytest.raises(ValueError, match='Linear has no backbone'):
        cached(nn.Linear(1, 1), tmp_path)


# ------------------------------------------------------------------- the hook
@DATASETS.register_module()
class FewImages(torch.utils.data.Dataset):
    """Images of one size, the same in every epoch or not."""
    metainfo = dict(classes=('a', 'b', 'c'))

    def __init__(self, is_random: bool = False):
        self.is_random = is_random
        self.sample = HOSTS['detr'].batch()['data_samples'][0]
        self.sample.set_metainfo(dict(img_shape=(32, 48)))

    def __len__(self):
        return NUM_IMAGES

    def __getitem__(self, index):
        generator = None if self.is_random else torch.Generator().manual_seed(
            index)
        image = torch.randint(256, (3, 32, 48), generator=generator)
        return dict(
            inputs=image.byte(), data_samples=copy.deepcopy(self.sample))


def runner(folder, hook=True, is_random=False, **train_cfg) -> Runner:
    """A training of the tiny DETR in mmengine's Runner, from its base."""
    base = folder / 'base.pth'
    if not base.exists():
        torch.save(HOSTS['detr'].base_weights(), base)
    work_dir = folder / f'run-{next(COUNT)}'
    model = HOSTS['detr'].config()
    model.update(type='ETDETR', tuning=TUNING)
    hooks = [dict(type='FeatureCacheHook', folder=str(folder / 'cache'))]
    return Runner.from_cfg(Config(dict(
        model=model,
        work_dir=str(work_dir),
        load_from=str(base),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            collate_fn=dict(type='pseudo_collate'),
            dataset=dict(type='FewImages', is_random=is_random),
            sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=train_cfg or dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=hooks if hook else [],
        randomness=dict(seed=0),
        default_scope='mmdet',
        experiment_name=work_dir.name)))


@pytest.fixture
def logged():
    """The messages of mmengine's current logger."""
    logging.disable(logging.NOTSET)
    lines = []
    logger = MMLogger.get_instance('feature_cache')
    logger.addHandler(handler := logging.Handler())
    handler.emit = lambda record: lines.append(record.getMessage())
    return lambda: lines


def train(folder, **kwargs) -> tuple:
    """Train; the runner, and the lines of its log about the cache."""
    logging.disable(logging.NOTSET)
    made = runner(folder, **kwargs)
    made.train()
    log, = Path(made.work_dir).rglob('*.log')
    return made, [
        line for line in log.read_text().splitlines() if 'eature cache' in line
    ]


@pytest.fixture(autouse=True)
def no_scope_is_left():
    yield
    DefaultScope._instance_dict.clear()


def test_training_with_the_hook_is_training_without_it_but_for_rounding(
        tmp_path):
    with_cache, _ = train(tmp_path)
    without, _ = train(tmp_path, hook=False)
    assert_close(with_cache.model.state_dict(), without.model.state_dict(),
                 rtol=1e-3, atol=1e-4)


def test_the_hook_computes_each_image_once_and_says_so(tmp_path):
    made = runner(tmp_path)
    calls = count_calls(made.model.backbone)
    made.train()
    assert len(calls) == NUM_IMAGES / 2
    _, lines = train(tmp_path)
    assert len(lines) == 3
    assert all(f'{NUM_IMAGES} of {NUM_IMAGES} images were known' in line
               for line in lines)


def test_the_model_is_as_it_was_after_the_training(tmp_path):
    made, _ = train(tmp_path)
    assert 'extract_feat' not in vars(made.model)


@pytest.mark.parametrize('train_cfg', [
    dict(by_epoch=True, max_epochs=4),
    dict(type='IterBasedTrainLoop', max_iters=8)
], ids=['by epoch', 'by iteration'])
def test_images_that_are_never_the_same_are_warned_of_once(
        train_cfg, tmp_path):
    _, lines = train(tmp_path, is_random=True, **train_cfg)
    assert sum('costs more than it saves' in line for line in lines) == 1


def test_the_warning_is_not_repeated_with_other_numbers(tmp_path, logged):
    # The logger itself drops a warning that is repeated word for word.
    hook = FeatureCacheHook(str(tmp_path))
    hook.features = cached(tuned(), tmp_path)
    loader = SimpleNamespace(dataset=range(NUM_IMAGES))
    for misses in range(NUM_IMAGES, NUM_IMAGES + 4):
        hook.features.misses = misses
        hook.after_train_iter(
            SimpleNamespace(
                train_dataloader=loader,
                logger=MMLogger.get_current_instance()))
    assert sum('costs more than it saves' in line for line in logged()) == 1


def test_each_epoch_is_reported_where_the_last_batch_is_dropped(tmp_path):
    logging.disable(logging.NOTSET)
    made = runner(tmp_path)
    made._train_dataloader.update(batch_size=3, drop_last=True)
    made.train()
    seen = NUM_IMAGES // 3 * 3
    assert seen < NUM_IMAGES
    log, = Path(made.work_dir).rglob('*.log')
    assert log.read_text().count(f'of {seen} images were known') == 3


def test_the_first_epoch_warns_of_nothing(tmp_path):
    _, lines = train(tmp_path)
    assert not any('costs more' in line for line in lines)


def test_the_hook_refuses_a_trained_backbone_before_the_first_step(tmp_path):
    made = runner(tmp_path)
    made.model.backbone.requires_grad_(True)
    with pytest.raises(ValueError, match='holds trained parameters'):
        made.train()
    assert made.iter == 0


def test_the_hook_refuses_fsdp():
    # A process group is needed to shard; the type alone is asked for.
    model = nn.Sequential(FullyShardedDataParallel.__new__(
        FullyShardedDataParallel))
    nn.Module.__init__(model[0])
    with pytest.raises(ValueError, match='does not go with FSDP'):
        FeatureCacheHook('unused').before_train(SimpleNamespace(model=model))


def test_settings_that_are_dicts_are_part_of_the_key(tmp_path):
    model = tuned()
    cache = cached(model, tmp_path)
    names = []
    for mode in ('nearest', 'bilinear'):
        model.neck.upsample_cfg = dict(mode=mode)  # as an FPN has it
        cache._state = None
        names.append(cache._base_name())
    model.neck.init_cfg = dict(type='Pretrained', checkpoint='x.pth')
    cache._state = None
    assert names[0] != names[1] == cache._base_name()
