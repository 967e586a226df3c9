"""Write what is said of all comparisons together: the README's table of results,
and what they cost, in docs/evidence."""
import argparse
from pathlib import Path

from etta_mm.comparison import overview, replace_table, total_cost

ROOT = Path(__file__).resolve().parents[1]


def main(argv=None):
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    for name, lines in {
            'README.md': overview(ROOT),
            'docs/evidence/README.md': total_cost(ROOT)
    }.items():
        path = ROOT / name
        path.write_text(replace_table(path.read_text(), lines))
        print(f'written: {path}')


if __name__ == '__main__':
    main()
