# What closes the gap to full fine-tuning where the convolutional backbone is
# frozen: ET-Deformable DETR on handwritten Glyphs, with more trained beside the
# tuners and the head. The column of the trained share says what each costs.
host = 'ET-Deformable DETR'
title = 'what is worth training beside the tuners'
metric = 'coco/bbox_mAP'
claims = ['defaults']
seeds = [0, 1, 2]
search_seed = 0
options = {
    'default_hooks.checkpoint.interval': 8,
    'train_cfg.val_interval': 16
}

_config = 'configs/glyphs/et_deformable_detr_glyphs.py'
_norms = r'.*\.(bn\d|downsample\.1|gn|norms\.\d)\.(weight|bias)'
_queries = ['query_embedding', 'reference_points_fc', 'level_embed']


def _with(name, *trained):
    return dict(
        name=name,
        config=_config,
        options={'model.tuning.train': ['bbox_head', *trained]},
        lr=[3e-3])


methods = [
    _with('head, norm layers', _norms),
    dict(
        name='full fine-tuning',
        config='configs/glyphs/deformable_detr_handwritten.py',
        lr=[4e-4]),
    _with('head'),
    _with('head, queries', *_queries),
    _with('head, neck', 'neck'),
    _with('head, norm layers, neck', _norms, 'neck'),
]
quick = dict(
    methods=['head', 'head, norm layers'], seeds=[0], epochs=2, search=False)
