# Full fine-tuning: ViT-L/16 on CIFAR-100.
#
# The schedule is that of the config below. The rate is what SSF fine-tunes a
# ViT with in full on CIFAR-100 (dongzelian/SSF,
# train_scripts/vit/cifar_100/train_full.sh, batch 128), a twentieth of its
# tuner's; it has not been searched at this size.
# Trained: 303,793,252 of 303,793,252 parameters (100.00 %)
_base_ = '../etta/et_vit_l16_cifar100.py'
model = dict(backbone=dict(tuning=None))
optim_wrapper = dict(optimizer=dict(lr=5e-5))
custom_hooks = [dict(type='ParameterReportHook')]  # nothing is tuned
