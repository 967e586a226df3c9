# Full fine-tuning: DETR-R101 on BigDetection.
#
# The schedule is that of the config below; the rates are those of
# full_detr_r101_coco.py, and not searched.
# Trained: 60,373,085 of 60,700,829 parameters (99.46 %)
_base_ = '../etta/et_detr_r101_bigdetection.py'
model = dict(tuning=None)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(custom_keys=dict(bbox_head=dict(lr_mult=1.))))
custom_hooks = [dict(type='ParameterReportHook')]  # nothing is tuned
