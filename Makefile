# torchlane: `make run` and `make test` do everything from a fresh clone. `make help` lists the rest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
MAKEFLAGS += --no-print-directory

# A fresh rustup is not on the PATH of a shell that was open before it.
export PATH := $(PATH):$(HOME)/.cargo/bin
# `make build` leaves target/release/torchlane, whatever the user's own cargo settings say.
export CARGO_TARGET_DIR := $(CURDIR)/target

ARGS ?=

.PHONY: help setup libtorch build run test lint fuzz fuzz-operators zoo models bench bench-isolation bench-reload bench-models clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-13s %s\n", $$1, $$2 }'

setup: ## name what is missing on this machine
	@scripts/setup.sh

libtorch: setup ## fetch libtorch into the user's cache, once
	@scripts/cargo-config.sh

build: libtorch ## the server: target/release/torchlane
	cargo build --release --locked

run: build ## serve models/ (more flags: make run ARGS="--http-addr 127.0.0.1:9090")
	@exec target/release/torchlane serve --repository models $(ARGS)

test: ## every check and test
	@scripts/setup.sh --test
	@scripts/cargo-config.sh
	@scripts/test.sh

lint: ## formatting and clippy alone
	@scripts/setup.sh --test
	@scripts/cargo-config.sh
	@scripts/test.sh fmt clippy clippy-no-torch

bench: bench-models libtorch ## throughput, latency, CPU time and memory beside an echo and a plain loop (ten minutes)
	cargo bench --locked --bench bench -- scheduler
	cargo bench --locked --bench bench -- serving $(ARGS)

bench-isolation: bench-models libtorch ## priorities, tenants, deadlines and batch sizes under floods (fifteen minutes)
	cargo bench --locked --bench bench -- isolation $(ARGS)

bench-reload: bench-models libtorch ## models that change under load: reloads, canaries, more models than memory (hours)
	cargo bench --locked --bench bench -- reload
	cargo bench --locked --bench bench -- fenced $(ARGS)
	cargo bench --locked --bench bench -- canary
	cargo bench --locked --bench bench -- residency
	cargo bench --locked --bench bench -- lookup

fuzz: ## feed the decoders with made-up bytes, five minutes each
	@scripts/fuzz.sh

fuzz-operators: ## call the operators that models may call with odd arguments, ten minutes (fetches PyTorch, 5 GB, into the user's cache)
	@scripts/fuzz_operators.sh $(ARGS)

bench-models: ## the benchmark's models, in bench-models/ (fetches PyTorch, 5 GB, into the user's cache)
	@scripts/bench_models.sh

zoo: build ## serve forty-two models under load, each answer held against PyTorch's own, ten minutes (fetches PyTorch, 5 GB, into the user's cache)
	@scripts/zoo.sh $(ARGS)

models: ## make the sample and test models again (fetches PyTorch, 5 GB, into the user's cache)
	@scripts/models.sh

clean: ## remove what was built here (the user's cache stays)
	rm -rf target bench-models bench-models.part
