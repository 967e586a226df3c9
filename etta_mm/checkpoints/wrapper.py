"""A model without its wrappers, whose names would stand before all others."""
from mmengine.model import is_model_wrapper
from torch import nn

COMPILED = '_orig_mod'  # where torch.compile keeps the model


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in the wrapper of a distributed training (DDP), of
    ``torch.compile``, or in both.

    Args:
        model (nn.Module): Any model, wrapped or not.
    """
    while True:
        if is_model_wrapper(model):
            model = model.module
        elif COMPILED in model._modules:
            model = model._modules[COMPILED]
        else:
            return model


def check_names(model: nn.Module) -> None:
    """Refuse a model of which a part is compiled in a wrapper of its own: the
    names below would fit no other model.

    Args:
        model (nn.Module): An unwrapped model.

    Raises:
        ValueError: If there is such a part.
    """
    for name, module in model.named_modules():
        if COMPILED in module._modules:
            raise ValueError(
                f'{name} was replaced by torch.compile({name}), which changes '
                'the names of all parameters below; compile it in place, with '
                f'model.{name}.compile()')
