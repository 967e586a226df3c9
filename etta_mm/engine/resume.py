"""Resume a training from its tuned checkpoint, without the full one.

The Runner resumes from what ``CheckpointLoader`` returns for a name. So the
base, the tuned tensors and the training state are put together in memory, as
the checkpoint that the Runner would have saved, and handed over under a name
of our own.
"""
from pathlib import Path

from mmengine.runner import CheckpointLoader, Runner

from ..checkpoints.training_state import load_training_state, state_path
from ..checkpoints.tuned_file import read_metadata
from ..checkpoints.wrapper import unwrapped

SCHEME = 'tuned://'
_put_together = {}  # name -> checkpoint, until the Runner takes it


def resume_tuned(runner: Runner, path) -> None:
    """Make ``runner.train()`` go on where a tuned checkpoint was saved.

    Args:
        runner (Runner): A runner whose model has the base and the tuned
            checkpoint loaded.
        path (str | Path): The tuned checkpoint; its training state lies
            beside it.

    Raises:
        FileNotFoundError: If there is no training state.
        ValueError: If it is damaged, or belongs to another checkpoint.
    """
    model = unwrapped(runner.model)
    fingerprint = read_metadata(path)['tensors_fingerprint']
    name = SCHEME + str(Path(path).resolve())
    _put_together[name] = load_training_state(
        state_path(path), model, fingerprint)
    runner._resume, runner._load_from = True, name
    runner._has_loaded = False


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_tuned(filename: str, map_location=None) -> dict:
    """Hand over a checkpoint that was put together, once."""
    return _put_together.pop(filename)
