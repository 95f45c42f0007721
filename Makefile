# Two commands do everything: `make quickstart` and `make test`. PYTHON names the interpreter to build on.
# `make test` runs one representative of each matrix of tests (model families, stages, file formats); `make test-matrix`
# the other cases.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDIO := .venv-label-studio
export HF_HUB_OFFLINE := 1

.PHONY: quickstart test test-matrix docs lint evidence evidence-slice mutants clean

quickstart: $(VENV)/.done
	$(BIN)/align quickstart

# Two processes of one thread each: tiny tensors gain nothing from a second, and much of the time is waiting.
test: $(VENV)/.done $(STUDIO)/.done lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not matrix"

test-matrix: $(VENV)/.done $(STUDIO)/.done
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m matrix

docs: $(VENV)/.done
	$(BIN)/python scripts/write_docs.py

lint: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

evidence: $(VENV)/.done $(STUDIO)/.done
	$(BIN)/python benchmarks/evidence.py --all
	$(BIN)/python benchmarks/bridge.py
	$(MAKE) mutants

# Forty changed lines per module against that module's own tests: about an hour.
mutants: $(VENV)/.done $(STUDIO)/.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt cosmic-ray
	$(BIN)/python benchmarks/mutation.py

evidence-slice: $(VENV)/.done
	$(BIN)/python benchmarks/evidence.py --slice

$(VENV)/.done: pyproject.toml constraints.txt scripts/make_venv.sh
	sh scripts/make_venv.sh "$(PYTHON)" $(VENV)

# Label Studio in an environment of its own, for the tests of the labelling bridge; without it they are skipped.
$(STUDIO)/.done: annotation/label_studio/installation.py | $(VENV)/.done
	$(BIN)/python -c "from pathlib import Path; from annotation.label_studio.installation import install; install(Path('$(STUDIO)'))" \
	    && touch $@ || echo "Label Studio cannot be installed: tests that need it will be skipped"

clean:
	rm -rf $(VENV) $(STUDIO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
