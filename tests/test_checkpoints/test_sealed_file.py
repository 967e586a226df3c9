"""Sealed files: what is written comes back, and what was changed is refused."""
import hashlib
import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from etta_mm.checkpoints.sealed_file import (STATE, TUNED, is_sealed,
                                             read_sealed, write_sealed)

CONTENT = dict(note='three', best=-math.inf, epoch=np.int64(3))
KINDS = pytest.mark.parametrize('kind', [TUNED, STATE], ids=lambda k: k.key)


@pytest.fixture
def tensors():
    shared = torch.randn(3, 2)
    return dict(a=shared, b=shared, c=shared.T, d=torch.tensor(4).bfloat16())


@pytest.fixture
def path(tensors, tmp_path, kind):
    return write_sealed(tmp_path / 'a.safetensors', kind, CONTENT, tensors)


def header_of(path):
    with safe_open(str(path), framework='pt') as file:
        return file.metadata()


def rewrite(path, kind, change):
    """Write the JSON again, changed, with the checksum that belongs to it."""
    content = json.loads(header_of(path)[kind.key])
    change(content)
    text = json.dumps(content)
    save_file(
        load_file(str(path)), str(path), {
            kind.key: text,
            f'{kind.key}_sha256': hashlib.sha256(text.encode()).hexdigest()
        })


@KINDS
def test_what_is_sealed_comes_back(path, kind, tensors):
    content, read = read_sealed(path, kind)
    assert CONTENT.items() <= content.items()
    assert_close(read, tensors, rtol=0, atol=0)
    assert read_sealed(path, kind, with_tensors=False) == (content, {})


@pytest.mark.parametrize('kind, key, version', [
    (TUNED, 'etta_mm', dict(format_version=2)),
    (STATE, 'etta_mm_training', dict(version=2)),
], ids=['tuned', 'state'])
def test_the_layout_is_that_of_the_files_there_are(path, kind, key, version):
    header = header_of(path)
    text = header.pop(key)
    assert header == {
        f'{key}_sha256': hashlib.sha256(text.encode()).hexdigest()
    }
    content = json.loads(text)
    assert len(content.pop('tensors_fingerprint')) == 64
    assert content == dict(CONTENT, **version)


@KINDS
def test_a_file_is_of_one_kind(path, kind):
    other, = {TUNED, STATE} - {kind}
    assert is_sealed(path, kind) and not is_sealed(path, other)
    with pytest.raises(ValueError, match=f'no {other.name}; {other.writer}'):
        read_sealed(path, other)


@KINDS
@pytest.mark.parametrize('version', [1, 3, True, '2', 2.0, None])
def test_another_version_is_refused_and_named(path, kind, version):
    rewrite(path, kind, lambda c: c.update({kind.version_key: version}))
    with pytest.raises(
            ValueError,
            match=f'format version {version!r}, .* reads version 2; update .*'
            'older file with the etta_mm that wrote it'):
        read_sealed(path, kind)


@KINDS
@pytest.mark.parametrize('with_tensors', [True, False])
def test_a_changed_text_is_refused(path, kind, with_tensors):
    path.write_bytes(path.read_bytes().replace(b'three', b'threE'))
    with pytest.raises(ValueError, match='metadata of .* checksum differs'):
        read_sealed(path, kind, with_tensors)


@KINDS
def test_a_text_without_its_checksum_is_refused(path, kind):
    text = header_of(path)[kind.key]
    save_file(load_file(str(path)), str(path), {kind.key: text})
    with pytest.raises(ValueError, match='metadata of .* checksum differs'):
        read_sealed(path, kind)


@KINDS
@pytest.mark.parametrize('change', [
    lambda c: c.pop('tensors_fingerprint'),
    lambda c: c.update(tensors_fingerprint='0' * 64),
], ids=['none', 'another'])
def test_tensors_of_another_fingerprint_are_refused(path, kind, change):
    rewrite(path, kind, change)
    with pytest.raises(ValueError, match='tensors of .* fingerprint differs'):
        read_sealed(path, kind)


def test_what_json_cannot_hold_is_an_error_and_writes_nothing(tmp_path):
    path = tmp_path / 'a.safetensors'
    with pytest.raises(TypeError, match='cannot hold .*, a Tensor'):
        write_sealed(path, TUNED, dict(info=torch.ones(1)), {})
    assert not path.exists()
