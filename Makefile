# Everything is built with one profile (--release), so that RocksDB, ten minutes of C++, is built
# once. The target directory is outside the checkout for the same reason: clones share it.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/holdfast/target
export HOLDFAST_DEMO_DIR ?= $(CURDIR)/holdfast-demo

DEMO ?= run
MINUTES ?= 10
BIN := $(CARGO_TARGET_DIR)/release/holdfast
LIMIT := $(CARGO_TARGET_DIR)/release/holdfast-limit
IMAGE ?= $(CARGO_TARGET_DIR)/holdfast-image.tar
DENY := $(CARGO_TARGET_DIR)/tools/bin/cargo-deny

.PHONY: help build demo demo-clean test check fmt doc bench bench-pure sim traces setup image image-test

help:
	@echo "make demo               a three-pod cluster here, with a volume to play with"
	@echo "make demo DEMO=check    the same, then stop it and exit with a status"
	@echo "make demo-clean         remove the data of the demo ($(HOLDFAST_DEMO_DIR))"
	@echo "make test               everything that CI runs"
	@echo "make check              formatting, lints, licences, rules of the code base"
	@echo "make bench              measure, beside unreplicated servers (BENCH=--control: the catalog)"
	@echo "make bench-pure         measure the parts that do no I/O (BENCH=NAME: one of them)"
	@echo "make doc                the documentation of the code, without warnings"
	@echo "make sim MINUTES=30     simulated clusters with faults, from seeds that are new"
	@echo "make traces             simulated seeds 1 to 1000: BASE=FILE compares with traces of another commit"
	@echo "make image              a container image: $(IMAGE)"
	@echo "make image-test         start it in a container, and look whether it serves"
	@echo "make build              $(BIN)"

setup:
	@scripts/setup.sh run

build: setup
	cargo build --release --locked --bin holdfast

demo: build
	@HOLDFAST=$(BIN) scripts/demo.sh $(DEMO)

demo-clean:
	@scripts/demo.sh clean

test:
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory check
	@HOLDFAST=$(BIN) scripts/test.sh

check:
	@scripts/setup.sh check
	cargo fmt --all -- --check
	cargo clippy --release --locked --features bench-internals --all-targets -- -D warnings
	cargo clippy --release --locked -p holdfast-limit --all-targets -- -D warnings
	cargo test --release --locked --test tidy --test tidy_docs
	$(DENY) --locked check bans licenses sources

fmt:
	cargo fmt --all

doc: setup
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps --document-private-items

BENCH_CONTROL = cargo bench --profile release --locked --features bench-internals --bench control
BENCH_VOLUMES = HOLDFAST=$(BIN) HOLDFAST_LIMIT=$(LIMIT) benches/compare.py $(BENCH)

bench: build
	@scripts/setup.sh $(if $(findstring --postgres,$(BENCH)),postgres,test)
	cargo build --release --locked -p holdfast-limit
	$(if $(findstring --control,$(BENCH)),$(BENCH_CONTROL),$(BENCH_VOLUMES))

bench-pure: setup
	cargo bench --profile release --locked --features bench-internals --bench pure -- $(BENCH)

sim: build
	$(BIN) sim --minutes $(MINUTES) --threads $$(nproc) --seed $$(date +%s)000 --shrink

traces: build
	@HOLDFAST=$(BIN) scripts/traces.sh $(CARGO_TARGET_DIR)/traces.txt $(BASE)

image: build
	@scripts/setup.sh image
	deploy/image/build.sh $(BIN) $(IMAGE)

image-test: image
	deploy/image/test.sh $(IMAGE)
