# The backbone that the DETR of the embedded benchmark starts from, trained to
# classify printed glyphs: what an ImageNet ResNet is to the zoo's DETR.
_base_ = [
    'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    './_base_/glyphs_classification.py'
]
# The three stages and 32 base channels of detr_printed.py.
model = dict(
    backbone=dict(
        stem_channels=32,
        base_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2, )),
    head=dict(num_classes=36, in_channels=128, topk=(1, )))
data_preprocessor = dict(num_classes=36)

# Glyphs of 22 to 55 pixels anywhere in the image, as the detector sees them.
resize = [[dict(type='Resize', scale=s)] for s in (32, 40, 48, 56, 64)]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomChoice', transforms=resize),
    dict(
        type='RandomCrop', crop_size=64, pad_if_needed=True,
        padding_mode='edge'),
    dict(type='PackInputs')
]
val_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=48),
    dict(type='PackInputs')
]
glyphs = dict(
    _delete_=True,
    type='CustomDataset',
    metainfo={{_base_.metainfo}},
    data_root='data/glyphs/classification/printed/')
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(glyphs, data_prefix='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(glyphs, data_prefix='val', pipeline=val_pipeline))
test_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(glyphs, data_prefix='test', pipeline=val_pipeline))
val_evaluator = dict(topk=(1, ))
test_evaluator = dict(topk=(1, ))

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-3, weight_decay=0.05))
auto_scale_lr = dict(base_batch_size=64)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(
        type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, begin=0,
        end=max_epochs, by_epoch=True, convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
