# make demo        the whole pipeline on the photos of scikit-image, or on IMAGES=folder; see demo/report.html
# make test        all tests
# make lint        ruff and mypy
# make submission  IMAGES=folder: the submissions of the three rates, in dist/
# make image       the decoder as a container image
#
# The first of them sets up .venv with PYTHON (3.11 or later). Where the default torch is not wanted, name another
# index for it: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
IMAGES ?=
RATES ?= 0.075 0.15 0.30
ENGINE ?= docker

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

ifeq ($(MAKECMDGOALS)$(IMAGES),submission)
$(error name the pictures: make submission IMAGES=folder)
endif

.DELETE_ON_ERROR:
.PHONY: help demo test lint submission image

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

# torch first and by itself: it alone may come from another index
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no python3 found; name one of 3.11 or later: make PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; name another: make PYTHON=..." >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(RUN) -m pip install --disable-pip-version-check -e '.[train,eval,dev]'
	touch $@

demo: $(INSTALLED)
	$(RUN) -m eval.demo $(if $(IMAGES),"$(IMAGES)") -o demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2

lint: $(INSTALLED)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

submission: $(INSTALLED)
	$(RUN) -m ratecontrol.measure "$(IMAGES)" -o dist/table.csv --replace
	@set -e; for rate in $(RATES); do \
		$(RUN) -m ratecontrol.allocate dist/table.csv --bpp $$rate -o dist/choice-$$rate.csv; \
		$(RUN) -m ratecontrol.package "$(IMAGES)" dist/choice-$$rate.csv -o dist/$$rate --bpp $$rate --overwrite; \
	done

image:
	$(ENGINE) build -t clic-decoder .
