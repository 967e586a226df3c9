"""Write docs/evidence/initial_loss/: each tuner's loss at step 0."""
import argparse
import json
from pathlib import Path

from mmengine.config import Config

from etta_mm.comparison import initial_loss_page, initial_losses
from etta_mm.data.file import check_file
from etta_mm.engine.user_error import exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
HOSTS = {
    'ET-ViT': 'et_vit_glyphs',
    'ET-DETR': 'et_detr_glyphs',
    'ET-Deformable DETR': 'et_deformable_detr_glyphs',
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        default=ROOT / 'docs/evidence/initial_loss',
        type=Path,
        help='folder of README.md and results.json')
    args = parser.parse_args(argv)
    hosts = {}
    with exit_on_user_error(__file__):
        for host, name in HOSTS.items():
            cfg = Config.fromfile(ROOT / f'configs/glyphs/{name}.py')
            check_file(cfg.load_from, 'The base', 'It belongs to the checkout.')
            hosts[host] = initial_losses(cfg)
            print(host, 'done', flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'results.json').write_text(json.dumps(hosts, indent=1) + '\n')
    (args.out / 'README.md').write_text(initial_loss_page(hosts))
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
