# Serial adapters behind every attention and every FFN (Houlsby et al., 2019):
# DETR-R101 on COCO.
#
# As large as the budget of the config below (4.85 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,054,429 of 63,468,189 parameters (4.81 %)
_base_ = '../etta/et_detr_r101_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        ffn=dict(type='SerialAdapter', bottleneck_dims=188),
        attn=dict(type='SerialAdapter', bottleneck_dims=188),
        train=['bbox_head']))
