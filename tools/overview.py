"""Write the README's table of results from those of the comparisons."""
import argparse
from pathlib import Path

from etta_mm.comparison import overview, replace_table

ROOT = Path(__file__).resolve().parents[1]


def main(argv=None):
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    path = ROOT / 'README.md'
    path.write_text(replace_table(path.read_text(), overview(ROOT)))
    print(f'written: {path}')


if __name__ == '__main__':
    main()
