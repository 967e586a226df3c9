# ET-ViT-L/16 on images of your own, in a folder for each class
# (data/custom/train/cat/1.jpg), on one GPU: edit the first lines. The head is
# new; everything else is loaded from the zoo's weights.
# The rate is that of et_vit_l16_imagenet.py, 1e-3 for 256 images a step, times
# sqrt(16 / 256); with N GPUs multiply it by sqrt(N) (docs/cluster.md, "Larger
# batches"). 64 images take 53 GB on a GPU (README.md).
#
# Trained: 22,154,650 of 325,845,402 parameters (6.80 %)
_base_ = './et_vit_l16_imagenet.py'
classes = ['cat', 'dog']  # the names of the folders
data_root = 'data/custom/'
max_epochs, batch_size, lr = 20, 16, 2.5e-4

model = dict(head=dict(num_classes=len(classes)))
data_preprocessor = dict(num_classes=len(classes))
dataset = dict(_delete_=True, type='CustomDataset', classes=classes, data_root=data_root)
train_dataloader = dict(batch_size=batch_size, dataset=dict(
    dataset, data_prefix='train', pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(
    dataset, data_prefix='val', pipeline={{_base_.test_pipeline}}))
val_evaluator = dict(topk=(1, ))
# tools/test.py tests on the validation images. If there are others, write here
# what stands above, with their folder.
test_dataloader, test_evaluator = val_dataloader, val_evaluator

optim_wrapper = dict(optimizer=dict(lr=lr))
auto_scale_lr = dict(base_batch_size=16)  # the images that lr is for
train_cfg = dict(max_epochs=max_epochs)
# The warm-up is an epoch, however many images that is (but two batches at least).
param_scheduler = [{{_base_.epoch_warmup}}, dict(
    type='CosineAnnealingLR', T_max=max_epochs, end=max_epochs,
    convert_to_iter_based=True)]
# Kept are the two latest checkpoints and the best one.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='accuracy/top1'))
