"""What a user gave and does not fit is one message; a bug is a traceback."""
import json

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from etta_mm.checkpoints.tuned_file import file_classes
from etta_mm.checkpoints.wrapper import check_names
from etta_mm.engine import build_on_meta
from etta_mm.engine.user_error import exit_on_refusal, exit_on_user_error


def end_of(action, *args):
    with pytest.raises(SystemExit) as stop:
        with exit_on_user_error('tools/any.py'):
            action(*args)
    return stop.value.code


def test_a_key_error_of_ours_is_a_message_without_quotation_marks():
    assert end_of(build_on_meta, Config(dict(a=1))).startswith(
        'any.py: error: the config has no model')


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / 'gone.json'
    assert end_of(path.read_text).endswith(f"No such file or directory: '{path}'")


def test_a_config_with_a_syntax_error_gets_its_line(tmp_path):
    path = tmp_path / 'broken.py'
    path.write_text('a = 1\nmodel = dict(\n')
    message = end_of(Config.fromfile, str(path))
    assert "config" in message and "line 2, 'model = dict('" in message


@pytest.mark.parametrize('error, action', [
    (KeyError, lambda: MODELS.build(dict(type='NoSuchModel'))),
    (TypeError, lambda: json.loads(1)),
    (AttributeError, lambda: Config(dict(a=1)).model),
])
def test_what_others_raise_of_a_bug_keeps_its_traceback(error, action):
    with pytest.raises(error):
        with exit_on_user_error('tools/any.py'):
            action()


def refuse():
    check_names(nn.ModuleDict(dict(part=nn.ModuleDict(dict(
        _orig_mod=nn.Identity())))))


def test_a_run_ends_with_a_message_where_etta_mm_refuses():
    with pytest.raises(SystemExit, match='^any.py: error: part was replaced'):
        with exit_on_refusal('tools/any.py'):
            refuse()


@pytest.mark.parametrize('error, action', [
    (ValueError, lambda: int('x')),
    (FileNotFoundError, lambda: open('/no/such/file')),
    (KeyError, lambda: file_classes({})),  # ours, and no refusal
])
def test_in_a_run_all_else_keeps_its_traceback(error, action):
    with pytest.raises(error):
        with exit_on_refusal('tools/any.py'):
            action()


def test_without_an_error_nothing_happens():
    with exit_on_user_error('tools/any.py'):
        done = True
    assert done
