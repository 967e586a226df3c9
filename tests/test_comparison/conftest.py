"""A fake checkout, fresh for every test."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests import fakes

from fakes import make_checkout  # noqa: E402


@pytest.fixture
def root(tmp_path):
    return make_checkout(tmp_path.resolve() / 'checkout')
