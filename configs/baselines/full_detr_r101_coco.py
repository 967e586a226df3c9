# Full fine-tuning: DETR-R101 on COCO.
#
# The schedule is that of the config below; the rates of head, backbone and all
# else are the zoo's, and not searched at this size. As in the zoo, the
# backbone's first stage and its batch norms stay frozen.
# Trained: 60,239,445 of 60,567,189 parameters (99.46 %)
_base_ = '../etta/et_detr_r101_coco.py'
model = dict(tuning=None)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(custom_keys=dict(bbox_head=dict(lr_mult=1.))))
custom_hooks = [dict(type='ParameterReportHook')]  # nothing is tuned
