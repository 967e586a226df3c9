"""Time and memory of a whole training on several devices, computed from what
the benchmark measured on one."""
from dataclasses import dataclass
from typing import Sequence

from ..markdown import table

NUM_IMAGES = 118287  # COCO train2017


@dataclass(frozen=True)
class Scaled:
    """A training on ``devices``, each with the batch of the benchmark.

    Attributes:
        devices (int): How many.
        step_s (float): A step on one device, without communication.
        sent_bytes (float): What each device sends, and receives, per step.
        communication_s (float): How long that takes.
        epoch_s (float): An epoch.
        peak_bytes (int): Memory of each device.
    """
    devices: int
    step_s: float
    sent_bytes: float
    communication_s: float
    epoch_s: float
    peak_bytes: int


def scale(found: dict, batch: int, devices: int, bytes_per_s: float,
          num_images: int = NUM_IMAGES) -> Scaled:
    r"""A ring all-reduce of the gradients behind every step.

    With :math:`n` devices, :math:`g` bytes of gradients, a link of :math:`w`
    bytes/s, a step of :math:`t` s on :math:`b` of :math:`N` images:

    .. math::
        T = \left\lceil \frac{N}{n b} \right\rceil
        \left(t + \frac{2 (n - 1)}{n} \frac{g}{w}\right)

    DDP sends while the backward pass goes on, so this is the most it costs,
    as long as all devices are equally fast and the data arrive in time. The
    latency of the single messages is left out.

    Args:
        found (dict): A method of ``benchmark.json``'s ``summary``.
        batch (int): Images of a step on one device.
        devices (int): Their number.
        bytes_per_s (float): Of the link of each device, one way.
        num_images (int): Images of an epoch. Defaults to COCO's.
    """
    sent = 2 * (devices - 1) / devices * found['gradient_bytes']
    steps = -(-num_images // (devices * batch))
    communication = sent / bytes_per_s
    return Scaled(devices, found['step_s'], sent, communication,
                  steps * (found['step_s'] + communication),
                  found['peak_bytes'])


def scale_page(summary: dict, settings: dict, devices: Sequence[int],
               gigabits: Sequence[float], command: str) -> str:
    """A Markdown page: for each case, full fine-tuning beside ETTA.

    Args:
        summary (dict): Of ``benchmark.json``.
        settings (dict): Of ``benchmark.json``.
        devices (Sequence[int]): Numbers of devices.
        gigabits (Sequence[float]): Links, in Gbit/s.
        command (str): What makes the page again.
    """
    lines = [
        '# COCO on several devices, computed', '',
        'Nothing here was run on several devices. Step and memory are those '
        'that the benchmark measured on one, and as old as it '
        '(docs/speed.md says what has changed since); a ring all-reduce of the '
        'gradients is added to each step (none of it hidden behind the '
        f'backward pass), and an epoch is {NUM_IMAGES:,} images. Each device '
        'has the batch of the benchmark.', '', 'Made by:', '', '```shell',
        command, '```', '', 'Settings of the benchmark: ' +
        ', '.join(f'{key} {value}' for key, value in settings.items()) + '.'
    ]
    header = ['devices', 'link (Gbit/s)', 'method', 'step (s)', 'sent (MB)',
              'communication (s)', 'epoch (h)', 'ETTA / full',
              'memory of each (GB)']
    for case, methods in summary.items():
        chosen = [methods.get(name, {}) for name in ('full', 'etta')]
        if any('step_s' not in found for found in chosen):
            continue
        rows = []
        for number in devices:
            for link in gigabits if number > 1 else gigabits[:1]:
                full, etta = (
                    scale(found, settings['batch'], number, link * 1e9 / 8)
                    for found in chosen)
                for name, one in (('full', full), ('ETTA', etta)):
                    rows.append([
                        str(number), f'{link:g}' if number > 1 else '–', name,
                        f'{one.step_s:.3f}', f'{one.sent_bytes / 1e6:.1f}',
                        f'{one.communication_s:.4f}',
                        f'{one.epoch_s / 3600:.2f}',
                        f'{one.epoch_s / full.epoch_s:.2f}',
                        f'{one.peak_bytes / 1e9:.2f}'
                    ])
        lines += ['', f'## {case}', '']
        lines += table(header, rows, 'r')
    return '\n'.join(lines) + '\n'
