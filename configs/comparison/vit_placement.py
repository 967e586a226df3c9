# Parallel adapters beside the feed-forward networks against parallel adapters
# beside the attentions, ET-ViT on handwritten Glyphs: one of each in a layer, so
# equal bottlenecks are equal budgets (about 2.7 and 9.4 % trained).
host = 'ET-ViT'
title = 'parallel adapters, in the FFN and in the attention'
metric = 'accuracy/top1'
verdict = '''
C3 is not reproduced: adapters beside the feed-forward networks and adapters beside
the attentions lie within the spread of the seeds of one another at either budget. Between
the two, at 5.1 % ([vit_rivals](../vit_rivals/README.md)), those beside the feed-forward
networks are ahead by more than their spread.
'''
claims = ['C3']
seeds = [0, 1, 2]
search_seed = 0
# A checkpoint an epoch would take a tenth of the time.
options = {'default_hooks.checkpoint.interval': 5}


def _adapter_at(place):
    return dict(
        name=f'parallel adapter, {place}',
        config='configs/glyphs/et_vit_glyphs.py',
        lr=[1e-2, 3e-2],
        budgets=[
            dict(
                options={
                    'model.backbone.tuning': {
                        '_delete_': True,
                        place: dict(type='ParallelAdapter', bottleneck_dims=b)
                    }
                }) for b in (32, 128)
        ])


methods = [_adapter_at('ffn'), _adapter_at('attn')]
quick = dict(seeds=[0], budgets=[1], epochs=1, search=False)
