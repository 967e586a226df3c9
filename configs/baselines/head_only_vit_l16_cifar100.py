# The head alone: ViT-L/16 on CIFAR-100.
#
# The head stands outside the backbone, so no tuning is left: the backbone is
# frozen as the host itself does it, and no tuned checkpoint is written. The
# learning rate and schedule are those of the config below; the rate has not
# been searched at this size.
# Trained: 102,500 of 303,793,252 parameters (0.03 %)
_base_ = '../etta/et_vit_l16_cifar100.py'
model = dict(backbone=dict(tuning=None, frozen_stages=24))  # all layers
custom_hooks = [dict(type='ParameterReportHook')]
