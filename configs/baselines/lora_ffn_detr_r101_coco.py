# LoRA adapters, low-rank updates of the linear maps of every FFN: DETR-R101 on
# COCO.
#
# As large as the budget of the config below (4.85 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,028,821 of 63,442,581 parameters (4.77 %)
_base_ = '../etta/et_detr_r101_coco.py'
model = dict(
    tuning=dict(
        _delete_=True, ffn=dict(type='LoRA', rank=52), train=['bbox_head']))
