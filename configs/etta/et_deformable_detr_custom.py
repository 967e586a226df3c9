# ET-Deformable DETR on data of your own in COCO's format: edit the classes and
# the paths. The head is new; everything else is loaded from the zoo's weights.
# The learning rate is for batches of 32, sixteen GPUs of 2 images. With one GPU
# take 2.5e-4: --cfg-options optim_wrapper.optimizer.lr=2.5e-4 (docs/cluster.md,
# "Larger batches").
#
# Trained: 3,059,416 of 43,025,178 parameters (7.11 %)
_base_ = './et_deformable_detr_coco.py'
classes = ('cat', 'dog')  # one class: ('cat', )
data_root = 'data/custom/'

model = dict(bbox_head=dict(num_classes=len(classes)))
train_dataloader = dict(
    dataset=dict(
        metainfo=dict(classes=classes),
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/')))
val_dataloader = dict(
    dataset=dict(
        metainfo=dict(classes=classes),
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/')))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator
# The warm-up is an epoch, however many images that is (but two batches at least).
param_scheduler = [{{_base_.epoch_warmup}}, {{_base_.cosine}}]
