# Full fine-tuning of the printed ViT to handwritten digits: the rival.
_base_ = './vit_printed.py'
load_from = '{{ fileDirname }}/weights/vit_printed.safetensors'

data_root = 'data/glyphs/classification/handwritten/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-6, begin=0,
        end=max_epochs, by_epoch=True, convert_to_iter_based=True)
]
