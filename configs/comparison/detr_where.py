# Where the tuners stand in ET-DETR: prefixes in self-attention, cross-attention
# or both, adapters in the encoder, the decoder or both. Handwritten Glyphs, at
# the rate that detr_rivals.py found for ETTA.
host = 'ET-DETR'
title = 'where prefixes and adapters stand'
metric = 'coco/bbox_mAP'
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
