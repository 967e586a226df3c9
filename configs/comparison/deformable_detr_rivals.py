# ETTA and its rivals on ET-Deformable DETR, handwritten Glyphs, each tuner
# within 0.2 points of ETTA's 5.83 % trained. What ETTA trains beside its tuners
# (2.1 % of the model, see its config) is trained with every tuner. Half of the
# config's epochs and one method of a kind: a run takes five minutes.
host = 'ET-Deformable DETR'
title = 'ETTA and its rivals at one budget'
metric = 'coco/bbox_mAP'
verdict = '''
Two thirds of C9 are seen here: of the {full fine-tuning - no tuners} points of AP between what ETTA trains beside its
tuners (no tuners: neck, norm layers, queries, parts of the head) and full fine-tuning,
the tuners make up {ETTA - no tuners}; ETTA stays {full fine-tuning - ETTA} points short, several standard deviations. LoRA in attentions and
feed-forward networks is ahead of ETTA by {LoRA, attention + FFN - ETTA} points, about one standard deviation; the
parallel adapter alone and Pfeiffer's are level with it. Prefixes alone, standard and
scaled, bring nothing: they are within a standard deviation of no tuners, so that what
ETTA gains comes from its adapters. Nothing is said of C12: the load of the machine
changed from run to run, so that step times compare nothing, and the prefix of a
deformable attention has become cheaper between the runs.
'''
claims = ['C9', 'C12']
seeds = [0, 1, 2]
search_seed = 0
epochs = 8
options = {
    'default_hooks.checkpoint.interval': 8,
    'train_cfg.val_interval': 8,
    'custom_imports.imports': ['etta_mm', 'etta_mm.fast_cpu']
}

_full = 'configs/glyphs/deformable_detr_handwritten.py'
_etta = 'configs/glyphs/et_deformable_detr_glyphs.py'
_rates = [1e-3, 3e-3]


def _serial(size):
    return dict(type='SerialAdapter', bottleneck_dims=size)


def _parallel(size):
    return dict(type='ParallelAdapter', bottleneck_dims=size)


def _lora(rank):
    return dict(type='LoRA', rank=rank)


def _rival(name, ffn=None, attn=None):
    """ETTA with other tuners."""
    tuners = dict(ffn=ffn, attn=attn)
    options = {
        f'model.tuning.{place}':
        None if tuner is None else dict(tuner, _delete_=True)
        for place, tuner in tuners.items()
    }
    return dict(name=name, config=_etta, options=options, lr=_rates)


methods = [
    dict(name='ETTA', config=_etta, lr=_rates),
    dict(name='full fine-tuning', config=_full, lr=[3e-4, 1e-3]),
    _rival('no tuners'),
    _rival('serial adapter (Pfeiffer)', _serial(124)),
    _rival('LoRA, attention + FFN', _lora(16), _lora(16)),
    _rival('standard prefix', None, dict(type='Prefix', num_prefix=79)),
    _rival('scaled prefix', None, dict(type='ScaledPrefix', num_prefix=79)),
    _rival('parallel adapter', _parallel(124)),
]
quick = dict(
    methods=['ETTA', 'full fine-tuning'], seeds=[0], epochs=2, search=False)
