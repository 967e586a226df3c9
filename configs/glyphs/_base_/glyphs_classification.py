# Glyphs for classification. A top-level key may be defined in only one base
# file, so the loaders stand here under names of their own; the configs beside
# this folder merge them into the loaders that they inherit from mmpretrain.
metainfo = dict(classes=tuple('0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ'))
# Characters are not flipped, and the images are written at the size wanted.
glyphs_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

# `_delete_`: the zoo's data set is ImageNet, whose arguments are others.
train_loader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        metainfo=metainfo,
        data_root='data/glyphs/classification/printed/',
        data_prefix='train',
        pipeline=glyphs_pipeline))
val_loader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        metainfo=metainfo,
        data_root='data/glyphs/classification/printed/',
        data_prefix='val',
        pipeline=glyphs_pipeline))
test_loader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        metainfo=metainfo,
        data_root='data/glyphs/classification/printed/',
        data_prefix='test',
        pipeline=glyphs_pipeline))
