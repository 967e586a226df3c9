"""Many tunings on one base: switching, mixing, and what is refused."""
import copy
import gc
import random
from functools import lru_cache

import pytest
import torch
from hosts import (CLASSES, DIMS, HEADS, HIDDEN, HOSTS, MMDET, MMPRETRAIN,
                   classifier_config, prepare)
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmdet.testing import demo_mm_inputs
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from mmpretrain.structures import DataSample
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from etta_mm import (TuningBank, apply_tuning, load_tuned, save_tuned,
                     tuned_state_dict)
from etta_mm.inference import bank as bank_module
from etta_mm.inference import loaded_tuning
from etta_mm.layers.routing import Routing
from etta_mm.tuners import LoRA, ParallelAdapter, ScaledPrefix

CLOSE = dict(rtol=1e-5, atol=1e-5)
# It rounds by the size of the batch, with a single tuning as much (2.3e-5).
ALONE = dict(deformable_twostage=dict(rtol=1e-4, atol=1e-4))
SHAPES = [(3, 64, 40), (3, 48, 64), (3, 40, 48), (3, 64, 64)]
NAMES = ('adapters', 'loras', None, 'adapters')
MANY_CLASSES = CLASSES + 4
ADAPTERS = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=5, scale=0.5),
    attn=dict(type='ScaledPrefix', num_prefix=3))
LORAS = dict(
    ffn=[
        dict(type='LoRA', rank=2),
        dict(type='SerialAdapter', bottleneck_dims=4),
        dict(type='ParallelAdapter', bottleneck_dims=7)
    ],
    attn=[
        dict(type='LoRA', rank=2),
        dict(type='Prefix', num_prefix=4),
        dict(type='ParallelAdapter', bottleneck_dims=6)
    ])
#: What each tuning trains in full, by host: of the second it is norms of
#: every kind as well, with their statistics.
NORMS = r'.*\.(bn\d|norms?|norms\.\d|ln\d)'
TRAIN = dict(
    detector=(['bbox_head'], ['bbox_head', 'neck', NORMS]),
    layers=(['bbox_head'], ['bbox_head', NORMS]),
    vit=([], ['ln1', NORMS]),
    vit_swiglu=([], ['ln1', NORMS]))
MAIN = ('detr', 'deformable', 'vit')
ALL = (*MAIN, 'deformable_refine', 'deformable_twostage', 'conditional_detr',
       'dab_detr', 'dino', 'vit_swiglu', 'vit_detector', 'layers')


def with_train(host_name, tuning, index):
    tuning = copy.deepcopy(tuning)
    if index == 0 and HOSTS[host_name].convs:
        tuning['conv'] = dict(type='ConvAdapter', bottleneck_dims=3)
    train = TRAIN.get(host_name, TRAIN['detector'])[index]
    return dict(tuning, train=train)


def move(model, seed):
    """Give all that is tuned other values, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tuned_state_dict(model).items():
        if not tensor.is_floating_point():
            tensor += 3
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith('running_var'):
            tensor.mul_(1 + 0.3 * noise.abs())
        else:
            tensor.add_(0.2 * noise)


def tune(host_name, tuning, seed, change=None):
    """A model of the base's weights, tuned and moved."""
    model = copy.deepcopy(HOSTS[host_name].base())
    if change:
        change(model)
    apply_tuning(model.get_submodule(HOSTS[host_name].root), tuning)
    move(model, seed)
    return model.eval()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The two tuned files of a host."""
    folder = tmp_path_factory.mktemp('tuned')

    @lru_cache(maxsize=None)
    def write(host_name):
        return {
            name: save_tuned(
                tune(host_name, with_train(host_name, tuning, i), i),
                folder / f'{host_name}_{name}.safetensors',
                dataset_meta=dict(classes=[f'{name} {i}' for i in range(3)]))
            for i, (name, tuning) in enumerate(
                dict(adapters=ADAPTERS, loras=LORAS).items())
        }

    return write


def base_of(host_name):
    """The base, frozen: a product of torch may round by its flags."""
    return copy.deepcopy(HOSTS[host_name].base()).requires_grad_(False)


def filled(host_name, files):
    bank = TuningBank(base_of(host_name))
    for name, path in files(host_name).items():
        bank.load(name, path)
    return bank


def batch_of(host_name, num_images=4):
    if host_name == 'layers':
        return dict(
            inputs=torch.randn(num_images, 22, DIMS), data_samples=None)
    if HOSTS[host_name].root == 'backbone':
        batch = dict(
            inputs=torch.randint(0, 256, (num_images, 3, 32, 32)),
            data_samples=[DataSample() for _ in range(num_images)])
    else:
        batch = demo_mm_inputs(
            num_images, SHAPES[:num_images], num_items=[1] * num_images,
            num_classes=CLASSES)
    return prepare(HOSTS[host_name].base(), batch, False)


def run(model, data, mode='tensor'):
    with torch.no_grad():
        return model(data['inputs'], copy.deepcopy(data['data_samples']),
                     mode=mode)


def image(data, i):
    """Image i of a batch, with the padding that it has there."""
    samples = data['data_samples']
    return dict(
        inputs=data['inputs'][i:i + 1],
        data_samples=None if samples is None else samples[i:i + 1])


def leaves(tree):
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in leaves(item)]
    return [tree]


def rows(tree, i, num_images):
    """Image i of every tensor of an output."""
    found = []
    for leaf in leaves(tree):
        dim = 0 if leaf.size(0) == num_images else 1
        assert leaf.size(dim) == num_images
        found.append(leaf.select(dim, i))
    return found


def portrait(model):
    """Everything that a bank changes for a time, in its order."""
    return [(n, type(m), list(vars(m)), list(m._parameters), list(m._buffers),
             list(m._modules), m.training) for n, m in model.named_modules()
            ], [(n, id(p), p.requires_grad)
                for n, p in model.named_parameters()
                ], [(n, id(b)) for n, b in model.named_buffers()]


def assert_untouched(model, host_name, before):
    assert portrait(model) == before
    base = base_of(host_name)
    assert_close(
        dict(model.state_dict()), dict(base.state_dict()), rtol=0, atol=0)
    data = batch_of(host_name)
    assert_close(run(model, data), run(base, data), rtol=0, atol=0)


# ------------------------------------------------------------------ switching
@pytest.mark.parametrize('host_name', MAIN)
def test_switching_equals_a_fresh_load_bit_for_bit(host_name, files):
    bank, data = filled(host_name, files), batch_of(host_name)
    outputs = []
    for name in ('adapters', 'loras', 'adapters'):
        bank.use(name)
        fresh = copy.deepcopy(HOSTS[host_name].base())
        load_tuned(fresh, files(host_name)[name])
        fresh.requires_grad_(False)
        outputs.append(run(bank.model, data))
        assert_close(outputs[-1], run(fresh, data), rtol=0, atol=0)
        assert_close(
            dict(bank.model.state_dict()),
            dict(fresh.state_dict()),
            rtol=0,
            atol=0)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(leaves(outputs[0]), leaves(outputs[1])))


@pytest.mark.parametrize('host_name', MAIN)
def test_what_is_used_keeps_no_graph(host_name, files):
    with torch.inference_mode():  # even of what was loaded in there
        bank = filled(host_name, files)
    data = batch_of(host_name)
    for name in ('adapters', 'loras'):
        bank.use(name)
        out = bank.model(**data, mode='tensor')
        assert not any(t.requires_grad for t in leaves(out))


@pytest.mark.parametrize('host_name', MAIN)
@pytest.mark.parametrize('seed', range(3))
def test_the_base_is_untouched_after_any_sequence(host_name, seed, files,
                                                  tmp_path):
    model, choice = base_of(host_name).eval(), random.Random(seed)
    before = portrait(model)
    bank, data = TuningBank(model), batch_of(host_name)
    paths = files(host_name)
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes(b'no file')
    bank.load('adapters', paths['adapters'])
    for _ in range(15):
        name = choice.choice([*bank.names, None])
        kind = choice.choice(['use', 'mix', 'load', 'remove', 'fail', 'raise'])
        if kind == 'use':
            bank.use(name)
            run(model, data)
        elif kind == 'mix':
            with bank.per_sample([name, None, name, bank.names[0]]):
                run(model, data, 'tensor')
        elif kind == 'load' and 'loras' not in bank.names:
            bank.load('loras', paths['loras'])
        elif kind == 'remove' and bank.active != 'loras':
            if 'loras' in bank.names:
                bank.remove('loras')
        elif kind == 'fail':
            with pytest.raises(ValueError):
                bank.load('broken', broken)
        elif kind == 'raise':
            with pytest.raises(ZeroDivisionError):
                with bank.per_sample([name, None]), bank.use(name):
                    1 / 0
    bank.use(None)
    assert_untouched(model, host_name, before)


def test_use_switches_back_at_the_end_of_a_with(files):
    bank = filled('detr', files)
    bank.use('loras')
    with bank.use('adapters'):
        assert bank.active == 'adapters'
        with bank.per_sample(NAMES):
            assert bank.active == NAMES
            with bank.use(None):
                assert bank.active is None
            assert bank.active == NAMES
        assert bank.active == 'adapters'
    assert bank.active == 'loras'


def test_a_switch_sets_references_and_as_many_as_the_tuning_has_tensors(
        files, monkeypatch):
    counted = []
    put = bank_module.put
    monkeypatch.setattr(
        bank_module, 'put', lambda *args: counted.append(args) or put(*args))
    bank = filled('detr', files)
    counted.clear()
    addresses = {k: t.data_ptr() for k, t in bank.model.state_dict().items()}
    bank.use('adapters')
    tensors = load_file(str(files('detr')['adapters']))
    assert 0 < len(counted) <= len(tensors)
    for key, tensor in bank.model.state_dict().items():
        assert (tensor.data_ptr() == addresses.get(key)) == (
            key not in tensors or not tensor.numel())


def test_a_bank_puts_its_base_into_eval_and_freezes_it():
    model = copy.deepcopy(HOSTS['detr'].base()).requires_grad_(True).train()
    TuningBank(model)
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_the_classes_of_a_tuning_come_with_it(files):
    base = base_of('detr')
    base.dataset_meta = dict(classes=['of the base'])
    bank = TuningBank(base)
    for name, path in files('detr').items():
        bank.load(name, path)
    bank.use('loras')
    assert bank.model.dataset_meta['classes'][0] == 'loras 0'
    bank.use(None)
    assert bank.model.dataset_meta['classes'] == ['of the base']


# --------------------------------------------------------------------- memory
def live_bytes():
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # no fake tensors, which an export before this leaves behind
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize('host_name', MAIN)
def test_the_memory_is_that_of_the_base_and_of_each_tuning(host_name, files):
    paths = files(host_name)
    tuned = {
        name: sum(t.nbytes for t in load_file(str(path)).values())
        for name, path in paths.items()
    }
    bank = TuningBank(base_of(host_name))
    start = live_bytes()
    for i in range(4):
        for name, path in paths.items():
            bank.load(f'{name} {i}', path)
            assert bank.num_bytes(f'{name} {i}') == tuned[name]
    assert live_bytes() - start == 4 * sum(tuned.values())
    bank.use('loras 2')
    assert live_bytes() - start == 4 * sum(tuned.values())
    bank.use(None)
    for name in bank.names:
        bank.remove(name)
    assert live_bytes() == start


def test_loading_copies_nothing_of_the_base(files, monkeypatch):
    during = []
    load = loaded_tuning.load_tuned
    monkeypatch.setattr(
        loaded_tuning, 'load_tuned',
        lambda *args: during.append(live_bytes()) or load(*args))
    path = files('detr')['adapters']
    file = sum(t.nbytes for t in load_file(str(path)).values())
    bank = TuningBank(base_of('detr'))
    start = live_bytes()
    bank.load('adapters', path)
    # the file as it was read, and what it will be copied into
    assert during[0] - start <= 2 * file


# --------------------------------------------------------------------- mixing
@pytest.mark.parametrize('host_name', ALL)
def test_a_mixed_batch_equals_each_image_alone(host_name, files):
    bank, data = filled(host_name, files), batch_of(host_name)
    with bank.per_sample(NAMES):
        mixed = run(bank.model, data)
    for i, name in enumerate(NAMES):
        with bank.use(name):
            among_others = run(bank.model, data)
            assert_close(rows(mixed, i, 4), rows(among_others, i, 4), **CLOSE)
            if host_name != 'layers':  # whose mask takes several images
                alone = run(bank.model, image(data, i))
                assert_close(
                    rows(mixed, i, 4), rows(alone, 0, 1),
                    **ALONE.get(host_name, CLOSE))


@pytest.mark.parametrize('host_name', MAIN)
def test_a_mixed_batch_predicts_what_each_image_alone_does(host_name, files):
    bank, data = filled(host_name, files), batch_of(host_name)
    with bank.per_sample(NAMES):
        mixed = run(bank.model, data, 'predict')
    for i, name in enumerate(NAMES):
        with bank.use(name):
            alone = run(bank.model, image(data, i), 'predict')[0]
        assert_same_prediction(mixed[i], alone)


def assert_same_prediction(found, wanted):
    if isinstance(wanted, DataSample):
        assert_close(found.pred_score, wanted.pred_score, **CLOSE)
        return
    found, wanted = found.pred_instances, wanted.pred_instances
    assert isinstance(found, InstanceData) and len(found) == len(wanted)
    assert_close(found.scores, wanted.scores, **CLOSE)
    assert_close(found.labels, wanted.labels)
    # in pixels of images of 64
    assert_close(found.bboxes, wanted.bboxes, rtol=1e-4, atol=1e-3)


def head_for(host_name, num_classes, tuning=None):
    """The base's head, or a tuned host's, built for other classes."""
    with torch.random.fork_rng():
        if HOSTS[host_name].root == 'backbone':
            cfg = classifier_config().head
            cfg.num_classes = num_classes
            return MMPRETRAIN.build(cfg)
        cfg = HOSTS[host_name].config()
        cfg['bbox_head'].num_classes = num_classes
        cfg['tuning'] = tuning
        with DefaultScope.overwrite_default_scope('mmdet'):
            return MMDET.build(cfg).bbox_head


@pytest.mark.parametrize('host_name',
                         ['detr', 'deformable', 'deformable_refine', 'vit'])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_heads_of_other_classes_predict_in_one_batch(host_name, device, files,
                                                     tmp_path):
    path = 'head' if host_name == 'vit' else 'bbox_head'

    def change(model):
        setattr(model, path, head_for(host_name, MANY_CLASSES))

    tuned = tune(host_name, with_train(host_name, ADAPTERS, 0), 7, change)
    file = save_tuned(tuned, tmp_path / 'many.safetensors')
    bank, data = filled(host_name, files), batch_of(host_name)
    before = portrait(bank.model)
    with torch.device(device):  # of a config of the user's, which has a tuning
        head = head_for(host_name, MANY_CLASSES, ADAPTERS)
    with pytest.raises(ValueError, match='classes'):
        bank.load('many', file)
    bank.load('many', file, modules={path: head})
    names = ['many', 'loras', 'many', None]
    with bank.per_sample(names):
        mixed = run(bank.model, data, 'predict')
        with pytest.raises(ValueError, match="mode='predict'"):
            run(bank.model, data, 'tensor')
    for i, name in enumerate(names):
        with bank.use(name):
            assert_same_prediction(
                mixed[i],
                run(bank.model, image(data, i), 'predict')[0])
    with bank.use('many'):
        assert_close(
            run(bank.model, data), run(tuned, data), rtol=0, atol=0)
    assert portrait(bank.model) == before


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_a_head_is_filled_up_with_what_is_frozen_in_it(device, tmp_path):
    path = r'bbox_head\.cls_branches|bbox_head\.fc_cls'

    def change(model):
        frozen = copy.deepcopy(model.bbox_head.state_dict())
        model.bbox_head = head_for('detr', MANY_CLASSES)
        own = model.bbox_head.state_dict()
        model.bbox_head.load_state_dict({
            key: frozen[key] if frozen[key].shape == own[key].shape else own[key]
            for key in own})

    tuned = tune('detr', dict(ADAPTERS, train=[path]), 7, change)
    file = save_tuned(tuned, tmp_path / 'many.safetensors')
    bank, data = TuningBank(base_of('detr')), batch_of('detr')
    with torch.device('meta'):
        head = head_for('detr', MANY_CLASSES)
    if device == 'cpu':
        head = copy.deepcopy(tuned.bbox_head)
    bank.load('many', file, modules=dict(bbox_head=head))
    with bank.use('many'):
        assert_close(
            run(bank.model, data), run(tuned, data), rtol=0, atol=0)


def test_a_head_that_the_file_does_not_fill_is_refused(tmp_path):
    tuned = tune('detr', ADAPTERS, 7)
    file = save_tuned(tuned, tmp_path / 'adapters.safetensors')
    with torch.device('meta'):
        head = head_for('detr', MANY_CLASSES)
    bank = TuningBank(base_of('detr'))
    with pytest.raises(ValueError, match='no values for .*fc_cls.*meta device'):
        bank.load('many', file, modules=dict(bbox_head=head))


class NotBatchFirst(nn.Module):
    """Layers of mmcv that count the images second."""

    def __init__(self):
        super().__init__()
        self.attn = MultiheadAttention(DIMS, HEADS, batch_first=False)
        self.norm = nn.LayerNorm(DIMS)
        self.ffn = FFN(DIMS, HIDDEN)

    def forward(self, x):
        return self.ffn(self.norm(self.attn(x, query_pos=x.flip(0))))


@MODELS.register_module()
class MyAdapter(ParallelAdapter):
    """A tuner of a user, under a name of its own."""


@MODELS.register_module()
class MyPrefix(ScaledPrefix):
    """Likewise."""


@MODELS.register_module()
class MyLoRA(LoRA):
    """Likewise."""


@pytest.mark.parametrize('tuning', [
    dict(ffn=dict(type='MyAdapter', bottleneck_dims=5)),
    dict(attn=dict(type='MyAdapter', bottleneck_dims=5)),
    dict(attn=dict(type='MyPrefix', num_prefix=3)),
    dict(attn=dict(type='MyLoRA', rank=2)),
    dict(ffn=dict(type='MyLoRA', rank=2)),
], ids=str)
@pytest.mark.parametrize('host_name', ['detr', 'deformable'])
def test_a_tuner_of_a_type_derived_from_ours_is_routed(host_name, tuning,
                                                       tmp_path):
    file = save_tuned(
        tune(host_name, tuning, 3), tmp_path / 'derived.safetensors')
    bank, data = TuningBank(base_of(host_name)), batch_of(host_name)
    bank.load('derived', file)
    with bank.per_sample(['derived', None] * 2):
        mixed = run(bank.model, data)
    base = run(bank.model, data)
    with bank.use('derived'):
        derived = run(bank.model, data)
    assert_close(rows(mixed, 0, 4), rows(derived, 0, 4), **CLOSE)
    assert_close(rows(mixed, 1, 4), rows(base, 1, 4), **CLOSE)
    with pytest.raises(AssertionError):
        assert_close(rows(derived, 0, 4), rows(base, 0, 4), **CLOSE)


# As many images as queries: no shape tells which is which.
@pytest.mark.parametrize('num_queries', [9, 4])
def test_images_are_told_from_queries_by_the_layout(num_queries, tmp_path):
    base = NotBatchFirst().eval()
    bank = TuningBank(base)
    for i, tuning in enumerate((ADAPTERS, LORAS)):
        tuned = apply_tuning(
            copy.deepcopy(base), dict(tuning, train=['norm'][:i]))
        move(tuned, i)
        bank.load('ab'[i], save_tuned(tuned, tmp_path / f'{i}.safetensors'))
    x = torch.randn(num_queries, 4, DIMS)
    with bank.per_sample(['a', None, 'b', 'a']), torch.no_grad():
        mixed = base(x)
    for i, name in enumerate(['a', None, 'b', 'a']):
        with bank.use(name), torch.no_grad():
            assert_close(mixed[:, i:i + 1], base(x[:, i:i + 1]), **CLOSE)


# -------------------------------------------------------------------- refusal
@pytest.mark.parametrize('names', [
    NAMES[:3], (*NAMES, None), ('loras', ) * 2, ('loras', ), (None, ) * 5
])
@pytest.mark.parametrize('host_name', (*MAIN, 'layers'))
def test_a_batch_of_another_size_is_refused(host_name, names, files):
    bank = filled(host_name, files)
    with bank.per_sample(names), pytest.raises(
            ValueError, match='name for each image'):
        run(bank.model, batch_of(host_name))
    bank.use(None)


@pytest.mark.parametrize('shape', [(12, 5, DIMS), (3, DIMS)])
def test_windows_and_rows_without_images_are_refused(shape):
    with pytest.raises(ValueError, match='windows or flattens'):
        Routing('aab').batch_dim(torch.zeros(shape), 'ffn')


def test_an_uncertain_layout_is_refused():
    routing = Routing('aab', batch_first=None)
    assert routing.batch_dim(torch.zeros(5, 3, DIMS), 'ffn') == 1
    with pytest.raises(ValueError, match='several may be'):
        routing.batch_dim(torch.zeros(3, 3, DIMS), 'ffn')


def test_a_parameter_read_for_the_whole_batch_is_refused(files, tmp_path):
    tuned = tune('detr', dict(ADAPTERS, train=['query_embedding']), 3)
    bank = filled('detr', files)
    bank.load('queries', save_tuned(tuned, tmp_path / 'queries.safetensors'))
    with bank.per_sample(['queries', None]), pytest.raises(
            ValueError, match='query_embedding.weight differs'):
        run(bank.model, batch_of('detr', 2))
    with bank.use('queries'):
        run(bank.model, batch_of('detr', 2))


def test_parameters_of_the_model_itself_part_the_whole_model(files, tmp_path):
    tuned = tune('deformable', dict(ADAPTERS, train=['level_embed']), 3)
    bank, data = filled('deformable', files), batch_of('deformable', 2)
    bank.load('levels', save_tuned(tuned, tmp_path / 'levels.safetensors'))
    with bank.per_sample(['levels', None]):
        mixed = run(bank.model, data, 'predict')
        with pytest.raises(ValueError, match='predict'):
            run(bank.model, data, 'tensor')
    for i, name in enumerate(['levels', None]):
        with bank.use(name):
            assert_same_prediction(
                mixed[i],
                run(bank.model, image(data, i), 'predict')[0])


FAILURES = dict(
    base=(lambda bank, path: bank.load('new', path('other base')), ValueError,
          'another base.*norms.0.bias'),
    host=(lambda bank, path: bank.load('new', path('deformable')), ValueError,
          ''),
    damaged=(lambda bank, path: bank.load('new', path('damaged')), ValueError,
             'no safetensors file'),
    absent=(lambda bank, path: bank.load('new', 'nowhere'), FileNotFoundError,
            'nowhere'),
    taken=(lambda bank, path: bank.load('loras', path('loras')), ValueError,
           'already'),
    no_name=(lambda bank, path: bank.load(None, path('loras')), TypeError,
             'string'),
    classes=(lambda bank, path: bank.load('new', path('loras'), ['cat']),
             ValueError, "'loras 0' there and 'cat' here"),
    no_module=(lambda bank, path: bank.load(
        'new', path('loras'), modules=dict(head=nn.Identity())), KeyError,
               'bbox_head'),
    other_type=(lambda bank, path: bank.load(
        'new', path('loras'), modules=dict(bbox_head=nn.Identity())),
                TypeError, 'DETRHead'),
    other_tensors=(lambda bank, path: bank.load(
        'new', path('loras'), modules=dict(neck=type(bank.model.neck)(
            [4], DIMS, num_outs=3))), ValueError, 'not the same tensors'),
)


@pytest.mark.parametrize('active', [None, 'adapters', NAMES])
@pytest.mark.parametrize('failure', FAILURES)
def test_a_failed_load_leaves_the_bank_as_it_was(failure, active, files,
                                                 tmp_path):

    def path(name):
        if name in ('adapters', 'loras'):
            return files('detr')[name]
        if name == 'deformable':
            return files('deformable')['adapters']
        file = tmp_path / 'new.safetensors'
        if name == 'damaged':
            file.write_bytes(files('detr')['loras'].read_bytes()[:-7])
            return file

        def change(model):
            with torch.no_grad():
                model.encoder.layers[0].norms[0].bias[0] += 1

        return save_tuned(tune('detr', dict(ADAPTERS), 2, change), file)

    load, error, match = FAILURES[failure]
    files('deformable')  # made once, with a base that stays in memory
    bank, data = filled('detr', files), batch_of('detr')
    before, memory = portrait(bank.model), live_bytes()
    bank._install(active)
    output, during = run(bank.model, data), portrait(bank.model)
    with pytest.raises(error, match=match):
        load(bank, path)
    assert bank.names == ('adapters', 'loras') and bank.active == active
    assert_close(run(bank.model, data), output, rtol=0, atol=0)
    if not isinstance(active, tuple):  # a routing is made anew
        assert portrait(bank.model) == during
    bank.use(None)
    del output
    assert portrait(bank.model) == before
    assert live_bytes() == memory


def test_a_backbone_alone_is_a_base():
    """Its eval() returns None."""
    from mmpretrain.models import VisionTransformer
    backbone = VisionTransformer(
        dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16),
        img_size=16, patch_size=8)
    assert TuningBank(backbone).model is backbone


def test_a_tuned_model_is_no_base(files):
    model = copy.deepcopy(HOSTS['detr'].base())
    load_tuned(model, files('detr')['loras'])
    with pytest.raises(ValueError, match='tuning=None'):
        TuningBank(model)


def test_what_the_bank_does_not_have_is_named(files):
    bank = filled('detr', files)
    bank.use('loras')
    for ask in (bank.use, bank.remove, bank.metadata, bank.num_bytes):
        with pytest.raises(KeyError, match="'adapters', 'loras'"):
            ask('new')
    with pytest.raises(KeyError, match='new'), bank.per_sample(['new', None]):
        pass
    assert bank.active == 'loras'


def test_what_is_in_use_is_not_removed(files):
    bank = filled('detr', files)
    with bank.use('loras'), pytest.raises(ValueError, match='in use'):
        bank.remove('loras')
    with bank.per_sample(NAMES), pytest.raises(ValueError, match='in use'):
        bank.remove('loras')
    bank.remove('loras')
    assert bank.names == ('adapters', )


def test_what_the_end_of_a_with_brings_back_is_not_removed(files):
    bank = filled('detr', files)
    bank.use('loras')
    with bank.use('adapters'):
        with bank.per_sample([None, None]), pytest.raises(
                ValueError, match="'loras'.*at its end"):
            bank.remove('loras')
        with pytest.raises(ValueError, match='in use'):
            bank.remove('adapters')
    assert bank.active == 'loras'
    bank.use('adapters')  # not in a with: nothing brings 'loras' back
    bank.remove('loras')


def no_head_in_one_batch(bank):
    with bank.per_sample(['no head', None]):
        pass


def not_to_be_put_in(bank):
    # As if a module had gone since.
    bank._tunings['no head'].sublayers['gone'] = None
    bank.use('no head')


@pytest.mark.parametrize('before', [None, 'adapters', NAMES])
@pytest.mark.parametrize('switch, error', [(no_head_in_one_batch, ValueError),
                                           (not_to_be_put_in, TypeError)])
def test_a_switch_that_fails_leaves_what_was_active(switch, error, before,
                                                    files, tmp_path):
    bank, data = filled('detr', files), batch_of('detr')
    neck = copy.deepcopy(bank.model.neck)
    tuned = tune('detr', dict(ADAPTERS, train=['neck']), 3)
    bank.load('no head', save_tuned(tuned, tmp_path / 'a.safetensors'),
              modules=dict(neck=neck))
    bank._install(before)
    output = run(bank.model, data)
    with pytest.raises(error):
        switch(bank)
    assert bank.active == before
    assert_close(run(bank.model, data), output, rtol=0, atol=0)


def test_tunings_are_in_eval_whatever_the_model_was_before(tmp_path):
    dropout = dict(type='ParallelAdapter', bottleneck_dims=5, dropout=0.5)
    file = save_tuned(
        tune('detr', dict(ffn=dropout), 3), tmp_path / 'd.safetensors')
    bank, data = TuningBank(base_of('detr')), batch_of('detr')
    bank.load('d', file)
    bank.use('d')
    output = run(bank.model, data)
    bank.model.train()
    bank.use(None)
    bank.model.eval()
    with bank.per_sample(['d', None] * 2):
        assert_close(
            rows(run(bank.model, data), 0, 4), rows(output, 0, 4), **CLOSE)
    bank.model.train()
    bank.model.eval()
    bank.use('d')
    assert not any(m.training for m in bank.model.modules())
    assert_close(run(bank.model, data), output, rtol=0, atol=0)


def test_training_mode_a_string_and_no_names_are_refused(files):
    bank = filled('detr', files)
    with pytest.raises(TypeError, match='string'):
        with bank.per_sample('adapters'):
            pass
    with pytest.raises(ValueError, match='got none'):
        with bank.per_sample([]):
            pass
    bank.model.train()
    with pytest.raises(ValueError, match='training mode'):
        with bank.per_sample(NAMES):
            pass


def test_a_model_that_was_cast_is_refused(files):
    bank = filled('detr', files)
    bank.model.half()
    with pytest.raises(ValueError, match='move it before'):
        bank.use('loras')
