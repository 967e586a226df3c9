# Parallel adapters beside every attention in place of every FFN: Deformable
# DETR on COCO.
#
# As large as the budget of the config below (7.15 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,075,724 of 43,041,486 parameters (7.15 %)
_base_ = '../etta/et_deformable_detr_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        attn=dict(type='ParallelAdapter', bottleneck_dims=316),
        train=['bbox_head']))
