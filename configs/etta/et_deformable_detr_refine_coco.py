# ET-Deformable DETR (box refinement) on COCO: b = 400, l = 50, and the
# head.
#
# Paper: "similar results", without figures. The zoo's checkpoint, trained in
# full on COCO itself, has 46.2 AP.
# Trained: 3,845,322 of 43,811,084 parameters (8.78 %)
_base_ = [
    'mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
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
load_from = 'https://download.openmmlab.com/mmdetection/v3.0/deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco/deformable-detr-refine_r50_16xb2-50e_coco_20221022_225303-844e0f93.pth'  # noqa: E501
