# headnb: `make demo`, `make test`, `make lab`, `make docs`. Each sets itself up in .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false
.PHONY: help setup demo test test-all lab docs export clean-nbs execute readme hooks ci

help:
	@sed -n 's/^## //p' Makefile

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "headnb needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) -V 2>&1 | cut -d' ' -f2). Try: make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "python3-venv is missing: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

## make setup     .venv with everything pinned (about 3 minutes)
setup: .venv/.ready

## make demo      render heads, train a tiny EG3D on them, open the shipped one: pictures, report, mesh
demo: setup
	$(BIN)/python .ci/demo.py

## make test      all notebooks, then tests/ (<= 20 minutes on 2 cores)
test: setup
	$(BIN)/python .ci/test.py

.venv/.ready-all: .venv/.ready
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,view,browser,dlib,onnx]'
	@touch $@

## make test-all  the same with what is slow or optional: flagged cells, full-size models, dlib, the browser (Debian's chromium)
test-all: .venv/.ready-all
	$(BIN)/python .ci/test.py --all

## make lab       JupyterLab on localhost
lab: setup
	$(BIN)/jupyter lab --ip=127.0.0.1 --notebook-dir=nbs

## make docs      every notebook as linked HTML in _docs/
docs: setup
	$(BIN)/python .ci/docs.py

## make export    notebooks -> headnb/, README.md
export: setup
	$(BIN)/nbdev_export
	$(BIN)/python .ci/readme.py

## make clean-nbs strip what a run leaves in the notebooks
clean-nbs: setup
	$(BIN)/nbdev_clean

## make execute NB=nbs/...   run one notebook top to bottom in place, clean and export it
execute: setup
	$(BIN)/python .ci/execute.py $(NB)

## make hooks     git hooks: clean and export before a commit
hooks:
	git config core.hooksPath .ci/hooks
