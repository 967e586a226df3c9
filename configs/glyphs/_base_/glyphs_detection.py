# Glyphs for detection. A top-level key may be defined in only one base file, so
# the loaders stand here under names of their own; the configs beside this
# folder merge them into the loaders that they inherit from mmdet.
# The base weights are safetensors, which mmengine reads once this is imported.
custom_imports = dict(imports=['etta_mm'], allow_failed_imports=False)
metainfo = dict(classes=tuple('0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ'))
image_scale = (112, 112)  # pixels; the images are written at this size

train_loader = dict(
    batch_size=16,
    num_workers=1,
    batch_sampler=None,
    dataset=dict(
        metainfo=metainfo,
        data_root='data/glyphs/detection/printed/',
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=False),
        # Characters are not flipped, and the images need no resizing.
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs'),
        ]))
glyphs_test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Scale 1, but the evaluator wants the factor that Resize records.
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                   'scale_factor')),
]
val_loader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        metainfo=metainfo,
        data_root='data/glyphs/detection/printed/',
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        pipeline=glyphs_test_pipeline))
test_loader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        metainfo=metainfo,
        data_root='data/glyphs/detection/printed/',
        ann_file='annotations/test.json',
        data_prefix=dict(img='test/'),
        pipeline=glyphs_test_pipeline))
