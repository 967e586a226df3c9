# LoRA in every attention (Hu et al., 2022): ViT-L/16 on CIFAR-100.
#
# As large as the budget of the config below (6.83 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 22,122,596 of 325,813,348 parameters (6.79 %)
_base_ = '../etta/et_vit_l16_cifar100.py'
model = dict(
    backbone=dict(
        tuning=dict(_delete_=True, attn=dict(type='LoRA', rank=224))))
