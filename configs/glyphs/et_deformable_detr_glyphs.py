# ET-Deformable DETR on the embedded benchmark: printed base, handwritten task.
_base_ = './deformable_detr_handwritten.py'
custom_hooks = [
    dict(type='ParameterReportHook'),
    dict(type='TunedCheckpointHook')
]
model = dict(
    type='ETDeformableDETR',
    tuning=dict(
        ffn=dict(type='ParallelAdapter', bottleneck_dims=56),
        attn=dict(type='ScaledPrefix', num_prefix=8),
        # The norm layers, 0.2 % of the model, close the gap to full
        # fine-tuning (see the README).
        train=['bbox_head', r'.*\.(bn\d|downsample\.1|gn|norms\.\d)']))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
