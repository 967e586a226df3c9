# One budget (about 5.1 % trained), split between adapters and prefixes: ET-ViT
# on handwritten Glyphs. A unit of the bottleneck costs 385 parameters a layer, a
# prefix vector 384. The ends are in vit_rivals.py: b = 64 alone, l = 65 alone.
host = 'ET-ViT'
title = 'the split of a budget between bottleneck and prefix'
metric = 'accuracy/top1'
verdict = '''
Half of C4 is seen here: spending nearly all on the prefix is the worst split. That a large
bottleneck with a short prefix is the best one is not shown: an even split is as good,
within the spread of the seeds, as the largest bottleneck.

The second row is ETTA as [vit_rivals](../vit_rivals/README.md) has it, where it came
out a point higher: there the search chose another rate. One and the same run differs by
up to a point of validation accuracy from machine to machine, as much as from seed to
seed, so that differences of a point between methods of ET-ViT show nothing.
'''
claims = ['C4']
seeds = [0, 1, 2]
search_seed = 0
# A checkpoint an epoch would take a tenth of the time.
options = {'default_hooks.checkpoint.interval': 5}

_tuning = 'model.backbone.tuning'
methods = [
    dict(
        name=f'b = {b}, l = {l}',
        config='configs/glyphs/et_vit_glyphs.py',
        options={
            f'{_tuning}.ffn.bottleneck_dims': b,
            f'{_tuning}.attn.num_prefix': l
        },
        lr=[1e-2, 3e-2])
    for b, l in [(62, 2), (56, 8), (32, 32), (2, 62)]
]
quick = dict(
    methods=['b = 62, l = 2', 'b = 2, l = 62'],
    seeds=[0],
    epochs=1,
    search=False)
