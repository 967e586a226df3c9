"""mmengine's checkpoints, written whole or not at all."""
import os.path as osp

from mmengine.dist import is_main_process
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ..checkpoints.atomic import AtomicBackend, write_atomically
from .training_state_hook import TrainingStateHook
from .tuned_checkpoint_hook import TunedCheckpointHook


class PatientBackend(AtomicBackend):
    """An atomic backend that only notes what it is asked to remove."""

    def __init__(self) -> None:
        self.outdated = []

    def remove(self, filepath) -> None:
        """Note a file."""
        self.outdated.append(filepath)

    def rmtree(self, dir_path) -> None:
        """Note a folder."""
        self.outdated.append(dir_path)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, safe against crashes and full disks.

    Deviations: checkpoints and ``last_checkpoint`` are written atomically; an
    outdated checkpoint is removed when the new one lies on the disk, not
    before. So at any moment ``last_checkpoint`` names a whole checkpoint. A
    validation without a training passes with ``save_best``, too. What is saved
    behind a validation has the epoch that was validated, which mmengine's
    ``FlexibleRunner`` counts once too often.
    Folders on other machines (``s3://...``) are left to their backends.

    Source: mmengine 0.10.12 (OneDL) `hooks/checkpoint_hook.py`.

    Args:
        *args, **kwargs: Those of ``CheckpointHook``.
    """

    removed = frozenset()  # what this hook removed, not the user
    _counts = None  # epoch and iteration of what is saved behind a validation

    def after_val_epoch(self, runner, metrics) -> None:
        """Save the best checkpoint.

        Args:
            runner (Runner): The runner of the training.
            metrics (dict): What the validation has found.
        """
        self._counts = dict(epoch=runner.epoch, iter=runner.iter)
        super().after_val_epoch(runner, metrics)
        self._counts = None

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Correct the epoch and the iteration.

        Args:
            runner (Runner): The runner of the training.
            checkpoint (dict): What is saved.
        """
        if self._counts is not None:
            checkpoint['meta'].update(self._counts)

    def before_train(self, runner) -> None:
        """Take the atomic backend where the folder is on this machine.

        Args:
            runner (Runner): The runner of the training.
        """
        self.removed = set()
        surplus = self._take_surplus(runner.message_hub)
        super().before_train(runner)
        if is_main_process():
            for step in surplus:
                path = self.file_backend.join_path(
                    self.out_dir, self.filename_tmpl.format(step))
                if self.file_backend.exists(path):  # else not ours to remove
                    self._remove(path)
        self._take_own_best(runner.message_hub)
        backend = self.backend_args or self.file_client_args or {}
        if ('://' not in str(self.out_dir)
                and backend.get('backend', 'local') in ('local', 'disk')):
            self.backend_args = dict(backend='atomic')
            self.file_client_args = None  # the same, as it was written before
            self.file_backend = get_file_backend(
                self.out_dir, backend_args=self.backend_args)

    def _take_surplus(self, message_hub) -> list:
        """The steps of the checkpoints that a resumed training, which is to
        keep fewer, has too many. mmengine would not say that it removes them."""
        steps = list(message_hub.runtime_info.get('keep_ckpt_ids') or ())
        number = len(steps) - self.max_keep_ckpts
        if self.max_keep_ckpts <= 0 or number <= 0:
            return []
        message_hub.update_info('keep_ckpt_ids', steps[number:])
        return steps[:number]

    def _take_own_best(self, message_hub) -> None:
        """Keep of the best checkpoints those that lie in this run's folder. A
        resumed training may have been copied or have begun in another folder,
        whose files are not its to remove."""

        def own(name: str, path):
            here = path and self.file_backend.join_path(
                self.out_dir, osp.basename(path))
            if here and not self.file_backend.exists(here):
                here = None
            if name in message_hub.runtime_info:
                message_hub.update_info(name, here)
            return here

        if getattr(self, 'best_ckpt_path', None):
            self.best_ckpt_path = own('best_ckpt', self.best_ckpt_path)
        best = getattr(self, 'best_ckpt_path_dict', {})
        for key, path in best.items():
            best[key] = own(f'best_ckpt_{key}', path)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and list(self.keep_ckpt_ids)[-1:] != [step]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(
                    self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids',
                                           list(self.keep_ckpt_ids))
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._before_any_save(runner)
        for hook in runner.hooks if is_main_process() else ():
            if isinstance(hook, TunedCheckpointHook):
                hook.forget(self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args)
        if not is_main_process():
            return
        write_atomically(
            osp.join(runner.work_dir, 'last_checkpoint'),
            str(self.last_ckpt).encode())
        if outdated is not None:
            self._remove(self.file_backend.join_path(self.out_dir, outdated))

    @staticmethod
    def _before_any_save(runner) -> None:
        """What all processes do, of which one saves."""
        for hook in runner.hooks:
            if isinstance(hook, TrainingStateHook):
                hook.before_any_save(runner)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if not hasattr(self, 'file_backend'):
            return  # a validation by itself: there is nothing to save
        self._before_any_save(runner)
        backend = self.file_backend
        if type(backend) is not AtomicBackend:
            super()._save_best_checkpoint(runner, metrics)
            return
        self.file_backend = PatientBackend()
        try:
            super()._save_best_checkpoint(runner, metrics)
            outdated = self.file_backend.outdated
        finally:
            self.file_backend = backend
        kept = [
            getattr(self, 'best_ckpt_path', None),
            *getattr(self, 'best_ckpt_path_dict', {}).values()
        ]
        for path in outdated:
            if path not in kept:  # the best of this epoch, once more
                self._remove(path)

    def _remove(self, path: str) -> None:
        self.removed.add(path)
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # of deepspeed
            self.file_backend.rmtree(path)
