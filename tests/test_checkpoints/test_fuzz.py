"""Ten thousand broken files: each an error that leaves the model as it was."""
import copy
import hashlib
import json
import signal
import struct
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from safetensors.torch import load, save
from torch import nn

from etta_mm import apply_tuning, load_tuned, save_tuned
from etta_mm.checkpoints.fingerprint import tensors_fingerprint

SEED = 0
NUM_FILES = 10_000
SECONDS = 20  # of one file, most of which take milliseconds
NAME = 'a_sublayer_whose_name_is_as_long_as_names_grow_ffn'
TUNING = dict(
    ffn=dict(type='ParallelAdapter', bottleneck_dims=2, where=r'ffn$'),
    train='head')
#: Regular expressions; some would take forever.
PATTERNS = ('.?' * 40 + '\n', '(.|..)' * 30 + '\n', '(.*)*x', '.*' * 9 + 'x',
            '.?' * 8 + '.*' * 4 + '[^a]\n', '(?x)(.+) +\n', '.*.*.*.*[^a]\n',
            '.?' * 8 + '[^a]\n', 'ffn', '.*ffn$', '(ffn|head)')
#: What a value of the metadata may be replaced by.
ODD = (None, True, -1, 0, 1.5, 10**9, 10**30, '', 'a', '(', [], ['a'], [[]],
       {}, dict(a=1), dict(type='LoRA', rank=1), 'os.system', '\x00', '💥',
       *PATTERNS[:2], [PATTERNS[0]])


class Tiny(BaseModule):
    """An FFN, a batch norm and a head."""

    def __init__(self):
        super().__init__()
        self.add_module(NAME, FFN(2, 2))
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 2)


def flip(data, rng):
    """Other bits in one to eight bytes; half of the time in the header."""
    end = len(data) if rng.random() < 0.5 else header_end(data)
    for at in rng.integers(end, size=rng.integers(1, 9)):
        data[at] ^= rng.integers(1, 256)
    return data


def truncate(data, rng):
    return data[:rng.integers(len(data))]


def insert(data, rng):
    at = rng.integers(len(data) + 1)
    return data[:at] + rng.bytes(rng.integers(1, 64)) + data[at:]


def cut(data, rng):
    at = rng.integers(len(data))
    return data[:at] + data[at + rng.integers(1, 64):]


def repeat(data, rng):
    at, to = sorted(rng.integers(len(data), size=2))
    return data[:to + 1] + data[at:]


def header_end(data) -> int:
    return 8 + struct.unpack('<Q', data[:8])[0]


def edit_header(data, rng):
    """Other JSON in safetensors' own header."""
    end = header_end(data)
    header = json.loads(bytes(data[8:end]))
    change(header, rng)
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data[end:]


def edit_metadata(data, rng):
    """Other JSON in ours, with the checksum that belongs to it."""
    end = header_end(data)
    header = json.loads(bytes(data[8:end]))['__metadata__']
    metadata = json.loads(header['etta_mm'])
    change(metadata, rng)
    return signed(load(bytes(data)), metadata, False)


def edit_patterns(data, rng):
    """Other regular expressions in the tuning, one or many."""
    metadata, tensors = opened(data)
    tuning = metadata['roots']['']['tuning']
    place = (tuning, tuning['ffn'][0])[rng.integers(2)]
    key = 'where' if place is not tuning or rng.random() < 0.5 else 'train'
    place[key] = place.get(key, []) * int(rng.integers(2)) + [
        str(p) for p in rng.choice(PATTERNS, rng.integers(1, 40))
    ][:rng.choice([1, 2, 40])]
    return signed(tensors, metadata, False)


def swap(data, rng):
    """Two tensors under each other's names."""
    metadata, tensors = opened(data)
    one, other = rng.choice(sorted(tensors), 2, replace=False)
    tensors[one], tensors[other] = tensors[other], tensors[one]
    return signed(tensors, metadata, False)


def edit_tensors(data, rng):
    """A tensor more, fewer, or of another shape or type, and the checksums
    that belong to it."""
    metadata, tensors = opened(data)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    kind = rng.integers(6)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[f'{name}x'] = tensor.clone()
    elif kind == 2:
        tensors[name] = tensor.flatten()[:-1].clone()
    elif kind == 3:
        tensors[name] = tensor.to([torch.half, torch.double, torch.int64,
                                   torch.bool][rng.integers(4)])
    elif kind == 4:
        tensors[name] = tensor[None].clone()
    else:
        tensors[name] = torch.zeros([0, *tensor.shape])
    return signed(tensors, metadata, True)


def opened(data):
    header = json.loads(bytes(data[8:header_end(data)]))['__metadata__']
    return json.loads(header['etta_mm']), load(bytes(data))


def signed(tensors, metadata, with_tensors):
    if with_tensors:
        metadata['tensors_fingerprint'] = tensors_fingerprint(tensors)
    text = json.dumps(metadata)
    return save(
        tensors,
        dict(
            etta_mm=text,
            etta_mm_sha256=hashlib.sha256(text.encode()).hexdigest()))


def change(tree, rng):
    """Replace, remove or add one value anywhere in a tree of JSON."""
    places, stack = [], [tree]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        stack += [
            node[key] for key in keys if isinstance(node[key], (dict, list))
        ]
    node, key = places[rng.integers(len(places))]
    kind = rng.integers(4)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[f'{key}x'] = node[key]
    else:
        node[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])


MUTATIONS = (flip, truncate, insert, cut, repeat, edit_header, edit_metadata,
             edit_patterns, swap, edit_tensors)


@contextmanager
def time_limit(what):
    """Fail where one file takes longer than ``SECONDS``."""

    def stop(number, frame):
        raise TimeoutError(f'{what} takes forever')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def portrait(model):
    return ([(n, type(m), m.training, sorted(vars(m)))
             for n, m in model.named_modules()],
            [(n, p.requires_grad) for n, p in model.named_parameters()])


def same(state, other):
    return state.keys() == other.keys() and all(
        torch.equal(state[key], other[key]) for key in state)


@pytest.fixture
def models(tmp_path):
    """An untuned base, the same tuned, what was trained, and its file."""
    torch.manual_seed(SEED)
    base = Tiny().eval()
    tuned = apply_tuning(copy.deepcopy(base), TUNING)
    trained = copy.deepcopy(tuned)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    path = save_tuned(
        trained, tmp_path / 'a.safetensors', dataset_meta=dict(classes=['a']))
    return base, tuned, trained, path


def test_ten_thousand_broken_files_are_refused_and_change_nothing(
        models, tmp_path):
    *starts, trained, path = models
    good, expected = path.read_bytes(), trained.state_dict()
    portraits = [portrait(model) for model in starts]
    states = [copy.deepcopy(model.state_dict()) for model in starts]
    rng = np.random.default_rng(SEED)
    broken = tmp_path / 'broken.safetensors'
    refused = harmless = 0
    for i in range(NUM_FILES):
        mutate = MUTATIONS[i % len(MUTATIONS)]
        broken.write_bytes(mutate(bytearray(good), rng))
        which = int(rng.integers(2))
        model = starts[which]
        try:
            with time_limit((i, mutate.__name__)):
                load_tuned(model, broken)
        except ValueError:
            refused += 1
        else:  # a note was changed, by one who knows the checksum
            harmless += 1
            assert same(model.state_dict(), expected), (i, mutate.__name__)
            assert mutate in (edit_metadata, edit_header, edit_patterns,
                              swap), i
            starts[which] = model = restored(model, states[which], models,
                                             which)
        assert portrait(model) == portraits[which], (i, mutate.__name__)
        assert same(model.state_dict(), states[which]), (i, mutate.__name__)
    assert refused + harmless == NUM_FILES
    assert refused > 0.9 * NUM_FILES


def restored(model, state, models, which):
    """What the model was before a file was loaded."""
    if which == 0:
        torch.manual_seed(SEED)
        return Tiny().eval()
    model.load_state_dict(state)
    return model
