"""What a model cannot be trained with is said before the run starts."""
import copy
import warnings

import pytest
import torch
from hosts import HOSTS, zoo
from mmcv.cnn.bricks import DropPath
from mmcv.ops import MultiScaleDeformableAttention, RoIAlign
from mmdet.models.dense_heads import GroundingDINOHead
from mmdet.models.losses import FocalLoss
from mmengine.config import Config
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper
from torch import nn

from etta_mm import count_parameters
from etta_mm.checkpoints.convert import build_model
from etta_mm.engine import build_on_meta, check_device
from etta_mm.engine import check_model as module
from etta_mm.engine.check_model import check_full, check_model

CLASSES = ('cat', 'dog', 'cow')
BFLOAT16 = dict(type='AmpOptimWrapper', dtype='bfloat16')


def config(name: str, **optim_wrapper) -> Config:
    return Config(
        dict(
            model=HOSTS[name].config(),
            default_scope='mmdet',
            custom_hooks=[dict(type='TunedCheckpointHook')],
            optim_wrapper=optim_wrapper))


def see_gpu(monkeypatch, built_for: str = '13.0') -> None:
    """As on a machine with a GPU, for which mmcv is built, or not."""
    monkeypatch.setattr(check_device, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(check_device.mmcv_ops, 'get_compiling_cuda_version',
                        lambda: built_for)


@pytest.mark.parametrize('name, loss', [
    ('deformable', None), ('conditional_detr', None),
    ('deformable', dict(type='CrossEntropyLoss')), ('detr', None)])
def test_ops_that_mmcv_was_not_built_with_are_refused_on_a_gpu(
        monkeypatch, name, loss):
    cfg = config(name)
    if loss is not None:  # the attention of a tuned model is of a class of ours
        cfg.model.bbox_head.loss_cls = loss
        cfg.model.tuning = dict(
            attn=dict(type='ScaledPrefix', num_prefix=2))
    check_model(cfg)  # without a GPU
    see_gpu(monkeypatch)
    check_model(cfg)
    see_gpu(monkeypatch, 'not available')
    if name == 'detr':
        check_model(cfg)
        return
    with pytest.raises(ValueError, match='without CUDA.*CUDA_VISIBLE_DEVICES'):
        check_model(cfg)


def test_a_focal_loss_in_bfloat16_is_refused_on_a_gpu(monkeypatch):
    check_model(config('deformable', **BFLOAT16))  # CPU: mmdet's own loss
    see_gpu(monkeypatch)
    with pytest.raises(ValueError, match="dtype='bfloat16'.*float16"):
        check_model(config('deformable', **BFLOAT16))


def test_other_ops_in_bfloat16_are_refused_on_a_gpu(monkeypatch):
    see_gpu(monkeypatch)
    cfg = Config(dict(optim_wrapper=BFLOAT16))
    attention = MultiScaleDeformableAttention(16, 4)  # which has another path
    check_device.check_device(attention, cfg)
    with pytest.raises(ValueError, match="'bfloat16'.*RoIAlign"):
        check_device.check_device(
            nn.ModuleList([attention, RoIAlign(7)]), cfg)


def test_a_loss_of_one_hot_targets_needs_no_op(monkeypatch):
    see_gpu(monkeypatch)
    head = GroundingDINOHead(
        num_classes=3, loss_cls=dict(type='FocalLoss', use_sigmoid=True))
    cfg = Config(dict(optim_wrapper=BFLOAT16))
    check_device.check_device(head, cfg)
    with pytest.raises(ValueError, match="dtype='bfloat16'"):
        check_device.check_device(nn.ModuleList([head, FocalLoss()]), cfg)


@pytest.mark.parametrize('name, changes', [('detr', {}),
                                           ('deformable', dict(dtype='float16')),
                                           ('deformable',
                                            dict(type='OptimWrapper'))])
def test_what_has_a_kernel_is_not_refused(monkeypatch, name, changes):
    see_gpu(monkeypatch)
    check_model(config(name, **dict(BFLOAT16, **changes)))


def tuned() -> Config:
    cfg = config('detr')
    cfg.model.tuning = dict(ffn=dict(type='LoRA', rank=2))
    return cfg


def test_a_frozen_part_that_nothing_is_loaded_into_is_warned_of():
    cfg = tuned()
    with pytest.warns(UserWarning, match='no base.* frozen .*encoder.*load_from'):
        check_model(cfg)


@pytest.mark.parametrize(
    'changes',
    [
        dict(model=dict(init_cfg=dict(type='Pretrained', checkpoint='x.pth'))),
        dict(model=dict(tuning=None)),  # mmdet's own model: nothing is frozen
        dict(tuned_from='x.safetensors'),  # which finds its base itself
    ])
def test_nothing_is_said_where_nothing_stays_random(changes):
    cfg = tuned()
    cfg.merge_from_dict(changes)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        check_model(cfg)


def test_weights_of_a_wrapped_model_are_those_of_the_model(tmp_path):
    cfg, path = tuned(), tmp_path / 'wrapped.pth'
    state = HOSTS['detr'].base_weights()
    torch.save({f'module.{key}': value for key, value in state.items()}, path)
    cfg.load_from = str(path)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        check_model(cfg)


def test_the_data_preprocessor_of_the_config_is_that_of_the_model():
    cfg = tuned()
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    cfg.data_preprocessor.mean = [1., 2., 3.]
    found = build_on_meta(cfg).data_preprocessor
    assert found.mean.shape == (3, 1, 1)


def test_a_tuned_checkpoint_is_resumed_by_a_tuned_model_alone():
    """In several processes DDP would know nothing of the tuners."""
    cfg = tuned()
    cfg.merge_from_dict(dict(tuned_from='x.safetensors', resume=True))
    check_model(cfg)
    cfg.model.tuning = None
    with pytest.raises(ValueError, match="--resume 'x.safetensors'.*no tuning"):
        check_model(cfg)
    cfg.resume = False  # tested, it is tuned as the file says
    check_model(cfg, is_trained=False)


def test_a_backbone_that_is_loaded_by_itself_is_not_named():
    cfg = tuned()
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='x.pth')
    with pytest.warns(UserWarning, match='no base') as caught:
        check_model(cfg)
    text, = (str(w.message) for w in caught if 'no base' in str(w.message))
    assert 'encoder' in text and 'backbone' not in text


def test_sync_bn_is_refused_where_norms_are_frozen():
    cfg = tuned()
    cfg.sync_bn = 'torch'
    with pytest.raises(ValueError, match='sync_bn.*backbone.bn1.*Leave it out'):
        check_model(cfg)
    cfg.model.tuning = None
    check_model(cfg)


def test_the_config_stays_as_it_is():
    cfg = Config(
        dict(
            model=HOSTS['vit'].config(),
            default_scope='mmpretrain',
            data_preprocessor=dict(num_classes=3, mean=[127.] * 3)))
    del cfg.model['data_preprocessor']
    before = copy.deepcopy(cfg.to_dict())
    check_model(cfg)
    assert cfg.to_dict() == before


def test_a_model_that_reads_numbers_while_it_is_built_is_checked(tmp_path):
    """Most backbones with random depth read its rates from a tensor."""
    swin = zoo('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py')
    swin.backbone.arch = dict(
        embed_dims=8, depths=[2] * 4, num_heads=[1, 2, 4, 8])
    swin.head.in_channels = 64
    cfg = Config(dict(model=swin, default_scope='mmpretrain'))
    model = build_on_meta(cfg)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert max(rates) > 0 and all(
        t.is_meta for t in (*model.parameters(), *model.buffers()))
    path = tmp_path / 'base.pth'
    torch.save(dict(state_dict=model.to_empty(device='cpu').state_dict()),
               path)
    cfg.merge_from_dict(dict(load_from=str(path), model=dict(
        head=dict(num_classes=model.head.num_classes + 1))))
    check_model(cfg)
    with pytest.raises(ValueError, match='other shapes.*head.fc'):
        check_model(cfg, is_whole=True)


def test_a_model_that_cannot_be_checked_is_warned_of():
    cfg = Config(dict(model=dict(type='NoSuchDetector')))
    with pytest.warns(UserWarning, match='not compared.*NoSuchDetector'):
        check_model(cfg)


@pytest.mark.parametrize(
    'wrapper', [AmpOptimWrapper, 'mmengine.AmpOptimWrapper'])
def test_a_wrapper_may_be_a_class_or_have_a_scope(wrapper, monkeypatch):
    cfg = config('deformable', type=wrapper, dtype='bfloat16')
    see_gpu(monkeypatch)
    with pytest.raises(ValueError, match="dtype='bfloat16'"):
        check_model(cfg)


def test_an_init_may_be_a_class():
    cfg = tuned()
    cfg.model.init_cfg = dict(type=PretrainedInit, checkpoint='x.pth')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        check_model(cfg)


def saved(cfg: Config, path, **rest) -> str:
    """A checkpoint of the config's model that a training might have saved."""
    torch.save(
        dict(
            state_dict=build_model(cfg).state_dict(),
            message_hub={},
            optimizer={},
            **rest), path)
    return str(path)


def data(classes, **changes) -> dict:
    """A loader of annotations that nothing here may read."""
    dataset = dict(type='mmdet.CocoDataset', ann_file='none.json',
                   data_prefix=dict(img=''), metainfo=dict(classes=classes))
    return dict(dataset=dict(dataset, **changes))


@pytest.mark.parametrize('split', ['test', 'train'])
def test_a_full_checkpoint_of_other_classes_is_refused(tmp_path, split):
    cfg = tuned()
    cfg.full_from = saved(cfg, tmp_path / 'epoch_1.pth', meta=dict(
        dataset_meta=dict(classes=CLASSES)))
    cfg.resume = split == 'train'
    other = dict(train='test', test='train')[split]
    cfg[f'{other}_dataloader'] = data(CLASSES[::-1])
    for same in (data(CLASSES), data(list(CLASSES)),
                 dict(dataset=dict(datasets=[data(CLASSES)] * 2)),
                 data(('dog', ), return_classes=True), None):
        cfg[f'{split}_dataloader'] = same
        check_model(cfg, is_whole=True)
    for classes, said in ((('cat', 'cow', 'dog'), "number 1 is 'dog' there"),
                          (('cat', 'dog', 'ant'), "'cow' there and 'ant'")):
        for loader in (data(classes), dict(dataset=data(classes))):
            cfg[f'{split}_dataloader'] = loader
            with pytest.raises(ValueError, match=f'epoch_1.*3 classes.*{said}'):
                check_model(cfg, is_whole=True)


@pytest.mark.parametrize('meta', [{}, dict(CLASSES=CLASSES[::-1]),
                                  dict(dataset_meta=None)])
def test_a_checkpoint_that_names_no_classes_is_not_compared(tmp_path, meta):
    cfg = tuned()
    cfg.test_dataloader = data(CLASSES)
    cfg.full_from = saved(cfg, tmp_path / 'epoch_1.pth', meta=meta)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        check_model(cfg, is_whole=True)


def test_what_is_missing_is_left_to_the_check_of_the_data(tmp_path):
    cfg = tuned()
    cfg.test_dataloader = dict(dataset=dict(
        type='mmpretrain.CustomDataset', data_prefix=str(tmp_path / 'gone')))
    cfg.full_from = saved(cfg, tmp_path / 'epoch_1.pth', meta=dict(
        dataset_meta=dict(classes=CLASSES)))
    check_model(cfg, is_whole=True)


def test_a_full_checkpoint_to_predict_with_is_compared_with_the_model(
        tmp_path):
    cfg = config('detr')
    path = saved(cfg, tmp_path / 'epoch_1.pth', meta=dict(
        dataset_meta=dict(classes=CLASSES)))
    cfg.strategy = dict(type='ETFSDPStrategy')  # of a training alone
    cfg.test_dataloader = data(CLASSES[::-1])  # whose names nothing shows
    check_full(cfg, path)
    cfg.model.bbox_head.num_classes += 1
    with pytest.raises(ValueError, match='epoch_1.*other shapes.*num_classes'):
        check_full(cfg, path)


def classifier(num_classes: int) -> Config:
    cfg = Config(dict(
        model=HOSTS['vit'].config(),
        custom_hooks=[dict(type='TunedCheckpointHook')],
        default_scope='mmpretrain'))
    cfg.model.head.num_classes = num_classes
    cfg.model.backbone.tuning = dict(ffn=dict(type='LoRA', rank=2))
    return cfg


def test_a_base_may_have_another_head_than_a_classifier(tmp_path):
    base = classifier(7)
    del base.model.backbone['tuning']
    cfg = classifier(3)
    cfg.load_from = saved(base, tmp_path / 'base.pth')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        check_model(cfg)
    # and all else is compared, which the head kept from being
    content = torch.load(cfg.load_from)
    del content['state_dict']['backbone.cls_token']
    torch.save(content, cfg.load_from)
    with pytest.raises(ValueError, match='load_from=.*cls_token'):
        check_model(cfg)
    with pytest.raises(ValueError, match='other shapes.*head'):
        check_model(Config(dict(cfg, load_from=None, full_from=saved(
            base, tmp_path / 'full.pth'))), is_whole=True)


def test_a_frozen_part_of_another_shape_is_still_warned_of(
        tmp_path, monkeypatch):
    cfg = classifier(3)
    cfg.load_from = saved(classifier(7), tmp_path / 'base.pth')
    model = build_on_meta(cfg)
    model.head.requires_grad_(False)
    monkeypatch.setattr(module, 'build_on_meta', lambda cfg: model)
    with pytest.warns(UserWarning, match='(?s)not compared.*head.layers'):
        check_model(cfg)


class Rates(nn.Module):
    """As CLRNet's head: it computes with its rates while it is built."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0, 1, 3) * torch.ones(3))
        self.tied = nn.Parameter(torch.Tensor(3))  # heeds no device
        self.inner = nn.Module()
        self.inner.tied = self.tied


def test_a_model_on_meta_has_no_numbers_and_what_it_shares():
    model = build_on_meta(Config(dict(model=dict(type=Rates))))
    assert all(p.is_meta for p in model.parameters())
    assert model.tied is model.inner.tied
    assert count_parameters(model).total == 6


class Renames(nn.Linear):
    """As mmdet's heads, which rename what has no version."""

    def _load_from_state_dict(self, state, prefix, metadata, *args):
        if metadata.get('version') is None:
            state[f'{prefix}gone'] = state.pop(f'{prefix}weight')
        super()._load_from_state_dict(state, prefix, metadata, *args)


def test_a_checkpoint_keeps_its_versions(tmp_path):
    cfg = Config(dict(model=dict(type=Renames, in_features=2, out_features=2),
                      load_from=str(tmp_path / 'a.pth')))
    Renames._version = 1
    torch.save(dict(state_dict=Renames(2, 2).state_dict()), cfg.load_from)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        check_model(cfg, is_whole=True)


@pytest.mark.parametrize('model, words', [
    (dict(type='DETR'), "model.tuning: DETR takes .* model.type to 'ETDETR'"),
    (dict(type='mmpretrain.ImageClassifier', backbone=dict()),
     r'ImageClassifier takes .* model\.backbone\.tuning'),
    (dict(type='DDQDETR'), r'class ETDDQDETR\(TunedHost, DDQDETR\)'),
])
def test_tuning_where_nothing_takes_it_is_refused(model, words):
    cfg = Config(dict(model=dict(model, tuning=dict(ffn=dict(type='LoRA'))),
                      default_scope='mmdet'))
    with pytest.raises(ValueError, match=words):
        check_model(cfg)


def test_a_backbone_that_takes_no_tuning_is_named_by_its_place():
    backbone = dict(type='VisionTransformer', tuning=dict(ffn=dict()))
    cfg = Config(dict(default_scope='mmpretrain', model=dict(
        type='ImageClassifier', backbone=backbone)))
    with pytest.raises(ValueError, match=r"model\.backbone\.tuning: Vision"
                       r".* model\.backbone\.type to 'ETVisionTransformer'"):
        check_model(cfg)


@pytest.mark.parametrize('place', [[], ['strategy']])
@pytest.mark.parametrize('key, remedy', [
    ('activation_checkpointing', 'with_cp'),
    ('efficient_conv_bn_eval', 'folded as it is'),
])
def test_switches_of_mmengine_that_break_a_tuned_model_are_refused(
        key, remedy, place):
    cfg = tuned()
    cfg.runner_type = 'FlexibleRunner'
    cfg.merge_from_dict({'.'.join((*place, key)): ['backbone']})
    with pytest.raises(ValueError, match=f'{key}=.*{remedy}'):
        check_model(cfg)
    cfg.model.tuning = None
    check_model(cfg)


@pytest.mark.parametrize('hook, remedy', [
    ('SyncBuffersHook', 'Leave it out'), ('mmdet.SyncNormHook', 'Leave it out')])
def test_hooks_that_move_what_is_frozen_are_refused(hook, remedy):
    cfg = tuned()
    cfg.custom_hooks = [dict(type=hook)]
    check_model(cfg)  # there is nothing to average
    cfg.launcher = 'pytorch'
    with pytest.raises(ValueError, match=f'frozen .*base .*{remedy}'):
        check_model(cfg)
    check_model(cfg, is_trained=False)  # where they do nothing
    cfg.model.tuning = None
    check_model(cfg)


def test_hooks_that_took_the_place_of_ours_are_warned_of():
    cfg = tuned()
    cfg.custom_hooks = [dict(type='EMAHook')]
    with pytest.warns(UserWarning, match='no TunedCheckpointHook.* repeat '):
        check_model(cfg)
    cfg.custom_hooks.append(dict(type='TunedCheckpointHook'))
    for changes in ({}, dict(model=dict(tuning=None), custom_hooks=[])):
        cfg.merge_from_dict(changes)
        with warnings.catch_warnings():
            warnings.filterwarnings('error', '.*TunedCheckpointHook')
            check_model(cfg)


def test_a_mean_teacher_makes_no_tuned_checkpoints():
    cfg = tuned()
    cfg.custom_hooks = [dict(type='MeanTeacherHook')]
    check_model(cfg)
    cfg.custom_hooks.append(dict(type='TunedCheckpointHook'))
    with pytest.raises(ValueError, match='Leave the TunedCheckpointHook out'):
        check_model(cfg)


def test_a_base_on_another_machine_is_looked_at_once_a_machine(monkeypatch):
    looked = []
    monkeypatch.setattr(module, '_check_base', lambda *args: looked.append(args))
    for rank in ('0', '1'):
        monkeypatch.setenv('LOCAL_RANK', rank)
        for path in ('https://a.org/base.pth', 'here/base.pth'):
            check_model(Config(dict(tuned(), launcher='pytorch',
                                    load_from=path)))
    assert [args[1] for args in looked] == [
        'https://a.org/base.pth', 'here/base.pth', 'here/base.pth']
