# The standard prefix against the scaled one, alone, on ET-ViT and handwritten
# Glyphs, at about 1, 2, 7 and 10 % trained. The head of the classifier
# (0.24 %) is trained in every run.
host = 'ET-ViT'
title = 'prefixes, standard and scaled, by budget'
metric = 'accuracy/top1'
verdict = '''
C1 agrees: the scaled prefix is ahead of the standard one at every budget, with the
fewest parameters too. But the standard prefix is a point below the head alone
([vit_rivals](../vit_rivals/README.md)), and the scaled one no more than level with it. C2 does not: neither gains from more than two percent, and the
standard prefix does not catch up with five times the budget.
'''
claims = ['C1', 'C2']
seeds = [0, 1, 2]
search_seed = 0
# A checkpoint an epoch would take a tenth of the time.
options = {'default_hooks.checkpoint.interval': 5}

_etta = 'configs/glyphs/et_vit_glyphs.py'
_attn = 'model.backbone.tuning.attn'
_budgets = [
    dict(options={f'{_attn}.num_prefix': n}) for n in (10, 23, 92, 138)
]
methods = [
    dict(
        name='standard prefix',
        config=_etta,
        options={
            'model.backbone.tuning': dict(
                _delete_=True, attn=dict(type='Prefix', num_prefix=10))
        },
        lr=[1e-2, 3e-2],
        budgets=_budgets),
    dict(
        name='scaled prefix',
        config=_etta,
        options={
            'model.backbone.tuning': dict(
                _delete_=True, attn=dict(type='ScaledPrefix', num_prefix=10))
        },
        lr=[1e-2, 3e-2],
        budgets=_budgets),
]
quick = dict(seeds=[0], budgets=[0, 3], epochs=1, search=False)
