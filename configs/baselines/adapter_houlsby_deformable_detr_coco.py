# Serial adapters behind every attention and every FFN (Houlsby et al., 2019):
# Deformable DETR on COCO.
#
# As large as the budget of the config below (7.15 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,054,172 of 43,019,934 parameters (7.10 %)
_base_ = '../etta/et_deformable_detr_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        ffn=dict(type='SerialAdapter', bottleneck_dims=188),
        attn=dict(type='SerialAdapter', bottleneck_dims=188),
        train=['bbox_head']))
