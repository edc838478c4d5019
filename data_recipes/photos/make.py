#!/usr/bin/env python
"""Photos as a data set:  python data_recipes/photos/make.py SPEC.yaml OUT(.zip or folder) [--photos FOLDER] [what `python -m headnb.photos --help` lists]

Writes OUT (pictures + dataset.json), OUT_masks, and OUT_report/ with report.json, report.md and contact.png. An interrupted run goes on where it stopped.
"""
import argparse, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from headnb.photos import main as photos


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('spec'); p.add_argument('out')
    p.add_argument('--photos', default='-', help='folder or zip, instead of the one in the spec')
    a, rest = p.parse_known_args(argv)
    return photos([a.photos, a.out, '--spec', a.spec, *rest])


if __name__ == '__main__': sys.exit(main())
