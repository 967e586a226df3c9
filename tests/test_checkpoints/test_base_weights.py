"""Base weights as safetensors, through mmengine's loaders."""
import argparse
import functools
import http.server
import io
import random
import threading

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from etta_mm import apply_tuning
from etta_mm.checkpoints import base_weights, save_base
from etta_mm.checkpoints.base_weights import allow_pickle
from etta_mm.checkpoints.convert import build_model
from etta_mm.checkpoints.sealed_file import STATE

DIMS = 4


class Tiny(BaseModule):

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.ffn = FFN(DIMS, 8)
        self.norm = nn.BatchNorm1d(DIMS)


def tiny():
    model = Tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        model.norm.running_mean.normal_(std=1e3)
    model.norm.num_batches_tracked += 70000  # too large for half precision
    return model


@pytest.mark.parametrize('dtype', [torch.half, torch.float, torch.bfloat16])
def test_weights_are_rounded_and_statistics_are_kept(tmp_path, dtype):
    model = tiny()
    path = save_base(model, tmp_path / 'base.safetensors', dtype)
    stored = load_file(str(path))
    assert set(stored) == set(model.state_dict())
    buffers = dict(model.named_buffers())
    for name, tensor in model.state_dict().items():
        if name in buffers:
            assert torch.equal(stored[name], tensor)
        else:
            assert stored[name].dtype is dtype
            assert torch.equal(stored[name], tensor.to(dtype))


def test_half_precision_is_the_default(tmp_path):
    stored = load_file(str(save_base(tiny(), tmp_path / 'b.safetensors')))
    assert stored['norm.weight'].dtype is torch.half


def test_mmengine_loads_it_by_name(tmp_path):
    model = tiny()
    path = save_base(model, tmp_path / 'base.safetensors', torch.float)
    checkpoint = CheckpointLoader.load_checkpoint(str(path))
    assert_close(dict(checkpoint['state_dict']), dict(model.state_dict()))
    other = Tiny()
    load_checkpoint(other, str(path))
    assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert other.norm.weight.dtype is torch.float


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and its address; what is fetched goes elsewhere."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '*')
    folder = tmp_path / 'served'
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    with server:
        threading.Thread(target=server.serve_forever).start()
        yield folder, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_it_is_fetched_once_from_its_own_address(served):
    folder, address = served
    states = []
    for name in ('a', 'b'):
        (folder / name).mkdir()
        model = tiny()
        save_base(model, folder / name / 'model.safetensors', torch.float)
        states.append(model.state_dict())
    for again in range(2):
        for name, state in zip('ab', states):
            loaded = CheckpointLoader.load_checkpoint(
                f'{address}/{name}/model.safetensors?download=true')
            assert_close(dict(loaded['state_dict']), dict(state))
            (folder / name / 'model.safetensors').unlink(missing_ok=True)


@pytest.mark.parametrize('name', ['base.pth', 'base.safetensors'])
def test_an_address_that_gives_nothing_is_named_with_what_to_do(served, name):
    _, address = served
    for url in (f'{address}/{name}', f'http://127.0.0.1:1/{name}'):
        with pytest.raises(ConnectionError, match=f'{url} cannot .* load_from='):
            CheckpointLoader.load_checkpoint(url)


def test_the_state_of_a_training_is_no_base(tmp_path):
    path = tmp_path / 'epoch_1.train.safetensors'
    save_file(dict(a=torch.ones(1)), path, {STATE.key: '{}'})
    with pytest.raises(ValueError, match='training state .*without .train'):
        CheckpointLoader.load_checkpoint(str(path))


def test_what_is_fetched_under_the_name_is_never_unpickled(served, tmp_path):
    folder, address = served
    trace = tmp_path / 'trace'
    allow_pickle()
    torch.save(dict(meta=Malice(trace)), folder / 'base.safetensors')
    with pytest.raises(ValueError, match='base.safetensors.*as torch.save'):
        CheckpointLoader.load_checkpoint(f'{address}/base.safetensors')
    assert not trace.exists()


def test_init_cfg_loads_it(tmp_path):
    model = tiny()
    path = save_base(model, tmp_path / 'base.safetensors', torch.float)
    other = Tiny(dict(type='Pretrained', checkpoint=str(path)))
    other.init_weights()
    assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_tuned_model_loads_it_as_its_base(tmp_path):
    model = tiny()
    path = save_base(model, tmp_path / 'base.safetensors')
    tuned = apply_tuning(
        Tiny(), dict(ffn=dict(type='ParallelAdapter', bottleneck_dims=2)))
    load_checkpoint(tuned, str(path))
    expected = {k: v.half().float() for k, v in model.named_parameters()}
    state = tuned.state_dict()
    assert_close({k: state[k] for k in expected}, expected, rtol=0, atol=0)


def test_it_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save_base(tiny(), tmp_path / 'base.safetensors')
    found = CheckpointLoader.load_checkpoint('~/base.safetensors')
    assert set(found['state_dict']) == set(tiny().state_dict())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.safetensors'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'none.safetensors'))


def test_a_tied_parameter_is_stored_under_both_names(tmp_path):
    model = nn.ModuleDict(dict(a=nn.Linear(2, 2)))
    model['b'] = model['a']
    stored = load_file(str(save_base(model, tmp_path / 'b.safetensors')))
    assert set(stored) == {'a.weight', 'a.bias', 'b.weight', 'b.bias'}


# ------------------------------------------------------------------- pickles
class Malice:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), 'w'))


class Stolen:
    """Reaches for a method through the getattr that HistoryBuffer needs."""

    def __reduce__(self):
        return (getattr, (np.ndarray, 'tofile'))


@pytest.fixture(autouse=True)
def pickles_are_not_allowed():
    allow_pickle(False)
    yield
    allow_pickle(False)


def mmengines_checkpoint(path):
    """What mmengine writes beside weights."""
    history = HistoryBuffer()
    history.update(0.5)
    message_hub = dict(
        log_scalars={'train/loss': history},
        runtime_info=dict(best=np.float64(0.5), step=np.int64(3)),
        resumed_keys={})
    torch.save(
        dict(
            state_dict=tiny().state_dict(),
            meta=dict(
                epoch=1,
                dataset_meta=dict(classes=('a', ), palette=[(1, 2, 3)]),
                mean=np.ones(3, np.float32)),
            args=argparse.Namespace(lr=0.1),
            message_hub=message_hub), path)
    return path


def test_what_mmengine_writes_is_loaded_without_unpickling(
        tmp_path, monkeypatch):
    path = mmengines_checkpoint(tmp_path / 'base.pth')
    load, flags = torch.load, []
    monkeypatch.setattr(
        torch, 'load',
        lambda *a, weights_only, **k: flags.append(weights_only) or load(
            *a, weights_only=weights_only, **k))
    loaded = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    hub = loaded['message_hub']
    assert hub['log_scalars']['train/loss'].mean() == 0.5
    assert hub['runtime_info'] == dict(best=0.5, step=3)
    assert loaded['meta']['mean'].tolist() == [1, 1, 1]
    assert flags == [True]


def half(data):
    return data[:len(data) // 2]


def torchscript(data):
    with io.BytesIO() as buffer:
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
        return buffer.getvalue()


DAMAGE = dict(
    half=half,
    empty=lambda data: b'',
    beginning=lambda data: data[:5000],
    end=lambda data: data[5000:],
    last_byte=lambda data: data[:-1],
    garbage=lambda data: b'<html>not found</html>',
    zeros=lambda data: bytes(1000),
    unicode=lambda data: data.replace(b'running_mean', b'running_mea\xff'),
    torchscript=torchscript)


# Where unpickling is allowed it may end in anything, but not with these.
@pytest.mark.parametrize(
    'damage, allowed', [(damage, False) for damage in DAMAGE] +
    [(damage, True) for damage in ('half', 'empty', 'last_byte', 'garbage')])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_damaged_checkpoint_is_one_message_that_says_so(
        tmp_path, damage, zipped, allowed):
    allow_pickle(allowed)
    path = tmp_path / 'base.pth'
    model = nn.ModuleList([nn.Linear(64, 64), tiny()])
    torch.save(
        dict(state_dict=model.state_dict()),
        path,
        _use_new_zipfile_serialization=zipped)
    CheckpointLoader.load_checkpoint(str(path))
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ValueError, match='base.pth is damaged.*intact') as it:
        CheckpointLoader.load_checkpoint(str(path))
    assert '--allow-pickle' not in str(it.value)
    assert len(str(it.value)) < 400


@pytest.mark.parametrize('content, found', [
    ([1, 2], 'list'), (dict(state_dict=None), 'NoneType'),
    (dict(state_dict=[1]), 'list')
])
def test_a_file_of_something_else_is_no_checkpoint(tmp_path, content, found):
    path = tmp_path / 'list.pth'
    torch.save(content, path)
    with pytest.raises(ValueError, match=f'no checkpoint: .* holds a {found}'):
        CheckpointLoader.load_checkpoint(str(path))


def test_whatever_bytes_are_changed_there_is_one_message_or_none(tmp_path):
    path = tmp_path / 'base.pth'
    rng = random.Random(0)
    for i in range(200):
        torch.save(
            dict(state_dict=nn.Linear(2, 2).state_dict(), meta=np.ones(2)),
            path,
            _use_new_zipfile_serialization=bool(i % 2))
        data = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data) // 2)] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        try:
            CheckpointLoader.load_checkpoint(str(path))
        except ValueError as error:
            assert 'base.pth is' in str(error)


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path):
    path = tmp_path / 'base.pth'
    torch.save({}, path)
    with pytest.raises(FileNotFoundError, match='base.pth'):
        CheckpointLoader.load_checkpoint(str(path / 'more'))
    with pytest.raises(OSError) as it:
        CheckpointLoader.load_checkpoint(str(tmp_path / ('long' * 100)))
    assert 'damaged' not in str(it.value)


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_checkpoint_that_runs_code_is_refused_and_runs_nothing(
        tmp_path, protocol, zipped):
    trace, path = tmp_path / 'trace', tmp_path / 'base.pth'
    torch.save(
        dict(state_dict=tiny().state_dict(), meta=Malice(trace)),
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match='base.pth.*--allow-pickle'):
        CheckpointLoader.load_checkpoint(str(path))
    with pytest.raises(ValueError, match='--allow-pickle'):
        load_checkpoint(Tiny(), str(path))
    assert not trace.exists()


def test_getattr_reaches_nothing_but_a_history(tmp_path):
    torch.save(dict(state_dict={}, meta=Stolen()), tmp_path / 'base.pth')
    with pytest.raises(ValueError, match='getattr'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'base.pth'))


def test_a_checkpoint_that_runs_code_is_loaded_where_that_is_allowed(
        tmp_path):
    trace, path = tmp_path / 'trace', tmp_path / 'base.pth'
    torch.save(dict(state_dict=tiny().state_dict(), meta=Malice(trace)), path)
    allow_pickle()
    assert CheckpointLoader.load_checkpoint(str(path))['state_dict']
    assert trace.exists()


@pytest.mark.parametrize('scheme', [
    'https://', 'http://', 'torchvision://', 'open-mmlab://', 'mmcls://',
    'pavi://', 's3://', '/'
])
def test_every_way_to_a_checkpoint_is_guarded(scheme):
    loader = CheckpointLoader._get_checkpoint_loader(f'{scheme}some/base.pth')
    assert loader.__wrapped__.__name__.startswith('load_from_')


def test_a_downloaded_checkpoint_that_runs_code_is_refused(
        tmp_path, monkeypatch):
    trace = tmp_path / 'trace'
    torch.save(dict(meta=Malice(trace)), tmp_path / 'base.pth')
    # As if it had been downloaded before.
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub/checkpoints'
    cache.mkdir(parents=True)
    (tmp_path / 'base.pth').rename(cache / 'base.pth')
    for folder in (cache, tmp_path / 'checkpoints'):
        folder.mkdir(exist_ok=True)
        if folder != cache:
            (folder / 'base.pth').write_bytes((cache / 'base.pth').read_bytes())
    with pytest.raises(ValueError, match='--allow-pickle'):
        CheckpointLoader.load_checkpoint('https://example.org/base.pth')
    assert not trace.exists()


def test_a_safetensors_base_that_is_cut_short_is_an_error(tmp_path):
    path = save_base(tiny(), tmp_path / 'base.safetensors')
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match='base.safetensors.*intact'):
        CheckpointLoader.load_checkpoint(str(path))


def test_a_config_that_allows_pickles_does_so_for_the_tools_too():
    allow_pickle(False)
    cfg = Config(dict(model=dict(type=Tiny), default_scope='mmengine'))
    build_model(cfg)
    assert not base_weights._is_allowed()
    cfg.allow_pickle = True
    build_model(cfg)
    assert base_weights._is_allowed()


@pytest.mark.parametrize('error', [
    torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'),
    RuntimeError('CUDA error: device-side assert triggered')])
def test_a_device_that_fails_does_not_make_a_file_damaged(error):
    def load(filename, map_location=None):
        raise error

    with pytest.raises(type(error), match='^CUDA'):
        base_weights._guarded(load)('base.pth')
