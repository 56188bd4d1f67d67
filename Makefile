# What the README, .ci/run, the pre-commit hook and the workflow call. `make` alone lists the targets.
MAKEFLAGS += --silent --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help repro rounds instruct test quick check base bases templates learning-curve

# dvc.yaml says `python -m emotune.runs.stage ...`: first on the PATH, that python is the one of .venv.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

installed := .venv/.installed$(TORCH:%=-%)

help: ## list the targets
	awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' Makefile

repro: $(installed) ## run the pipeline and print its table; PROFILE=name DATA=path MODEL=path turn params.yaml first
ifneq ($(PROFILE)$(DATA)$(MODEL),)
	.venv/bin/emotune profile $(PROFILE) $(if $(DATA),--data "$(DATA)") $(if $(MODEL),--model "$(MODEL)")
endif
	.venv/bin/dvc repro
	.venv/bin/emotune mirror || true
	.venv/bin/emotune report

rounds: $(installed) ## after repro: a second round of dpo on pairs of the dpo model, and whether it raised control
	cp rounds/stages.yaml rounds/dvc.yaml
	.venv/bin/dvc repro rounds/dvc.yaml

instruct: $(installed) ## the instruction pipeline, instruct/dvc.yaml: prompting beside training; PROFILE=name MODEL=path too
ifneq ($(PROFILE)$(MODEL),)
	cd instruct && ../.venv/bin/emotune profile $(PROFILE) $(if $(MODEL),--model "$(MODEL)")
endif
	.venv/bin/dvc repro instruct/dvc.yaml
	cd instruct && ../.venv/bin/emotune mirror || true
	cd instruct && ../.venv/bin/emotune report

test: $(installed) ## run the tests, side by side on up to four cores
	.venv/bin/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

quick: $(installed) ## the laws that run no stage, in seconds
	.venv/bin/pytest --numprocesses auto --maxprocesses 4 tests/core tests/laws/test_docs.py tests/laws/test_pipeline.py \
	  tests/laws/test_rooms.py tests/preferences/test_journal.py tests/preferences/test_reward.py \
	  tests/preferences/test_selection.py tests/data/test_splits.py tests/evaluation/test_scores.py tests/prompts

check: $(installed) ## lint, format, types, the figures of README and docs, and dvc.lock
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/emotune report --readme README.md docs/*.md --check
	.venv/bin/emotune current --without-data

base: $(installed) ## the embedded base model, made again by src/emotune/models/embedded.yaml; half an hour
	OMP_NUM_THREADS=1 .venv/bin/python -m emotune.models.embedded

bases: $(installed) ## three base models of different size, compared
	.venv/bin/emotune study bases

templates: $(installed) ## the four templates, compared
	.venv/bin/emotune study templates

learning-curve: $(installed) ## ever more training dialogues, compared
	.venv/bin/emotune study learning-curve

# PyPI's torch for Linux brings CUDA: gigabytes. Where no NVIDIA GPU is seen the same version without it is taken, where
# that can be had; TORCH=cpu or TORCH=cuda forces either. All else comes from wherever pip is told to look.
pin := torch==$(shell sed -n 's/^torch==//p' constraints.txt)
without_cuda := https://download.pytorch.org/whl/cpu
gpu := nvidia-smi -L >/dev/null 2>&1
pip := .venv/bin/python -m pip install --quiet --disable-pip-version-check

# The stamp is younger than what it was installed from, so a second call installs nothing.
$(installed): pyproject.toml constraints.txt
	if [ ! -x .venv/bin/pip ]; then \
	  for python in python3.11 python3 python; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	    python=; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo 'emotune needs Python 3.11 or newer on the PATH; found: '"$$(python3 --version 2>&1)" >&2; exit 1; \
	  fi; \
	  $$python -m venv .venv; \
	fi
	set -e; \
	case "$$(uname) $(TORCH)" in \
	  'Linux ') if $(gpu); then torch=cuda; else torch=cpu; fi;; \
	  'Linux cpu'|'Linux cuda') torch=$(TORCH);; \
	  *' '|*' cpu') torch=plain;; \
	  *) echo "TORCH must be cpu, or cuda on Linux; got $(TORCH) on $$(uname)" >&2; exit 1;; \
	esac; \
	case $$torch in \
	  cpu) what='torch without CUDA (no NVIDIA GPU is seen, or TORCH=cpu; TORCH=cuda brings it: gigabytes)';; \
	  cuda) what='torch with CUDA, gigabytes (an NVIDIA GPU is seen, or TORCH=cuda; TORCH=cpu is a tenth)';; \
	  plain) what='torch';; \
	esac; \
	echo "Downloading the pinned dependencies into .venv, and $$what: minutes, the first time ..."; \
	if [ $$torch = cpu ] && ! $(pip) --retries 1 --timeout 15 --no-deps --extra-index-url $(without_cuda) '$(pin)+cpu'; then \
	  echo "$(pin)+cpu is not to be had: taking $(pin) from where pip is told to look, be it with CUDA" >&2; \
	fi; \
	if [ '$(TORCH)' = cuda ]; then $(pip) --no-deps '$(subst ==,===,$(pin))'; fi; \
	$(pip) -c constraints.txt -e '.[dev]'
	rm -f .venv/.installed-*
	touch .venv/.installed $@
