#!/usr/bin/env python
"SYNHEAD100 as a data set with codes:  python data_recipes/synhead100/make.py SPEC.yaml OUT [what --help lists]. headnb.recipes (nbs/6_tools/64e_recipes.ipynb) has everything but this line."
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from headnb.recipes import main

if __name__ == '__main__': sys.exit(main('synhead'))
