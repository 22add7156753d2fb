# Two commands do everything from a clean clone: `make reproduce` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
EXTRA ?=
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= results
comma = ,
EXTRAS = dev$(if $(EXTRA),$(comma)$(EXTRA))
STAMP = $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: help install reproduce paper test test-slow lint docs tutorial figures gallery paper-figures companions companion-figures atlas atlas-figures claims \
	claims-4096 report bench bench-latency bench-faults device-check clean

MAKEFLAGS += --no-print-directory
# $(call sweep,NAME,OPTIONS), $(call figure,NAME): one experiment, one figure
sweep = $(BIN)/python sweeps/$(1).py $(if $(2),$(2) )--out $(OUT)/$(notdir $(1))
figure = $(BIN)/python figures/$(1).py --results $(OUT) --out $(FIGURES)

help:  ## show this text
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(STAMP)  ## only set up .venv; then: . .venv/bin/activate

reproduce: $(STAMP)  ## the main job: sweeps, figures, claims table and report (CPU, or GPU with EXTRA=cuda12)
	$(call sweep,dynamics)
	$(call sweep,query_noise,--x64)
	$(call sweep,snr)
	$(MAKE) figures claims
	$(MAKE) report

FIGURES = $(OUT)/figures
figures: $(STAMP)  ## redraw every figure from results/ into results/figures
	$(call figure,figure1)
	$(call figure,optimizers)
	$(call figure,snr)

gallery: FIGURES = figures/gallery
gallery: figures  ## redraw the committed pictures and the claims table they stand beside
	$(BIN)/jaxsign claims $(OUT) --csv $(FIGURES)/claims.csv

claims-4096: $(STAMP)  ## the claims table from 4096 seeds x 3 optimizers x both settings
	$(BIN)/python sweeps/claims.py --out $(OUT)-4096
	$(BIN)/jaxsign claims $(OUT)-4096 --csv $(OUT)-4096/claims.csv

# $(call redraw,NAMES): each experiment's figure, and its claims as a table beside it
redraw = for name in $(1); do \
	  $(call figure,$$name) && \
	  $(BIN)/jaxsign claims $(OUT)/$$name --csv $(FIGURES)/claims_$$name.csv || exit $$?; \
	done

PAPER = adam architecture digits text data_quality restore cnn
paper: reproduce  ## the whole paper at full size: reproduce, then its other figures and claims (resumable)
	$(call sweep,adam,--x64)
	$(call sweep,architecture,--x64)
	$(call sweep,digits)
	$(call sweep,text)
	$(call sweep,data_quality)
	$(call sweep,restore)
	$(call sweep,cnn)
	$(MAKE) paper-figures
	$(MAKE) report

paper-figures: $(STAMP)  ## redraw the figures of `make paper` and print their claims
	$(call redraw,$(PAPER))
	$(call figure,depth)
	$(call figure,cleaner_data)
	$(call figure,noisy_splits)

ATLAS = atlas_error atlas_stages atlas_dial atlas_samples atlas_regime
atlas: $(STAMP)  ## the maps of where sign descent memorises noise: sweeps, figures, claims (resumable)
	for name in $(ATLAS); do $(BIN)/python sweeps/$$name.py --out $(OUT)/$$name || exit $$?; done
	$(call sweep,atlas_betas,--x64)
	$(MAKE) atlas-figures

atlas-figures: $(STAMP)  ## redraw the maps and print their claims
	$(call redraw,$(ATLAS) atlas_betas)
	$(call figure,atlas_cause)
	$(call figure,atlas_start)

COMPANIONS = linear_attention kernels residual bridge
companions: $(STAMP)  ## the three companion systems and the bridge: sweeps, figures, claims (resumable)
	$(call sweep,linear_attention)
	$(call sweep,kernels)
	$(call sweep,residual,--x64)
	$(call sweep,bridge)
	$(MAKE) companion-figures

companion-figures: $(STAMP)  ## redraw the companions' figures and print their claims
	$(call redraw,$(COMPANIONS))

claims: $(STAMP)  ## print the claims table of results/
	$(BIN)/jaxsign claims $(OUT) --csv $(OUT)/claims.csv --against figures/gallery/claims.csv

report: $(STAMP)  ## one page about all of results/ and its figures: results/report.html
	$(BIN)/jaxsign report $(OUT) --figures $(FIGURES) --out $(OUT)/report.html

# Every core has its own tests: threads of NumPy's BLAS would wait for each other and take five times the processor time.
ONE_THREAD = OPENBLAS_NUM_THREADS=1
test: lint  ## lint, format and type check, then the test suite
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-slow: lint  ## the long tests
	XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=3" $(BIN)/python -m pytest -n auto -m slow

docs: $(STAMP)  ## the documentation as HTML: docs/_build/html/index.html
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

tutorial: $(STAMP)  ## run the tutorial notebook again and keep its outputs
	$(BIN)/python docs/run_tutorial.py

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## seed-steps per second of the engines beside the textbook model; EXTRA=bench adds PyTorch
	$(call sweep,bench/throughput)
	$(call figure,throughput)

bench-latency: $(STAMP)  ## how long the first numbers take, and the next ones
	$(call sweep,bench/latency)
	$(call figure,latency)

bench-faults: $(STAMP)  ## 500 faults of files, 20 planted links, 100 kills: what becomes of them, one table
	$(call sweep,bench/faults)

device-check: $(STAMP)  ## 8 minutes on a GPU or TPU (EXTRA=cuda12, cuda13, tpu): correct, resumable, how fast; one table
	$(call sweep,bench/device,$(if $(findstring cuda,$(EXTRA)),--platform gpu)$(if $(findstring tpu,$(EXTRA)),--platform tpu))

clean:  ## remove .venv and caches; results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "make: PYTHON=$(PYTHON) is not there: give PYTHON=python3.11 or newer" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' || { echo "make: Python >= 3.11 is needed, got PYTHON=$(PYTHON), $$($(PYTHON) -V)" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv module: install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
