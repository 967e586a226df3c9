# ET-ViT on the embedded benchmark: printed base, handwritten task.
_base_ = './vit_handwritten.py'
custom_hooks = [
    dict(type='ParameterReportHook'),
    dict(type='TunedCheckpointHook')
]
model = dict(
    backbone=dict(
        type='ETVisionTransformer',
        tuning=dict(
            ffn=dict(type='ParallelAdapter', bottleneck_dims=56),
            attn=dict(type='ScaledPrefix', num_prefix=8))))
optim_wrapper = dict(optimizer=dict(lr=1e-2))
