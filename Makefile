# Two commands do everything from a clean clone: `make reproduce` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
EXTRA ?=
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= results
comma = ,
EXTRAS = dev$(if $(EXTRA),$(comma)$(EXTRA))
STAMP = $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: help install reproduce paper test test-slow lint docs tutorial figures gallery paper-figures companions companion-figures claims \
	claims-4096 report bench bench-faults clean

help:  ## show this text
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(STAMP)  ## only set up .venv; then: . .venv/bin/activate

reproduce: $(STAMP)  ## the main job: sweeps, figures, claims table and report (CPU, or GPU with EXTRA=cuda12)
	$(BIN)/python sweeps/dynamics.py --out $(OUT)/dynamics
	$(BIN)/python sweeps/query_noise.py --x64 --out $(OUT)/query_noise
	$(BIN)/python sweeps/snr.py --out $(OUT)/snr
	$(MAKE) --no-print-directory figures claims
	$(MAKE) --no-print-directory report

FIGURES = $(OUT)/figures
figures: $(STAMP)  ## redraw every figure from results/ into results/figures
	$(BIN)/python figures/figure1.py --results $(OUT) --out $(FIGURES)
	$(BIN)/python figures/optimizers.py --results $(OUT) --out $(FIGURES)
	$(BIN)/python figures/snr.py --results $(OUT) --out $(FIGURES)

gallery: FIGURES = figures/gallery
gallery: figures  ## redraw the committed pictures and the claims table they stand beside
	$(BIN)/jaxsign claims $(OUT) --csv $(FIGURES)/claims.csv

claims-4096: $(STAMP)  ## the claims table from 4096 seeds x 3 optimizers x both settings
	$(BIN)/python sweeps/claims.py --out $(OUT)-4096
	$(BIN)/jaxsign claims $(OUT)-4096 --csv $(OUT)-4096/claims.csv

# $(call redraw,NAMES): each experiment's figure, and its claims as a table beside it
redraw = for name in $(1); do \
	  $(BIN)/python figures/$$name.py --results $(OUT) --out $(FIGURES) && \
	  $(BIN)/jaxsign claims $(OUT)/$$name --csv $(FIGURES)/claims_$$name.csv || exit $$?; \
	done

PAPER = adam architecture digits data_quality restore
paper: reproduce  ## the whole paper at full size: reproduce, then its other figures and claims (resumable)
	$(BIN)/python sweeps/adam.py --x64 --out $(OUT)/adam
	$(BIN)/python sweeps/architecture.py --x64 --out $(OUT)/architecture
	$(BIN)/python sweeps/digits.py --out $(OUT)/digits
	$(BIN)/python sweeps/data_quality.py --out $(OUT)/data_quality
	$(BIN)/python sweeps/restore.py --out $(OUT)/restore
	$(MAKE) --no-print-directory paper-figures
	$(MAKE) --no-print-directory report

paper-figures: $(STAMP)  ## redraw the figures of `make paper` and print their claims
	$(call redraw,$(PAPER))
	$(BIN)/python figures/depth.py --results $(OUT) --out $(FIGURES)

COMPANIONS = linear_attention kernels residual bridge
companions: $(STAMP)  ## the three companion systems and the bridge: sweeps, figures, claims (resumable)
	$(BIN)/python sweeps/linear_attention.py --out $(OUT)/linear_attention
	$(BIN)/python sweeps/kernels.py --out $(OUT)/kernels
	$(BIN)/python sweeps/residual.py --x64 --out $(OUT)/residual
	$(BIN)/python sweeps/bridge.py --out $(OUT)/bridge
	$(MAKE) --no-print-directory companion-figures

companion-figures: $(STAMP)  ## redraw the companions' figures and print their claims
	$(call redraw,$(COMPANIONS))

claims: $(STAMP)  ## print the claims table of results/
	$(BIN)/jaxsign claims $(OUT) --csv $(OUT)/claims.csv --against figures/gallery/claims.csv

report: $(STAMP)  ## one page about all of results/ and its figures: results/report.html
	$(BIN)/jaxsign report $(OUT) --figures $(FIGURES) --out $(OUT)/report.html

test: lint  ## lint, format and type check, then the test suite
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

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
	$(BIN)/python sweeps/bench/throughput.py --out $(OUT)/throughput
	$(BIN)/python figures/throughput.py --results $(OUT) --out $(FIGURES)

bench-faults: $(STAMP)  ## 500 faults of files, 20 planted links, 100 kills: what becomes of them, one table
	$(BIN)/python sweeps/bench/faults.py --out $(OUT)/faults

clean:  ## remove .venv and caches; results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "make: PYTHON=$(PYTHON) is not there: give PYTHON=python3.11 or newer" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' || { echo "make: Python >= 3.11 is needed, got PYTHON=$(PYTHON), $$($(PYTHON) -V)" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv module: install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
