# Bare `make` prints what there is.

.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON := vm-testbed/netns vm-testbed/vm vm-testbed/demo vm-testbed/paced-udp $(wildcard vm-testbed/testbed/*.py) perf/cases/veth $(wildcard perf/veth/*.py)
BASH := scripts/install .ci/run vm-testbed/guest/init vm-testbed/guest/session

.PHONY: help install build demo test check up down clean

help: ## What there is
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## Debian packages that building and testing need (as root)
	scripts/install

build: ## The program, target/release/starnet
	cargo build --release --bin starnet --example wire

demo: install build ## Real programs over two paths at once, a relay killed under them, lossy links: in namespaces, as root
	vm-testbed/demo

test: install ## Unit tests, BPF tests, end-to-end tests in namespaces (as root)
	cargo test

check: ## Format, lints (warnings are errors), scripts
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	PYTHONPYCACHEPREFIX=target/pycache python3 -m py_compile $(PYTHON)
	bash -n $(BASH)
	@if command -v shellcheck >/dev/null; then shellcheck $(BASH); else echo "shellcheck is not installed: skipped"; fi

up: build ## The testbed: vm-testbed/netns exec HOST COMMAND... runs any program in it
	vm-testbed/netns up

down: ## The testbed's end
	vm-testbed/netns down

clean: ## What was built
	cargo clean
