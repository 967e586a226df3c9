"""What a model has anew beside the base that is loaded into it."""
from typing import List

from torch import nn

from .tuned_checkpoint import tuned_roots


def drop_new(model: nn.Module, weights: dict) -> List[str]:
    """Leave out of the weights what has another shape in ``model``, is trained
    and outside of all that is tuned, such as the head of a classifier: where a
    tuned module passes over it by itself, torch would end here, as mmengine
    does not.

    Args:
        model (nn.Module): A tuned model.
        weights (dict): Those of its base, by name; changed in place.

    Returns:
        list[str]: What was left out.
    """
    tuned = tuple(f'{name}.' if name else '' for name in tuned_roots(model))
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    new = [
        key for key, tensor in model.state_dict().items()
        if key in weights and weights[key].shape != tensor.shape
        and key not in frozen and not key.startswith(tuned)
    ]
    for key in new:
        del weights[key]
    return new
