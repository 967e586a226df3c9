# ETTA and its rivals on ET-ViT, handwritten Glyphs, each tuner at about 5 %
# trained (ETTA: 5.07 %; the sizes below are within 0.15 points of it). The head
# of the classifier (0.24 %) is trained in every run.
host = 'ET-ViT'
title = 'ETTA and its rivals at one budget'
metric = 'accuracy/top1'
verdict = '''
With a twentieth of the parameters trained, ETTA, the parallel adapter alone, Houlsby's
serial adapters and LoRA with the feed-forward networks lie within the spread of the
seeds of one another; prefixes alone are no better than the head alone, and no method
reaches full fine-tuning. C5, where ETTA equals full fine-tuning, and C10, where ETTA
is ahead of all rivals, are not reproduced; that prefixes alone come last is.
The cores were shared with other work at times, so step times are rough and nothing
is said of C12.
'''
claims = ['C5', 'C10', 'C12']
seeds = [0, 1, 2]
search_seed = 0
# A checkpoint an epoch would take a tenth of the time.
options = {'default_hooks.checkpoint.interval': 5}

_full = 'configs/glyphs/vit_handwritten.py'
_etta = 'configs/glyphs/et_vit_glyphs.py'
_tuned = 'model.backbone.tuning'
# Where a search begins; it goes on from an end that is best. From 1e-3 and 3e-3 it
# would end too low for some: one seed scatters by more than the step between them.
_rates = [1e-2, 3e-2]
methods = [
    dict(
        name='full fine-tuning',
        config=_full,
        lr=[1e-3, 3e-3],
        paper='84.4 (100 %)'),
    # A tuning that trains something keeps the statistics of the stem's batch
    # norms, too: here the norm (384 parameters) in front of the head.
    dict(
        name='head only',
        config=_etta,
        options={_tuned: dict(_delete_=True, train='ln2')},
        lr=_rates),
    dict(name='ETTA', config=_etta, lr=_rates, paper='84.5 (5.6 %)'),
    dict(
        name='serial adapter (Houlsby)',
        config=_etta,
        options={
            _tuned:
            dict(
                _delete_=True,
                ffn=dict(type='SerialAdapter', bottleneck_dims=32),
                attn=dict(type='SerialAdapter', bottleneck_dims=32))
        },
        lr=_rates,
        paper='77.4 (5.2 %)'),
    dict(
        name='serial adapter (Pfeiffer)',
        config=_etta,
        options={
            _tuned:
            dict(
                _delete_=True,
                ffn=dict(type='SerialAdapter', bottleneck_dims=64))
        },
        lr=_rates),
    dict(
        name='LoRA, attention',
        config=_etta,
        options={_tuned: dict(_delete_=True, attn=dict(type='LoRA', rank=32))},
        lr=_rates),
    dict(
        name='LoRA, attention + FFN',
        config=_etta,
        options={
            _tuned:
            dict(
                _delete_=True,
                ffn=dict(type='LoRA', rank=9),
                attn=dict(type='LoRA', rank=9))
        },
        lr=_rates),
    dict(
        name='LoRA, FFN',
        config=_etta,
        options={_tuned: dict(_delete_=True, ffn=dict(type='LoRA', rank=13))},
        lr=_rates,
        paper='81.3 (6.1 %)'),
    dict(
        name='standard prefix',
        config=_etta,
        options={
            _tuned: dict(_delete_=True, attn=dict(type='Prefix', num_prefix=65))
        },
        lr=_rates,
        paper='75.4 (4.7 %)'),
    dict(
        name='scaled prefix',
        config=_etta,
        options={
            _tuned:
            dict(_delete_=True, attn=dict(type='ScaledPrefix', num_prefix=65))
        },
        lr=_rates),
    dict(
        name='parallel adapter',
        config=_etta,
        options={
            _tuned:
            dict(
                _delete_=True,
                ffn=dict(type='ParallelAdapter', bottleneck_dims=64))
        },
        lr=_rates),
    dict(
        name='parallel adapter, attention',
        config=_etta,
        options={
            _tuned:
            dict(
                _delete_=True,
                attn=dict(type='ParallelAdapter', bottleneck_dims=64))
        },
        lr=_rates),
]
quick = dict(
    methods=['full fine-tuning', 'ETTA', 'LoRA, attention'],
    seeds=[0],
    epochs=1,
    search=False)
