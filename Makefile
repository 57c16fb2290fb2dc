# Two commands are all a fresh machine needs: `make demo` and `make test`.
PYTHON ?= python3

.PHONY: demo test test-all check golden clean

demo: .venv-demo/ready  ## convert, compare, classify: no torch, no network but for the installation
	.venv-demo/bin/python scripts/demo.py --out demo_output

test: .venv/ready  ## the suite against the real timm
	.venv/bin/python -m pytest -n 2 --dist worksteal

test-all: .venv/ready  ## what is marked slow as well
	.venv/bin/python -m pytest -n 2 --dist worksteal -m ""

check: .venv/ready  ## lint, format, types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python

clean:
	rm -rf .venv .venv-demo demo_output

.venv-demo/ready: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --disable-pip-version-check .
	touch $@

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

golden: .venv/ready  ## timm's outputs for tests/golden, made anew
	mkdir -p tests/golden
	for name in $$(.venv/bin/python -c "import tresnet_jax; print(*tresnet_jax.list_models())"); do \
	  .venv/bin/python -m convert golden $$name tests/golden/$$name.safetensors --image-size 32; done
