"""The features of a detector, taken from a cache where they are known."""
import hashlib
from typing import Dict, Iterator, List

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ..checkpoints.fingerprint import (base_dtypes, fingerprint,
                                       tensors_fingerprint)
from ..listing import listing
from ..tuners import Tuner
from .feature_cache import FeatureCache
from .image_hash import image_hashes

PARTS = ('backbone', 'neck')
#: Attributes of a module that do not tell what it computes.
UNSEEN = ('training', 'init_cfg')
ADVICE = 'Train without the feature cache, or leave them frozen'


class CachedFeatures:
    """Stands for ``model.extract_feat`` and asks the cache first.

    Only in training mode: a validation measures the model without rounding.
    An image is known by the bits of its tensor as the backbone gets it, so
    whatever changes these (another transform, a random augmentation, colours,
    the normalisation, the padding to the largest image of the batch) makes it
    another one. The rest of the key is backbone and neck, their settings and
    weights, and the types of autocast and of the cache.

    Args:
        model (nn.Module): A model of mmdet with a frozen backbone and neck.
            It must be in training mode, as the mode of its parts is checked.
        cache (FeatureCache): Where the features are.

    Raises:
        ValueError: If backbone or neck do not give the same features for an
            image in every epoch.
    """

    def __init__(self, model: nn.Module, cache: FeatureCache) -> None:
        self.model, self.cache = model, cache
        self.hits = self.misses = 0
        self._state = self._name = None
        self._base_name()

    def attach(self) -> 'CachedFeatures':
        """Take the place of the model's method."""
        self.model.extract_feat = self
        return self

    def detach(self) -> None:
        """Give the model its own method back."""
        del self.model.extract_feat

    @torch.compiler.disable
    def __call__(self, batch_inputs: Tensor, *args, **kwargs):
        """As the model's.

        Args:
            batch_inputs (Tensor): Prepared images of shape (bs, 3, h, w).
            *args, **kwargs: The model's; with any of them, it is asked.

        Returns:
            tuple[Tensor]: Feature maps, each of shape (bs, c, h', w').
        """
        if args or kwargs or not self.model.training:
            return self._extract(batch_inputs, *args, **kwargs)
        keys = self._keys(batch_inputs)
        found = self.cache.read(keys, batch_inputs.device)
        missing = [i for i, features in enumerate(found) if features is None]
        if missing:
            # Indexing would copy what is there already.
            images = (
                batch_inputs
                if len(missing) == len(keys) else batch_inputs[missing])
            levels = self._compute(images)
            for row, i in enumerate(missing):
                found[i] = self.cache.write(
                    keys[i], [level[row:row + 1] for level in levels])
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        return tuple(torch.cat(level) for level in zip(*found))

    def _extract(self, *args, **kwargs):
        return type(self.model).extract_feat(self.model, *args, **kwargs)

    @torch.no_grad()
    def _compute(self, images: Tensor) -> List[Tensor]:
        """What the model itself computes, without a random part."""
        before = _random_state(images.device)
        features = self._extract(images)
        if not torch.equal(before, _random_state(images.device)):
            raise ValueError(
                'backbone or neck draw random numbers in training, so the '
                'features of an image differ in every epoch and cannot be '
                'cached. Set what draws them (dropout, random depth) to 0, or '
                'train without the feature cache')
        if not (isinstance(features, (tuple, list)) and features and all(
                torch.is_tensor(f) and len(f) == len(images)
                for f in features)):
            raise TypeError(
                f'{type(self.model).__name__}.extract_feat gives no tuple of '
                'tensors with a row for each image, and nothing else can be '
                'cached; train without the feature cache')
        return list(features)

    def _keys(self, images: Tensor) -> List[str]:
        """The key of each image of shape (bs, 3, h, w)."""
        name = self._base_name()
        device = images.device.type
        if torch.is_autocast_enabled(device):
            name += f' {torch.get_autocast_dtype(device)}'
        if images.is_cuda:  # which would wait for the copy and one CPU thread
            return image_hashes(name, images)
        return [tensors_fingerprint({name: image}) for image in images]

    def _base_name(self) -> str:
        """Backbone and neck in a few letters; made anew, and the parts
        checked, when one of their tensors was written to or is trained."""
        parts = cached_parts(self.model)
        state = [(t.data_ptr(), t._version, t.requires_grad)
                 for part in parts.values() for t in _tensors(part)]
        if state != self._state:
            check_cacheable(self.model)
            digest = hashlib.sha256()
            for name, part in parts.items():
                for line in _structure(part):
                    digest.update(f'{name}.{line}\n'.encode())
                digest.update(fingerprint(part, []).encode())
                digest.update(str(base_dtypes(part, [])).encode())
            self._name = f'{digest.hexdigest()} {self.cache.dtype}'
            self._state = state
        return self._name


def cached_parts(model: nn.Module) -> Dict[str, nn.Module]:
    """The modules whose output is cached, by name.

    Raises:
        ValueError: If there is no backbone.
    """
    parts = {name: getattr(model, name, None) for name in PARTS}
    if parts['backbone'] is None or not hasattr(type(model), 'extract_feat'):
        raise ValueError(
            f'{type(model).__name__} has no backbone whose features could be '
            'cached; the feature cache is for detectors of mmdet')
    return {name: part for name, part in parts.items() if part is not None}


def check_cacheable(model: nn.Module) -> None:
    """Refuse a model whose features change from epoch to epoch.

    Args:
        model (nn.Module): The model, in training mode.

    Raises:
        ValueError: If backbone or neck hold tuners, are trained, have norms
            with moving statistics, dropout or random depth, or are missing.
    """
    for name, part in cached_parts(model).items():
        for what, names in (
            ('tuners', [n for n, m in part.named_modules()
                        if isinstance(m, Tuner)]),
            ('trained parameters', [n for n, p in part.named_parameters()
                                    if p.requires_grad]),
            ('norms with moving statistics', [
                n for n, m in part.named_modules() if _moves(m)]),
            ('dropout or random depth', [
                n for n, m in part.named_modules() if _draws(m)])):
            if names:
                shown = listing([f'{name}.{n}' for n in names])
                raise ValueError(
                    f'the {name} of {type(model).__name__} holds {what} '
                    f'({shown}), so its features change during training '
                    f'and cannot be cached. {ADVICE}')


def _moves(module: nn.Module) -> bool:
    """Whether a norm's output depends on more than the image."""
    if isinstance(module, _BatchNorm):
        return module.training or module.running_mean is None
    return (isinstance(module, _NormBase) and module.training
            and module.track_running_stats)


def _draws(module: nn.Module) -> bool:
    rate = module.p if isinstance(module, _DropoutNd) else getattr(
        module, 'drop_prob', 0)
    return module.training and isinstance(rate, (int, float)) and rate > 0


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _structure(module: nn.Module) -> Iterator[str]:
    """Class and plain settings of every module: what weights do not tell,
    such as strides, dilations and which levels are put out."""
    for name, child in module.named_modules():
        settings = {
            key: value
            for key, value in sorted(vars(child).items())
            if key[0] != '_' and key not in UNSEEN and _is_plain(value)
        }
        yield f'{name}: {type(child).__name__} {settings}'


def _is_plain(value) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(v) for v in value)
    if isinstance(value, dict):  # an FPN's upsample_cfg
        return _is_plain([*value, *value.values()])
    return value is None or isinstance(value, (bool, int, float, str))


def _random_state(device: torch.device) -> Tensor:
    """The generators that a module on ``device`` draws from."""
    state = torch.get_rng_state()
    if device.type == 'cuda':
        state = torch.cat([state, torch.cuda.get_rng_state(device)])
    return state
