# LoRA in every attention and every FFN (Hu et al., 2022): DETR-R101 on COCO.
#
# As large as the budget of the config below (4.85 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,082,069 of 63,495,829 parameters (4.85 %)
_base_ = '../etta/et_detr_r101_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        ffn=dict(type='LoRA', rank=40),
        attn=dict(type='LoRA', rank=40),
        train=['bbox_head']))
