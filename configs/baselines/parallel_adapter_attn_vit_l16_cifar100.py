# Parallel adapters beside every attention in place of every FFN: ViT-L/16 on
# CIFAR-100.
#
# As large as the budget of the config below (6.83 %), whose learning rate and
# schedule stay; the rate has not been searched at this size.
# Trained: 22,157,924 of 325,848,676 parameters (6.80 %)
_base_ = '../etta/et_vit_l16_cifar100.py'
model = dict(
    backbone=dict(
        tuning=dict(
            _delete_=True,
            attn=dict(type='ParallelAdapter', bottleneck_dims=448))))
