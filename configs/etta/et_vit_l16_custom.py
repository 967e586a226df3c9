# ET-ViT-L/16 on images of your own, in a folder for each class
# (data/custom/train/cat/1.jpg): edit the classes and the paths. The head is
# new; everything else is loaded from the zoo's weights.
# The learning rate is for batches of 256, eight GPUs of 32 images. With one GPU
# take 3.5e-4 (docs/cluster.md, "Larger batches").
#
# Trained: 22,154,650 of 325,845,402 parameters (6.80 %)
_base_ = './et_vit_l16_imagenet.py'
classes = ['cat', 'dog']  # the names of the folders
data_root = 'data/custom/'

model = dict(head=dict(num_classes=len(classes)))
data_preprocessor = dict(num_classes=len(classes))
train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='CustomDataset', classes=classes,
        data_root=data_root, data_prefix='train',
        pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(
    dataset=dict(
        _delete_=True, type='CustomDataset', classes=classes,
        data_root=data_root, data_prefix='val',
        pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, ))
test_evaluator = val_evaluator
# The warm-up is an epoch, however many images that is (but two batches at least).
param_scheduler = [{{_base_.epoch_warmup}}, {{_base_.cosine}}]
