# One verb per thing. Needs git, make, a C linker, Python 3.11 or newer and Rust (https://rustup.rs).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# The first Python that is new enough; `make PYTHON=python3.13 install` takes another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$p; break; fi; done)

VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
RUST := $(shell find rust_core/src -name '*.rs' 2>/dev/null) rust_core/Cargo.toml Cargo.toml $(wildcard Cargo.lock)

export PATH := $(HOME)/.cargo/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help
help: ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

.PHONY: install
install: $(VENV)/.installed ## Create .venv with the package and all it needs (builds the Rust part)

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; make PYTHON=/path/to/python3 install" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "no Rust found; get it from https://rustup.rs" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet 'maturin>=1.14,<2'
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml $(RUST)
	$(BIN)/maturin develop --release --locked --extras embedded,encryption,dev
	@touch $@

.PHONY: demo
demo: install ## Run a subscription through PostgreSQL, a supervisor and two workers
	@$(BIN)/python examples/demo.py

.PHONY: test
test: test-rust test-python ## Run all tests, Rust and Python, on a real PostgreSQL

.PHONY: test-rust
test-rust: ## Run the tests of the Rust core
	cargo test --locked --quiet

.PHONY: test-python
test-python: install ## Run the Python tests (ARGS="-k name" for some of them)
	$(BIN)/pytest $(ARGS)

.PHONY: lint
lint: lint-python lint-rust ## Check format, types and style of everything

.PHONY: lint-python
lint-python: install ## ruff, mypy --strict, pyright, and the stub against the extension
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright --level error
	$(BIN)/python -m mypy.stubtest durable._core --concise --ignore-disjoint-bases \
		--allowlist rust_core/stubtest-allow.txt

.PHONY: lint-rust
lint-rust: install ## cargo fmt and clippy
	cargo fmt --all --check
	PYO3_PYTHON=$(CURDIR)/$(BIN)/python cargo clippy --locked --all-features --all-targets -- -D warnings

.PHONY: fmt
fmt: install ## Format everything
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	cargo fmt --all

.PHONY: ci
ci: lint test ## What CI runs

.PHONY: wheel
wheel: $(VENV)/.created ## Build a wheel into dist/
	$(BIN)/maturin build --release --locked --out dist

.PHONY: bench-replay
bench-replay: install ## Measure replay (bench/README.md; ARGS=--quick)
	$(BIN)/python -m bench.replay $(ARGS)

.PHONY: bench-engine
bench-engine: install ## Measure steps per second, latency, ... (bench/README.md; ARGS=--quick)
	$(BIN)/python -m bench.engine $(ARGS)

.PHONY: soak
soak: install ## Break workers, hosts and the database under load; is anything lost? (ARGS=--seconds 600)
	$(BIN)/python -m bench.soak $(ARGS)

.PHONY: bench-report
bench-report: install ## Put the measured numbers into bench/README.md
	$(BIN)/python -m bench.report

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf $(VENV) target dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .durable
	find python tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f python/durable/_core*.so python/durable/_core*.pyd
