# What the detectors share: the head is trained with the tuners, and schedules
# for fine-tuning, whose parts the configs take by name.
_base_ = './etta.py'
tuning = dict(train=['bbox_head'])

# Tuners start at a change of zero and get five times the zoo's rate; the head,
# pre-trained or new, learns at that of its pre-training. Not searched at this
# size. The zoo's lr_mult of backbone, sampling_offsets and reference_points
# name what is frozen here and have no effect; for tuners in the backbone
# (ConvAdapter), set custom_keys.backbone.lr_mult=1. The zoo's weight decay (1e-4)
# and gradient clipping (norm 0.1) stay.
finetune_lr_mult = dict(custom_keys=dict(bbox_head=dict(lr_mult=0.2)))

# 12 epochs of COCO are 1/4 (Deformable DETR) to 1/40 (DETR-R101) of the zoo's
# pre-training. With another number of epochs, T_max and end of the cosine are that
# number, too.
finetune_epochs = dict(max_epochs=12, val_interval=1)
warmup = dict(
    type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=500)
cosine = dict(
    type='CosineAnnealingLR', T_max=12, end=12, convert_to_iter_based=True)
finetune_lr = [warmup, cosine]
# For data sets that are as large as all these epochs together, or larger.
one_epoch_lr = [
    warmup,
    dict(type='CosineAnnealingLR', T_max=1, end=1, convert_to_iter_based=True)
]
