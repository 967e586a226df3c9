# What closes the gap to full fine-tuning where the convolutional backbone is
# frozen: ET-Deformable DETR on handwritten Glyphs, one tuning (b = 118, l = 4),
# with one thing or another trained beside it. The column of the trained share
# says what each costs. ETTA trains the neck, the norm layers, the queries and
# of the head what its config says.
host = 'ET-Deformable DETR'
title = 'what is worth training beside the tuners'
metric = 'coco/bbox_mAP'
claims = ['defaults']
verdict = '''
None of these closes the gap. Beside the tuners and the head ({head}), norm layers,
queries or the neck bring {head, norm layers - head} points of AP at most, which is one or two standard
deviations; all of them together, as ETTA's config trains them (of the head the last
layers alone, the neck at a fifth of the rate), {ETTA - head}. Full fine-tuning is {full fine-tuning - head} points above
the head. So what is missing lies in the frozen convolutions or in what the tuners
can do, and is not bought with a few parameters more.

Norm layers of the backbone and the neck make the backward pass go on below the
lowest tuner, which costs time; how much cannot be read here, where the load of the
machine changed from run to run. The config of the embedded benchmark trains them,
for these half a point; those of `configs/etta` train tuners and head, and these
figures are no reason to change that. The rate of every row is the one that was found
for ETTA, and was not searched again; that of full fine-tuning is of its own search. The
neck learns at a fifth of the rate wherever it is trained beside tuners.
'''
seeds = [0, 1, 2]
search_seed = 0
epochs = 8
options = {
    'default_hooks.checkpoint.interval': 8,
    'train_cfg.val_interval': 8,
    'custom_imports.imports': ['etta_mm', 'etta_mm.fast_cpu']
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
    dict(name='ETTA', config=_config, lr=[3e-3]),
    dict(
        name='full fine-tuning',
        config='configs/glyphs/deformable_detr_handwritten.py',
        lr=[1e-3]),
    _with('head'),
    _with('head, norm layers', _norms),
    _with('head, queries', *_queries),
    _with('head, neck', 'neck'),
]
quick = dict(
    methods=['head', 'head, norm layers'], seeds=[0], epochs=2, search=False)
