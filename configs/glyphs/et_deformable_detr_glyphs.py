# ET-Deformable DETR on the embedded benchmark: printed base, handwritten task.
_base_ = './deformable_detr_handwritten.py'
custom_hooks = [
    dict(type='ParameterReportHook'),
    dict(type='TunedCheckpointHook')
]
model = dict(
    type='ETDeformableDETR',
    tuning=dict(
        ffn=dict(type='ParallelAdapter', bottleneck_dims=96),
        attn=dict(type='ScaledPrefix', num_prefix=4),
        # The norm layers are 0.2 % of the model. Their parameters alone: the
        # statistics of batch norms would differ between processes.
        train=[
            'bbox_head',
            r'.*\.(bn\d|downsample\.1|gn|norms\.\d)\.(weight|bias)'
        ]))
optim_wrapper = dict(optimizer=dict(lr=3e-3))
