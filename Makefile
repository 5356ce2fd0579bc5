# Every task of a developer; `make` lists them. Arguments for the program behind a target go into ARGS:
#   make run ARGS="--nodes 3"      make test ARGS="-k name"

# Tests start hundreds of programs; without bytecode on the disk each would compile all of the project anew.
unexport PYTHONDONTWRITEBYTECODE

ARGS ?=
BIN := .venv/bin

# $(call quietly,title,command): one line while all is well, everything the command said when it fails.
quietly = @echo '· $(1)'; output=$$($(2) 2>&1) || { printf '%s\n' "$$output"; exit 1; }

# uv keeps versions that still fit; `make lock ARGS=--upgrade` takes the newest.
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.PHONY: help setup run demo test test-faults test-ha sim fuzz lint proto openapi bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F '|' '{ printf "make %-11s  %s\n", $$1, $$2 }'

setup: ## install what the host lacks and fill .venv; seconds when nothing changed
	@deploy/setup-host.sh
	@deploy/setup-venv.sh

run: setup ## start everything on this machine, boot a VM, stay until Ctrl-C
	@$(BIN)/limiquantix dev $(ARGS)

demo: setup ## the same, but end once the VM has booted
	@$(BIN)/limiquantix dev --once $(ARGS)

test: lint ## lint, then all tests, those with real VMs included
	@echo '· pytest'
	@$(BIN)/python -m pytest -q -n 4 --dist worksteal --max-worker-restart 2 $(ARGS)

test-faults: setup ## every fault at every step of every operation, and 250 random kills; prints the table
	@LIMIQUANTIX_FAULTS=all $(BIN)/python -m pytest -q -n 2 --max-worker-restart 2 tests/faults $(ARGS)

sim: setup ## simulated clusters: N=10000 histories, SEED=n for one with all that happened, MUTANTS=1 to test the checker
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED)) $(if $(N),--count $(N)) $(if $(MUTANTS),--mutants) \
		$(if $(BROKEN),--broken $(BROKEN)) $(ARGS)

test-ha: setup ## high availability on real guests, every fault of hosts, network, etcd and control planes; prints the times
	@LIMIQUANTIX_HA=all $(BIN)/python -m pytest -q -n 0 -s $(wildcard tests/integration/test_ha_real_*.py) \
		tests/integration/test_ha_guest_and_storage.py tests/integration/test_start_interrupted.py $(ARGS)

fuzz: setup ## ten minutes of hostile calls, ten of hostile input by coverage, if atheris is there; SECONDS=n for another time
	@LIMIQUANTIX_FUZZ_S=$(or $(SECONDS),600) $(BIN)/python -m pytest -q -n 0 -s -k "minutes or flood" \
		tests/fuzz/test_http_api.py tests/integration/test_http2_abuse.py $(ARGS)
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then $(BIN)/python -m tests.fuzz.coverage_guided all $(or $(SECONDS),600); \
		else echo "fuzz: without atheris; $(BIN)/uv pip install -p $(BIN)/python '.[fuzz]' brings it" >&2; fi

lint: setup ## style, types, layers, dependencies, generated code
	$(call quietly,ruff check,$(BIN)/ruff check -q .)
	$(call quietly,ruff format,$(BIN)/ruff format -q --check .)
	$(call quietly,mypy,$(BIN)/mypy)
	$(call quietly,import-linter,$(BIN)/lint-imports)
	$(call quietly,deptry,$(BIN)/deptry . --no-ansi)
	$(call quietly,generated code,$(BIN)/python proto/generate.py --check)

proto: setup ## remake what is derived from the .proto files
	$(call quietly,protoc,$(BIN)/python proto/generate.py)

openapi: setup ## write the API's OpenAPI document to build/openapi.json
	@mkdir -p build
	@$(BIN)/limiquantix openapi > build/openapi.json

bench: setup ## measure the full stack against bare libvirt and bare gRPC
	@$(BIN)/python -m benchmarks $(ARGS)

lock: setup ## pin the dependencies of pyproject.toml anew
	$(call quietly,requirements/dev.lock,$(COMPILE) $(ARGS) --extra dev --extra postgresql pyproject.toml -o requirements/dev.lock)
	$(call quietly,requirements/runtime.lock,$(COMPILE) -c requirements/dev.lock --extra postgresql pyproject.toml -o requirements/runtime.lock)
	$(call quietly,requirements/libvirt.lock,printf 'libvirt-python>=9.0\nsetuptools\n' | $(COMPILE) $(ARGS) -c requirements/dev.lock - -o requirements/libvirt.lock)

clean: ## remove .venv and all caches; the data of `make run` in .limiquantix stays
	@rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	@find . -path ./.limiquantix -prune -o -name __pycache__ -type d -exec rm -rf {} +
