# ETTA: a parallel adapter beside every feed-forward network, a scaled prefix
# in every attention. The paper's best split of a budget: b = 400, l = 50.
#
# A key may be defined in one base file only, and `model` is the zoo's. So the
# tuning stands here under a name of its own, and a config that inherits a zoo
# config and this file writes `model = dict(tuning={{_base_.tuning}})`. Where
# the zoo config has hooks or imports of its own, repeat these two there.
custom_imports = dict(imports=['etta_mm'], allow_failed_imports=False)
custom_hooks = [
    dict(type='ParameterReportHook'),
    dict(type='TunedCheckpointHook'),
]
tuning = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=400),
    attn=dict(type='ScaledPrefix', num_prefix=50))

# For data sets of which 500 iterations, as many as the other configs warm up for,
# are a large part of the training or more than all of it.
epoch_warmup = dict(
    type='LinearLR', start_factor=0.01, begin=0, end=1,
    convert_to_iter_based=True)
