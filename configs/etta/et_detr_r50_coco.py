# ET-DETR-R50 on COCO: b = 400, l = 50, and the head.
#
# Paper: no figure for R50 (R101: 42.9 AP, full 43.5). The zoo's checkpoint,
# trained in full on COCO itself for 150 epochs, has 39.9 AP.
# Trained: 3,079,719 of 44,501,351 parameters (6.92 %)
_base_ = ['mmdet::detr/detr_r50_8xb2-150e_coco.py', './_base_/detection.py']
model = dict(
    type='ETDETR', tuning={{_base_.tuning}},
    backbone=dict(init_cfg=None))  # load_from has it

# Batch 16. Five times the zoo's 1e-4: see _base_/detection.py.
optim_wrapper = dict(
    constructor='GroupedOptimWrapperConstructor',
    optimizer=dict(lr=5e-4, fused=True),
    paramwise_cfg={{_base_.finetune_lr_mult}})
train_cfg = {{_base_.finetune_epochs}}
param_scheduler = {{_base_.finetune_lr}}
load_from = 'https://download.openmmlab.com/mmdetection/v3.0/detr/detr_r50_8xb2-150e_coco/detr_r50_8xb2-150e_coco_20221023_153551-436d03e8.pth'  # noqa: E501
