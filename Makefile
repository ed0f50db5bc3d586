# `make demo` and `make test` need Python >= 3.10 and a C++ compiler; all else goes into .venv.
# Another torch than constraints.txt names: `make test TORCH=2.15.0`, in an environment of its own.

PYTHON ?= python3
VENV := .venv$(TORCH:%=-torch-%)
BIN := $(VENV)/bin
PINS := $(VENV)/constraints.txt

# pip 23 reads the first for its build environments, pip 26 only the second.
export PIP_CONSTRAINT := $(PINS)
export PIP_BUILD_CONSTRAINT := $(PINS)

BUILD := setup.py pyproject.toml _backend.py illia_ext/_native/build.py $(shell find csrc -type f)

OUT ?= bench/results
GOLDEN := tests/data/golden_bits.txt

.PHONY: demo test bench validation golden gpu lint format clean

demo: $(VENV)/installed
	$(BIN)/python examples/digits.py

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

bench: $(VENV)/installed
	$(BIN)/python -m bench

# The evidence of docs/validation.md, whose figures it writes: half an hour on two cores.
validation: $(VENV)/installed
	rm -f docs/validation.json
	$(BIN)/python -m pytest -n 2 --dist worksteal -rs validation --figures docs/validation.json
	$(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile validation tests/faults tests/ops/test_laws*.py \
		tests/ops/test_odd_calls.py

# Writes the committed bits anew: to change a line is a breaking change, as the file says.
golden: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -B build/golden -DILLIA_LIBRARY=OFF
	cmake --build build/golden --parallel --target golden_core_test golden_kernels_test
	{ grep '^#' $(GOLDEN); build/golden/tests/cpp/golden_core_test; build/golden/tests/cpp/golden_kernels_test; \
		PYTHONPATH=tests $(BIN)/python tests/ops/golden_ops.py; } > build/golden/bits.txt
	mv build/golden/bits.txt $(GOLDEN)

# Builds, tests, times and sanitizes on a GPU, by the machine's own Python; `make gpu DRY=1` prints the plan.
gpu:
	$(PYTHON) tools/gpu.py --out "$(OUT)" $(if $(DRY),--dry-run)

lint: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" pre-commit run --all-files

format: $(VENV)/installed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	git ls-files 'csrc/*' 'tests/cpp/*' | grep -E '\.(h|cpp|cu|cuh)$$' | xargs $(BIN)/clang-format -i

clean:
	rm -rf .venv .venv-torch-* build dist *.egg-info illia_ext/*.so .mypy_cache .pytest_cache .ruff_cache

$(PINS): constraints.txt
	$(PYTHON) -m venv $(VENV)
	sed '$(TORCH:%=s/^torch==.*/torch==%/)' constraints.txt > $@

# torch first: the build then reads its headers instead of downloading another copy. Editable, because here
# `import illia_ext` finds the source folder, and only an editable install puts the compiled library there.
$(VENV)/installed: $(PINS) $(BUILD)
	$(BIN)/pip install torch
	$(BIN)/pip install --editable '.[demo,test,bench,validation,dev]'
	touch $@
