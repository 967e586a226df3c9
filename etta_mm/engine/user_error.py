"""Errors of what a user gave: one message from a tool, not a traceback."""
import dis
import os.path as osp
import sys
from contextlib import contextmanager
from typing import Iterator

#: Never the fault of the code that raises them: a file that cannot be read or
#: written, a value that does not fit, a config that is no Python.
ALWAYS = (OSError, ValueError, SyntaxError)
#: The user's fault where etta_mm raises them. What other packages raise of
#: these says nothing without its traceback.
IF_OURS = (KeyError, TypeError)


@contextmanager
def exit_on_user_error(tool: str) -> Iterator[None]:
    """End the process with ``TOOL: error: MESSAGE`` if the input does not fit.

    Any other error passes, with its traceback.

    Args:
        tool (str): The file of the tool, ``__file__``.
    """
    try:
        yield
    except ALWAYS + IF_OURS as error:
        if isinstance(error, IF_OURS) and not is_ours(error):
            raise
        sys.exit(f'{osp.basename(tool)}: error: {message(error)}')


@contextmanager
def exit_on_refusal(tool: str) -> Iterator[None]:
    """The same for a run that is under way: only what etta_mm itself refuses,
    such as a checkpoint that the Runner finds not to fit, is a message. In the
    middle of a training, all else is worth its traceback.

    Args:
        tool (str): The file of the tool, ``__file__``.
    """
    try:
        yield
    except ALWAYS + IF_OURS as error:
        if not is_ours(error):
            raise
        sys.exit(f'{osp.basename(tool)}: error: {message(error)}')


def message(error: Exception) -> str:
    """What ``error`` says, as a user needs it."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])  # else it stands in quotation marks
    if isinstance(error, SyntaxError) and error.text:
        # mmengine parses a config without its name.
        return (f'the config, or one it inherits from, is no valid Python: '
                f'{error.msg} in line {error.lineno}, {error.text.strip()!r}')
    return str(error)


def is_ours(error: Exception) -> bool:
    """Whether a ``raise`` of etta_mm made ``error``, not a slip in it, such
    as a key that a dict has not."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code.co_code
    return (trace.tb_frame.f_globals['__name__'].startswith('etta_mm.')
            and code[trace.tb_lasti] == dis.opmap['RAISE_VARARGS'])
