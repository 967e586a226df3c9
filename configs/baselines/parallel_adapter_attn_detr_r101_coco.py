# Parallel adapters beside every attention in place of every FFN: DETR-R101 on
# COCO.
#
# As large as the budget of the config below (4.85 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,075,981 of 63,489,741 parameters (4.84 %)
_base_ = '../etta/et_detr_r101_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        attn=dict(type='ParallelAdapter', bottleneck_dims=316),
        train=['bbox_head']))
