"""Exporters: ``torch.export`` and ONNX, for any number of images.

What they take are the modules of :mod:`.exportable`.
"""
from pathlib import Path
from typing import Dict, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ..checkpoints.atomic import write_atomically
from .exportable import ExportedDetector

#: The ONNX operator set of the files, the highest that torch 2.11 writes; its
#: own default is 20.
OPSET = 23
#: What protobuf can hold in one file, less what a graph needs; in bytes.
MAX_ONNX_WEIGHTS = 1_900_000_000
#: Names of the outputs, by their number.
OUTPUT_NAMES = {1: ('scores', ), 2: ('boxes', 'logits')}


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
    """Write an exported program as ONNX (:data:`OPSET`), for any number of
    images.

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
        opset_version=OPSET,
        custom_translation_table={
            torch.ops.aten.scaled_dot_product_attention.default: _attention
        },
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


def _attention(query,
               key,
               value,
               attn_mask=None,
               dropout_p: float = 0.,
               is_causal: bool = False,
               scale: Optional[float] = None,
               enable_gqa: bool = False):
    """``scaled_dot_product_attention`` as ONNX's ``Attention``.

    As torch's own translation, but a mask that is one for all queries, (bs,
    heads, 1, num_keys), is expanded: ONNX allows it, onnxruntime 1.31.1 does
    not.
    """
    from onnxscript import opset23 as op
    if attn_mask is not None:
        one = op.Constant(value_ints=[1])
        num_queries = op.Shape(query, start=2, end=3)
        attn_mask = op.Expand(attn_mask, op.Concat(num_queries, one, axis=0))
    return op.Attention(
        query, key, value, attn_mask, scale=scale, is_causal=is_causal)[0]


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
