"""The laws of DESIGN.md section 4, on every host with every tuner."""
import copy
import re
from collections import OrderedDict

import pytest
import torch
from hosts import (CLASSES, HOSTS, detection_batch, loss, output, train_steps)
from mmengine.runner.checkpoint import load_checkpoint, load_state_dict
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from etta_mm import (count_parameters, disable_tuning, load_tuned, save_tuned,
                     tuned_state_dict)
from etta_mm.tuners import (ConvAdapter, LoRA, ParallelAdapter, ScaledPrefix,
                            Tuner)

BOTTLENECK = 16  # with fewer, all units of a ReLU may be dead by chance
NUM_PREFIX = 3
RANK = 2
START = dict(rtol=1e-5, atol=1e-5)

ADAPTER = dict(type='ParallelAdapter', bottleneck_dims=BOTTLENECK, scale=0.5)
LEARNED = dict(
    type='ParallelAdapter', bottleneck_dims=BOTTLENECK, learn_scale=True)
SERIAL = dict(type='SerialAdapter', bottleneck_dims=BOTTLENECK)
SCALED = dict(type='ScaledPrefix', num_prefix=NUM_PREFIX, learn_scale=True)
CONCAT = dict(
    type='ScaledPrefix',
    num_prefix=NUM_PREFIX,
    scale=2.,
    learn_scale=True,
    composition='concat')
PREFIX = dict(type='Prefix', num_prefix=NUM_PREFIX)
LORA = dict(type='LoRA', rank=RANK, alpha=6.)
CONV = dict(type='ConvAdapter', bottleneck_dims=BOTTLENECK)

TUNINGS = dict(
    parallel_adapter=dict(ffn=ADAPTER),
    parallel_adapter_at_attn=dict(attn=LEARNED),
    serial_adapter=dict(ffn=SERIAL),
    serial_adapter_at_attn=dict(attn=SERIAL),
    scaled_prefix=dict(attn=SCALED),
    scaled_prefix_concat=dict(attn=CONCAT),
    prefix=dict(attn=PREFIX),
    lora=dict(ffn=LORA),
    lora_at_attn=dict(attn=LORA),
    etta=dict(ffn=ADAPTER, attn=SCALED),
    conv_adapter=dict(conv=CONV),
    everything=dict(
        ffn=[LEARNED, SERIAL, LORA], attn=[SCALED, ADAPTER, SERIAL, LORA]),
)
# Their values do not start at zero.
NO_IDENTITY = ('scaled_prefix_concat', 'prefix')


class Tuned:
    """One host with one tuning: the base, the tuned model at its start with
    the base's weights, and the same after two steps."""

    def __init__(self, host_name: str, tuning_name: str) -> None:
        self.host = HOSTS[host_name]
        self.tuning_name = tuning_name
        self.tuning = copy.deepcopy(TUNINGS[tuning_name])
        if self.host.convs and tuning_name == 'everything':
            self.tuning['conv'] = CONV
        if self.host.head:
            self.tuning['train'] = [self.host.head]
        torch.manual_seed(1)
        self.fresh = self.host.build(self.tuning)
        self.start = copy.deepcopy(self.fresh)
        load_state_dict(self.start, self.host.base_weights(), strict=False)
        self.start.eval()
        self.batch = self.host.batch()
        self._trained = None

    @property
    def trained(self):
        if self._trained is None:
            self._trained = copy.deepcopy(self.start)
            train_steps(self._trained, [self.batch, self.batch])
        return self._trained

    def ours(self) -> set:
        """Names of the tuners' tensors, by type."""
        return {
            f'{name}.{key}'
            for name, module in self.start.named_modules()
            if isinstance(module, Tuner) for key in module.state_dict()
        }

    def is_trained_in_full(self, name: str) -> bool:
        """Whether ``train`` (or the classifier's own head) holds ``name``."""
        if self.host.root:
            return not name.startswith(f'{self.host.root}.')
        return name.startswith(f'{self.host.head}.')


@pytest.fixture(
    scope='module',
    params=[(host, tuning) for host in HOSTS for tuning in TUNINGS
            if HOSTS[host].convs or 'conv' not in TUNINGS[tuning]],
    ids='-'.join)
def tuned(request):
    return Tuned(*request.param)


@pytest.fixture(scope='module', params=HOSTS)
def etta(request):
    """Each host once, with everything that a tuning can hold."""
    return Tuned(request.param, 'everything')


# ------------------------------------------------------------- law 1: start
def test_output_at_the_start_is_the_base_models(tuned):
    if tuned.tuning_name in NO_IDENTITY:
        pytest.skip('a concatenated prefix takes softmax mass at once')
    assert all(m.is_identity_at_start for m in tuned.start.modules()
               if isinstance(m, Tuner))
    assert_close(
        output(tuned.start, tuned.batch),
        output(tuned.host.base(), tuned.batch), **START)
    with disable_tuning(tuned.start):
        without = output(tuned.start, tuned.batch)
    assert_close(output(tuned.start, tuned.batch), without, rtol=0, atol=0)


def test_output_of_a_concatenated_prefix_differs_at_the_start(tuned):
    if tuned.tuning_name not in NO_IDENTITY:
        pytest.skip('the identity at the start')
    assert not any(m.is_identity_at_start for m in tuned.start.modules()
                   if isinstance(m, Tuner))
    with pytest.raises(AssertionError):
        assert_close(
            output(tuned.start, tuned.batch),
            output(tuned.host.base(), tuned.batch), **START)


def test_init_weights_leaves_the_tuners_at_their_start(tuned):
    # The base as init_weights made it, here without a checkpoint.
    if tuned.tuning_name in NO_IDENTITY:
        pytest.skip('a concatenated prefix takes softmax mass at once')
    base = copy.deepcopy(tuned.host.base())
    fresh = tuned.fresh.state_dict()
    base.load_state_dict({k: fresh[k] for k in base.state_dict()})
    assert_close(
        output(tuned.fresh, tuned.batch), output(base, tuned.batch), **START)


def test_disabled_tuning_gives_the_base_models_output_after_training(tuned):
    base = copy.deepcopy(tuned.host.base())
    trained = tuned.trained.state_dict()
    with torch.no_grad():  # what is trained in full has been trained in place
        for name, tensor in base.state_dict().items():
            if tuned.is_trained_in_full(name):
                tensor.copy_(trained[name])
    expected = output(base, tuned.batch)
    with disable_tuning(tuned.trained):
        assert_close(output(tuned.trained, tuned.batch), expected, **START)
    with pytest.raises(AssertionError):  # and enabled, it differs again
        assert_close(output(tuned.trained, tuned.batch), expected, **START)


# -------------------------------------------------- laws 2 and 3: what moves
def test_base_weights_stay_bit_equal_and_without_gradient(tuned):
    before = tuned.host.base_weights()
    ours = tuned.ours()
    parameters = dict(tuned.trained.named_parameters())
    for name, tensor in tuned.trained.state_dict().items():
        if name in ours or tuned.is_trained_in_full(name):
            continue
        assert torch.equal(tensor, before[name]), f'{name} has moved'
        if name in parameters:
            assert parameters[name].grad is None, f'{name} has a gradient'
            assert not parameters[name].requires_grad


def test_every_trainable_tensor_moves_within_two_steps(tuned):
    before = dict(tuned.start.named_parameters())
    still = [
        name for name, parameter in tuned.trained.named_parameters()
        if parameter.requires_grad and torch.equal(parameter, before[name])
    ]
    assert not still


def test_all_tuners_require_a_gradient(tuned):
    names = {n for n, p in tuned.start.named_parameters() if p.requires_grad}
    assert tuned.ours() <= names
    assert all(tuned.is_trained_in_full(n) for n in names - tuned.ours())


def test_a_batch_without_boxes_trains(etta):
    model = copy.deepcopy(etta.start)
    if etta.batch.keys() == detection_batch().keys() and isinstance(
            etta.batch['inputs'], list):
        train_steps(model, [detection_batch((0, 0))])
    assert torch.isfinite(loss(model.train(), etta.batch))


@pytest.mark.parametrize(
    'num_boxes', [(2, 2), (2, 0), (0, 0)], ids='{0[0]}_and_{0[1]}_boxes'.format)
def test_every_trained_parameter_gets_a_gradient(etta, num_boxes):
    # So DDP never needs find_unused_parameters, whatever the images hold.
    batch = etta.batch
    if batch.keys() == detection_batch().keys() and isinstance(
            batch['inputs'], list):
        batch = detection_batch(num_boxes)
    elif num_boxes != (2, 2):
        pytest.skip('its batches have no boxes')
    model = copy.deepcopy(etta.start).train()
    loss(model, batch).backward()
    without = [
        name for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert not without


# ------------------------------------------------------- law 4: round trip
def test_a_saved_and_loaded_model_has_the_same_output(tuned, tmp_path):
    path = save_tuned(tuned.trained, tmp_path / 'tuned.safetensors')
    expected = output(tuned.trained, tuned.batch)
    again = copy.deepcopy(tuned.start)
    load_tuned(again, path)
    assert_close(output(again, tuned.batch), expected, rtol=0, atol=0)


def test_saved_keys_are_ours_and_what_is_trained_in_full(tuned):
    keys = set(tuned_state_dict(tuned.trained))
    assert tuned.ours() <= keys
    base = tuned.host.base()  # a shared parameter counts once
    names = [n for n, _ in base.named_parameters()]
    names += [n for n in base.state_dict() if n in dict(base.named_buffers())]
    assert keys - tuned.ours() == {
        n
        for n in names if tuned.is_trained_in_full(n)
    }


def test_an_untuned_base_becomes_the_tuned_model(tuned, tmp_path):
    if tuned.host is HOSTS['layers']:
        pytest.skip('its tuners stand in the config of its layers')
    path = save_tuned(tuned.trained, tmp_path / 'tuned.safetensors')
    base = copy.deepcopy(tuned.host.base())
    load_tuned(base, path)
    assert_close(
        output(base, tuned.batch),
        output(tuned.trained, tuned.batch), **START)


# ----------------------------------------------------------- law 5: loading
def test_a_base_checkpoint_misses_ours_and_nothing_else(tuned):
    state = tuned.host.base_weights()
    model = copy.deepcopy(tuned.start)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) == tuned.ours() and not unexpected
    assert set(state) == set(tuned.host.base_weights())


def test_base_names_and_shapes_stay(tuned):
    state = tuned.start.state_dict()
    base = tuned.host.base_weights()
    assert set(state) - tuned.ours() == set(base)
    assert {k: v.shape for k, v in base.items()} == {
        k: v.shape for k, v in state.items() if k in base
    }


def _torch_load(model, state, path):
    model.load_state_dict(state, strict=False)


def _mmengine_load(model, state, path):
    torch.save(dict(state_dict=state, meta={}), path)
    load_checkpoint(model, str(path))


LOADERS = pytest.mark.parametrize(
    'load', [_torch_load, _mmengine_load], ids=['torch', 'mmengine'])


def _base_key(etta, dims=1) -> str:
    """A frozen tensor of the last layer of the host."""
    frozen = [
        k for k, v in etta.host.base_weights().items()
        if not etta.is_trained_in_full(k) and v.dim() >= dims
    ]
    return frozen[-1]


@LOADERS
def test_a_renamed_key_raises_and_names_both(etta, load, tmp_path):
    state = etta.host.base_weights()
    key = _base_key(etta)
    state[key + '_renamed'] = state.pop(key)
    _assert_refused(etta, load, state, tmp_path / 'base.pth', KeyError,
                    key.rpartition('.')[2])


@LOADERS
def test_a_missing_base_key_raises(etta, load, tmp_path):
    state = etta.host.base_weights()
    key = _base_key(etta)
    del state[key]
    _assert_refused(etta, load, state, tmp_path / 'base.pth', KeyError,
                    key.rpartition('.')[2])


@LOADERS
def test_an_unexpected_key_raises(etta, load, tmp_path):
    state = etta.host.base_weights()
    extra = f'{etta.host.root}.stranger' if etta.host.root else 'stranger'
    state[extra] = torch.zeros(1)
    _assert_refused(etta, load, state, tmp_path / 'base.pth', KeyError,
                    'stranger')


@LOADERS
def test_a_base_tensor_of_another_shape_raises(etta, load, tmp_path):
    state = etta.host.base_weights()
    key = _base_key(etta)
    state[key] = state[key].new_zeros(state[key].numel() + 1)
    _assert_refused(etta, load, state, tmp_path / 'base.pth', ValueError,
                    key.rpartition('.')[2])


@LOADERS
def test_half_of_the_tuners_raises(etta, load, tmp_path):
    state = copy.deepcopy(etta.trained.state_dict())
    for key in sorted(etta.ours())[::2]:
        del state[key]
    _assert_refused(etta, load, state, tmp_path / 'base.pth', KeyError,
                    'tuners')


def _assert_refused(etta, load, state, path, error, text):
    model = copy.deepcopy(etta.start)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=re.escape(text)):
        load(model, state, path)
    if not etta.host.root:  # a classifier's own tensors come first
        assert_close(model.state_dict(), before, rtol=0, atol=0)


@LOADERS
def test_a_head_with_other_classes_starts_anew_and_all_else_loads(
        etta, load, tmp_path):
    if not etta.host.head:
        pytest.skip('its head belongs to the classifier')
    state = etta.host.base_weights()
    keys = [
        k for k, v in state.items()
        if etta.is_trained_in_full(k) and CLASSES in v.shape[:1]
    ] + [
        k for k, v in state.items()
        if etta.is_trained_in_full(k) and CLASSES + 1 in v.shape[:1]
    ]
    assert keys
    for key in keys:
        state[key] = torch.cat((state[key], state[key][:1]))
    given = OrderedDict(state)
    model = copy.deepcopy(etta.fresh)
    start = copy.deepcopy(model.state_dict())
    load(model, given, tmp_path / 'base.pth')
    assert set(given) == set(state)  # the caller's dict is unchanged
    ours = etta.ours()
    for key, tensor in model.state_dict().items():
        expected = start if key in keys or key in ours else state
        assert torch.equal(tensor, expected[key]), key


@LOADERS
def test_a_full_checkpoint_of_the_tuned_model_loads(etta, load, tmp_path):
    model = copy.deepcopy(etta.start)
    load(model, etta.trained.state_dict(), tmp_path / 'full.pth')
    assert_close(
        model.state_dict(), etta.trained.state_dict(), rtol=0, atol=0)


# ------------------------------------------------------------- law 6: count
def _formula(tuner: type, **sizes) -> int:
    """Evaluate the parameter count that the tuner's docstring states."""
    for cls in tuner.__mro__:
        found = re.search(r'Parameters[^:]*:\s+``([^`]+)``', cls.__doc__ or '')
        if found:
            return eval(found.group(1), {}, sizes)  # text of this repository
    raise AssertionError(f'{tuner.__name__} states no count')


def _expected_count(tuned) -> int:
    host, d = tuned.host, tuned.host.dims
    sites = dict(ffn=len(host.ffns), attn=host.num_attns + host.num_deformables)
    sizes = dict(d=d, b=BOTTLENECK, l=NUM_PREFIX)
    total = 0
    for site in ('ffn', 'attn'):
        cfgs = tuned.tuning.get(site, [])
        for cfg in cfgs if isinstance(cfgs, list) else [cfgs]:
            if cfg is LORA or cfg == LORA:
                maps = [m for ffn in host.ffns for m in ffn]
                if site == 'attn':
                    maps = [(d, d)] * (2 * sites['attn'] - host.dead_loras)
                total += sum(
                    _formula(LoRA, r=RANK, in_dims=i, out_dims=o)
                    for i, o in maps)
                continue
            cls = ScaledPrefix if 'Prefix' in cfg['type'] else ParallelAdapter
            total += sites[site] * (
                _formula(cls, **sizes) + cfg.get('learn_scale', False))
    if 'conv' in tuned.tuning:
        total += sum(
            _formula(ConvAdapter, d=channels, b=BOTTLENECK)
            for channels in host.convs)
    return total


def test_the_count_is_the_docstrings_formula(tuned):
    counted = sum(
        p.numel() for m in tuned.start.modules() if isinstance(m, Tuner)
        for p in m.parameters())
    assert counted == _expected_count(tuned)


def test_a_heads_own_ffn_is_no_sublayer():
    # DETRHead.reg_ffn is an mmcv FFN; here the head is not trained in full.
    model = HOSTS['detr'].build(dict(ffn=ADAPTER))
    tuners = [n for n, m in model.named_modules() if isinstance(m, Tuner)]
    assert len(tuners) == len(HOSTS['detr'].ffns)
    assert not any(name.startswith('bbox_head') for name in tuners)


def test_the_report_adds_up(tuned):
    report = count_parameters(tuned.start)
    parameters = list(tuned.start.parameters())
    assert report.total == sum(p.numel() for p in parameters)
    assert report.trainable == sum(
        p.numel() for p in parameters if p.requires_grad)
    assert report.total == sum(row[2] for row in report.rows)
    assert report.trainable == sum(row[3] for row in report.rows)
    assert report.percent == 100 * report.trainable / report.total
    assert sum(row[3] for row in report.rows
               if row[1] != 'base') == _expected_count(tuned)
    for _, _, total, _ in report.rows:
        assert f'{total:,}' in str(report)


# ------------------------------------------------------------- law 7: modes
def test_train_and_eval_return_self(etta):
    model = copy.deepcopy(etta.start)
    ours = [
        m for m in model.modules()
        if m is model or type(m).__module__.startswith('etta_mm')
    ]
    assert len(ours) > 1
    for module in ours:  # a few of mmdet's own return None
        assert module.train() is module
        assert module.eval() is module


def test_two_evals_agree_and_write_nothing(etta):
    model = copy.deepcopy(etta.trained)
    before = copy.deepcopy(model.state_dict())
    assert_close(
        output(model, etta.batch), output(model, etta.batch), rtol=0, atol=0)
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_frozen_batch_norms_stay_in_eval_and_do_not_drift(etta):
    model = copy.deepcopy(etta.start).train()
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
    }
    if 'resnet' in type(getattr(model, 'backbone', None)).__name__.lower():
        assert norms
    assert not any(norm.training for norm in norms.values())
    before = copy.deepcopy({n: m.state_dict() for n, m in norms.items()})
    loss(model, etta.batch)
    for name, norm in norms.items():
        assert_close(norm.state_dict(), before[name], rtol=0, atol=0)


# ------------------------------------------------------------ law 8: inputs
def test_the_config_is_unchanged_after_a_build(etta):
    tuning = copy.deepcopy(etta.tuning)
    etta.host.build(tuning)
    assert tuning == etta.tuning


@pytest.mark.parametrize(
    'name', [name for name, host in HOSTS.items() if host.config])
def test_the_hosts_config_is_unchanged_after_a_build(name):
    from mmdet.registry import MODELS as MMDET
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS as MMPRETRAIN
    cfg = HOSTS[name].config()
    owner = cfg['backbone'] if HOSTS[name].root else cfg
    owner['tuning'] = copy.deepcopy(TUNINGS['everything'])
    before = copy.deepcopy(owner)
    scope, registry = (('mmpretrain', MMPRETRAIN)
                       if HOSTS[name].root else ('mmdet', MMDET))
    with DefaultScope.overwrite_default_scope(scope):
        registry.build(owner)
    assert owner == before
