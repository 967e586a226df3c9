"""Write docs/budget.md: what b = 400 and l = 50 cost, and what the paper says.

The models are built without their numbers, so this takes seconds.
"""
import argparse
import sys
from pathlib import Path

from mmengine.config import Config

from etta_mm.engine import Budget
from etta_mm.markdown import table

ROOT = Path(__file__).resolve().parents[1]
BOTTLENECK, NUM_PREFIX = 400, 50
SHARES = ('% of base + added', '% of base alone')
PERCENTAGES = (4.0, 4.2, 5.4, 5.6, 6.2)
BASE_SIZE = dict(backbone=dict(arch='b'), head=dict(in_channels=768))
#: Host and data: config, what it is changed to, the paper's percentage.
SYSTEMS = {
    'ViT-B/16, CIFAR-100': ('et_vit_l16_cifar100', dict(model=BASE_SIZE), None),
    'ViT-L/16, CIFAR-100': ('et_vit_l16_cifar100', {}, 5.6),
    'ViT-L/16, ImageNet-1k': ('et_vit_l16_imagenet', {}, 4.0),
    'DETR-R50, COCO': ('et_detr_r50_coco', {}, None),
    'DETR-R101, COCO': ('et_detr_r101_coco', {}, 6.2),
    'DETR-R101, BigDetection': ('et_detr_r101_bigdetection', {}, 5.4),
    'Deformable DETR, COCO': ('et_deformable_detr_coco', {}, None),
    'Deformable DETR, refine, COCO': ('et_deformable_detr_refine_coco', {},
                                      None),
    'Deformable DETR, two-stage, COCO': ('et_deformable_detr_twostage_coco',
                                         {}, None),
}
PAGE = """\
# Budget

Written by `python tools/budget_table.py`; a test compares. For one config, with
its rows per component and tuner:

```shell
python tools/count_parameters.py configs/etta/et_detr_r101_coco.py
python tools/count_parameters.py configs/etta/et_detr_r101_coco.py \\
    --percent 6.2 --num-prefix 50 --out report.json
```

In code, `etta_mm.solve_bottleneck(model_or_config, percent, num_prefix, of)`.

*Base* is the model without tuners, *head* what of it is trained in full,
*added* the tuners, *trained* both. A percentage is trained / (base + added), as
in the headers of the configs and in the training log, or trained / base alone;
the paper does not say which is meant. The trained parameters are linear in b
and l, so one count of a model gives the b that meets a percentage.

## What b = {b} and l = {l} cost

A parallel adapter beside every feed-forward network, a scaled prefix in every
attention, and the head: what the configs in `configs/etta` train. There is no
config for ViT-B/16, which is counted as that of ViT-L/16 with `arch='b'`.

{costs}

## The paper's percentages do not follow from its description

The paper names b = {b} and l = {l} as its best split, and these percentages.
Neither way of counting gives one of them at these sizes, nor does leaving the
head out. What would meet them at l = {l} is in the last two columns.

{paper}

What we ship is b = {b} and l = {l}, the sizes that the paper names, for every
system; the percentage is then the one in the table and in the config's header.
To train the paper's percentage instead, set the `bottleneck_dims` of the tuning
to one of those two b: `--cfg-options model.tuning.ffn.bottleneck_dims=548`, and
for ViT `model.backbone.tuning.ffn.bottleneck_dims=313`.

## The b that meets a percentage at l = {l}

The largest b that trains no more than the percentage. {impossible}

Of base + added:

{total}

Of the base alone:

{base}
"""


ALL_CAN_BE_MET = 'Each of them can be met.'
SOME_CANNOT = """Where head and prefixes alone
are above it, the least possible percentage (b = 1) stands in its place."""


def bottleneck(budget: Budget, percent: float, of: str) -> str:
    least = budget.least(NUM_PREFIX, of)
    if least > percent:
        return f'least {least:.2f} %'
    return str(budget.bottleneck(percent, NUM_PREFIX, of))


def page() -> str:
    """The text of docs/budget.md."""
    costs, paper, meets = [], [], dict(total=[], base=[])
    for name, (config, changes, claimed) in SYSTEMS.items():
        cfg = Config.fromfile(ROOT / f'configs/etta/{config}.py')
        cfg.merge_from_dict(changes)
        budget = Budget.of(cfg)
        sizes = (BOTTLENECK, NUM_PREFIX)
        added = budget.added(*sizes)
        shares = [
            f'{budget.percent(*sizes, of=of):.2f}' for of in ('total', 'base')
        ]
        costs.append([
            name, f'{budget.base:,}', f'{budget.head:,}', f'{added:,}',
            f'{budget.trained(*sizes):,}', *shares
        ])
        if claimed is not None:
            paper.append([
                name, f'{claimed}', *shares,
                f'{100 * added / budget.base:.2f}',
                bottleneck(budget, claimed, 'total'),
                bottleneck(budget, claimed, 'base')
            ])
        for of, rows in meets.items():
            rows.append(
                [name, *(bottleneck(budget, p, of) for p in PERCENTAGES)])
    percentages = ['', *(f'{p} %' for p in PERCENTAGES)]
    parts = dict(
        costs=(['', 'base', 'head', 'added', 'trained', *SHARES], costs),
        paper=([
            '', 'paper, %', *SHARES, 'without head, % of base alone',
            'b, of base + added', 'b, of base alone'
        ], paper),
        total=(percentages, meets['total']),
        base=(percentages, meets['base']))
    return PAGE.format(
        impossible=SOME_CANNOT if 'least' in str(meets) else ALL_CAN_BE_MET,
        b=BOTTLENECK,
        l=NUM_PREFIX,
        **{
            name: '\n'.join(table(header, rows, 'lr'))
            for name, (header, rows) in parts.items()
        })


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out', default=ROOT / 'docs/budget.md', type=Path, help='the file')
    args = parser.parse_args(argv)
    if not args.out.parent.is_dir():
        sys.exit('budget_table.py: error: the folder of --out '
                 f'{str(args.out)!r} does not exist; make it, or give another '
                 'one.')
    args.out.write_text(page())
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
