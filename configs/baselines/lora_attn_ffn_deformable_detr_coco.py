# LoRA in every attention and every FFN (Hu et al., 2022): Deformable DETR on
# COCO.
#
# As large as the budget of the config below (7.15 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 3,102,292 of 43,068,054 parameters (7.20 %)
_base_ = '../etta/et_deformable_detr_coco.py'
model = dict(
    tuning=dict(
        _delete_=True,
        ffn=dict(type='LoRA', rank=60),
        attn=dict(type='LoRA', rank=60),
        train=['bbox_head']))
