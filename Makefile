# `make` says what there is. Each target first brings what the machine lacks: see deploy/setup.sh.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# rustup's folder first, as in a login shell, so that a cargo which setup has just brought is found.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
TARGET := $(or $(CARGO_TARGET_DIR),target)

# The pinned Rust, and the only one under which a warning is an error: a newer one may warn of what was fine.
RUST_PINNED := $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
DENY_WARNINGS = $$([[ "$$($${RUSTC:-rustc} --version)" != "rustc $(RUST_PINNED) "* ]] || echo '-D warnings')
# What this machine could not test, a line each; `make test` ends with it.
NOT_RUN := $(abspath $(TARGET))/not-run

# Arguments for the server: make run ARGS='--help'
ARGS ?=
# How long the random faults of `make soak` last.
SOAK_MINUTES ?= 5

# How long each target of `make fuzz` runs.
FUZZ_SECONDS ?= 60

# Where `make install` puts things; DESTDIR goes in front of all, for packages.
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
BINARY ?= $(TARGET)/release/ingestd

.PHONY: help setup build run dev test clients test-deploy aarch64 soak fuzz loom sanitize deny bench lint lint-newest \
	install uninstall clean

help: ## this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 18

setup: ## bring what building, running and testing need
	@deploy/setup.sh test

build: ## build target/release/ingestd
	@deploy/setup.sh run
	cargo build --release --locked

run: build ## build, then serve on 127.0.0.1:8000 with a PostgreSQL of its own under ./data
	@exec $(TARGET)/release/ingestd serve $(ARGS)

# A test that this machine cannot run appends its name and why to INGESTD_NOT_RUN.
test: export INGESTD_NOT_RUN := $(NOT_RUN)
test: ## spelling, formatting, lints, every test against a real PostgreSQL and Redis, schemathesis, the clients
	@deploy/setup.sh test
	@mkdir -p $(TARGET) && rm -f $(NOT_RUN)
	@$(MAKE) --no-print-directory lint
	cargo test --locked
	@$(MAKE) --no-print-directory clients
	@if [[ -s $(NOT_RUN) ]]; then \
		echo 'Passed, but for what this machine could not test:'; sort -u $(NOT_RUN) | sed 's/^/  /'; \
	else \
		echo 'Passed; nothing was left out.'; \
	fi

lint: # what make test checks without running anything; assumes that setup has run
	@# What is committed: logs and data in the checkout are anybody's.
	git ls-files -z | xargs -0 .setup/typos/bin/typos --force-exclude
	cargo fmt --check
	cargo clippy --all-targets --locked -- $(DENY_WARNINGS)
	cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null

lint-newest: export CARGO_TARGET_DIR := $(abspath $(TARGET))/newest
lint-newest: ## the same lints by the newest stable Rust, whose warnings break nothing yet
	@deploy/setup.sh newest
	cargo +stable clippy --all-targets --locked -- -D warnings
	cd clients/rust && cargo +stable clippy --all-targets --locked -- -D warnings

# The same target folder, so that what both depend on is compiled once. Beside each other their locks would only wait.
clients: export CARGO_TARGET_DIR := $(abspath $(TARGET))
clients: export INGESTD_BIN := $(abspath $(TARGET))/debug/ingestd
clients: ## formatting, lints and tests of the client libraries, against target/debug/ingestd
	cd clients/rust && cargo fmt --check
	cd clients/rust && cargo clippy --all-targets --locked -- $(DENY_WARNINGS)
	cd clients/rust && cargo clippy --no-default-features --locked -- $(DENY_WARNINGS)
	cd clients/rust && cargo test --locked
	clients/python/test.sh
	clients/test.sh

dev: ## build, serve, and do both again whenever a source changes; data stay in ./data
	@deploy/setup.sh dev
	@deploy/dev.sh $(ARGS)

test-deploy: build ## image, Compose, nginx, manifests, monitoring for real, as far as this machine can; says what it cannot
	@deploy/setup.sh deploy
	@deploy/test/run.sh

aarch64: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER := aarch64-linux-gnu-gcc
# LD_LIBRARY_PATH because this machine may have an ARM C library too: a mixture of both hangs as it makes a thread.
aarch64: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER := \
	qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib
aarch64: ## the tests of scanner, encoder and journal on 64-bit ARM, under emulation
	@deploy/setup.sh aarch64
	cargo test --locked --target aarch64-unknown-linux-gnu --lib -- json:: encode:: journal::
	cargo test --locked --target aarch64-unknown-linux-gnu --test 'json_*'

soak: ## random faults for SOAK_MINUTES (5), then duplicates, outages, overload, journal, two nodes, acks (25); lost=0 duplicated=0 or a failure
	@deploy/setup.sh test
	SOAK_MINUTES=$(SOAK_MINUTES) cargo test --locked --release --test 'soak*' -- --ignored --nocapture --test-threads=1

fuzz: ## coverage-guided fuzzing of parsers, journal and server, FUZZ_SECONDS (60) a target; what fails is kept in target/fuzz
	@deploy/setup.sh run
	@fuzz/run.sh $(FUZZ_SECONDS)

loom: ## every interleaving of the small lock-free parts
	@deploy/setup.sh run
	RUSTFLAGS='--cfg ingestd_loom' cargo test --locked --lib --target-dir $(TARGET)/loom loom_tests

# Valgrind, as it needs no other compiler, and sees what C and assembly of dependencies do as well. Where unsafe code is:
# grep -r unsafe_code src
sanitize: ## memory errors of what is unsafe, and of what is built on it: those tests under valgrind
	@deploy/setup.sh sanitize
	@host=$$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_'); \
	export "CARGO_TARGET_$${host}_RUNNER=valgrind --quiet --error-exitcode=9"; \
	cargo test --locked --lib -- json:: encode:: sys::child:: sys::socket::

# Known weaknesses come from a database on the network: where it is out of reach, that is said, and all else is checked.
deny: ## licences, sources and known weaknesses of what is depended on (needs cargo-deny)
	@command -v cargo-deny >/dev/null || { echo 'make deny needs cargo-deny: cargo install --locked cargo-deny' >&2; exit 1; }
	cargo deny --locked check bans licenses sources
	@if cargo deny fetch db; then \
		echo 'cargo deny check advisories'; cargo deny --locked check advisories; \
	else \
		echo 'NOTE: the advisory database cannot be reached: known weaknesses were NOT checked' >&2; \
	fi

bench: ## micro-benchmarks (criterion)
	@deploy/setup.sh run
	cargo bench --locked

# Of each file where it goes; settings that are there are kept.
INSTALL_LIB := $(DESTDIR)$(PREFIX)/lib
INSTALL_ETC := $(DESTDIR)$(SYSCONFDIR)/ingestd
INSTALL_SHARE := $(DESTDIR)$(PREFIX)/share
COMPLETIONS := bash:bash-completion/completions/ingestd zsh:zsh/site-functions/_ingestd fish:fish/vendor_completions.d/ingestd.fish

install: ## binary, man pages, completions, systemd unit, user, sysctl, settings: PREFIX (/usr/local) and /etc; build first
	@[[ -x $(BINARY) ]] || { echo 'make install: no $(BINARY): run make build first' >&2; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/ingestd
	$(BINARY) man --dir $(INSTALL_SHARE)/man/man1
	@for completion in $(COMPLETIONS); do \
		install -d "$$(dirname "$(INSTALL_SHARE)/$${completion#*:}")"; \
		$(BINARY) completions "$${completion%%:*}" > "$(INSTALL_SHARE)/$${completion#*:}"; \
	done
	install -d $(INSTALL_LIB)/systemd/system
	sed 's|/usr/bin/ingestd|$(PREFIX)/bin/ingestd|; s|/etc/ingestd/|$(SYSCONFDIR)/ingestd/|' deploy/systemd/ingestd.service \
		> $(INSTALL_LIB)/systemd/system/ingestd.service
	chmod 644 $(INSTALL_LIB)/systemd/system/ingestd.service
	install -D -m 644 deploy/systemd/ingestd.sysusers $(INSTALL_LIB)/sysusers.d/ingestd.conf
	install -D -m 644 deploy/systemd/ingestd.tmpfiles $(INSTALL_LIB)/tmpfiles.d/ingestd.conf
	install -D -m 644 deploy/systemd/99-ingestd.conf $(INSTALL_LIB)/sysctl.d/99-ingestd.conf
	install -d -m 750 $(INSTALL_ETC)
	@[[ -e $(INSTALL_ETC)/ingestd.env ]] || install -m 644 deploy/systemd/ingestd.env $(INSTALL_ETC)/ingestd.env
	@[[ -n '$(DESTDIR)' ]] || echo 'next: deploy/systemd/README.md, "Install"'

uninstall: ## remove what install put there; settings that were changed, keys and the journal stay
	rm -f $(DESTDIR)$(PREFIX)/bin/ingestd $(INSTALL_LIB)/systemd/system/ingestd.service \
		$(INSTALL_LIB)/{sysusers.d,tmpfiles.d}/ingestd.conf $(INSTALL_LIB)/sysctl.d/99-ingestd.conf \
		$(INSTALL_SHARE)/man/man1/ingestd.1 $(INSTALL_SHARE)/man/man1/ingestd-*.1 \
		$(foreach completion,$(COMPLETIONS),$(INSTALL_SHARE)/$(word 2,$(subst :, ,$(completion))))
	@! cmp -s deploy/systemd/ingestd.env $(INSTALL_ETC)/ingestd.env || rm $(INSTALL_ETC)/ingestd.env
	@rmdir --ignore-fail-on-non-empty $(INSTALL_ETC) 2>/dev/null || true
	@[[ ! -e $(INSTALL_ETC) ]] || echo 'kept: $(INSTALL_ETC)'

clean: ## remove what was built and what setup brought; data/ stays
	rm -rf .setup
	cargo clean
