#!/usr/bin/env python
"Photos as a data set:  python data_recipes/photos/make.py SPEC.yaml OUT(.zip or folder) [--data FOLDER] [what `--help` and `python -m headnb.photos --help` list]. headnb.recipes and headnb.photos (nbs/6_tools/64e_recipes.ipynb, 63b_photos.ipynb) have everything but this line."
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from headnb.recipes import main

if __name__ == '__main__': sys.exit(main('photos'))
