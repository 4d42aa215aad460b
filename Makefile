# `make run`: set up what is missing, then the shell (without a terminal on stdin: the tour).
# `make test`: set up what is missing, then every check and every test.
#
# Variables: PYTHON, the Python (3.11 or newer) that .venv is made with; TORCH_INDEX, an extra package
# index that has the torch build wanted (README, "Install"); PYTEST, more arguments for pytest.

PYTHON ?=
PYTEST ?=
export TORCH_INDEX

BIN := .venv/bin
PYTHONS := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
# .venv is made with the first Python that is new enough; it speaks first where none is.
bootstrap = for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    exec "$$python" scripts/bootstrap.py $(1); \
	  fi; \
	done; \
	echo "LLMasOS needs Python 3.11 or newer; install it, or say where it is: make run PYTHON=/path/to/python3" >&2; \
	exit 1

.PHONY: run test setup setup-dev clean

run: setup
	@$(BIN)/llmasos model info smollm2 >/dev/null 2>&1 || $(BIN)/llmasos model pull smollm2
	@if [ -t 0 ]; then exec $(BIN)/llmasos; else exec $(BIN)/llmasos script examples/tour.las; fi

test: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(PYTEST)

setup:
	@$(call bootstrap)

setup-dev:
	@$(call bootstrap,dev)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find llmasos -name '*.so' -delete
	find llmasos tests benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +
