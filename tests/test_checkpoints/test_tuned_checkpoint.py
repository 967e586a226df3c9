"""Tuned checkpoints: round trip, and every file that does not fit."""
import copy
import errno
import hashlib
import json
import math
import os
import pickle
import re
import resource
import socket
import stat
import subprocess
import time
from pathlib import Path

import mmdet
import pytest
import torch
from hosts import HOSTS, output, train_steps
from mmcv.cnn.bricks.transformer import FFN
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import DefaultScope
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from etta_mm import apply_tuning, load_tuned, save_tuned, tuned_state_dict
from etta_mm.checkpoints import atomic, convert, read_metadata, save_base
from etta_mm.checkpoints.atomic import write_atomically
from etta_mm.checkpoints.fingerprint import fingerprint, tensors_fingerprint
from etta_mm.checkpoints.tuned_fit import check_patterns, check_tuning
from etta_mm.layers.plan import normalize_tuning

ROOT = Path(__file__).resolve().parents[2]
HOST = HOSTS['detr']
TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=5, scale=0.5),
    attn=[
        dict(type='ScaledPrefix', num_prefix=3),
        dict(type='LoRA', rank=2, where='encoder')
    ],
    train=['bbox_head', 'neck'])
A_TUNER = 'encoder.layers.0.self_attn.tuners.prefix.key'
A_HEAD = 'bbox_head.fc_cls.bias'


def build(tuning=TUNING):
    """A tuned model with the base's weights."""
    torch.manual_seed(1)
    model = HOST.build(copy.deepcopy(tuning))
    model.load_state_dict(HOST.base_weights(), strict=False)
    return model.eval()


@pytest.fixture(scope='module')
def trained():
    torch.manual_seed(0)
    model = build()
    train_steps(model, [HOST.batch()] * 2)
    return model.eval()


@pytest.fixture
def path(trained, tmp_path):
    return save_tuned(trained, tmp_path / 'tuned.safetensors', note='three')


def rewrite(path, change, change_metadata=None):
    """Write the file again with other tensors or other metadata."""
    with safe_open(str(path), framework='pt') as file:
        metadata = json.loads(file.metadata()['etta_mm'])
    tensors = load_file(str(path))
    change(tensors)
    if change_metadata:
        change_metadata(metadata)
    sign(tensors, path, metadata)


def sign(tensors, path, metadata):
    """Write a file whose checksums are right, as its author would."""
    metadata['tensors_fingerprint'] = tensors_fingerprint(tensors)
    text = json.dumps(metadata)
    save_file(
        tensors, str(path),
        dict(
            etta_mm=text,
            etta_mm_sha256=hashlib.sha256(text.encode()).hexdigest()))


def portrait(model):
    return [(n, type(m), set(vars(m))) for n, m in model.named_modules()], [
        (n, p.requires_grad) for n, p in model.named_parameters()
    ], {k: v.clone()
        for k, v in model.state_dict().items()}


def assert_same_output(model, trained):
    """Bit for bit in the weights; a host that folds its frozen norms rounds
    differently from a base that was tuned afterwards."""
    state = trained.state_dict()
    assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert_close(
        output(model, HOST.batch()),
        output(trained, HOST.batch()),
        rtol=1e-5,
        atol=1e-5)


def assert_refused(model, path, *words, error=ValueError):
    before = portrait(model)
    with pytest.raises(error) as caught:
        load_tuned(model, path)
    message = str(caught.value)
    assert all(re.search(word, message) for word in words), message
    after = portrait(model)
    assert after[:2] == before[:2]
    assert_close(after[2], before[2], rtol=0, atol=0)


EACH_START = pytest.mark.parametrize(
    'start', [build, lambda: copy.deepcopy(HOST.base())],
    ids=['tuned', 'untuned'])


@EACH_START
def test_round_trip(trained, path, start):
    model = start()
    load_tuned(model, path)
    assert_same_output(model, trained)
    # and what is loaded can be saved again, to the same tensors and base
    again = save_tuned(model, path.with_name('again.safetensors'))
    assert_close(load_file(str(again)), load_file(str(path)), rtol=0, atol=0)
    assert (read_metadata(again)['base_fingerprint'] == read_metadata(path)
            ['base_fingerprint'])


def test_keys_are_ours(trained, path):
    tensors = load_file(str(path))
    assert set(tensors) == set(tuned_state_dict(trained))
    assert all('.tuners.' in key or key.startswith(('bbox_head.', 'neck.'))
               for key in tensors)
    assert A_TUNER in tensors and A_HEAD in tensors


def test_metadata_says_what_was_tuned_and_with_what(path):
    metadata = read_metadata(path)
    root = metadata['roots']['']
    assert root['host'] == 'ETDETR'
    assert root['tuning']['ffn'] == [TUNING['ffn']]
    assert root['tuning']['attn'][1] == dict(
        TUNING['attn'][1], where=['encoder'])
    assert root['tuning']['train'] == TUNING['train']
    assert root['tuning']['conv'] == root['tuning']['where'] == []
    assert metadata['versions'].keys() == {
        'etta_mm', 'torch', 'mmcv', 'mmengine', 'mmdet', 'mmpretrain'
    }
    assert metadata['versions']['mmdet'] == mmdet.__version__
    assert metadata['info'] == dict(note='three')
    assert metadata['format_version'] == 2
    assert metadata['base_hashes'].keys() == (
        HOST.base_weights().keys() - load_file(str(path)).keys()
        - {k for k in HOST.base_weights() if k.endswith('_tracked')})
    assert set(metadata['base_dtypes']) == {'float32'}


def test_the_fingerprint_is_of_the_base_alone(path, tmp_path):
    fresh = save_tuned(build(), tmp_path / 'fresh.safetensors')
    assert (read_metadata(fresh)['base_fingerprint'] == read_metadata(path)
            ['base_fingerprint'])


def test_the_statistics_of_a_trained_stage_are_saved(tmp_path):
    tuning = dict(ffn=TUNING['ffn'], train='backbone.layer4')
    model = build(tuning)
    train_steps(model, [HOST.batch()])
    name = 'backbone.layer4.0.bn1.running_mean'
    moved = model.state_dict()[name]
    assert not torch.equal(moved, HOST.base_weights()[name])
    path = save_tuned(model.eval(), tmp_path / 'tuned.safetensors')
    other = copy.deepcopy(HOST.base())
    load_tuned(other, path)
    assert torch.equal(other.state_dict()[name], moved)
    assert not any('layer3' in key for key in load_file(str(path)))


# --------------------------------------------------------- what does not fit
@EACH_START
def test_another_base_is_refused(path, start):
    model = start()
    with torch.no_grad():
        model.decoder.layers[1].norms[0].weight[0] += 1e-3
    assert_refused(model, path, 'base')


@EACH_START
def test_other_running_statistics_are_another_base(path, start):
    model = start()
    model.backbone.bn1.running_mean[0] += 1e-3
    assert_refused(model, path, 'base')


@pytest.mark.parametrize('change, word', [
    (dict(ffn=dict(TUNING['ffn'], bottleneck_dims=6)), 'ffn'),
    (dict(ffn=dict(TUNING['ffn'], scale=0.7)), 'ffn'),
    (dict(attn=None), 'attn'),
    (dict(train='bbox_head'), 'train'),
    (dict(train=['bbox_head', 'neck', 'query_embedding']), 'train'),
    (dict(where='decoder', attn=None), 'where'),
], ids=str)
def test_another_tuning_is_refused_and_named(path, change, word):
    assert_refused(build(dict(TUNING, **change)), path, 'another tuning', word)


def test_another_tuning_is_named_where_the_head_was_trained_too(
        trained, path):
    # The head of the file is no part of the base; it must not be taken for a
    # base that differs.
    model = build(dict(TUNING, train=['neck']))
    with torch.no_grad():
        model.bbox_head.fc_cls.bias += 1
    assert_refused(model, path, 'another tuning', 'train')


@EACH_START
@pytest.mark.parametrize('key', [A_TUNER, A_HEAD])
def test_a_missing_tensor_is_refused_and_named(path, start, key):
    rewrite(path, lambda tensors: tensors.pop(key))
    assert_refused(start(), path, re.escape(key))


@EACH_START
@pytest.mark.parametrize(
    'key', ['stranger', 'encoder.layers.0.norms.0.weight', A_TUNER + '.more'])
def test_an_extra_tensor_is_refused_and_named(path, start, key):
    rewrite(path, lambda t: t.update({key: torch.ones(16)}))
    assert_refused(start(), path, re.escape(key))


@EACH_START
@pytest.mark.parametrize('key', [A_TUNER, A_HEAD])
def test_another_shape_is_refused_and_named(path, start, key):
    rewrite(path, lambda t: t.update({key: torch.ones(9, 9)}))
    assert_refused(start(), path, re.escape(key), '9, 9')


@EACH_START
def test_a_file_of_another_host_is_refused(path, start, tmp_path):
    vit = HOSTS['vit'].build(dict(ffn=TUNING['ffn']))
    other = save_tuned(vit, tmp_path / 'vit.safetensors')
    assert_refused(start(), other)


@EACH_START
def test_a_truncated_file_is_refused(path, start):
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert_refused(start(), path, 'cut short')
        with pytest.raises(ValueError):
            read_metadata(path)


class Malice:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), 'w'))


@EACH_START
@pytest.mark.parametrize('write', [
    lambda o, p: p.write_bytes(pickle.dumps(o)),
    lambda o, p: torch.save(o, p),
], ids=['pickle', 'torch'])
def test_a_renamed_pickle_is_refused_and_runs_nothing(path, start, write):
    trace = path.with_name('trace')
    write(dict(state_dict=Malice(trace)), path)
    assert_refused(start(), path, 'safetensors')
    assert not trace.exists()


@EACH_START
@pytest.mark.parametrize('version, remedy', [(3, 'update etta_mm'),
                                             (1, 'the etta_mm that wrote it')])
def test_another_format_is_refused_and_named(path, start, version, remedy):
    rewrite(path, lambda t: None, lambda m: m.update(format_version=version))
    assert_refused(start(), path, f'version {version}.* version 2', remedy)


@pytest.mark.parametrize('metadata', [
    None,
    dict(other='1'),
    dict(etta_mm='no json'),
    dict(etta_mm='[1]'),
    dict(etta_mm='{}'),
    dict(etta_mm='{"format_version": 2}'),
    dict(etta_mm='{"format_version": 2, "base_fingerprint": "", "roots": 3}'),
], ids=str)
def test_a_safetensors_file_without_our_metadata_is_refused(path, metadata):
    save_file(load_file(str(path)), str(path), metadata)
    assert_refused(build(), path)


@EACH_START
def test_a_missing_file_is_named(path, start):
    assert_refused(
        start(), path.with_name('none.safetensors'), 'none.safetensors',
        error=FileNotFoundError)


def test_what_was_trained_is_saved_when_it_is_frozen_by_now(trained, path):
    model = copy.deepcopy(trained).requires_grad_(False)
    again = save_tuned(model, path.with_name('again.safetensors'))
    assert_close(load_file(str(again)), load_file(str(path)), rtol=0, atol=0)
    assert (read_metadata(again)['base_hashes'] == read_metadata(path)
            ['base_hashes'])


@EACH_START
def test_a_frozen_model_takes_what_was_trained(trained, path, start):
    model = start().requires_grad_(False)
    load_tuned(model, path)
    assert_same_output(model, trained)


def test_a_frozen_head_outside_of_what_is_tuned_takes_its_file(tmp_path):
    """A classifier's: the tuning is the backbone's."""
    host = HOSTS['vit']
    model = host.build(dict(ffn=TUNING['ffn']))
    model.load_state_dict(host.base_weights(), strict=False)
    train_steps(model, [host.batch()] * 2)
    path = save_tuned(model, tmp_path / 'tuned.safetensors')
    assert any(key.startswith('head.') for key in load_file(str(path)))
    other = host.build(dict(ffn=TUNING['ffn'])).requires_grad_(False)
    other.load_state_dict(host.base_weights(), strict=False)
    load_tuned(other, path)
    assert_close(
        dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_a_trainable_head_takes_a_file_of_a_frozen_one(tmp_path):
    """It is a part of the base then, and has to be the same."""
    host = HOSTS['vit']

    def build(head_is_frozen):
        model = host.build(dict(ffn=TUNING['ffn']))
        model.load_state_dict(host.base_weights(), strict=False)
        model.head.requires_grad_(not head_is_frozen)
        return model

    model = build(head_is_frozen=True)
    train_steps(model, [host.batch()] * 2)
    path = save_tuned(model, tmp_path / 'tuned.safetensors')
    assert not any(key.startswith('head.') for key in load_file(str(path)))
    other = build(head_is_frozen=False)
    load_tuned(other, path)
    assert_close(
        dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    other = build(head_is_frozen=False)
    with torch.no_grad():
        next(other.head.parameters()).add_(1)
    assert_refused(other, path, 'another base.*head')


def test_a_frozen_copy_whose_head_would_be_left_out_is_refused(tmp_path):
    """Such as mmengine's averaged models are."""
    host = HOSTS['vit']
    model = host.build(dict(ffn=TUNING['ffn']))
    averaged = ExponentialMovingAverage(model)
    with pytest.raises(ValueError, match='beside backbone.*state_dict='):
        save_tuned(averaged.module, tmp_path / 'tuned.safetensors')
    path = save_tuned(model, tmp_path / 'tuned.safetensors',
                      averaged.module.state_dict())
    assert set(load_file(str(path))) == set(tuned_state_dict(model))


class Counting(nn.Linear):
    """A head that trains, and a loss that counts beside it."""

    def __init__(self):
        super().__init__(4, 4)
        self.loss = nn.Module()
        self.loss.register_buffer('seen', torch.zeros(2))


def test_what_counts_in_a_trained_head_is_saved(tmp_path):
    base = nn.ModuleDict(dict(ffn=FFN(4, 8), head=Counting()))
    model = apply_tuning(
        copy.deepcopy(base), dict(ffn=TUNING['ffn'], train='head'))
    model['head'].loss.seen += 3
    path = save_tuned(model, tmp_path / 'tuned.safetensors')
    load_tuned(base, path)
    assert_close(base['head'].loss.seen, model['head'].loss.seen)


def test_what_counts_in_a_head_beside_what_is_tuned_is_saved(tmp_path):
    """Such as a loss without a weight, in a head that is trained as ever."""
    base = nn.ModuleDict(dict(
        backbone=nn.ModuleDict(dict(ffn=FFN(4, 8), loss=Counting().loss)),
        head=nn.ModuleDict(dict(fc=nn.Linear(4, 4), loss=Counting().loss))))
    model = copy.deepcopy(base)
    apply_tuning(model['backbone'], dict(ffn=TUNING['ffn']))
    model['head']['loss'].seen += 3
    path = save_tuned(model, tmp_path / 'tuned.safetensors')
    saved = set(load_file(str(path)))
    assert 'head.loss.seen' in saved and 'backbone.loss.seen' not in saved
    load_tuned(base, path)
    assert_close(base['head']['loss'].seen, model['head']['loss'].seen)


@pytest.mark.parametrize('wrap', [
    torch.compile, nn.DataParallel,
    lambda model: torch.compile(nn.DataParallel(model))
], ids=['compiled', 'parallel', 'both'])
def test_a_wrapper_is_no_part_of_the_names(wrap, trained, path):
    again = save_tuned(wrap(trained), path.with_name('again.safetensors'))
    assert_close(load_file(str(again)), load_file(str(path)), rtol=0, atol=0)
    model = build()
    load_tuned(wrap(model), path)
    assert_same_output(model, trained)


def test_a_part_in_a_wrapper_is_refused_and_named(path):
    model = build()
    model.encoder = torch.compile(model.encoder)
    for action in (lambda: save_tuned(model, path),
                   lambda: load_tuned(model, path)):
        with pytest.raises(ValueError, match='model.encoder.compile'):
            action()


def test_a_model_that_is_not_tuned_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match='not tuned'):
        save_tuned(HOST.base(), tmp_path / 'tuned.safetensors')
    with pytest.raises(ValueError, match='not tuned'):
        tuned_state_dict(HOST.base())
    assert not list(tmp_path.iterdir())


# ------------------------------------------------- more that does not fit
@EACH_START
def test_another_type_is_refused_and_named(path, start):
    rewrite(path, lambda t: t.update({A_TUNER: t[A_TUNER].half()}))
    assert_refused(start(), path, re.escape(A_TUNER), 'float16', 'float32')


@EACH_START
def test_what_differs_in_the_base_is_named(path, start):
    model = start()
    with torch.no_grad():
        model.decoder.layers[1].norms[0].weight[0] += 1e-3
    assert_refused(model, path, '1 of .* differ', r'decoder.layers.1.norms.0')


def test_a_base_is_known_on_any_type_it_was_stored_in(path, trained):
    names = list(tuned_state_dict(trained))
    half = copy.deepcopy(trained).half()
    whole = copy.deepcopy(half).float()
    assert fingerprint(half, names) == fingerprint(whole, names)


def test_other_classes_are_refused_and_named(trained, tmp_path):
    path = save_tuned(
        trained,
        tmp_path / 'tuned.safetensors',
        dataset_meta=dict(classes=('a', 'b', 'c')))
    load_tuned(build(), path, ('a', 'b', 'c'))
    model = build()
    before = portrait(model)
    for classes in ('a', 'x', 'c'), ('a', 'b'), ('a', 'c', 'b'):
        with pytest.raises(ValueError, match='classes.*number 1|number 2'):
            load_tuned(model, path, classes)
    assert portrait(model)[:2] == before[:2]
    model.dataset_meta = dict(classes=('x', 'y', 'z'))
    assert_refused(model, path, "'a' there and 'x' here")


def huge(**change):
    return lambda m: m['roots']['']['tuning']['ffn'][0].update(change)


@pytest.mark.parametrize('size', [10**6, 10**12, 10**17, 10**30, 10**400, -1,
                                  0, 1.5, True, '5', None, [5], {}])
def test_an_absurd_size_is_refused_and_no_memory_is_taken(path, size):
    model = copy.deepcopy(HOST.base())
    rewrite(path, lambda t: None, huge(bottleneck_dims=size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(model, path)
    assert resource.getrusage(
        resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # in KiB


@EACH_START
@pytest.mark.parametrize('change', [
    lambda m: m.update(roots={}),
    lambda m: m.update(roots=[]),
    lambda m: m['roots'][''].update(host=3),
    lambda m: m['roots'][''].update(tuning=None),
    lambda m: m['roots'].update({'neck': m['roots']['']}),
    lambda m: m['roots'].update({'nowhere': m['roots']['']}),
    lambda m: m['roots']['']['tuning'].update(ffn=3),
    lambda m: m['roots']['']['tuning'].update(ffn=[3]),
    lambda m: m['roots']['']['tuning'].update(more=1),
    lambda m: m['roots']['']['tuning'].pop('where'),
    lambda m: m['roots']['']['tuning'].update(train='neck'),
    lambda m: m['roots']['']['tuning'].update(train=['(']),
    lambda m: m['roots']['']['tuning'].update(where=['nowhere']),
    huge(type='Linear'),
    huge(type='os.system'),
    huge(type=['ParallelAdapter']),
    huge(scale=10**400),
    huge(scale=math.nan),
    huge(scale='a'),
    huge(scale=0),
    huge(dropout=2),
    huge(embed_dims=16),
    lambda m: m['base_hashes'].update(a=1),
    lambda m: m.update(base_hashes=None),
    lambda m: m.update(base_fingerprint=None),
    lambda m: m.update(base_fingerprint='0' * 64),
    lambda m: m.update(versions=[]),
    lambda m: m.update(info=None),
    lambda m: m.update(info=dict(dataset_meta=dict(classes=3))),
    lambda m: m.update(format_version=True),
    lambda m: m.update(format_version='2'),
    lambda m: m.update(format_version=2.0),
    lambda m: m.update(format_version=10**4000),
])
def test_metadata_of_wrong_types_or_values_is_refused(path, start, change):
    rewrite(path, lambda t: None, change)
    assert_refused(start(), path)


@pytest.mark.parametrize('patterns', [
    ['(a+)+$'], ['(a|a)*$'], ['(.*)*x'], ['(a?){50}a'],
    ['.*.*.*.*.*.*.*x'], ['a' * 2000], ['.?' * 40 + '\n'],
    ['(.|..)' * 30 + '\n'], [r'(\d?:)' * 9], ['.?' * 8 + '.*' * 4 + '\n'],
    ['(?x)(a+) +$'], ['(?ix:(a+) +)$'], ['(a+)(?#)+$'], ['.*.*.*.*x'] * 5,
    ['encoder'] * 33
], ids=lambda patterns: repr(patterns[0][:20]))
def test_patterns_that_may_take_forever_are_refused(path, patterns):
    rewrite(path, lambda t: None,
            lambda m: m['roots']['']['tuning'].update(where=patterns))
    assert_refused(copy.deepcopy(HOST.base()), path, 'forever|at most 32')


def patterns_of(value):
    """Every regular expression below a part of a config."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ('where', 'train') and item is not None:
                yield from [item] if isinstance(item, str) else item
            yield from patterns_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from patterns_of(item)


def test_the_patterns_of_every_config_are_taken_from_a_file():
    found = set()
    for path in sorted((ROOT / 'configs').rglob('*.py')):
        if 'comparison' not in path.parts and '_base_' not in path.parts:
            model = Config.fromfile(path).get('model') or {}
            patterns = list(patterns_of(model.to_dict() if model else {}))
            check_patterns(normalize_tuning(dict(train=patterns)), path)
            found.update(patterns)
    assert r'.*\.(bn\d|downsample\.1|gn|norms\.\d)\.(weight|bias)' in found


@pytest.mark.parametrize('pattern', [
    r'^encoder\.layers\.\d+\.', r'(?:en|de)coder\.layers\.(?:0|1|2)\.',
    r'.*layers\.\d+.*attn\.(q|k|v)_proj.*', r'(?!bbox_head).*', r'(a)\d*'
])
def test_a_pattern_that_people_write_is_taken_from_a_file(pattern):
    check_patterns(normalize_tuning(dict(where=pattern)), 'a file')


def test_a_module_that_the_file_names_is_not_imported(path, tmp_path,
                                                      monkeypatch):
    (tmp_path / 'trap.py').write_text('raise SystemExit')
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(path, lambda t: None, huge(type='trap.Adapter'))
    assert_refused(build(), path, 'trap.Adapter')


@EACH_START
def test_a_tensor_that_was_changed_is_refused(path, start):
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    assert_refused(start(), path, 'tensors', 'intact')


def test_a_site_that_only_the_file_tunes_is_named():
    ours = normalize_tuning(dict(ffn=TUNING['ffn']))
    check_tuning(ours, dict(ours), '', 'x')
    with pytest.raises(ValueError, match=r'conv is .* there and \[\] here'):
        check_tuning(ours, dict(ours, conv=[TUNING['ffn']]), '', 'x')


@EACH_START
def test_metadata_without_its_checksum_is_refused(path, start):
    with safe_open(str(path), framework='pt') as file:
        text = file.metadata()['etta_mm']
    save_file(load_file(str(path)), str(path), dict(etta_mm=text))
    assert_refused(start(), path, 'metadata', 'checksum')


@EACH_START
def test_metadata_that_was_changed_is_refused(path, start):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'three', b'threE'))
    assert_refused(start(), path, 'metadata', 'checksum')


@EACH_START
def test_a_file_that_leaves_out_its_empty_conv_is_read(trained, path, start):
    rewrite(path, lambda t: None,
            lambda m: m['roots']['']['tuning'].pop('conv'))
    model = start()
    load_tuned(model, path)
    assert_same_output(model, trained)


class Interrupted(TorchFunctionMode):
    """Ctrl-C at the n-th copy of a tensor."""

    def __init__(self, when):
        super().__init__()
        self.left = when

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.copy_:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@EACH_START
@pytest.mark.parametrize('when', [1, 2, 20])
def test_an_interrupted_load_leaves_the_model_as_it_was(path, start, when):
    model = start()
    before = portrait(model)
    with pytest.raises(KeyboardInterrupt), Interrupted(when):
        load_tuned(model, path)
    after = portrait(model)
    assert after[:2] == before[:2]
    assert_close(after[2], before[2], rtol=0, atol=0)


def test_loading_never_unpickles(trained, path, monkeypatch):

    def fail(*args, **kwargs):
        raise AssertionError('unpickled')

    for module, name in ((torch, 'load'), (pickle, 'load'), (pickle, 'loads'),
                         (pickle, 'Unpickler')):
        monkeypatch.setattr(module, name, fail)
    model = build()
    load_tuned(model, path)
    assert torch.equal(model.state_dict()[A_TUNER],
                       trained.state_dict()[A_TUNER])


def test_loading_takes_no_random_number(path):
    model = copy.deepcopy(HOST.base())
    before = torch.get_rng_state()
    load_tuned(model, path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('training', [True, False])
def test_tuners_take_the_mode_and_the_type_of_their_base(path, training):
    model = copy.deepcopy(HOST.base()).train(training)
    load_tuned(model, path)
    adapter = model.encoder.layers[0].ffn.tuners['parallel_adapter']
    assert adapter.dropout.training is training
    model = build().half()
    half = save_tuned(model, path.with_name('half.safetensors'))
    other = copy.deepcopy(HOST.base()).half()
    load_tuned(other, half)
    assert {p.dtype for p in other.parameters()} == {torch.half}


def test_the_file_of_detr_r101_is_an_eighteenth_of_the_model(tmp_path):
    cfg = Config.fromfile(ROOT / 'configs/etta/et_detr_r101_coco.py')
    tuning = dict(
        ffn=dict(type='ParallelAdapter', bottleneck_dims=400),
        attn=dict(type='ScaledPrefix', num_prefix=50),
        train=['bbox_head'])
    cfg.model.update(tuning=tuning)
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    path = save_tuned(model, tmp_path / 'tuned.safetensors')
    full = sum(t.nbytes for t in model.state_dict().values())
    assert path.stat().st_size * 18 <= full


# ---------------------------------------------------------- how it is written
def test_the_folder_is_synced_behind_the_file(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda handle: synced.append(
        stat.S_ISDIR(os.fstat(handle).st_mode)))
    write_atomically(tmp_path / 'file', b'content')
    assert synced == [False, True]


@pytest.mark.parametrize('name', ['base.safetensors', 'full.pth'])
def test_other_checkpoints_appear_whole_as_well(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(b'of before')

    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='is unchanged'):
        if name == 'full.pth':
            convert._save_full(Config(), nn.Linear(2, 2), dict(info={}), path)
        else:
            save_base(nn.Linear(2, 2), path)
    assert path.read_bytes() == b'of before'
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_no_temporary_file_is_left(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('fails', ['fsync', 'replace'])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
        trained, path, monkeypatch, fails):

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'no space left on device')

    before = path.read_bytes()
    monkeypatch.setattr(atomic.os, fails, fail)
    with pytest.raises(OSError, match=f'{path}.*no space.*Make room'):
        save_tuned(trained, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_folder_that_is_missing_is_made(trained, tmp_path):
    path = tmp_path / 'a' / 'b.safetensors'
    assert save_tuned(trained, path) == path and path.is_file()


@pytest.mark.parametrize('is_alive, age, is_kept', [
    (False, 2 * atomic.LEFT_S, False),
    (False, atomic.LEFT_S / 2, True),  # alive where it cannot be seen
    (True, 2 * atomic.LEFT_S, True),
])
def test_only_what_nobody_can_be_writing_is_removed(
        is_alive, age, is_kept, tmp_path):
    process = subprocess.Popen(['true'])
    process.wait()
    pid = os.getpid() if is_alive else process.pid
    owner = re.sub(r'\W', '_', socket.gethostname())
    left = tmp_path / f'.other.bin.{owner}-{pid}-0123abcd.tmp'
    left.touch()
    then = time.time() - age
    os.utime(left, (then, then))
    atomic.write_atomically(tmp_path / 'a.bin', b'new')
    assert left.exists() == is_kept


def test_writers_of_one_host_name_and_number_do_not_meet(
        tmp_path, monkeypatch):
    """Two containers, of which neither sees the processes of the other."""
    monkeypatch.setattr(atomic, '_is_alive', lambda pid: False)
    path = tmp_path / 'a.bin'
    with atomic.appearing_whole(path) as first:
        first.write_bytes(b'first')
        with atomic.appearing_whole(path) as second:
            second.write_bytes(b'second')
        assert path.read_bytes() == b'second'
    assert path.read_bytes() == b'first'
    assert [p.name for p in tmp_path.iterdir()] == ['a.bin']
