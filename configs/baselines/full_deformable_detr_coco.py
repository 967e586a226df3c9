# Full fine-tuning: Deformable DETR on COCO.
#
# The schedule is that of the config below; the rates of head, backbone and all
# else are the zoo's, and not searched at this size. As in the zoo, the
# backbone's first stage and its batch norms stay frozen.
# Trained: 39,843,414 of 40,118,934 parameters (99.31 %)
_base_ = '../etta/et_deformable_detr_coco.py'
model = dict(tuning=None)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(custom_keys=dict(bbox_head=dict(lr_mult=1.))))
custom_hooks = [dict(type='ParameterReportHook')]  # nothing is tuned
