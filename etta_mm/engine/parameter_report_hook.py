"""The parameter report in the training log."""
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from .parameters import count_parameters


@HOOKS.register_module()
class ParameterReportHook(Hook):
    """Log once, before training, what is trained: per component and in all.

    Raises:
        ValueError: If nothing is.
    """

    def before_train(self, runner) -> None:
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        report = count_parameters(model)
        if not report.trainable:
            raise ValueError('the model has no trainable parameter; give its '
                             'tuning ffn, attn or train')
        runner.logger.info(
            f'{report.trainable:,} of {report.total:,} parameters are trained '
            f'({report.percent:.2f} %)\n{report}')
