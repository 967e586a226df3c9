"""Tuned checkpoints: round trip, and every file that does not fit."""
import copy
import json
import pickle
import re

import pytest
import torch
from hosts import HOSTS, output, train_steps
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import etta_mm.engine.tuned_checkpoint as tuned_checkpoint
from etta_mm import load_tuned, save_tuned, tuned_state_dict
from etta_mm.engine import read_metadata

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
    save_file(tensors, str(path), dict(etta_mm=json.dumps(metadata)))


def portrait(model):
    return [(n, type(m), set(vars(m))) for n, m in model.named_modules()], [
        (n, p.requires_grad) for n, p in model.named_parameters()
    ], {k: v.clone()
        for k, v in model.state_dict().items()}


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
    assert_close(
        output(model, HOST.batch()),
        output(trained, HOST.batch()),
        rtol=0,
        atol=0)
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
    assert root['tuning']['attn'][1] == dict(TUNING['attn'][1], where=['encoder'])
    assert root['tuning']['train'] == TUNING['train']
    assert {'etta_mm', 'torch', 'mmcv', 'mmengine'} <= set(
        metadata['versions'])
    assert metadata['info'] == dict(note='three')
    assert metadata['format_version'] == 1


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
def test_a_newer_format_is_refused_and_named(path, start):
    rewrite(path, lambda t: None, lambda m: m.update(format_version=2))
    assert_refused(start(), path, 'version 2', 'update')


@pytest.mark.parametrize('metadata', [
    None,
    dict(other='1'),
    dict(etta_mm='no json'),
    dict(etta_mm='[1]'),
    dict(etta_mm='{}'),
    dict(etta_mm='{"format_version": 1}'),
    dict(etta_mm='{"format_version": 1, "base_fingerprint": "", "roots": 3}'),
], ids=str)
def test_a_safetensors_file_without_our_metadata_is_refused(path, metadata):
    save_file(load_file(str(path)), str(path), metadata)
    assert_refused(build(), path)


@EACH_START
def test_a_missing_file_is_named(path, start):
    assert_refused(
        start(), path.with_name('none.safetensors'), 'none.safetensors',
        error=FileNotFoundError)


def test_a_model_that_is_not_tuned_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match='not tuned'):
        save_tuned(HOST.base(), tmp_path / 'tuned.safetensors')
    with pytest.raises(ValueError, match='not tuned'):
        tuned_state_dict(HOST.base())
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------- how it is written
def test_no_temporary_file_is_left(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('fails', ['save_file', 'replace'])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
        trained, path, monkeypatch, fails):

    def fail(*args, **kwargs):
        raise OSError('no space left on device')

    before = path.read_bytes()
    where = tuned_checkpoint if fails == 'save_file' else tuned_checkpoint.os
    monkeypatch.setattr(where, fails, fail)
    with pytest.raises(OSError, match='no space'):
        save_tuned(trained, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_folder_that_is_missing_is_made(trained, tmp_path):
    path = tmp_path / 'a' / 'b.safetensors'
    assert save_tuned(trained, path) == path and path.is_file()
