"""The feature cache in a training."""
import math

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.distributed.fsdp import FullyShardedDataParallel

from ..checkpoints.wrapper import unwrapped
from .cached_features import CachedFeatures
from .feature_cache import GB, FeatureCache

#: Below this share of known images in a repeated pass, the cache is of no use.
LOW_HIT_RATE = 0.05


@HOOKS.register_module()
class FeatureCacheHook(Hook):
    """Compute backbone and neck once for each image, not in every epoch.

    After the first epoch a training step is the transformer's alone. For
    detectors whose backbone and neck are frozen, and for pipelines without
    random augmentation. The log says after each pass over the data how many
    images were known.

    Args:
        folder (str): The folder of the cache. Runs with the same base and
            the same images share it.
        dtype (str): What the features are stored as: 'float16', 'bfloat16' or
            'float32'. Defaults to 'float16'.
        max_gb (float): What the folder may take, in units of 10^9 bytes.
            Defaults to 100.

    Raises:
        ValueError: Before the first step, if backbone or neck are trained or
            their features change for another reason, if FSDP shards the model,
            or if an argument is none.
    """

    def __init__(self,
                 folder: str,
                 dtype: str = 'float16',
                 max_gb: float = 100.0) -> None:
        self.settings = dict(folder=folder, dtype=dtype, max_gb=max_gb)
        self.features = None
        self._passes = 0
        self._is_warned = False

    def before_train(self, runner) -> None:
        """Attach the cache to the model, whose base is loaded by now.

        Args:
            runner (Runner): The runner of the training.
        """
        model = runner.model
        if any(isinstance(m, FullyShardedDataParallel)
               for m in model.modules()):
            raise ValueError(
                'the feature cache does not go with FSDP: a process that knows '
                'its images would leave the others waiting in the backbone. '
                'Train with DDP, or without FeatureCacheHook')
        model = unwrapped(model)
        model.train()  # as the loop does; parts with norm_eval follow it
        cache = FeatureCache(**self.settings)
        self.features = CachedFeatures(model, cache).attach()

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """After each pass over the data, say how many images were known.

        Args:
            runner (Runner): The runner of the training.
            *args, **kwargs: Unused.
        """
        features = self.features
        seen = features.hits + features.misses
        loader = runner.train_dataloader
        share = math.ceil(len(loader.dataset) / get_world_size())
        if getattr(loader, 'drop_last', False):
            share = min(share, len(loader) * loader.batch_size)
        if seen < share:
            return
        self._passes += 1
        runner.logger.info(
            f'Feature cache: {features.hits} of {seen} images were known; '
            f'{features.cache.folder} takes '
            f'{features.cache.num_bytes() / GB:.3g} GB.')
        if (self._passes > 1 and not self._is_warned
                and features.hits < LOW_HIT_RATE * seen):
            self._is_warned = True
            runner.logger.warning(
                f'The feature cache knows {features.hits} of {seen} images of '
                'a repeated pass, so it costs more than it saves. Its images '
                'are the prepared tensors: take random augmentations out of '
                'the pipeline and pad to a fixed size, raise max_gb if the '
                'cache is full, or train without FeatureCacheHook.')
        features.hits = features.misses = 0

    def after_train(self, runner) -> None:
        """Leave the model as it was.

        Args:
            runner (Runner): The runner of the training.
        """
        self.features.detach()
