# ET-ViT-L/16 on ImageNet-1k, 384 pixels.
#
# Paper: 87.5 % top-1 with 4 % trained, 87.76 % with all. 87.76 is what the ViT
# paper reports after pre-training on JFT-300M, whose weights are not public.
# These start from the zoo's, pre-trained on ImageNet-21k and already fine-tuned
# to ImageNet-1k (85.63 %), so expect less.
# The paper's 4 % do not follow from its b = 400 and l = 50, which are here:
# Trained: 23,177,600 of 326,868,352 parameters (7.09 %)
_base_ = [
    'mmpretrain::vision_transformer/vit-large-p16_64xb64_in1k-384px.py',
    './_base_/etta.py'
]
# The head stands outside the tuned backbone and is trained.
model = dict(
    backbone=dict(type='ETVisionTransformer', tuning={{_base_.tuning}}))

# 8 GPUs x 32 images. The rate and decay that SSF tunes a ViT with at this batch
# (dongzelian/SSF, train_scripts/vit/imagenet_1k and cifar_100); the zoo's 3e-3
# and 0.3 are for 300 epochs of pre-training with batches of 4096. Its clipping
# stays; its decay_mult of cls_token and pos_embed name what is frozen here.
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(
    constructor='GroupedOptimWrapperConstructor',
    optimizer=dict(lr=1e-3, weight_decay=0.05, fused=True))
auto_scale_lr = dict(base_batch_size=256)
train_cfg = dict(max_epochs=20)
cosine = dict(
    type='CosineAnnealingLR', T_max=20, end=20, convert_to_iter_based=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=500),
    cosine
]
load_from = 'https://mmassets.onedl.ai/mmclassification/v0/vit/finetune/vit-large-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-b20ba619.pth'  # noqa: E501
