# ET-DETR-R50 on BigDetection, from the zoo's COCO weights.
#
# Paper: no figure for R50; for R101 see et_detr_r101_bigdetection.py, which
# needs weights that the zoo does not have.
# Trained: 3,213,359 of 44,634,991 parameters (7.20 %)
_base_ = ['./et_detr_r50_coco.py', './_base_/bigdetection.py']
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
