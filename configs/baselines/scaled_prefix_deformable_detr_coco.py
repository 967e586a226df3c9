# ETTA's scaled prefixes alone: Deformable DETR on COCO.
#
# As large as the budget of the config below (7.15 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,065,446 of 43,031,208 parameters (7.12 %)
_base_ = '../etta/et_deformable_detr_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        attn=dict(type='ScaledPrefix', num_prefix=316),
        train=['bbox_head']))
