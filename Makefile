.DEFAULT_GOAL := help
.PHONY: help up metrics down test test-all soak hostile fuzz bench check fix images venv

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: ## build what is missing and start the whole stack on 127.0.0.1:9385
	@scripts/up.sh

metrics: ## the same stack with Prometheus on 127.0.0.1:9090
	@scripts/up.sh --metrics

down: ## stop the stack; no container stays behind
	@scripts/down.sh

images: ## Docker engine (installed and started where none answers) and all images
	@scripts/engine.sh && scripts/images.sh

venv: ## .venv with the locked dependencies and the service itself
	@scripts/venv.sh

check: ## linters, formatter and types; changes nothing
	@scripts/check.sh

fix: venv ## let the linter and the formatter change files
	@.venv/bin/ruff check --fix src tests bench images scripts; .venv/bin/ruff format src tests bench images scripts

test: ## every test but the slow ones and the benchmarks, with real containers
	@scripts/test.sh --in-lanes -m 'not slow and not bench and not soak'

test-all: ## every test but the benchmarks
	@scripts/test.sh -m 'not bench'

soak: ## an hour of mixed load with faults; SOAK=10m for less
	@scripts/test.sh -m soak -s --soak=$(or $(SOAK),1h)

hostile: ## only the tests that attack
	@scripts/test.sh -m hostile

fuzz: ## look for bytes that break a parser, some minutes; SECONDS=3600 for more
	@scripts/fuzz.sh $(or $(SECONDS),240)

bench: ## measure beside the alternatives (minutes); BENCH="--rounds 1" and the like are passed on
	@scripts/test.sh -m bench -s && .venv/bin/python -m bench $(BENCH)
