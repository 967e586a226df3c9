# Full fine-tuning: ViT-L/16 on ImageNet-1k.
#
# The schedule is that of the config below, the rate that of
# full_vit_l16_cifar100.py; it has not been searched.
# Trained: 304,715,752 of 304,715,752 parameters (100.00 %)
_base_ = '../etta/et_vit_l16_imagenet.py'
model = dict(backbone=dict(tuning=None))
optim_wrapper = dict(optimizer=dict(lr=5e-5))
custom_hooks = [dict(type='ParameterReportHook')]  # nothing is tuned
