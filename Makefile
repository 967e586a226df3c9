# Two commands on a fresh machine: `make demo` and `make test`. Both set everything up first, which
# takes minutes once and about a second from then on.
#
#   make demo PYTHON=/path/to/python3.11     another Python than the one that is found
#   ETTA_MM_ENV=/path/to/env make test       another environment than .venv (a venv, a conda prefix)

SHELL := /bin/bash
# `:=` and not `?=`: a shell's start-up file may be named by an exported variable ENV.
ENV := $(or $(ETTA_MM_ENV),.venv)
SETUP := tools/setup_env.sh --env "$(ENV)" $(if $(PYTHON),--python "$(PYTHON)")

.DEFAULT_GOAL := help
.PHONY: help setup demo test clean

help:
	@echo "make demo    set up, make the embedded benchmark, fine-tune on it and show what came out"
	@echo "make test    set up and run the tests"
	@echo "make setup   set up the tested environment in $(ENV)"
	@echo "make clean   delete build artefacts and caches (no environment, no data, no work_dirs)"
	@echo
	@echo "PYTHON=...       the Python (3.10 to 3.12) that a new environment is made with"
	@echo "ETTA_MM_ENV=...  the environment: a venv or a conda prefix; it is made if it is not there"

setup:
	@$(SETUP)

demo: setup
	@"$(ENV)/bin/python" tools/glyphs_demo.py

# Many tests fork processes that have torch, which CUDA does not survive, or have more of them than
# there are GPUs: a GPU is hidden from all but the tests that are for it.
test:
	@$(SETUP) --tests
	@CUDA_VISIBLE_DEVICES= "$(ENV)/bin/python" -m pytest tests -q --durations=15 \
		-n logical --maxprocesses 4 --dist loadfile
	@if nvidia-smi -L 2>/dev/null | grep -q GPU; then \
		"$(ENV)/bin/python" -m pytest tests -q -m gpu; fi

clean:
	rm -rf build dist etta_mm.egg-info .pytest_cache
	find etta_mm configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
