# The frozen base cut to pieces, one for each process, and what is trained whole
# in each (docs/cluster.md). It inherits nothing and goes beside a config:
#
#   _base_ = ['./et_vit_l16_imagenet.py', './_base_/fsdp.py']
runner_type = 'FlexibleRunner'
strategy = dict(type='ETFSDPStrategy')
