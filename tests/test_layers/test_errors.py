"""Every bad tuning is one clear message and leaves the model as it was."""
import copy

import pytest
import torch
from hosts import HOSTS
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from etta_mm import ETDETR, apply_tuning, tuned_state_dict
from etta_mm.layers import (ETFFN, ETMultiheadAttention,
                            ETMultiScaleDeformableAttention)

ADAPTER = dict(type='ParallelAdapter', bottleneck_dims=4)
SERIAL = dict(type='SerialAdapter', bottleneck_dims=4)
PREFIX = dict(type='ScaledPrefix', num_prefix=2)
STANDARD = dict(type='Prefix', num_prefix=2)
LORA = dict(type='LoRA', rank=2)

#: Tuning, type of the error, and what the message must name.
BAD_TUNINGS = {
    'no dict': (ADAPTER['type'], TypeError, ['ParallelAdapter', 'ffn']),
    'unknown key': (dict(fnn=ADAPTER), KeyError, ['fnn', 'ffn, attn']),
    'no such tuner': (dict(ffn=dict(type='ParalelAdapter')), KeyError,
                      ['ParalelAdapter', "'ParallelAdapter'", 'LoRA']),
    'no tuner but a layer': (dict(ffn=dict(type='FFN')), KeyError,
                             ['FFN', 'SerialAdapter']),
    'a tuner without a type': (dict(ffn=dict(bottleneck_dims=4)), TypeError,
                               ['type']),
    'a tuner as a string': (dict(ffn='LoRA'), TypeError, ['LoRA', 'dict']),
    'unknown argument': (dict(ffn=dict(ADAPTER, botleneck_dims=4)), TypeError,
                         ['botleneck_dims', 'bottleneck_dims']),
    'missing argument': (dict(ffn=dict(type='ParallelAdapter')), TypeError,
                         ['needs bottleneck_dims']),
    'an argument that the layer gives': (dict(
        ffn=dict(ADAPTER, embed_dims=4)), TypeError, ['embed_dims']),
    'where matches nothing': (dict(ffn=ADAPTER, where='decodr'), ValueError,
                              ['decodr', 'decoder.layers']),
    'a pattern of where matches nothing':
    (dict(ffn=ADAPTER, where=['encoder', 'decodr']), ValueError, ['decodr']),
    "a tuner's where matches nothing": (dict(
        ffn=dict(ADAPTER, where='decodr')), ValueError,
                                        ['decodr', 'decoder.layers']),
    'where without a tuner matches nothing':
    (dict(train='bbox_head', where='decodr'), ValueError, ['decodr']),
    'where is no regular expression': (dict(ffn=ADAPTER, where='(decoder'),
                                       ValueError, ['(decoder', 'regular']),
    "a tuner's where is no regular expression":
    (dict(ffn=dict(ADAPTER, where='(decoder')), ValueError,
     ['(decoder', 'regular']),
    'where is a number': (dict(ffn=ADAPTER, where=3), (TypeError, ValueError),
                          ['where', '3']),
    'train is a number': (dict(train=3), (TypeError, ValueError),
                          ['train', '3']),
    'train matches nothing': (dict(ffn=ADAPTER, train='box_head'), ValueError,
                              ['box_head', 'bbox_head']),
    'one of train matches nothing': (dict(train=['bbox_head', 'nek']),
                                     ValueError, ['nek', 'neck']),
    'train matches a part of a name only': (dict(train='bbox'), ValueError,
                                            ['bbox', 'bbox_head']),
    'a prefix at ffn': (dict(ffn=PREFIX), ValueError,
                        ['ScaledPrefix', 'attention', 'attn']),
    'a standard prefix at ffn': (dict(ffn=STANDARD), ValueError,
                                 ['Prefix', 'attention']),
    'an adapter of tokens at conv':
    (dict(conv=ADAPTER), ValueError, ['ParallelAdapter', 'ConvAdapter']),
    'an adapter of feature maps at ffn':
    (dict(ffn=dict(type='ConvAdapter', bottleneck_dims=2)), ValueError,
     ['ConvAdapter', 'ResNet', 'under conv']),
    'no bottleneck at conv':
    (dict(conv=dict(type='ConvAdapter', bottleneck_dims=0)), ValueError,
     ['bottleneck_dims=0']),
    'no prefix vectors': (dict(attn=dict(PREFIX, num_prefix=0)), ValueError,
                          ['num_prefix=0', 'at least 1']),
    'fewer than no prefix vectors': (dict(attn=dict(STANDARD, num_prefix=-3)),
                                     ValueError, ['num_prefix=-3']),
    'a string of a number': (dict(attn=dict(PREFIX, num_prefix='3')),
                             TypeError, ["num_prefix='3'", 'integer']),
    'a float for a size': (dict(ffn=dict(ADAPTER, bottleneck_dims=4.)),
                           TypeError, ['bottleneck_dims=4.0', 'integer']),
    'a bool for a size': (dict(ffn=dict(ADAPTER, bottleneck_dims=True)),
                          TypeError, ['bottleneck_dims=True', 'integer']),
    'no bottleneck': (dict(ffn=dict(SERIAL, bottleneck_dims=0)), ValueError,
                      ['bottleneck_dims=0']),
    'rank zero': (dict(attn=dict(LORA, rank=0)), ValueError, ['rank=0']),
    'rank zero at ffn': (dict(ffn=dict(LORA, rank=0)), ValueError,
                         ['rank=0']),
    'alpha zero': (dict(attn=dict(LORA, alpha=0)), ValueError, ['alpha=0']),
    'a string for alpha': (dict(attn=dict(LORA, alpha='1.0')), TypeError,
                           ["alpha='1.0'", 'number']),
    'scale zero': (dict(attn=dict(PREFIX, scale=0)), ValueError, ['scale=0']),
    'scale zero at ffn': (dict(ffn=dict(ADAPTER, scale=0.)), ValueError,
                          ['scale=0']),
    'a string for a scale': (dict(attn=dict(PREFIX, scale='1.0')), TypeError,
                             ["scale='1.0'", 'number']),
    'a scale that is no number': (dict(
        attn=dict(PREFIX, scale=float('nan'))), ValueError, ['nan']),
    'dropout of one': (dict(ffn=dict(ADAPTER, dropout=1)), ValueError,
                       ['dropout=1']),
    'negative key_std': (dict(attn=dict(PREFIX, key_std=-1)), ValueError,
                         ['key_std=-1', 'negative']),
    'key_std is no number': (dict(attn=dict(PREFIX, key_std='1')), TypeError,
                             ["key_std='1'"]),
    'no such composition': (dict(attn=dict(PREFIX, composition='sum')),
                            ValueError, ['sum', 'parallel, concat']),
    'nothing trainable': (dict(), ValueError, ['ffn, attn or train']),
    'only None': (dict(ffn=None, attn=None, train=None), ValueError,
                  ['ffn, attn or train']),
    'only frozen stages': (dict(train='backbone.conv1'), ValueError,
                           ['train']),
    'only a module without parameters': (dict(train='backbone.maxpool'),
                                         ValueError, ['train']),
    'an adapter twice': (dict(ffn=[ADAPTER, ADAPTER]), ValueError, ['twice']),
    'an adapter twice at attn': (dict(attn=[SERIAL, SERIAL]), ValueError,
                                 ['twice']),
    'lora twice': (dict(attn=[LORA, LORA]), ValueError, ['twice']),
    'lora twice at ffn': (dict(ffn=[LORA, LORA]), ValueError, ['twice']),
    'lora twice at deformable attention':
    (dict(attn=[LORA, LORA], where='encoder'), ValueError, ['twice']),
    'two kinds of prefix': (dict(attn=[PREFIX, STANDARD]), ValueError,
                            ['twice']),
    'right at ffn, wrong at attn': (dict(
        ffn=[ADAPTER, LORA], attn=dict(PREFIX, num_prefix=0)), ValueError,
                                    ['num_prefix=0']),
    'right at first, wrong then': (dict(
        attn=[LORA, dict(ADAPTER, bottleneck_dims=-1)]), ValueError,
                                   ['bottleneck_dims=-1']),
}


@pytest.fixture(scope='module')
def model():
    """Deformable DETR: all three sublayers, batch norms, a frozen stage."""
    model = copy.deepcopy(HOSTS['deformable'].base())
    for parameter in model.backbone.conv1.parameters():
        parameter.requires_grad_(False)
    return model.train()


def portrait(model: nn.Module) -> list:
    """All that a tuning changes in a model."""
    return [
        [(name, type(module), module.training, set(vars(module)),
          len(module._load_state_dict_pre_hooks))
         for name, module in model.named_modules()],
        [(name, parameter.requires_grad, id(parameter))
         for name, parameter in model.named_parameters()],
        list(model.state_dict()),
    ]


@pytest.mark.parametrize(
    'tuning, error, words', BAD_TUNINGS.values(), ids=BAD_TUNINGS)
def test_a_bad_tuning_raises_one_clear_message(model, tuning, error, words):
    before = portrait(model)
    given = copy.deepcopy(tuning)
    with pytest.raises(error) as caught:
        apply_tuning(model, tuning)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert '\n' not in message
    assert portrait(model) == before
    assert repr(tuning) == repr(given)


def test_a_model_that_failed_can_be_tuned_afterwards(model):
    model = copy.deepcopy(model)
    with pytest.raises(ValueError):
        apply_tuning(model, dict(ffn=ADAPTER, attn=dict(PREFIX, num_prefix=0)))
    apply_tuning(model, dict(ffn=ADAPTER, attn=PREFIX))


def test_tuning_twice_raises(model):
    model = apply_tuning(copy.deepcopy(model), dict(ffn=ADAPTER))
    before = portrait(model)
    with pytest.raises(ValueError, match='tuned already'):
        apply_tuning(model, dict(attn=PREFIX))
    with pytest.raises(ValueError, match='tuned already'):
        apply_tuning(nn.ModuleDict(dict(inner=model)), dict(attn=PREFIX))
    assert portrait(model) == before


def test_tuning_a_part_of_a_tuned_model_raises(model):
    model = apply_tuning(copy.deepcopy(model), dict(ffn=ADAPTER))
    before = portrait(model)
    with pytest.raises(ValueError):
        apply_tuning(model.decoder, dict(ffn=ADAPTER))
    assert portrait(model) == before


def test_tuning_what_has_a_tuned_part_raises_and_names_the_part(model):
    model = copy.deepcopy(model)
    apply_tuning(model.decoder, dict(ffn=ADAPTER))
    before = portrait(model)
    with pytest.raises(ValueError, match='decoder is tuned already'):
        apply_tuning(model, dict(attn=PREFIX))
    assert portrait(model) == before


@pytest.mark.parametrize('site, tuner', [('ffn', ADAPTER), ('attn', PREFIX),
                                         ('attn', LORA)])
def test_a_model_without_such_sublayers_raises_and_names_them(site, tuner):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = portrait(model)
    with pytest.raises(ValueError, match='it has none of mm'):
        apply_tuning(model, {site: tuner})
    assert portrait(model) == before


def test_a_prefix_on_a_model_without_attention_names_what_it_needs():
    from mmcv.cnn.bricks.transformer import FFN
    model = nn.ModuleList([FFN(4, 8)])
    with pytest.raises(ValueError, match='MultiheadAttention'):
        apply_tuning(model, dict(attn=PREFIX))
    assert type(model[0]) is FFN


def test_an_attention_with_additional_keys_raises_and_names_the_remedy():
    from mmcv.cnn.bricks.transformer import MultiheadAttention
    for more in (dict(add_bias_kv=True), dict(add_zero_attn=True)):
        model = nn.ModuleList([MultiheadAttention(4, 2, **more)])
        before = portrait(model)
        with pytest.raises(ValueError, match='where='):
            apply_tuning(model, dict(attn=PREFIX))
        assert portrait(model) == before


def test_an_adapter_at_an_attention_of_other_widths_raises():
    from mmpretrain.models.utils import MultiheadAttention
    model = nn.ModuleList([MultiheadAttention(8, 1, input_dims=6)])
    before = portrait(model)
    with pytest.raises(ValueError, match='6'):
        apply_tuning(model, dict(attn=ADAPTER))
    assert portrait(model) == before


@pytest.mark.parametrize('build', [
    lambda tuning: ETFFN(8, 16, tuning=tuning),
    lambda tuning: ETMultiheadAttention(8, 2, tuning=tuning),
    lambda tuning: ETMultiScaleDeformableAttention(8, 2, tuning=tuning),
], ids=['ETFFN', 'ETMultiheadAttention', 'ETMultiScaleDeformableAttention'])
@pytest.mark.parametrize('tuning, error', [
    (dict(type='Nonsense'), KeyError),
    (dict(ADAPTER, bottleneck_dims=0), ValueError),
    ([LORA, LORA], ValueError),
    ([ADAPTER, ADAPTER], ValueError),
], ids=['no tuner', 'size', 'lora twice', 'adapter twice'])
def test_the_registered_layers_raise_as_well(build, tuning, error):
    with pytest.raises(error):
        build(tuning)


def test_a_registered_ffn_refuses_a_prefix():
    with pytest.raises(ValueError, match='attention'):
        ETFFN(8, 16, tuning=PREFIX)


def test_a_bad_tuning_in_a_hosts_config_raises():
    config = HOSTS['detr'].config()
    config['tuning'] = dict(ffn=dict(ADAPTER, bottleneck_dims='4'))
    del config['type']
    from mmengine.registry import DefaultScope
    with DefaultScope.overwrite_default_scope('mmdet'):
        with pytest.raises(TypeError, match='bottleneck_dims'):
            ETDETR(**config)


def test_disabling_what_is_not_tuned_raises(model):
    from etta_mm import disable_tuning
    with pytest.raises(ValueError, match='not tuned'):
        with disable_tuning(model):
            pass


def test_a_tuning_is_enabled_again_after_an_error(model):
    from etta_mm import disable_tuning
    model = apply_tuning(copy.deepcopy(model), dict(ffn=ADAPTER))
    with pytest.raises(RuntimeError):
        with disable_tuning(model):
            raise RuntimeError
    layers = [m for m in model.modules() if isinstance(m, ETFFN)]
    assert layers and all(m.tuning_enabled for m in layers)
    assert torch.is_grad_enabled()


def test_sublayers_that_are_all_trained_or_frozen_are_not_denied():
    from mmcv.cnn.bricks.transformer import FFN
    model = nn.ModuleDict(dict(encoder=FFN(4, 8)))
    with pytest.raises(ValueError, match='mmcv.FFN.* is trained in full'):
        apply_tuning(model, dict(ffn=ADAPTER, train=['encoder']))


def test_a_shared_module_is_trained_by_any_of_its_names():
    from mmcv.cnn.bricks.transformer import FFN
    shared = nn.Linear(4, 2)
    for name in ('0', '1'):
        model = nn.ModuleDict(
            dict(ffn=FFN(4, 8), branches=nn.ModuleList([shared, shared])))
        apply_tuning(model, dict(ffn=ADAPTER, train=[f'branches.{name}']))
        assert all(p.requires_grad for p in shared.parameters())
        other = dict(model.state_dict())  # for another number of classes
        for i in '01':
            other[f'branches.{i}.weight'] = torch.zeros(7, 4)
        model.load_state_dict(other, strict=False)


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_stages_that_are_frozen_in_training_alone_are_frozen_at_once(scope):
    """Swin's ``frozen_stages``: what is saved is by ``requires_grad``."""
    swin = dict(type='SwinTransformer', frozen_stages=0)
    if scope == 'mmdet':
        swin.update(embed_dims=8, depths=[2] * 4, num_heads=[1, 2, 4, 8],
                    pretrain_img_size=64)
    else:
        swin.update(img_size=64, arch=dict(
            embed_dims=8, depths=[2] * 4, num_heads=[1, 2, 4, 8]))
    with DefaultScope.overwrite_default_scope(scope):
        model = nn.ModuleDict(dict(backbone=MODELS.build(swin)))
    apply_tuning(model, dict(train=['backbone']))
    built = set(tuned_state_dict(model))
    assert built and not any('patch_embed' in name for name in built)
    assert set(tuned_state_dict(model.train())) == built
