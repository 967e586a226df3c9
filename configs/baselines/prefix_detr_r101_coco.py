# Standard prefixes in every attention (Li and Liang, 2021): DETR-R101 on COCO.
#
# As large as the budget of the config below (4.85 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,065,685 of 63,479,445 parameters (4.83 %)
_base_ = '../etta/et_detr_r101_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        attn=dict(type='Prefix', num_prefix=316),
        train=['bbox_head']))
