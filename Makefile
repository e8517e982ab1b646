# The two commands of a newcomer are `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PYTHONPATH := $(CURDIR):$(CURDIR)/crds/src:$(CURDIR)/contract/src:$(CURDIR)/kube/src:$(CURDIR)/vllm_client/src:$(CURDIR)/bounded/src:$(CURDIR)/tinker_client/src:$(CURDIR)/modal_client/src:$(CURDIR)/gateway/src:$(CURDIR)/operator/src:$(CURDIR)/trainer_image/src:$(CURDIR)/vllm_companion/src:$(CURDIR)/inference_proxy/src:$(CURDIR)/modal_vllm/src
PYTHON = $$(tools/environment)
CODE = crds/src contract/src kube/src vllm_client/src bounded/src tinker_client/src modal_client/src gateway/src operator/src trainer_image/src vllm_companion/src inference_proxy/src modal_vllm/src tools tests bench

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: demo
demo: ## From nothing to an adapter that learned, and a plot (HANDOVER=Share: its steps go on beside serving; ENGINE=tinker, ENGINE=modal: by such a service)
	$(PYTHON) -m tests.demo up

.PHONY: demo-down
demo-down: ## Take down what the demo left up
	$(PYTHON) -m tests.demo down

.PHONY: test
test: test-fast ## All tests: fast, contract, integration, and on a real cluster
	$(PYTHON) -m pytest -m "contract"
	$(PYTHON) -m pytest -m "integration"
	$(PYTHON) -m pytest -m "e2e"

.PHONY: test-fast test-fast-step test-fast-trainer test-fast-others
FAST = -m pytest -q -m "not contract and not integration and not e2e and not long"
STEP_TESTS = $(addprefix tests/unit/trainer/,sdpo forward kernels model)
# These wait for processes most of the time.
SUPERVISOR_TESTS = tests/unit/trainer/supervisor
test-fast: ## The tests that need no server and no cluster, in a few minutes: three parts at a time
	$(MAKE) --no-print-directory --output-sync=target --jobs=3 test-fast-trainer test-fast-step test-fast-others
test-fast-step:
	$(PYTHON) $(FAST) $(STEP_TESTS)
test-fast-trainer:
	$(PYTHON) $(FAST) tests/unit/trainer $(addprefix --ignore=,$(STEP_TESTS) $(SUPERVISOR_TESTS))
test-fast-others:
	$(PYTHON) $(FAST) $(filter-out tests/unit/trainer,$(wildcard tests/unit/*)) $(SUPERVISOR_TESTS)

.PHONY: test-long
test-long: ## Tests that take many minutes, none of which a change must pass
	$(PYTHON) -m pytest -s -m "long"

.PHONY: lint
lint: ## Style, types, import contracts, generated files
	$(PYTHON) -m ruff check $(CODE)
	$(PYTHON) -m ruff format --check $(CODE)
	$(PYTHON) -m mypy $(CODE)
	$$(dirname $(PYTHON))/lint-imports
	$(PYTHON) tools/generate.py --check

.PHONY: format
format: ## Bring the code into form
	$(PYTHON) -m ruff check --fix $(CODE)
	$(PYTHON) -m ruff format $(CODE)

.PHONY: generate
generate: ## Write the CRD manifests and pages that come from the models
	$(PYTHON) tools/generate.py

.PHONY: lock
lock: ## Resolve the requirements anew
	tools/lock

.PHONY: cluster-up cluster-down
cluster-up: ## Bring the one-node test cluster up
	$(PYTHON) -m tests.cluster up
cluster-down: ## Take it down
	$(PYTHON) -m tests.cluster down

.PHONY: images
images: ## Build the images and load them into the test cluster
	$(PYTHON) -m tests.cluster images
