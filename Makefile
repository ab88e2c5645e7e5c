# Every target sets up what it needs. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
LAB_BIN := $(or $(LAB_HOME),$(HOME)/.cache/kafka-lab)/bin

.DEFAULT_GOAL := help
.PHONY: help demo up logs down test nodes soak canary-soak bench profile dashboard lint audit docs format lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(READY) ## Three brokers, a producer, four consumers, a broker killed half way, and the account (ARGS=--quick)
	@$(BIN)/kafka-workers demo $(ARGS)

up: ## The classic stack in containers: ZooKeeper, Kafka, Control Center and the workers (ARGS='--scale consumer=4')
	@docker compose up --build --wait $(ARGS)

logs: ## Follow the workers in containers
	@docker compose logs --follow producer consumer

down: ## Remove the containers and their data
	@docker compose --profile monitoring down --volumes

test: $(READY) ## Run the tests on a real three-broker Kafka (ARGS=-k name, WORKERS=0 for one at a time)
	@$(BIN)/python -m compileall -q workers tests
	PATH="$(LAB_BIN):$$PATH" $(BIN)/pytest --numprocesses $(or $(WORKERS),2) --no-loadscope-reorder $(ARGS)

nodes: $(READY) ## Scale with KEDA and an HPA, and drain nodes, on a kind cluster of its own with three workers (KEEP_NODES=1 leaves it)
	PATH="$(LAB_BIN):$$PATH" $(BIN)/pytest --numprocesses 0 --capture=no tests/cluster/check_nodes.py $(ARGS)

soak: $(READY) ## Faults under load, over and over, for MINUTES (30); writes soak.json
	$(BIN)/python -m tests.faults.soak --minutes $(or $(MINUTES),30) $(ARGS)

canary-soak: $(READY) ## Does the canary raise a false alarm beside busy workers? For MINUTES (30; Helm, Debian's prometheus)
	@PATH="$(LAB_BIN):$$PATH" $(BIN)/python -m bench.canary_soak --minutes $(or $(MINUTES),30) $(ARGS)

bench: $(READY) ## Measure the workers beside their peers, and write bench/RESULTS.md (ARGS='--rounds 3 Producing')
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@$(BIN)/python -m bench $(ARGS)

profile: ## Say in bench/RESULTS.md where the workers' time goes (py-spy, valgrind)
	@$(MAKE) --no-print-directory bench ARGS='Profiles Instructions'

dashboard: $(READY) ## Draw the chart's dashboard with real data, docs/dashboard-*.png (three minutes; Debian's prometheus)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@$(BIN)/python -m bench.dashboard $(ARGS)

lint: $(READY) ## Check style and types, the Dockerfile and the workflows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/zizmor --offline --quiet --min-severity medium .github

audit: $(READY) ## Look for known vulnerabilities in what the lock files name
	$(BIN)/pip-audit --strict --disable-pip --require-hashes $(addprefix -r ,$(wildcard requirements*.txt examples/*/requirements.txt))

docs: $(READY) ## Build the documentation as a site in build/site, with every link checked
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-docs.txt
	@rm -rf build/docs build/site
	@mkdir -p build/docs
	@tar cf - *.md docs/*.md docs/*.css docs/*.svg docs/*.png bench/*.md bench/*.png charts/*/README.md examples/*/* | tar xf - -C build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

LOCK = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-annotate --no-header --upgrade
# The same versions as in the tests.
LOCK_AS_TESTED = $(LOCK) --constraints requirements-dev.txt

lock: $(READY) ## Write the hashed lock files anew from pyproject.toml
	$(BIN)/pip install -q 'uv>=0.9'
	$(LOCK) pyproject.toml -o requirements.txt
	$(LOCK) --extra local --extra tui --extra tracing --extra schemas --extra aws --group dev pyproject.toml -o requirements-dev.txt
	$(LOCK_AS_TESTED) --extra tracing pyproject.toml -o requirements-tracing.txt
	$(LOCK_AS_TESTED) --extra schemas pyproject.toml -o requirements-schemas.txt
	$(LOCK_AS_TESTED) --extra aws pyproject.toml -o requirements-aws.txt
	$(LOCK_AS_TESTED) --group bench -o requirements-bench.txt
	$(LOCK_AS_TESTED) pyproject.toml --group docs -o requirements-docs.txt
	$(LOCK_AS_TESTED) examples/enrichment/requirements.in -o examples/enrichment/requirements.txt

clean: ## Remove what the other targets made here
	rm -rf $(VENV) build dist workers/*/_*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): requirements-dev.txt pyproject.toml hatch_build.py $(wildcard workers/*/*.c)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.13" >&2; exit 1; }
	@echo "setting up $(VENV): pip installs all that is needed, one or two minutes without a word"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@KAFKA_WORKERS_COMPILE=$${KAFKA_WORKERS_COMPILE:-try} \
	  $(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
