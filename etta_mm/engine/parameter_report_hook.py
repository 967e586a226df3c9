"""The parameter report in the training log."""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from .parameters import count_parameters
from .sharding import structure


@HOOKS.register_module()
class ParameterReportHook(Hook):
    """Log once, before training, what is trained: per component and in all.

    Raises:
        ValueError: If nothing is.
    """

    def before_train(self, runner) -> None:
        report = count_parameters(structure(runner))
        if not report.trainable:
            raise ValueError('the model has no trainable parameter; give its '
                             'tuning ffn, attn or train')
        runner.logger.info(
            f'{report.trainable:,} of {report.total:,} parameters are trained '
            f'({report.percent:.2f} %)\n{report}')
