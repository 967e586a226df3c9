"""Backbones whose own training or loading code gets in the way of tuners."""
import copy

import pytest
import torch
from hosts import HOSTS, classifier_config, randomise, rev_vit, vit_config
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models import SwinTransformer
from mmdet.models.dense_heads import MaskFormerHead
from mmengine.model import PretrainedInit
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.models.backbones import SwinTransformerV2
from mmpretrain.registry import MODELS
from torch import nn
from torch.testing import assert_close

from etta_mm import ETVisionTransformer, apply_tuning
from etta_mm.layers import guard
from etta_mm.tuners import Tuner

ADAPTER = dict(type='ParallelAdapter', bottleneck_dims=4)
TUNING = dict(ffn=ADAPTER)


def tuners(model: nn.Module) -> dict:
    return {
        name: module
        for name, module in model.named_modules() if isinstance(module, Tuner)
    }


def vit(**kwargs) -> nn.Module:
    cfg = vit_config(**kwargs)
    del cfg['type']
    return ETVisionTransformer(**cfg, tuning=TUNING)


def classifier(**backbone) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(classifier_config(**backbone))


# ------------------------------------------------------------ frozen stages
def test_no_tuner_stands_where_train_would_freeze_it():
    model = SwinTransformer(
        embed_dims=16,
        depths=(1, 1, 1, 1),
        num_heads=(2, 2, 2, 2),
        frozen_stages=2)
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    apply_tuning(copy.deepcopy(model), TUNING)
    tuned = apply_tuning(model, TUNING)
    tuned.train()
    assert [name.split('.blocks')[0] for name in tuners(tuned)] == [
        'stages.2', 'stages.3'
    ]
    assert all(p.requires_grad for t in tuners(tuned).values()
               for p in t.parameters())
    untouched = SwinTransformer(
        embed_dims=16,
        depths=(1, 1, 1, 1),
        num_heads=(2, 2, 2, 2),
        frozen_stages=2)
    with pytest.raises(ValueError, match='decodr'):
        apply_tuning(untouched, dict(TUNING, where='decodr'))
    assert [m.training for m in untouched.modules()] == modes
    assert [p.requires_grad for p in untouched.parameters()] == flags


# ------------------------------------------------------- a backward pass of its own
def test_tuners_of_a_reversible_transformer_learn():
    model = rev_vit(patch_size=16)
    apply_tuning(model, TUNING)
    randomise(model)
    model.train()
    model(torch.randn(2, 3, 32, 32))[0].sum().backward()
    assert len(tuners(model)) == 2
    for tuner in tuners(model).values():
        assert tuner.up.weight.grad.abs().max() > 0


# ------------------------------------------------------------------ loading
def test_a_position_embedding_is_resized_below_the_tuned_module():
    model = apply_tuning(
        classifier(img_size=64, patch_size=8), dict(TUNING, train=['head']))
    small = classifier(img_size=32)
    load_state_dict(model, small.state_dict())
    assert model.backbone.pos_embed.shape == (1, 65, 16)
    assert_close(model.backbone.layers[0].ffn.layers[1].weight,
                 small.backbone.layers[0].ffn.layers[1].weight)


def test_what_a_host_makes_itself_is_not_missed():
    cfg = dict(
        arch=dict(embed_dims=16, depths=[1, 1], num_heads=[2, 2],
                  extra_norm_every_n_blocks=0),
        img_size=64,
        window_size=[8, 8],
        out_indices=(1, ))
    plain = SwinTransformerV2(**cfg)
    randomise(plain)
    model = apply_tuning(SwinTransformerV2(**cfg), TUNING)
    load_state_dict(model, plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    model.eval(), plain.eval()  # which return None
    assert_close(model(image)[0], plain(image)[0], rtol=1e-5, atol=1e-5)
    renamed = {f'x{key}' if 'ffn' in key else key: value
               for key, value in plain.state_dict().items()}
    with pytest.raises(KeyError, match='missing'):
        load_state_dict(model, renamed)


# ----------------------------------------------------------------- loading
def base_of_vit() -> dict:
    base = vit()
    randomise(base)
    return {k: v for k, v in base.state_dict().items() if '.tuners.' not in k}


def test_what_a_masked_pretraining_left_in_its_checkpoint_is_passed_over():
    model, state = vit(), base_of_vit()
    load_state_dict(model, dict(state, mask_token=torch.ones(1, 1, 16)))
    assert_close(model.pos_embed, state['pos_embed'], rtol=0, atol=0)
    with pytest.raises(KeyError, match='belong to nothing.*mask_tokens'):
        load_state_dict(model, dict(state, mask_tokens=torch.ones(1, 1, 16)))


def test_what_starts_anew_is_logged(monkeypatch):
    lines = []
    monkeypatch.setattr(guard, 'print_log',
                        lambda text, **kwargs: lines.append(text))
    model = apply_tuning(nn.ModuleDict(dict(ffn=FFN(4, 8), head=nn.Linear(
        4, 3), norm=nn.LayerNorm(4))), dict(TUNING, train=['head', 'norm']))
    base = dict(nn.ModuleDict(dict(ffn=FFN(4, 8), head=nn.Linear(
        4, 7))).state_dict())
    model.load_state_dict(base, strict=False)
    shapes, absent = lines
    assert shapes.endswith('of another shape than in the checkpoint, so from '
                           'its own start: head.weight, head.bias')
    assert absent.endswith('its own start: norm.weight, norm.bias')


def test_what_may_be_new_in_a_model_is_named_with_its_remedy():
    state = {k: v for k, v in base_of_vit().items() if k[:4] != 'ln1.'}
    with pytest.raises(KeyError, match='name ln1 in train of the tuning'):
        load_state_dict(vit(), state)


def test_a_surplus_tensor_has_no_numbers_on_meta():
    """Where a base is compared before the run."""
    state = {k: v.to('meta') for k, v in base_of_vit().items()}
    with torch.device('meta'):
        model = vit()
    twin = {'pre_norm.weight': state['ln1.weight']}
    load_state_dict(model, dict(state, **twin))
    with pytest.raises(KeyError, match='pre_norm.scale'):
        load_state_dict(model, dict(
            state, **{'pre_norm.scale': state['ln1.weight']}))


# ----------------------------------------------------------- initialisation
def test_tuners_that_init_cfg_loads_stay(tmp_path):
    trained = vit()
    randomise(trained)
    torch.save(
        {f'backbone.{k}': v for k, v in trained.state_dict().items()},
        tmp_path / 'tuned.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'tuned.pth'),
               prefix='backbone.')
    model = vit(init_cfg=cfg)
    model.init_weights()
    for key, value in trained.state_dict().items():
        assert_close(model.state_dict()[key], value, rtol=0, atol=0)


def test_tuners_start_behind_a_base_that_init_cfg_loads(tmp_path):
    base = vit()
    randomise(base)
    torch.save({k: v for k, v in base.state_dict().items()
                if '.tuners.' not in k}, tmp_path / 'base.pth')
    model = vit(init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'base.pth')))
    randomise(model, seed=1)
    model.init_weights()
    assert_close(model.cls_token, base.cls_token, rtol=0, atol=0)
    assert all(t.up.weight.eq(0).all() for t in tuners(model).values())


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_the_position_embedding_of_a_list_of_init_cfg_stays(kind, tmp_path):
    """mmpretrain draws it anew behind what is loaded; here it is frozen."""
    base = vit()
    randomise(base)
    torch.save({k: v for k, v in base.state_dict().items()
                if '.tuners.' not in k}, tmp_path / 'base.pth')
    model = vit(init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=0.02),
        dict(type=kind, checkpoint=str(tmp_path / 'base.pth'))])
    model.init_weights()
    for key, value in base.state_dict().items():
        if '.tuners.' not in key:
            assert_close(model.state_dict()[key], value, rtol=0, atol=0)
    assert all(t.up.weight.eq(0).all() for t in tuners(model).values())


def test_a_second_initialisation_leaves_the_tuners_as_they_are():
    model = vit()
    model.init_weights()
    randomise(model)
    before = copy.deepcopy(model.state_dict())
    model.init_weights()  # mmengine's Runner does, whatever was done before
    assert model.is_init
    for key, value in model.state_dict().items():
        if '.tuners.' in key or '.ffn.' in key:
            assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize('name', ['detr', 'deformable'])
@pytest.mark.parametrize('by_hand', [False, True])
def test_a_second_initialisation_leaves_a_detr_as_it_is(name, by_hand):
    """A DETR draws every matrix of its encoder and decoder."""
    if by_hand:
        model = HOSTS[name].build(None)
        model.init_weights()
        apply_tuning(model, TUNING)
    else:
        model = HOSTS[name].build(copy.deepcopy(TUNING))
        model.init_weights()
    randomise(model)
    model = copy.deepcopy(model)  # an average's copy behaves alike
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_a_model_tuned_before_its_initialisation_starts_as_the_base():
    model = apply_tuning(HOSTS['detr'].build(None), TUNING)
    model.init_weights()
    assert len(tuners(model)) == 4
    for tuner in tuners(model).values():
        assert tuner.up.weight.eq(0).all() and not tuner.down.weight.eq(0).any()


def test_a_buffer_that_is_not_saved_any_more_is_no_stranger():
    model = apply_tuning(classifier(), dict(TUNING, train=['head']))
    state = model.state_dict()
    model.backbone.register_buffer(
        'position_ids', torch.arange(3), persistent=False)
    state['backbone.position_ids'] = torch.arange(3)
    load_state_dict(model, state)
    state['backbone.position_idx'] = state.pop('backbone.position_ids')
    with pytest.raises(KeyError, match='position_idx.*take them out'):
        load_state_dict(model, state)


def test_what_is_trained_in_full_may_be_absent_and_what_is_frozen_not():
    model = apply_tuning(classifier(), dict(TUNING, train=['head']))
    randomise(model)
    start = model.head.layers.head.weight.clone()
    other = classifier()
    state = {k: v for k, v in other.state_dict().items()
             if not k.startswith('head.')}
    load_state_dict(model, state)
    assert_close(model.backbone.cls_token, other.backbone.cls_token)
    assert_close(model.head.layers.head.weight, start, rtol=0, atol=0)
    del state['backbone.cls_token']
    with pytest.raises(KeyError, match='1 are missing .backbone.cls_token'):
        load_state_dict(model, state)


class Counting(nn.Module):
    """A host whose head has buffers: a norm, and a count by class."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.ffn = FFN(8, 8)
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, num_classes))
        self.head.register_buffer('counts', torch.zeros(num_classes))


def test_buffers_of_what_is_trained_may_be_absent_or_of_another_shape():
    model = apply_tuning(Counting(), dict(TUNING, train=['head']))
    state = Counting(num_classes=5).state_dict()
    load_state_dict(model, dict(state))
    assert [name for name, _, _ in model.other_shapes] == [
        'head.counts', 'head.1.weight', 'head.1.bias']
    load_state_dict(model, {k: v for k, v in state.items()
                            if not k.startswith('head.')})
    model = apply_tuning(Counting(), TUNING)  # a head that is frozen
    with pytest.raises(ValueError, match='head.counts .5,. where .3,.'):
        load_state_dict(model, dict(state))


# ------------------------------------------------------------------ MaskFormer
def test_maskformers_first_decoder_attention_gets_no_dead_lora():
    """Its queries start at zero, so its values learn nothing."""

    class Host(nn.Module):  # what the head is made of, without its losses

        def __init__(self):
            super().__init__()
            self.head = MaskFormerHead.__new__(MaskFormerHead)
            nn.Module.__init__(self.head)
            self.head.transformer_decoder = HOSTS['detr'].build(None).decoder

    model = apply_tuning(Host(), dict(attn=dict(type='LoRA', rank=2)))
    first = model.head.transformer_decoder.layers[0]
    assert set(first.self_attn.tuners) == {'lora_q'}
    assert set(first.cross_attn.tuners) == {'lora_q', 'lora_v'}
