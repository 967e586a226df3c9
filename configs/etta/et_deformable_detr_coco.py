# ET-Deformable DETR on COCO: b = 400, l = 50, and the head.
#
# Paper: "similar results", without figures. The zoo's checkpoint, trained in
# full on COCO itself, has 44.3 AP.
# Trained: 3,079,462 of 43,045,224 parameters (7.15 %)
_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    './_base_/detection.py'
]
model = dict(
    type='ETDeformableDETR', tuning={{_base_.tuning}},
    backbone=dict(init_cfg=None))  # load_from has it

# Batch 32. Five times the zoo's 2e-4: see _base_/detection.py.
optim_wrapper = dict(
    constructor='GroupedOptimWrapperConstructor',
    optimizer=dict(lr=1e-3, fused=True),
    paramwise_cfg={{_base_.finetune_lr_mult}})
train_cfg = {{_base_.finetune_epochs}}
param_scheduler = {{_base_.finetune_lr}}
load_from = 'https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr_r50_16xb2-50e_coco/deformable-detr_r50_16xb2-50e_coco_20221029_210934-6bc7d21b.pth'  # noqa: E501
