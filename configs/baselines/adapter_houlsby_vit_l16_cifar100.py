# Serial adapters behind every attention and every FFN (Houlsby et al., 2019):
# ViT-L/16 on CIFAR-100.
#
# As large as the budget of the config below (6.83 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 22,182,500 of 325,873,252 parameters (6.81 %)
_base_ = '../etta/et_vit_l16_cifar100.py'
model = dict(
    backbone=dict(
        tuning=dict(
            _delete_=True,
            ffn=dict(type='SerialAdapter', bottleneck_dims=224),
            attn=dict(type='SerialAdapter', bottleneck_dims=224))))
