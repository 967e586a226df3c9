# Full fine-tuning of the printed DETR to handwritten digits: the rival.
_base_ = './detr_printed.py'
load_from = '{{ fileDirname }}/weights/detr_printed.safetensors'

data_root = 'data/glyphs/detection/handwritten/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = dict(ann_file=data_root + 'annotations/test.json')

# Everything is trained, the backbone that the printed base kept as well.
model = dict(
    backbone=dict(
        frozen_stages=-1,
        norm_cfg=dict(requires_grad=True),
        norm_eval=False,
        init_cfg=None))
max_epochs = 16
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, begin=0,
        end=max_epochs, by_epoch=True, convert_to_iter_based=True)
]
