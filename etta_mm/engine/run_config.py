"""The config of a run, whose text is formatted once.

A Runner writes its config into its log, its work dir, its visualizer, its
message hub and every checkpoint. Each time, mmengine has yapf format the text,
which takes longer than many a training step.

Source: mmengine 0.10.12 (OneDL) `config/config.py:Config.pretty_text`.
"""
import copy

from mmengine.config import Config


class RunConfig(Config):
    """A Config that formats its text again only if it has changed."""

    @property
    def pretty_text(self) -> str:
        """The text of the config, as mmengine formats it."""
        values = repr(self.to_dict())
        # Not getattr, which would look among the values.
        known, text = self.__dict__.get('_formatted', (None, None))
        if known != values:
            text = Config.pretty_text.fget(self)
            self.__dict__['_formatted'] = values, text
        return text

    @classmethod
    def of(cls, cfg: Config) -> 'RunConfig':
        """The same config, a copy."""
        copied = cls.__new__(cls)
        copied.__setstate__(copy.deepcopy(cfg.__getstate__()))
        return copied
