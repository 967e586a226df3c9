# ET-Deformable DETR on BigDetection, from the zoo's COCO weights.
#
# Paper: no figures. BigDetection's authors report 13.1 AP for a Deformable DETR
# that is trained on it in full.
# Trained: 3,213,102 of 43,178,864 parameters (7.44 %)
_base_ = ['./et_deformable_detr_coco.py', './_base_/bigdetection.py']
model = dict(bbox_head=dict(num_classes=600))  # new; all else is loaded
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='MultiImageMixDataset',  # the zoo's pipeline over all sources
        dataset=dict(
            type='ConcatDataset', datasets={{_base_.bigdetection_train}}),
        pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset={{_base_.bigdetection_val}})
test_dataloader = dict(dataset={{_base_.bigdetection_val}})
val_evaluator = {{_base_.bigdetection_metric}}
test_evaluator = {{_base_.bigdetection_metric}}

# One epoch has as many images as 29 of COCO.
train_cfg = dict(max_epochs=1)
param_scheduler = {{_base_.one_epoch_lr}}
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=10000, max_keep_ckpts=2))
