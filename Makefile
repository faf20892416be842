# The entry points. `make help` lists them.

SHELL := /bin/bash
CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# gcc to zlib1g-dev, clang and m4: libbpf, libxdp and the XDP program; the rest: the demo and the tests.
PACKAGES := gcc libc6-dev make pkg-config libelf-dev zlib1g-dev clang m4 iproute2 iputils-ping ethtool util-linux binutils valgrind nftables iptables tshark

.PHONY: help setup build demo test loom miri fuzz fuzz-corpus lint bench bench-floods bench-micro bench-scale clean

help: ## This list
	@grep -E '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z -]+):.*## /  make \1\t/'

setup: ## Install the Debian packages that building and testing need (Rust itself comes from rustup)
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: see https://rustup.rs" >&2; exit 1; }
	@missing=""; for p in $(PACKAGES); do \
	  [ "$$(dpkg-query -W -f='$${db:Status-Abbrev}' $$p 2>/dev/null)" = "ii " ] || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then echo "setup: all packages are installed"; else \
	  echo "setup: installing$$missing"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  $(SUDO) apt-get update -qq >/dev/null && \
	  $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

build: ## Build everything, optimised
	$(CARGO) build --release --locked --workspace

demo: ## A Service carried by AF_XDP, from nothing (needs root)
	$(CARGO) build --release --locked -p nomagic -p nomagic-testbed
	@$(SUDO) target/release/nomagic-testbed demo

test: ## What CI runs: format, lints, all tests (the ones with network namespaces need root)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --workspace --locked
	$(MAKE) --no-print-directory loom

loom: ## The connection table under every interleaving that loom finds
	RUSTFLAGS="--cfg loom" $(CARGO) test --locked --release --target-dir target/loom -p nomagic-core --test loom

miri: ## The connection table under Miri: weak memory, any schedule (needs a nightly Rust with its miri component)
	@$(CARGO) +nightly miri --version >/dev/null 2>&1 || { \
	  echo "miri: there is no nightly Rust with Miri here (rustup toolchain install nightly --component miri,rust-src)" >&2; exit 1; }
	MIRIFLAGS="-Zmiri-many-seeds=0..4" $(CARGO) +nightly miri test --locked --target-dir target/miri -p nomagic-core --lib conntrack
	MIRIFLAGS="-Zmiri-many-seeds=0..4" $(CARGO) +nightly miri test --locked --target-dir target/miri -p nomagic-core --test concurrent

# Of dataplane/core/fuzz and of control/gateway/fuzz.
FUZZ_CORE := frames flows replies region
FUZZ_CONTROL := objects manifests config socket rules
FUZZ_TARGETS ?= $(FUZZ_CORE) $(FUZZ_CONTROL)
FUZZ_SECONDS ?= 60
FUZZ_BUILD := target/fuzz
# As cargo-fuzz has them, but without a sanitizer: only that needs a nightly Rust.
FUZZ_FLAGS := -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table trace-compares)
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
# Shell: sets the package, directory and program of target $$t, and builds it.
define FUZZ_TARGET
set -euo pipefail; \
case " $(FUZZ_CONTROL) " in *" $$t "*) package=nomagic-fuzz dir=control/gateway/fuzz;; *) package=nomagic-core-fuzz dir=dataplane/core/fuzz;; esac; \
program=$(FUZZ_BUILD)/$(HOST)/fuzz/fuzz-$$t; grown=$(FUZZ_BUILD)/corpus/$$t; mkdir -p $$grown $(FUZZ_BUILD)/failures; \
RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --locked --profile fuzz --target $(HOST) --target-dir $(FUZZ_BUILD) -p $$package --features libfuzzer --bin fuzz-$$t
endef

fuzz: ## Fuzz what comes from outside, on stable Rust: FUZZ_SECONDS=60 for each target, FUZZ_TARGETS="flows config" for some of them
	@for t in $(FUZZ_TARGETS); do $(FUZZ_TARGET); \
	  dict=""; if [ -f $$dir/dict/$$t ]; then dict="-dict=$$dir/dict/$$t"; fi; \
	  echo "fuzz: $$t for $(FUZZ_SECONDS) s, log in $(FUZZ_BUILD)/$$t.log"; \
	  RUST_BACKTRACE=1 $$program $$dict -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	    -artifact_prefix=$(FUZZ_BUILD)/failures/$$t- $$grown $$dir/corpus/$$t 2>&1 | tee $(FUZZ_BUILD)/$$t.log | \
	    grep -a --line-buffered -E '^#[0-9]+.(INITED|pulse|DONE)|panicked at|^==|^SUMMARY|Test unit written|^stat::(num|average|new)' || \
	  { echo "fuzz: $$t failed. Replay: $$program FILE. Then move the file into $$dir/corpus/$$t: make test replays what is there." >&2; exit 1; }; \
	done

fuzz-corpus: ## Keep what `make fuzz` has found: adds inputs that reach new code to the corpora in the repository
	@for t in $(FUZZ_TARGETS); do $(FUZZ_TARGET); \
	  $$program -merge=1 -use_counters=0 -use_cmp=0 -timeout=10 $$dir/corpus/$$t $$grown 2>&1 | tail -1; du -sh --apparent-size $$dir/corpus/$$t; \
	done

lint: ## Format check, lints and, where installed, dependency policy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --locked check; \
	else echo "lint: cargo-deny is not installed (cargo install cargo-deny --locked), dependency policy not checked"; fi

bench: ## nomagic beside its peers, over veth pairs: the table of figures, target/bench.json, target/bench.html, and what observing it costs (twenty minutes once built, a quiet machine, root)
	$(CARGO) build --release --locked -p nomagic -p nomagic-fake-apiserver -p nomagic-bench
	$(CARGO) bench --locked -p nomagic-bench --bench micro -- "pipeline, DNAT" --rounds 5 --json target/bench-table.json
	@$(SUDO) target/release/nomagic-bench compare --micro target/bench-table.json --out target/bench.json
	@target/release/nomagic-bench report target/bench.json --out target/bench.html
	@$(SUDO) target/release/nomagic-bench observed

bench-floods: ## How floods affect honest clients, with nomagic and with nftables: target/floods.json (six minutes once built, a quiet machine, root)
	$(CARGO) build --release --locked -p nomagic -p nomagic-fake-apiserver -p nomagic-bench
	@$(SUDO) target/release/nomagic-bench floods

bench-micro: ## What a packet costs in memory, beside the floor and the alternatives (one minute once built)
	$(CARGO) bench --locked -p nomagic-bench --bench micro

bench-scale: ## What many Services cost: compiling, one change, memory, and from an API server's event to the packet (two minutes once built)
	$(CARGO) bench --locked -p nomagic-bench --bench scale
	$(CARGO) test --release --locked -p nomagic --test it api_latency -- --nocapture

clean: ## Remove what was built
	$(CARGO) clean
