"""Base weights as safetensors, for mmengine's ``load_from`` and ``init_cfg``.

mmengine's checkpoints are pickles, and loading a pickle runs code. A
safetensors file holds tensors only. Importing this module teaches mmengine to
load ``*.safetensors`` wherever it takes a checkpoint.
"""
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file, save_file
from torch import nn


def save_base(model: nn.Module, path, dtype: torch.dtype = torch.half) -> Path:
    """Write the weights of ``model`` as safetensors.

    Args:
        model (nn.Module): The model.
        path (str | Path): The file, ``*.safetensors``.
        dtype (torch.dtype): What floating-point weights are stored as;
            running statistics keep their own. Defaults to half precision.
    """
    buffers = {name for name, _ in model.named_buffers()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name not in buffers:
            tensor = tensor.to(dtype)
        tensors[name] = tensor.detach().cpu().clone().contiguous()
    save_file(tensors, str(path))
    return Path(path)


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$')
def load_base(filename: str, map_location=None) -> dict:
    """Read a safetensors file as mmengine reads a checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not Path(filename).is_file():
        raise FileNotFoundError(f'{filename} can not be found.')
    return dict(state_dict=load_file(filename), meta={})
