# Serial adapters behind every FFN (Pfeiffer et al., 2021): Deformable DETR on
# COCO.
#
# As large as the budget of the config below (7.15 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,086,500 of 43,052,262 parameters (7.17 %)
_base_ = '../etta/et_deformable_detr_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        ffn=dict(type='SerialAdapter', bottleneck_dims=476),
        train=['bbox_head']))
