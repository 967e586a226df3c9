# Standard prefixes in every attention (Li and Liang, 2021): Deformable DETR on
# COCO.
#
# As large as the budget of the config below (7.15 %), whose learning rate and
# schedule stay; the rate has not been searched at this size. Where an attention
# is deformable, and so has no keys to stand before, the prefix is added.
# Trained: 3,065,428 of 43,031,190 parameters (7.12 %)
_base_ = '../etta/et_deformable_detr_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        attn=dict(type='Prefix', num_prefix=316),
        train=['bbox_head']))
