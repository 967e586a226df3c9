# The DETR of the embedded benchmark, trained on printed glyphs. As the zoo's
# starts from an ImageNet ResNet, this one starts from resnet_printed.py, at a
# stride of 16: 7x7 tokens. With that backbone kept frozen, AP stops at 0.44.
_base_ = [
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    './_base_/glyphs_detection.py'
]
attention = dict(embed_dims=128, num_heads=4, dropout=0.0)
ffn = dict(embed_dims=128, feedforward_channels=512, ffn_drop=0.0)
model = dict(
    num_queries=20,
    backbone=dict(
        depth=18,
        base_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2, ),
        init_cfg=dict(
            checkpoint='{{ fileDirname }}/weights/'
            'resnet_printed.safetensors',
            prefix='backbone.')),
    neck=dict(in_channels=[128], out_channels=128),
    encoder=dict(
        num_layers=3, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)),
    # With the zoo's 10000, most channels hardly change over seven tokens; 20 is
    # that of DAB-DETR (arXiv 2201.12329).
    positional_encoding=dict(num_feats=64, temperature=20),
    bbox_head=dict(num_classes=36, embed_dims=128),
    test_cfg=dict(max_per_img=20))

train_dataloader = {{_base_.train_loader}}
val_dataloader = {{_base_.val_loader}}
test_dataloader = {{_base_.test_loader}}
val_evaluator = dict(
    ann_file='data/glyphs/detection/printed/annotations/val.json')
test_evaluator = dict(
    ann_file='data/glyphs/detection/printed/annotations/test.json')

max_epochs = 40
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
# The zoo's tenth of the rate is for a backbone that has seen a million images.
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.4))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, begin=0,
        end=max_epochs, by_epoch=True, convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
randomness = dict(seed=0)
