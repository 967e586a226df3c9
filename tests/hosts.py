"""Tiny hosts: the zoo's configs shrunk to a few thousand parameters.

Weights, biases and running statistics are random, so that no output is zero
by accident and every frozen tensor has something to lose. The images of a
batch differ in shape, so the padding masks are live.
"""
import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmdet.models.detectors import DABDETR, DINO, ConditionalDETR
from mmdet.registry import MODELS as MMDET
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from mmpretrain.models.backbones import RevVisionTransformer
from mmpretrain.registry import MODELS as MMPRETRAIN
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from etta_mm import TunedHost, apply_tuning

DIMS = 16
FIXED_DIMS = 256  # two-stage and Conditional DETR have it in their code
HEADS = 4
HIDDEN = 24  # feedforward_channels
QUERIES = 10
CLASSES = 3
BLOCKS = (4, 4, 8, 8, 16, 16, 32, 32)  # a ResNet-18 of base_channels 4
LEVELS = 2
IMAGE_SHAPES = [(3, 64, 40), (3, 48, 64)]
NUM_BOXES = [2, 0]  # one image with boxes, one without


@MMDET.register_module()
class ETConditionalDETR(TunedHost, ConditionalDETR):
    """Conditional DETR, tuned in three lines."""


@MMDET.register_module()
class ETDABDETR(TunedHost, DABDETR):
    """DAB-DETR, tuned in three lines."""


@MMDET.register_module()
class ETDINO(TunedHost, DINO):
    """DINO, tuned in three lines."""


@dataclass
class Host:
    """A tiny host and what the tests must know of it.

    Attributes:
        build (Callable): From a tuning (None: the untouched base) to an
            initialised model.
        batch (Callable): A batch as the data loader gives it.
        ffns (list): Linear maps (in, out) of each feed-forward network.
        num_attns (int): Number of softmax attentions.
        num_deformables (int): Number of deformable attentions.
        convs (list): Channels of each block of a ResNet.
        dims (int): Embedding width.
        dead_loras (int): Query-value pairs of LoRA that lack the value,
            because its input is zero.
        config (Callable, optional): The config of the tuned host, untuned.
        head (str): The submodule trained in full.
        root (str): Name of the tuned module inside the model.
    """
    build: Callable
    batch: Callable
    ffns: List[List[Tuple[int, int]]]
    num_attns: int
    num_deformables: int = 0
    convs: tuple = ()
    dims: int = DIMS
    dead_loras: int = 0
    head: Optional[str] = 'bbox_head'
    root: str = ''
    config: Optional[Callable] = None
    _cache: dict = field(default_factory=dict)

    def base(self) -> nn.Module:
        """The untouched base with random weights, in eval; always the same."""
        if 'base' not in self._cache:
            torch.manual_seed(0)
            model = self.build(None)
            randomise(model)
            self._cache['base'] = model.eval()
        return self._cache['base']

    def base_weights(self) -> Dict[str, Tensor]:
        return {k: v.clone() for k, v in self.base().state_dict().items()}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every weight, bias and running statistic a random value."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(normal(parameter) / fan_in**0.5)
            elif name.endswith('weight'):
                parameter.copy_(1 + 0.2 * normal(parameter))
            else:
                parameter.copy_(0.2 * normal(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith('running_mean'):
                buffer.copy_(0.2 * normal(buffer))
            elif name.endswith('running_var'):
                buffer.copy_(0.5 + normal(buffer).abs())


@lru_cache(maxsize=None)
def _parsed(name: str):
    return get_config(name).model


def zoo(name: str):
    """The model of a zoo config, a copy of one's own."""
    return copy.deepcopy(_parsed(name))


# ---------------------------------------------------------------- detectors
def detection_batch(num_items=NUM_BOXES) -> dict:
    """Two images of different shape, of which one has no boxes."""
    return demo_mm_inputs(
        2, IMAGE_SHAPES, num_items=list(num_items), num_classes=CLASSES)


def _shrunk(name: str, dims: int) -> dict:
    """The model of a zoo config with a tiny backbone and neck."""
    model = zoo(f'mmdet::{name}')
    indices = model.backbone.out_indices
    model.backbone.update(
        depth=18,
        base_channels=4,
        frozen_stages=-1,  # so that freezing is ours
        norm_eval=False,
        norm_cfg=dict(type='BN', requires_grad=True),
        init_cfg=None)
    model.neck.update(
        in_channels=[4 * 2**i for i in indices], out_channels=dims)
    if model.neck.norm_cfg:
        model.neck.norm_cfg.num_groups = 4
    model.num_queries = QUERIES
    model.bbox_head.num_classes = CLASSES
    model.bbox_head.embed_dims = dims
    model.positional_encoding.num_feats = dims // 2
    model.test_cfg.max_per_img = QUERIES
    for coder in (model.encoder, model.decoder):
        coder.num_layers = 2
        for key, layer in coder.layer_cfg.items():
            layer.embed_dims = dims
            if key == 'ffn_cfg':
                layer.feedforward_channels = HIDDEN
            else:
                layer.num_heads = HEADS
    return model


def detr_config(name: str = 'detr/detr_r50_8xb2-150e_coco.py',
                dims: int = DIMS) -> dict:
    return _shrunk(name, dims)


def deformable_config(name: str, dims: int = DIMS) -> dict:
    model = _shrunk(name, dims)
    model.num_feature_levels = LEVELS + 1
    model.backbone.out_indices = (2, 3)
    model.neck.update(in_channels=[16, 32], num_outs=LEVELS + 1)
    for coder in (model.encoder, model.decoder):
        for key, layer in coder.layer_cfg.items():
            if key == 'cross_attn_cfg' or (key == 'self_attn_cfg'
                                           and coder is model.encoder):
                layer.num_levels = LEVELS + 1
    if 'dn_cfg' in model:
        model.dn_cfg.group_cfg.num_dn_queries = 4
    return model


def vit_detector_config() -> dict:
    """FCOS on mmpretrain's ViT."""
    model = zoo('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')
    model.backbone = vit_config(img_size=64, type='mmpretrain.VisionTransformer')
    model.backbone.update(out_type='featmap', with_cls_token=False)
    model.neck.update(
        in_channels=[DIMS], out_channels=DIMS, start_level=0, num_outs=1)
    model.bbox_head.update(
        num_classes=CLASSES,
        in_channels=DIMS,
        feat_channels=DIMS,
        stacked_convs=1,
        strides=[16],
        regress_ranges=((-1, 1e8), ),
        norm_cfg=dict(type='GN', num_groups=4))
    model.test_cfg.score_thr = 0.0
    return model


def _detector(config: Callable, tuned_type: Optional[str]) -> Callable:

    def build(tuning: Optional[dict]) -> nn.Module:
        cfg = config()
        if tuning is not None and tuned_type:
            cfg.update(type=tuned_type, tuning=tuning)
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MMDET.build(cfg)
            model.init_weights()
        if tuning is not None and not tuned_type:
            apply_tuning(model, tuning)
        return model

    return build


# -------------------------------------------------------------- classifiers
def vit_config(img_size: int = 32, **kwargs) -> dict:
    cfg = dict(
        type='VisionTransformer',
        arch=dict(
            embed_dims=DIMS,
            num_layers=2,
            num_heads=HEADS,
            feedforward_channels=HIDDEN),
        img_size=img_size,
        patch_size=16 if img_size > 32 else 8)
    cfg.update(kwargs)
    return cfg


def classifier_config(**backbone) -> dict:
    model = zoo(
        'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py')
    model.backbone = vit_config(**backbone)
    model.head.update(num_classes=CLASSES, in_channels=DIMS, hidden_dim=DIMS)
    model.data_preprocessor = dict(
        type='ClsDataPreprocessor', mean=[127.] * 3, std=[60.] * 3)
    model.train_cfg = None
    return model


def classification_batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    return dict(
        inputs=torch.randint(0, 256, (2, 3, 32, 32), generator=generator),
        data_samples=[DataSample().set_gt_label(i) for i in range(2)])


def _classifier(**backbone) -> Callable:

    def build(tuning: Optional[dict]) -> nn.Module:
        cfg = classifier_config(**backbone)
        if tuning is not None:
            cfg.backbone.update(type='ETVisionTransformer', tuning=tuning)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MMPRETRAIN.build(cfg)
            model.init_weights()
        return model

    return build


# ------------------------------------------- mmcv's layers, built by config
def rev_vit(**kwargs) -> nn.Module:
    """A tiny reversible vision transformer."""
    return RevVisionTransformer(
        arch=dict(
            embed_dims=16,
            num_layers=2,
            num_heads=2,
            feedforward_channels=32),
        img_size=32,
        **kwargs)


class LayerModel(BaseModule):
    """mmcv's ``BaseTransformerLayer`` twice: an encoder layer with deformable
    attention, and a decoder layer; behind them a linear head."""

    def __init__(self, tuning: Optional[dict]) -> None:
        super().__init__()
        prefix = 'ET' if tuning else ''

        def layer(cfg: dict, site: str) -> dict:
            cfg['type'] = prefix + cfg['type']
            if tuning and tuning.get(site):
                cfg['tuning'] = tuning[site]
            return cfg

        def softmax() -> dict:
            return layer(
                dict(
                    type='MultiheadAttention',
                    embed_dims=DIMS,
                    num_heads=HEADS,
                    batch_first=True), 'attn')

        deformable = layer(
            dict(
                type='MultiScaleDeformableAttention',
                embed_dims=DIMS,
                num_heads=HEADS,
                num_levels=1,
                batch_first=True), 'attn')

        def ffn() -> dict:
            return layer(
                dict(
                    type='FFN',
                    embed_dims=DIMS,
                    feedforward_channels=HIDDEN,
                    act_cfg=dict(type='ReLU', inplace=True)), 'ffn')

        self.encoder = ROOT.build(
            dict(
                type='BaseTransformerLayer',
                attn_cfgs=[deformable],
                ffn_cfgs=ffn(),
                operation_order=('self_attn', 'norm', 'ffn', 'norm'),
                batch_first=True))
        self.decoder = ROOT.build(
            dict(
                type='BaseTransformerLayer',
                attn_cfgs=[softmax(), softmax()],
                ffn_cfgs=ffn(),
                operation_order=('self_attn', 'norm', 'cross_attn', 'norm',
                                 'ffn', 'norm'),
                batch_first=True))
        self.bbox_head = nn.Linear(DIMS, CLASSES)

    def data_preprocessor(self, data: dict, training: bool) -> dict:
        return data

    def forward(self, inputs: Tensor, data_samples=None, mode='tensor'):
        """inputs: (bs, 12 + QUERIES, DIMS), a 3 x 4 map and the queries."""
        memory, query = inputs[:, :12], inputs[:, 12:]
        hidden = torch.zeros(len(inputs), 12, dtype=torch.bool)
        hidden[1, 8:] = True
        shapes = torch.tensor([[3, 4]])
        reference = torch.rand(
            len(inputs), 12, 1, 2,
            generator=torch.Generator().manual_seed(1))
        memory = self.encoder(
            memory,
            memory,
            memory,
            query_pos=memory.flip(1),
            query_key_padding_mask=hidden,
            reference_points=reference,
            spatial_shapes=shapes,
            level_start_index=torch.tensor([0]))
        query = self.decoder(
            query,
            memory,
            memory,
            query_pos=query.flip(1),
            key_pos=inputs[:, :12].flip(2),
            key_padding_mask=hidden)
        scores = self.bbox_head(query)
        if mode == 'loss':
            return dict(
                loss_cls=F.cross_entropy(
                    scores.transpose(1, 2), data_samples))
        return scores


def layer_batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    return dict(
        inputs=torch.randn(2, 12 + QUERIES, DIMS, generator=generator),
        data_samples=torch.randint(
            CLASSES, (2, QUERIES), generator=generator))


def _layers(tuning: Optional[dict]) -> nn.Module:
    model = LayerModel(tuning)
    model.init_weights()
    if tuning is not None:
        apply_tuning(model, {
            k: v
            for k, v in tuning.items() if k in ('train', )
        })
    return model


def _ffn(dims: int) -> list:
    return [(dims, HIDDEN), (HIDDEN, dims)]


# SwiGLUFFNFused takes two thirds of HIDDEN, here 16, for each half.
SWIGLU = [(DIMS, 2 * 16), (16, DIMS)]


def _detr_host(name: str,
               tuned_type: str,
               num_attns: int,
               dims: int = DIMS,
               **kwargs) -> Host:
    return Host(
        _detector(lambda: detr_config(name, dims), tuned_type),
        detection_batch, [_ffn(dims)] * 4,
        num_attns,
        convs=BLOCKS,
        dims=dims,
        config=lambda: dict(detr_config(name, dims), type=tuned_type),
        **kwargs)


def _deformable_host(name: str, tuned_type: str, dims: int = DIMS) -> Host:
    return Host(
        _detector(lambda: deformable_config(name, dims), tuned_type),
        detection_batch, [_ffn(dims)] * 4,
        num_attns=2,
        num_deformables=4,
        convs=BLOCKS,
        dims=dims,
        config=lambda: dict(deformable_config(name, dims), type=tuned_type))


def _vit_host(linears, **backbone) -> Host:
    return Host(
        _classifier(**backbone),
        classification_batch, [linears] * 2,
        num_attns=2,
        head=None,
        root='backbone',
        config=lambda: classifier_config(
            **{'type': 'ETVisionTransformer'}, **backbone))


DEFORMABLE = 'deformable_detr/deformable-detr{}_r50_16xb2-50e_coco.py'
#: Every host that the laws are tested on.
HOSTS = dict(
    detr=_detr_host('detr/detr_r50_8xb2-150e_coco.py', 'ETDETR', 6,
                    dead_loras=1),
    deformable=_deformable_host(DEFORMABLE.format(''), 'ETDeformableDETR'),
    deformable_refine=_deformable_host(
        DEFORMABLE.format('-refine'), 'ETDeformableDETR'),
    deformable_twostage=_deformable_host(
        DEFORMABLE.format('-refine-twostage'), 'ETDeformableDETR', FIXED_DIMS),
    vit=_vit_host(_ffn(DIMS)),
    vit_swiglu=_vit_host(
        SWIGLU, layer_scale_init_value=0.5,
        layer_cfgs=dict(ffn_type='swiglu_fused')),
    vit_layer_scale=_vit_host(_ffn(DIMS), layer_scale_init_value=0.5),
    conditional_detr=_detr_host(
        'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        'ETConditionalDETR', 2, FIXED_DIMS),
    dab_detr=_detr_host('dab_detr/dab-detr_r50_8xb2-50e_coco.py', 'ETDABDETR',
                        2),
    dino=_deformable_host('dino/dino-4scale_r50_8xb2-12e_coco.py', 'ETDINO'),
    layers=Host(_layers, layer_batch, [_ffn(DIMS)] * 2, 2, 1),
    vit_detector=Host(
        _detector(vit_detector_config, None), detection_batch,
        [_ffn(DIMS)] * 2, 2),
)


def prepare(model: nn.Module, batch: dict, training: bool) -> dict:
    """Through the model's data preprocessor, which pads and normalises."""
    return model.data_preprocessor(copy.deepcopy(batch), training)


def output(model: nn.Module, batch: dict):
    """What the model computes in eval, without gradients."""
    model.eval()
    with torch.no_grad():
        data = prepare(model, batch, False)
        return model(data['inputs'], data['data_samples'], mode='tensor')


def loss(model: nn.Module, batch: dict) -> Tensor:
    """The sum of the model's own losses."""
    data = prepare(model, batch, True)
    return total(model(data['inputs'], data['data_samples'], mode='loss'))


def total(losses: dict) -> Tensor:
    """The sum of all losses of a model."""
    found = 0.
    for name, value in losses.items():
        if 'loss' in name:
            values = value if isinstance(value, list) else [value]
            found = found + sum(v.mean() for v in values)
    return found


def train_steps(model: nn.Module, batches: List[dict], lr: float = 1e-2):
    """AdamW without weight decay, one step per batch; what has a gradient of
    None or zero stays where it is."""
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=lr,
        weight_decay=0.)
    for batch in batches:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


def backward_kinds(loss: torch.Tensor) -> set:
    """The names of all operations of a backward pass."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [child for child, _ in node.next_functions]
    return {type(node).__name__ for node in seen}
