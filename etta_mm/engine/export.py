"""Models as plain modules that an exporter can trace: images in, scores out.

Deviations of the exported detectors from their hosts: padding comes as a
tensor, not with the data samples, and the sizes of the feature maps are plain
numbers, which are fixed by the size of the images; the number of images stays
free. Deformable attention always takes mmcv's PyTorch path.
"""
import copy
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmdet.models.detectors import DeformableDETR, DetectionTransformer
from mmengine.config import Config
from mmengine.utils import to_2tuple
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.heads import MultiLabelClsHead
from torch import Tensor, nn

from .atomic import write_atomically

#: What protobuf can hold in one file, less what a graph needs; in bytes.
MAX_ONNX_WEIGHTS = 1_900_000_000
#: Names of the outputs, by their number.
OUTPUT_NAMES = {1: ('scores', ), 2: ('boxes', 'logits')}


class ExportedClassifier(nn.Module):
    """Images to class scores.

    Args:
        model (ImageClassifier): The classifier; it stays as it is.
    """

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.host = copy.deepcopy(model).eval()

    def forward(self, images: Tensor) -> Tuple[Tensor]:
        """Classify images.

        Args:
            images (Tensor): Normalised, (bs, 3, h, w).

        Returns:
            tuple[Tensor]: Scores of the classes in [0, 1], (bs, num_classes).
        """
        logits = self.host(images, mode='tensor')
        if isinstance(self.host.head, MultiLabelClsHead):
            return (logits.sigmoid(), )
        return (logits.softmax(-1), )


class ExportedDetector(nn.Module):
    """Images to boxes and class logits.

    Args:
        model (DetectionTransformer): A detector of DETR's or Deformable
            DETR's line; it stays as it is.
    """

    def __init__(self, model: DetectionTransformer) -> None:
        super().__init__()
        self.host = copy.deepcopy(model).eval()
        mixin = (_MultiLevel if isinstance(model, DeformableDETR) else
                 _SingleLevel)
        self.host.__class__ = _mixed(mixin, type(model))
        for module in self.host.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.__class__ = _static_class(type(module))

    def forward(self,
                images: Tensor,
                masks: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Detect objects.

        Args:
            images (Tensor): Normalised, (bs, 3, h, w).
            masks (Tensor, optional): Boolean, True where an image is padded,
                (bs, h, w). Defaults to None: no image is.

        Returns:
            tuple[Tensor]: Boxes (bs, num_queries, 4) as (cx, cy, w, h) in
            [0, 1] of the image without its padding, and the logits of the
            classes (bs, num_queries, num_classes, + 1 for the background
            where the host's classification is a softmax).
        """
        host = self.host
        # The mixins take the masks where the host takes data samples.
        logits, boxes = host.bbox_head(
            **host.forward_transformer(host.extract_feat(images), masks))
        return boxes[-1], logits[-1]


class StaticDeformableAttention(MultiScaleDeformableAttention):
    """mmcv's deformable attention with the levels' sizes as plain numbers.

    The parent takes them as a tensor and splits by its values, which no
    exporter knows.
    """

    def forward(self,
                query: Tensor,
                key: Optional[Tensor] = None,
                value: Optional[Tensor] = None,
                identity: Optional[Tensor] = None,
                query_pos: Optional[Tensor] = None,
                key_padding_mask: Optional[Tensor] = None,
                reference_points: Optional[Tensor] = None,
                spatial_shapes: List[Tuple[int, int]] = (),
                **kwargs) -> Tensor:
        """As the parent's, with ``spatial_shapes`` as pairs (h, w)."""
        identity = query if identity is None else identity
        value = query if value is None else value
        x = query if query_pos is None else query + query_pos
        if not self.batch_first:
            x, value = x.transpose(0, 1), value.transpose(0, 1)
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.)
        samples = (self.num_heads, self.num_levels, self.num_points)
        # (bs, num_queries, num_heads, num_levels, num_points, 2)
        offsets = self.sampling_offsets(x).unflatten(-1, (*samples, 2))
        weights = self.attention_weights(x).unflatten(
            -1, (self.num_heads, -1)).softmax(-1).unflatten(-1, samples[1:])
        points = reference_points[:, :, None, :, None]
        if points.size(-1) == 2:
            sizes = x.new_tensor([(w, h) for h, w in spatial_shapes])
            locations = points + offsets / sizes[:, None]
        else:
            locations = points[..., :2] + (
                offsets / self.num_points * points[..., 2:] * 0.5)
        h = self.output_proj(
            multi_scale_deformable_attn_pytorch(
                value.unflatten(-1, (self.num_heads, -1)), spatial_shapes,
                locations, weights))
        if not self.batch_first:
            h = h.transpose(0, 1)
        return self.dropout(h) + identity


class _SingleLevel:
    """Mixin: DETR's tokens, with the padding as a tensor."""

    def pre_transformer(self, feats: Tuple[Tensor], masks: Optional[Tensor]):
        """feats: (bs, dim, h', w'), the last counts; masks: (bs, h, w)."""
        feat, pos, mask = _tokens(self, feats[-1], masks)
        return (dict(feat=feat, feat_pos=pos, feat_mask=mask),
                dict(memory_pos=pos, memory_mask=mask))


class _MultiLevel:
    """Mixin: Deformable DETR's tokens, likewise."""

    def pre_transformer(self, feats: Tuple[Tensor], masks: Optional[Tensor]):
        """feats: (bs, dim, h', w') of each level; masks: (bs, h, w)."""
        levels = [_tokens(self, feat, masks) for feat in feats]
        pos = [pos + embed for (_, pos, _), embed in zip(
            levels, self.level_embed)]
        ratios = feats[0].new_ones(feats[0].size(0), len(feats), 2)
        mask = None
        if masks is not None:
            mask = torch.cat([mask for *_, mask in levels], 1)
            ratios = torch.stack([
                self.get_valid_ratio(_resized(masks, feat)) for feat in feats
            ], 1)
        shared = dict(
            spatial_shapes=[tuple(feat.shape[-2:]) for feat in feats],
            level_start_index=None,  # for the CUDA op alone
            valid_ratios=ratios)
        return (dict(
            feat=torch.cat([feat for feat, *_ in levels], 1),
            feat_pos=torch.cat(pos, 1),
            feat_mask=mask,
            **shared), dict(memory_mask=mask, **shared))


def _resized(masks: Tensor, feat: Tensor) -> Tensor:
    """masks (bs, h, w) at the size of feat: boolean (bs, h', w')."""
    return F.interpolate(
        masks[:, None].to(feat.dtype), size=feat.shape[-2:])[:, 0].bool()


def _tokens(host: DetectionTransformer, feat: Tensor,
            masks: Optional[Tensor]) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """(bs, dim, h', w') -> tokens and positions (bs, h' * w', dim), and which
    are padding (bs, h' * w')."""
    mask = None if masks is None else _resized(masks, feat)
    pos = host.positional_encoding(mask, input=feat)
    return (feat.flatten(2).transpose(1, 2), pos.flatten(2).transpose(1, 2),
            None if mask is None else mask.flatten(1))


@lru_cache(maxsize=None)
def _mixed(mixin: type, cls: type) -> type:
    return type(f'Exported{cls.__name__}', (mixin, cls), {})


@lru_cache(maxsize=None)
def _static_class(cls: type) -> type:
    """``cls``, with the static attention as what it calls its parent's."""
    if cls is MultiScaleDeformableAttention:
        return StaticDeformableAttention
    return type(f'Static{cls.__name__}', (cls, StaticDeformableAttention), {})


def exportable(model: nn.Module) -> nn.Module:
    """A copy of ``model``, in eval, that takes images and returns tensors.

    Args:
        model (nn.Module): An ``ImageClassifier`` of mmpretrain, or a
            ``DetectionTransformer`` of mmdet.

    Returns:
        nn.Module: :class:`ExportedClassifier` or :class:`ExportedDetector`.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(model, ImageClassifier):
        return ExportedClassifier(model)
    if isinstance(model, DetectionTransformer):
        return ExportedDetector(model)
    raise TypeError(
        f'{type(model).__name__} cannot be exported: what can be are '
        "mmpretrain's ImageClassifier and mmdet's DetectionTransformer "
        '(DETR, Deformable DETR and what inherits from them)')


def image_size_of(cfg: Config) -> Tuple[int, int]:
    """The size (h, w) in pixels that a config gives its images.

    Args:
        cfg (Config): The config of a run.

    Raises:
        ValueError: If it has none, neither in the backbone (``img_size``) nor
            as the scale of the test pipeline's ``Resize``.
    """
    size = cfg.model.get('backbone', {}).get('img_size')
    if size is not None:
        return to_2tuple(size)
    dataset = cfg.get('test_dataloader', {}).get('dataset', {})
    for transform in dataset.get('pipeline', []):
        if transform['type'] == 'Resize' and 'scale' in transform:
            width, height = to_2tuple(transform['scale'])
            return height, width
    raise ValueError('the config does not say how large the images are; give '
                     '--image-size HEIGHT WIDTH')


def example_inputs(module: nn.Module,
                   image_size: Tuple[int, int],
                   batch_size: int = 2,
                   with_masks: bool = False,
                   seed: int = 0) -> Dict[str, Tensor]:
    """Random inputs of an exportable module.

    Args:
        module (nn.Module): What :func:`exportable` returns.
        image_size (tuple): (h, w) in pixels.
        batch_size (int): Number of images. Defaults to 2.
        with_masks (bool): Whether to add padding masks. Defaults to False.
        seed (int): Of the random numbers. Defaults to 0.

    Raises:
        ValueError: If masks are asked for and ``module`` takes none.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(module.parameters()).device
    inputs = dict(
        images=torch.randn(
            batch_size, 3, *image_size, generator=generator).to(device))
    if with_masks:
        if not isinstance(module, ExportedDetector):
            raise ValueError('a classifier takes no padding masks; leave them '
                             'out')
        masks = torch.zeros(batch_size, *image_size, dtype=torch.bool)
        for i, mask in enumerate(masks):  # the first image is not padded
            height, width = image_size
            mask[height - i * height // (2 * batch_size):] = True
            mask[:, width - i * width // (3 * batch_size):] = True
        inputs['masks'] = masks.to(device)
    return inputs


def export_program(module: nn.Module,
                   image_size: Tuple[int, int],
                   with_masks: bool = False) -> torch.export.ExportedProgram:
    """``torch.export`` of an exportable module, for any number of images.

    Args:
        module (nn.Module): What :func:`exportable` returns.
        image_size (tuple): (h, w) in pixels, fixed from then on.
        with_masks (bool): Whether it takes padding masks. Defaults to False.
    """
    inputs = example_inputs(module, image_size, with_masks=with_masks)
    batch = torch.export.Dim('batch', min=1)
    with torch.no_grad():
        return torch.export.export(
            module, (),
            kwargs=inputs,
            dynamic_shapes={name: {0: batch}
                            for name in inputs})


def export_onnx(program: torch.export.ExportedProgram, path) -> Path:
    """Write an exported program as ONNX, for any number of images.

    Its inputs are ``images`` and, if the program takes them, ``masks``; its
    outputs ``scores``, or ``boxes`` and ``logits``. Weights of more than
    1.9 GB go into a file of their own beside it.

    Args:
        program (ExportedProgram): What :func:`export_program` returns.
        path (str | Path): The file, ``*.onnx``.

    Returns:
        Path: ``path``.

    Raises:
        OSError: If it cannot be written.
    """
    num_outputs = len(program.graph_signature.user_outputs)
    onnx_program = torch.onnx.export(
        program,
        dynamo=True,
        input_names=list(program.graph_signature.user_inputs),
        output_names=list(OUTPUT_NAMES[num_outputs]),
        # onnxscript 0.7.2 drops inputs of nodes that it merges (box
        # refinement); runtimes optimize as they load.
        optimize=False,
        verbose=False)
    size = sum(t.numel() * t.element_size()
               for t in program.state_dict.values())
    if size > MAX_ONNX_WEIGHTS:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        onnx_program.save(str(path), external_data=True)
        return Path(path)
    return write_atomically(path, onnx_program.model_proto.SerializeToString())


def onnx_difference(module: nn.Module,
                    path,
                    image_size: Tuple[int, int],
                    batch_size: int,
                    with_masks: bool = False) -> float:
    """The largest difference between onnxruntime's outputs and PyTorch's.

    Args:
        module (nn.Module): What was exported.
        path (str | Path): The file.
        image_size (tuple): (h, w) in pixels.
        batch_size (int): Number of images.
        with_masks (bool): Whether it takes padding masks. Defaults to False.

    Raises:
        ImportError: If there is no onnxruntime.
    """
    import onnxruntime
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    inputs = example_inputs(module, image_size, batch_size, with_masks, seed=1)
    with torch.no_grad():
        expected = module(**inputs)
    found = session.run(
        None, {name: tensor.cpu().numpy()
               for name, tensor in inputs.items()})
    return max(
        (torch.from_numpy(f) - e.cpu()).abs().max().item()
        for f, e in zip(found, expected))
