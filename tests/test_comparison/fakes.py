"""A checkout whose tools train nothing, so that a run takes no time.

Its train.py and test.py keep the contract of ours (arguments, logs,
checkpoints); what they do is in ``behaviour`` of the config. The validation is
best at a learning rate of 3e-3, the test at 1e-2.
"""
import time
from pathlib import Path

from mmengine.model import BaseModule
from mmengine.registry import MODELS

TRAIN = '''
import json, os, pathlib, sys, time
config, work_dir = sys.argv[1], pathlib.Path(sys.argv[3])
cfg = {}
exec(open(config).read(), cfg)
behaviour, epochs = cfg['behaviour'], cfg['train_cfg']['max_epochs']
lr = cfg['optim_wrapper']['optimizer']['lr']
with open('calls.log', 'a') as log:
    print('train', lr, cfg['randomness']['seed'], *sys.argv[4:], file=log)
print('training')
if behaviour.get('crash'):
    raise RuntimeError(f'no such thing in {os.getcwd()}/data')
sessions = len(list(work_dir.glob('*/')))
logs = work_dir / f'{sessions}/vis_data'
logs.mkdir(parents=True)
begin = time.time()
time.sleep(behaviour.get('sleep', 0))
with open(logs / 'scalars.json', 'w') as log:
    for epoch in range(1, epochs + 1):
        for step, seconds in enumerate((9., 0.1, 0.3, 0.1)):
            print(json.dumps(dict(loss=1., time=seconds, step=step)), file=log)
        (work_dir / f'epoch_{epoch}.pth').touch()
        (work_dir / 'last_checkpoint').write_text(
            f'/elsewhere/epoch_{epoch}.pth')
        log.flush()
        if epoch == behaviour.get('die_at') and sessions == 0 \\
                and '--resume' not in sys.argv and not os.path.exists('died'):
            open('died', 'w').close()
            os.kill(os.getpid(), 9)
        value = 80 - 1000 * abs(lr - 3e-3) + epoch + cfg['randomness']['seed']
        print(json.dumps({'accuracy/top1': value, 'accuracy/top5': value + 5,
                          'step': epoch}), file=log)
        if epoch == behaviour.get('stop_at'):
            break
with open('times.log', 'a') as log:
    print(begin, time.time(), file=log)
'''
TEST = '''
import json, pathlib, sys
config, checkpoint, work_dir = sys.argv[1], sys.argv[2], sys.argv[4]
cfg = {}
exec(open(config).read(), cfg)
lr = cfg['optim_wrapper']['optimizer']['lr']
with open('calls.log', 'a') as log:
    print('test', lr, cfg['randomness']['seed'], file=log)
assert pathlib.Path(checkpoint).exists()
folder = pathlib.Path(work_dir) / '0'
folder.mkdir(parents=True)
value = 70 - 1000 * abs(lr - 1e-2) + cfg['randomness']['seed']
(folder / '0.json').write_text(
    json.dumps({'accuracy/top1': value, 'accuracy/top5': value + 5}))
'''
CONFIG = '''
default_scope = 'mmengine'
model = dict(type='FakeModel')
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_epochs=2, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=1.))
param_scheduler = [
    dict(type='LinearLR', by_epoch=False, end=2),
    dict(type='CosineAnnealingLR', T_max=2, end=2, by_epoch=True)]
behaviour = dict(crash=False)
'''
RATES = [1e-3, 3e-3, 1e-2]
TWO = [
    dict(name='A', config='configs/fake.py', lr=RATES, paper='84.5 (5.6 %)'),
    dict(name='B', config='configs/fake.py', lr=1e-3)
]


@MODELS.register_module()
class FakeModel(BaseModule):
    """One of four parameters is trained."""

    def __init__(self, data_preprocessor=None) -> None:
        super().__init__()
        from torch import nn
        self.frozen = nn.Linear(3, 1, bias=False).requires_grad_(False)
        self.trained = nn.Linear(1, 1, bias=False)


def make_checkout(root: Path) -> Path:
    """Write the checkout below ``root``."""
    for name, text in (('tools/train.py', TRAIN), ('tools/test.py', TEST),
                       ('configs/fake.py', CONFIG)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def write_plan(root: Path, **values) -> Path:
    """Write a plan of two methods; ``values`` replace or add keys."""
    plan = dict(
        host='Fake',
        metric='accuracy/top1',
        claims=['C0'],
        seeds=[0, 1],
        verdict='They tie.',
        methods=TWO)
    plan.update(values)
    path = root / 'configs/plan.py'
    path.write_text(''.join(f'{k} = {v!r}\n' for k, v in plan.items()))
    return path


def calls(root: Path) -> list:
    """The calls of the tools so far, and forget them."""
    log = root / 'calls.log'
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def wait_for(condition, seconds: float = 500) -> None:
    """Wait until a condition holds, for so long at most."""
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, 'it did not happen'
        time.sleep(0.02)
