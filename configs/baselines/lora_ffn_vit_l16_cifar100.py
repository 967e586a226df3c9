# LoRA adapters, low-rank updates of the linear maps of every FFN: ViT-L/16 on
# CIFAR-100.
#
# As large as the budget of the config below (6.83 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 22,220,900 of 325,911,652 parameters (6.82 %)
_base_ = '../etta/et_vit_l16_cifar100.py'
model = dict(
    backbone=dict(
        tuning=dict(_delete_=True, ffn=dict(type='LoRA', rank=90))))
