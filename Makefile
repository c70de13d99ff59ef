# make demo        the whole pipeline on the photos of scikit-image, or on IMAGES=folder; see demo/report.html
# make test        all tests but the two below
# make test-image  builds the image and runs it, where there is something to build it with
# make test-arm    decodes on an ARM machine: this one, or an emulated one where there is something to emulate it with
# make lint        ruff and mypy
# make submission  IMAGES=folder: the submissions of the three rates, in dist/; REFINE=16 searches better latents,
#                  RATES="0.15" makes those alone
# make image       the decoder as a container image, clic-decoder; ENGINE=podman builds it with that
# make decoder     the decoder as dist/decoder.zip, for judges with a Python of their own
# make wheels      constriction for other Pythons than this one, which submission and decoder take along
#
# The first of them sets up .venv with PYTHON (3.11 or later), the torch of constraints.txt and what it needs itself; test
# and lint add their tools. Where the default build of torch is not wanted, name another index:
# make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
IMAGES ?=
REFINE ?=
RATES ?=
ENGINE ?= docker
BUILD ?= $(ENGINE) build -t clic-decoder .
PYTHONS ?= 3.11 3.12 3.13 3.14

VENV := .venv
RUN := $(VENV)/bin/python
# What has been installed: all that the pipeline needs to run, and what tests and linters need besides.
INSTALLED := $(VENV)/installed
TOOLS := $(VENV)/tools-installed
TORCH := $(shell grep '^torch==' constraints.txt)
CONSTRICTION := $(shell sed -n 's/.*"\(constriction==[^";]*\).*/\1/p' pyproject.toml)
# The image's labels; its build checks them against what `decode --version` says.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' submission/__init__.py)
LADDER = $(shell "$(PYTHON)" -c 'import hashlib, json; models = json.load(open("submission/weights/manifest.json"))["models"]; \
	print(hashlib.sha256("".join(m["sha256"] for m in models).encode()).hexdigest())')

ifeq ($(MAKECMDGOALS)$(IMAGES),submission)
$(error name the pictures: make submission IMAGES=folder)
endif

# Wheels that lie there are taken along; looked for when they are needed, since "make wheels decoder" fetches them first.
WHEELS = $(if $(shell ls wheels/constriction-*.whl 2>/dev/null),--wheels wheels)

.DELETE_ON_ERROR:
.PHONY: help demo test test-image test-arm lint submission image decoder wheels

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

# torch first and by itself: it alone may come from another index
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python3 found; name one of 3.11 or later: make PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; name another: make PYTHON=..." >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

$(TOOLS): $(INSTALLED)
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(RUN) -m eval.demo $(if $(IMAGES),"$(IMAGES)") -o demo

test: $(TOOLS)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --ignore tests/test_image.py --ignore tests/test_arm.py

test-image: $(TOOLS)
	$(RUN) -m pytest -rs tests/test_image.py

test-arm: $(TOOLS)
	$(RUN) -m pytest -rs tests/test_arm.py

lint: $(TOOLS)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

submission: $(INSTALLED)
	$(RUN) -m ratecontrol.submission "$(IMAGES)" -o dist $(if $(RATES),--bpp $(RATES)) $(if $(REFINE),--refine $(REFINE)) $(WHEELS)

image:
	$(BUILD) --build-arg VERSION=$(VERSION) --build-arg LADDER=$(LADDER) \
		$(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX))

decoder: $(INSTALLED)
	$(RUN) -m ratecontrol.decoder -o dist/decoder.zip $(WHEELS)

wheels: $(INSTALLED)
	@set -e; for version in $(PYTHONS); do \
		$(RUN) -m pip download --disable-pip-version-check --quiet --no-deps --only-binary=:all: --dest wheels \
			--python-version $$version --platform manylinux2014_x86_64 $(CONSTRICTION); \
	done
