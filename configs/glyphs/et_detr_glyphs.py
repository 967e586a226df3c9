# ET-DETR on the embedded benchmark: printed base, handwritten task.
_base_ = './detr_handwritten.py'
custom_hooks = [
    dict(type='ParameterReportHook'),
    dict(type='TunedCheckpointHook')
]
model = dict(
    type='ETDETR',
    tuning=dict(
        ffn=dict(type='ParallelAdapter', bottleneck_dims=56),
        attn=dict(type='ScaledPrefix', num_prefix=8),
        train=['bbox_head']))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
