# ET-Deformable DETR on data of your own in COCO's format, on one GPU: edit the
# first lines. The head is new; everything else is loaded from the zoo's weights.
# The rate is that of et_deformable_detr_coco.py, 1e-3 for 32 images a step, times
# sqrt(4 / 32); with N GPUs multiply it by sqrt(N) (docs/cluster.md, "Larger
# batches"). 2 images of COCO's size take 5 GB on a GPU (README.md).
#
# Trained: 3,059,416 of 43,025,178 parameters (7.11 %)
_base_ = './et_deformable_detr_coco.py'
classes = ('cat', 'dog')  # one class: ('cat', )
data_root = 'data/custom/'
max_epochs, batch_size, lr = 12, 4, 3.5e-4

model = dict(bbox_head=dict(num_classes=len(classes)))
dataset = dict(metainfo=dict(classes=classes), data_root=data_root)
train_dataloader = dict(batch_size=batch_size, dataset=dict(
    dataset, ann_file='annotations/train.json', data_prefix=dict(img='train/')))
val_dataloader = dict(dataset=dict(
    dataset, ann_file='annotations/val.json', data_prefix=dict(img='val/')))
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
# tools/test.py tests on the validation images. If there are others, write here
# what stands above, with their files.
test_dataloader, test_evaluator = val_dataloader, val_evaluator

optim_wrapper = dict(optimizer=dict(lr=lr))
auto_scale_lr = dict(base_batch_size=4)  # the images that lr is for
train_cfg = dict(max_epochs=max_epochs)
# The warm-up is an epoch, however many images that is (but two batches at least).
param_scheduler = [{{_base_.epoch_warmup}}, dict(
    type='CosineAnnealingLR', T_max=max_epochs, end=max_epochs,
    convert_to_iter_based=True)]
# Kept are the two latest checkpoints and the best one.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'))
