# Serial adapters behind every FFN (Pfeiffer et al., 2021): DETR-R101 on COCO.
#
# As large as the budget of the config below (4.85 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,086,757 of 63,500,517 parameters (4.86 %)
_base_ = '../etta/et_detr_r101_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        ffn=dict(type='SerialAdapter', bottleneck_dims=476),
        train=['bbox_head']))
