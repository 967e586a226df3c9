"""Tuned checkpoints beside mmengine's."""
from pathlib import Path
from typing import Container

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS

from ..checkpoints.training_state import save_training_state, state_path
from ..checkpoints.tuned_checkpoint import (save_tuned, tuned_roots,
                                            tuned_state_dict)
from ..checkpoints.tuned_file import plain_metainfo, read_metadata
from .sharding import ETFSDPStrategy, structure


@HOOKS.register_module()
class TunedCheckpointHook(Hook):
    """Write a tuned checkpoint for each checkpoint that mmengine writes.

    ``epoch_3.pth`` gets an ``epoch_3.safetensors`` beside it, the best one
    likewise, with the tensors that the ``.pth`` holds under ``state_dict``:
    of a training with ``EMAHook``, the averaged ones. The last one gets an
    ``epoch_3.train.safetensors`` as well, from which ``--resume`` goes on
    without the ``.pth``. They go when mmengine removes the full one for a
    newer, and stay where somebody else has removed it. mmengine's
    ``CheckpointHook`` says when. Where nothing is tuned, nothing is written.

    Args:
        save_state (bool): Whether to write the training state. Defaults to
            True.
    """

    # After CheckpointHook, which is VERY_LOW.
    priority = 'LOWEST'

    def __init__(self, save_state: bool = True) -> None:
        self.save_state = save_state
        self._written = {}  # full checkpoint -> tuned checkpoint
        self._own = set()  # full checkpoints of this process
        self._seen = {}  # what mmengine wrote, see _full_checkpoints
        self._saved = None  # what the Runner saved last
        self._is_tuned = False  # whether anything in the model is

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep what is saved, to take the tuned tensors from it.

        Args:
            runner (Runner): The runner of the training.
            checkpoint (dict): What is saved.
        """
        if self._is_tuned:
            self._saved = checkpoint

    def before_train(self, runner) -> None:
        """Take stock: of a resumed training, the pairs are ours to remove,
        and what it wrote last has its tuned file already.

        Args:
            runner (Runner): The runner of the training.
        """
        self._is_tuned = bool(tuned_roots(structure(runner)))
        if not self._is_tuned:
            runner.logger.info('Nothing in the model is tuned: no tuned '
                               'checkpoints are written.')
            return
        self._seen = self._full_checkpoints(runner)
        removed = self._removed(runner)
        if runner._resume:
            for folder in {
                    Path(hook.out_dir)
                    for hook in runner.hooks
                    if isinstance(hook, CheckpointHook)
            }:
                for tuned in folder.glob('*.safetensors'):
                    full = tuned.with_suffix('.pth')
                    if full.exists() or str(full) in removed:
                        self._written[str(full)] = tuned

    # The Runner counts on after these hooks, and before a validation.
    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Follow a checkpoint by iteration.

        Args:
            runner (Runner): The runner of the training.
            *args, **kwargs: Unused.
        """
        self._follow(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner) -> None:
        """Follow a checkpoint by epoch.

        Args:
            runner (Runner): The runner of the training.
        """
        self._follow(runner, runner.epoch + 1, runner.iter)

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Follow the best checkpoint.

        Args:
            runner (Runner): The runner of the training.
            metrics (dict, optional): Unused.
        """
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
        if not (self._is_tuned and is_main_process()):
            return
        for key, found in self._full_checkpoints(runner).items():
            if found == self._seen.get(key):
                continue
            self._seen[key], full = found, found[0]
            # Without a save, somebody else has touched the file.
            if self._saved is not None:
                self._write(
                    self._whole(runner),
                    Path(full).with_suffix('.safetensors'),
                    is_last=key == 'last_ckpt',
                    epoch=epoch,
                    iter=iteration,
                    dataset_meta=plain_metainfo(
                        getattr(runner.train_dataloader.dataset, 'metainfo',
                                {})))
                self._written[str(Path(full))] = Path(full).with_suffix(
                    '.safetensors')
                self._own.add(full)
        removed = self._removed(runner)
        for full in [f for f in self._written if not Path(f).exists()]:
            if full in removed:
                _remove_pair(self._written[full])
            del self._written[full]  # else somebody has made room
        self._saved = None

    def _removed(self, runner) -> Container:
        """What the run itself has removed. mmengine's own hook does not say; it
        removes nothing but to save."""
        removed, hooks = set(), [
            hook for hook in runner.hooks if isinstance(hook, CheckpointHook)
        ]
        for hook in hooks:
            if not hasattr(hook, 'removed'):
                return () if self._saved is None else self._written
            removed |= {str(Path(path)) for path in hook.removed}
        return removed

    def forget(self, full: str) -> None:
        """Remove what lies beside a full checkpoint that is about to be
        written: of another training, it would be taken for this one's.

        Args:
            full (str): The full checkpoint.
        """
        if self._is_tuned and full not in self._own and '://' not in full:
            _remove_pair(Path(full).with_suffix('.safetensors'))

    def _whole(self, runner):
        """The model of the run; of a sharded one, with what was saved."""
        strategy = getattr(runner, 'strategy', None)
        if isinstance(strategy, ETFSDPStrategy):
            return strategy.whole_model(self._saved['state_dict'])
        return structure(runner)

    def _write(self, model, path: Path, is_last: bool, **info) -> None:
        """Write the tuned file, and after it the state that belongs to it."""
        save_tuned(model, path, self._saved['state_dict'], **info)
        if is_last and self.save_state and 'optimizer' in self._saved:
            save_training_state(
                state_path(path), self._saved, list(tuned_state_dict(model)),
                read_metadata(path)['tensors_fingerprint'])


def _remove_pair(tuned: Path) -> None:
    """Remove a tuned file and its training state, if they are there."""
    tuned.unlink(missing_ok=True)
    state_path(tuned).unlink(missing_ok=True)
