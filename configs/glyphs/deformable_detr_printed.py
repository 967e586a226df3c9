# The base model of the embedded benchmark: a small Deformable DETR with box
# refinement, trained from scratch on printed glyphs.
_base_ = [
    'mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    './_base_/glyphs_detection.py'
]
model = dict(
    num_queries=20,
    num_feature_levels=3,
    backbone=dict(
        depth=18,
        base_channels=32,
        frozen_stages=-1,
        norm_cfg=dict(requires_grad=True),
        norm_eval=False,
        init_cfg=None),
    neck=dict(
        in_channels=[64, 128, 256], out_channels=128, num_outs=3,
        norm_cfg=dict(num_groups=16)),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=128, num_heads=4, num_levels=3, dropout=0.0),
            ffn_cfg=dict(
                embed_dims=128, feedforward_channels=512, ffn_drop=0.0))),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=128, num_heads=4, dropout=0.0),
            cross_attn_cfg=dict(
                embed_dims=128, num_heads=4, num_levels=3, dropout=0.0),
            ffn_cfg=dict(
                embed_dims=128, feedforward_channels=512, ffn_drop=0.0))),
    positional_encoding=dict(num_feats=64),
    bbox_head=dict(num_classes=36, embed_dims=128),
    test_cfg=dict(max_per_img=20))

train_dataloader = {{_base_.train_loader}}
val_dataloader = {{_base_.val_loader}}
test_dataloader = {{_base_.test_loader}}
val_evaluator = dict(
    ann_file='data/glyphs/detection/printed/annotations/val.json')
test_evaluator = dict(
    ann_file='data/glyphs/detection/printed/annotations/test.json')

max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    # The backbone starts from nothing, so it learns as fast as the rest.
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, begin=0,
        end=max_epochs, by_epoch=True, convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
