# BigDetection (arXiv 2203.13249): 600 classes, 3.4 M training images from three
# sources, COCO's format. mmdet ships no data set of that name, so CocoDataset
# reads it, laid out as its authors have it (amazon-science/bigdetection). Their
# class-aware sampling is left out.
#
# A config reads no data, so the class names stand in a text file, one a line in
# the order of the annotations. Write it once:
#
#   cd data/BigDetection/annotations
#   python -c "import json, sys; print(*[c['name'] for c in json.load(sys.stdin)
#   ['categories']], sep='\n')" < bigdet_val.json > classes.txt
#
# The configs merge these parts by name into what they inherit.
bigdetection = dict(
    type='CocoDataset',
    data_root='data/BigDetection/',
    metainfo=dict(classes='data/BigDetection/annotations/classes.txt'))
bigdetection_train = [
    dict(
        bigdetection,
        ann_file=f'annotations/bigdet_{source}_train.json',
        data_prefix=dict(img=f'train/{folder}/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32))
    for source, folder in dict(
        obj='Objects365', oid='OpenImages', lvis='LVIS').items()
]
bigdetection_val = dict(
    bigdetection,
    ann_file='annotations/bigdet_val.json',
    data_prefix=dict(img='val/'))
bigdetection_metric = dict(
    ann_file='data/BigDetection/annotations/bigdet_val.json')
