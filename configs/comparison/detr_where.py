# Where the tuners stand in ET-DETR: prefixes in self-attention, cross-attention
# or both, adapters in the encoder, the decoder or both. Handwritten Glyphs, at
# the rate that detr_rivals.py found for ETTA.
host = 'ET-DETR'
title = 'where prefixes and adapters stand'
metric = 'coco/bbox_mAP'
verdict = '''
The defaults stay: everywhere. Adapters carry most, and those of the encoder most of
that: without the decoder's ETTA loses {ETTA - adapters in the encoder alone} points
of AP, without the encoder's {ETTA - adapters in the decoder alone}.
Prefixes carry little: those of the self-attentions alone do as well as both, and those
of the cross-attentions alone half a point less, within the spread of the seeds. All
were trained at ETTA's rate; head only, in [detr_rivals](../detr_rivals/README.md), is
better at ten times the rate than the adapters of the decoder are here. Step times do not
compare: other work ran beside some of the runs.
'''
claims = ['defaults']
seeds = [0, 1, 2]
search_seed = 0
options = {
    'default_hooks.checkpoint.interval': 8,
    'train_cfg.val_interval': 8
}

_config = 'configs/glyphs/et_detr_glyphs.py'
_rates = [1e-3]


def _where(name, place, where):
    return dict(
        name=name,
        config=_config,
        options={f'model.tuning.{place}.where': where},
        lr=_rates)


methods = [
    dict(name='ETTA', config=_config, lr=_rates),
    _where('prefixes in self-attention alone', 'attn', r'.*self_attn'),
    _where('prefixes in cross-attention alone', 'attn', r'.*cross_attn'),
    _where('adapters in the encoder alone', 'ffn', 'encoder.*'),
    _where('adapters in the decoder alone', 'ffn', 'decoder.*'),
]
quick = dict(
    methods=['ETTA', 'adapters in the encoder alone'],
    seeds=[0],
    epochs=2,
    search=False)
