# `make help` lists the targets. The first one that needs it creates the environment in .venv;
# it is made anew when pyproject.toml or constraints.txt changes, or by `make setup`.
VENV ?= .venv
PYTHON ?=
TORCH ?=
PIP_ARGS ?=
ARGS ?=
export VENV PYTHON TORCH PIP_ARGS

BIN := $(VENV)/bin
READY := $(VENV)/.ppgen-ready
# One thread for each of the two workers: with more, they fight over the cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# What the VAE of MNIST and its flow posteriors have in common.
PLAIN_VAE = --hidden 400 --latent 32 --batch-size 128

.DEFAULT_GOAL := help
.PHONY: help demo test full lint types layers tutorials docs digits mnist-rbm mnist-dbn mnist-dbm \
  mnist-deep-dbm mnist-vae mnist-conv-vae mnist-flow-vae wheel constraints setup clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "Options: PYTHON=python3.12   TORCH='torch==2.13.0'   PIP_ARGS='--index-url ...'"
	@echo "         VENV=.venv   ARGS='passed on to pytest, to the demo or to ppgen train'"
	@echo "         EPOCHS=1 TEMPERATURES=50   a trial of mnist-rbm, mnist-dbn, mnist-dbm"

demo: $(READY)  ## set up if needed, then fit a small story in several ways
	$(BIN)/ppgen demo $(ARGS)

test: $(READY)  ## set up if needed, then every test and doctest that is not slow (3 min)
	$(PYTEST) $(ARGS)

full: $(READY)  ## everything: slow statistics and whole tutorials too (90 min)
	$(PYTEST) -m "not gpu" --timeout 1800 $(ARGS)
	$(BIN)/python tutorials/run.py --full

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## pyright
	@$(BIN)/pyright --version > /dev/null 2>&1 || { echo "types: pyright needs node; install it, or" \
	  "take it from the package index: $(BIN)/pip install 'pyright[nodejs]'" >&2; exit 1; }
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(READY)  ## import-linter: cli -> models | inference -> the rest
	$(BIN)/lint-imports

tutorials: $(READY)  ## run every tutorial in fast mode
	$(BIN)/python tutorials/run.py --fast

docs: $(READY)  ## the site, into docs/_build/html, after a run of the code on its pages
	$(BIN)/python -c "import myst_nb" 2> /dev/null || $(BIN)/python -m pip install --quiet \
	  --disable-pip-version-check $(PIP_ARGS) --editable '.[docs]' --constraint constraints.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" -q tests/test_docs.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs: docs/_build/html/index.html"

digits: $(READY)  ## the table of Boltzmann machines on 8x8 digits, grey ones too (3 min)
	$(BIN)/python benchmarks/boltzmann_digits.py $(ARGS)

# First one draw of the pixels for good, then a fresh one each epoch, which takes out what the
# weights had learned of that draw: 3 nats of each of its images.
MNIST_RBM = --data mnist --hidden 500 --persistent --gibbs-steps 5 --decay --averaging 0.9995

mnist-rbm: $(READY)  ## train the RBM of pretrained/ anew: make mnist-rbm ARGS='--folder DIR' (75 min)
	$(BIN)/ppgen train rbm $(MNIST_RBM) --epochs $(or $(EPOCHS),250) \
	  --out runs/rbm-mnist-500-static $(ARGS)
	$(BIN)/ppgen train rbm $(MNIST_RBM) --epochs $(or $(EPOCHS),300) --binarisation dynamic \
	  --start-from runs/rbm-mnist-500-static --out runs/rbm-mnist-500 $(ARGS)
	$(BIN)/ppgen evaluate runs/rbm-mnist-500 --binarisation static --chains 200 \
	  --temperatures $(or $(TEMPERATURES),15000)

# Both start from the shipped RBM; RBM=runs/rbm-mnist-500 starts from one of your own.
RBM ?= pretrained/rbm-mnist-500
MNIST_DEEP = --data mnist --binarisation dynamic --start-from $(RBM) --persistent --gibbs-steps 2 \
  --decay --averaging 0.9995
DEEP_TEMPERATURES = --binarisation static --temperatures $(or $(TEMPERATURES),5000)

mnist-dbn: $(READY)  ## train the DBN of pretrained/ anew: make mnist-dbn ARGS='--folder DIR' (12 min)
	$(BIN)/ppgen train dbn --hidden 500 2000 $(MNIST_DEEP) --learning-rate 0.03 \
	  --epochs $(or $(EPOCHS),20) --out runs/dbn-mnist-500-2000 $(ARGS)
	$(BIN)/ppgen evaluate runs/dbn-mnist-500-2000 $(DEEP_TEMPERATURES)

mnist-dbm: $(READY)  ## train the DBM of pretrained/ anew: make mnist-dbm ARGS='--folder DIR' (15 min)
	$(BIN)/ppgen train dbm --hidden 500 1000 $(MNIST_DEEP) --learning-rate 0.02 \
	  --mean-field-steps 3 --epochs $(or $(EPOCHS),40) --out runs/dbm-mnist-500-1000 $(ARGS)
	$(BIN)/ppgen evaluate runs/dbm-mnist-500-1000 $(DEEP_TEMPERATURES)

mnist-deep-dbm: $(READY)  ## the same for a DBM with three hidden layers (10 min)
	$(BIN)/ppgen train dbm --hidden 500 500 1000 $(MNIST_DEEP) --learning-rate 0.02 \
	  --mean-field-steps 3 --epochs $(or $(EPOCHS),12) --out runs/dbm-mnist-500-500-1000 $(ARGS)
	$(BIN)/ppgen evaluate runs/dbm-mnist-500-500-1000 $(DEEP_TEMPERATURES)

PLAIN_GOES_ON = $(PLAIN_VAE) --learning-rate 0.0005 --averaging 0.9995 --patience 50
mnist-vae: $(READY)  ## the same for the VAE with one hidden layer each side (an hour and a half)
	$(BIN)/ppgen train vae --data mnist $(PLAIN_VAE) --decay --averaging 0.999 --epochs 50 \
	  --learning-rate 0.002 --out runs/vae-mnist-begin $(ARGS)
	$(BIN)/ppgen train vae --data mnist $(PLAIN_GOES_ON) --epochs $(or $(EPOCHS),54) \
	  --start-from runs/vae-mnist-begin --out runs/vae-mnist $(ARGS)
	$(BIN)/ppgen train vae --data mnist $(PLAIN_VAE) --averaging 0.9998 --learning-rate 0.001 \
	  --patience 50 --epochs $(or $(EPOCHS),282) --start-from runs/vae-mnist \
	  --out runs/vae-mnist-long $(ARGS)
	$(BIN)/ppgen train vae --data mnist $(PLAIN_VAE) --decay --averaging 0.999 --epochs 8 \
	  --learning-rate 0.0005 --objective dreg --draws 5 --start-from runs/vae-mnist-begin \
	  --out runs/vae-mnist-dreg $(ARGS)
	for run in vae-mnist vae-mnist-long vae-mnist-dreg; do \
	  $(BIN)/ppgen evaluate runs/$$run --thorough 200 || exit 1; \
	done

mnist-conv-vae: $(READY)  ## for the convolutional VAE of pretrained/ (a quarter of an hour)
	$(BIN)/ppgen train vae --data mnist --convolutional --channels 16 32 --refine 0 --pixels causal \
	  --prior mixture --hidden 256 --latent 32 --epochs 20 --batch-size 64 --learning-rate 0.002 \
	  --decay --averaging 0.999 --out runs/vae-mnist-conv $(ARGS)
	$(BIN)/ppgen evaluate runs/vae-mnist-conv --thorough 100

mnist-flow-vae: $(READY)  ## for flow posteriors, which go on from a run of mnist-vae (20 to 40 minutes each)
	for flow in 'planar 10 0.001' 'sylvester 10 0.001 --flow-columns 8' 'planar 80 0.001' \
	    'sylvester 80 0.0003 --flow-columns 2'; do \
	  set -- $$flow; out=runs/vae-mnist-$$1-$$2; \
	  $(BIN)/ppgen train vae --data mnist $(PLAIN_VAE) --averaging 0.9995 --learning-rate $$3 \
	    --epochs $(or $(EPOCHS),60) --start-from runs/vae-mnist-long --posterior $$1 \
	    --flow-layers $$2 $$4 $$5 --out $$out $(ARGS) && \
	  $(BIN)/ppgen evaluate $$out --thorough 200 || exit 1; \
	done

wheel: $(READY)  ## build wheel and sdist into dist/, install the wheel elsewhere and try it
	$(BIN)/python scripts/check_wheel.py --out dist --install

constraints:  ## choose anew the versions in constraints.txt (all but torch's)
	sh scripts/constraints.sh

setup:  ## install again, with other options perhaps: make setup TORCH='torch==2.12.0'
	sh scripts/setup.sh

clean:  ## remove what builds and checks leave behind
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## the environment too
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt ppgen/_version.py
	@sh scripts/setup.sh
