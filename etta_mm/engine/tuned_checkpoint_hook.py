"""Tuned checkpoints beside mmengine's."""
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from .tuned_checkpoint import save_tuned


@HOOKS.register_module()
class TunedCheckpointHook(Hook):
    """Write a tuned checkpoint for each checkpoint that mmengine writes.

    ``epoch_3.pth`` gets an ``epoch_3.safetensors`` beside it, the best one
    likewise; a tuned file goes when mmengine removes the full one. mmengine's
    ``CheckpointHook`` says when, so there is nothing to set here.
    """

    # After CheckpointHook, which is VERY_LOW.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._written = {}  # full checkpoint -> tuned checkpoint
        self._seen = {}  # what mmengine wrote, see _full_checkpoints

    def before_train(self, runner) -> None:
        # Of a resumed training: its pairs are ours to remove, and what it
        # wrote last has its tuned file already.
        self._seen = self._full_checkpoints(runner)
        if runner._resume:
            for full in Path(runner.work_dir).glob('*.pth'):
                tuned = full.with_suffix('.safetensors')
                if tuned.exists():
                    self._written[str(full)] = tuned

    # The Runner counts on after these hooks, and before a validation.
    def after_train_iter(self, runner, *args, **kwargs) -> None:
        self._follow(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner) -> None:
        self._follow(runner, runner.epoch + 1, runner.iter)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._follow(runner, runner.epoch, runner.iter)

    @staticmethod
    def _full_checkpoints(runner) -> dict:
        """What mmengine wrote last, and the best by each metric: the file and
        when it was written."""
        return {
            key: (full, Path(full).stat().st_mtime_ns)
            for key, full in runner.message_hub.runtime_info.items()
            if key.startswith(('last_ckpt', 'best_ckpt')) and full
            and Path(full).exists()
        }

    def _follow(self, runner, epoch: int, iteration: int) -> None:
        if not is_main_process():
            return
        for key, found in self._full_checkpoints(runner).items():
            if found != self._seen.get(key):
                self._seen[key], full = found, found[0]
                model = runner.model
                if is_model_wrapper(model):
                    model = model.module
                self._written[full] = save_tuned(
                    model,
                    Path(full).with_suffix('.safetensors'),
                    epoch=epoch,
                    iter=iteration,
                    dataset_meta=_plain(
                        getattr(runner.train_dataloader.dataset, 'metainfo',
                                {})))
        for full in [f for f in self._written if not Path(f).exists()]:
            self._written.pop(full).unlink(missing_ok=True)


def _plain(metainfo: dict) -> dict:
    """The part of a data set's metainfo that JSON can hold."""
    return {
        key: value
        for key, value in metainfo.items()
        if isinstance(value, (str, int, float, list, tuple))
    }
