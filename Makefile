# Headrest. `make help` says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help run test walk bench images engine packages promtool rust

USER_ID := $(shell id -u)
CARGO ?= cargo
CARGO_TARGET_DIR ?= target

# Where `make run` keeps everything. User postgres must be able to reach it: not below /root.
ifeq ($(USER_ID),0)
RUN_DIR ?= /var/lib/headrest
else
RUN_DIR ?= $(HOME)/.local/share/headrest
endif
# The Debians that the image is built for.
SUITES := bookworm trixie forky
# Where programs are that only tests need.
TOOLS := $(CARGO_TARGET_DIR)/tools
# Starts a container engine where there is none, on machines that have it.
ENGINE_TOOL ?= ../shared/tools/container-engine

LISTEN ?= 127.0.0.1:8433
# The port of PostgreSQL; the first free one from 5432 up when not given, and the same ever after.
PGPORT ?=
# For no other goal: initdb and postgres read PGPORT, and an empty one stops them.
run: export RUN_DIR := $(RUN_DIR)
run: export LISTEN := $(LISTEN)
run: export PGPORT := $(PGPORT)

help:
	@printf '%s\n' \
	    'make run     PostgreSQL with continuous backups, and Headrest on top of it, in the foreground' \
	    'make test    format, lints, documentation and all tests' \
	    'make walk    random walks of restores against a model: SEED=1-50 STEPS=30' \
	    'make images  the container image on every Debian it is built for, for its tests' \
	    'make bench   speed and size against plain pgBackRest; takes some minutes' \
	    'As root, PostgreSQL and pgBackRest are installed with apt-get when they are missing.' \
	    'Variables of make run, with their values:' \
	    '  RUN_DIR=$(RUN_DIR)' \
	    '  LISTEN=$(LISTEN)' \
	    '  PGPORT=$(or $(PGPORT),   (not given: the first free port from 5432 up, and the same ever after))'

run: packages rust
	@fail() { echo "make run: $$*" >&2; exit 1; }
	umask 022
	RUN_DIR=$$(realpath -m -- "$$RUN_DIR")
	longest_socket="$$RUN_DIR/state/fence/.s.PGSQL.65535"
	[ $${#longest_socket} -le 107 ] || fail "RUN_DIR is too long for a Unix socket: $$RUN_DIR"
	mkdir -p "$$RUN_DIR" || fail "cannot make RUN_DIR $$RUN_DIR"
	if [ $(USER_ID) = 0 ]; then
	    # Headrest makes the directories below it and gives them to user postgres.
	    runuser -u postgres -- test -x "$$RUN_DIR" || fail "user postgres cannot enter RUN_DIR $$RUN_DIR"
	else
	    (cd "$$RUN_DIR" && mkdir -p -m 700 state data run repo lock log spool)
	fi

	$(CARGO) build --release --locked --bin headrest
	binary=$$(realpath "$(CARGO_TARGET_DIR)/release/headrest")

	# pgBackRest's configuration of this server: not the machine's, which may be another server's,
	# and which Debian lets only user postgres read.
	if [ ! -e "$$RUN_DIR/pgbackrest.conf" ]; then
	    echo "# pgBackRest options for the server of make run, below [global] or [main]." >"$$RUN_DIR/pgbackrest.conf"
	fi

	# The port: as asked for, else as last time, else one that nobody has, not even a cluster of
	# Debian's that is down at present.
	taken() {
	    (exec 3<>"/dev/tcp/127.0.0.1/$$1") 2>/dev/null || (exec 3<>"/dev/tcp/::1/$$1") 2>/dev/null ||
	        pg_lsclusters -h 2>/dev/null | awk '{ print $$3 }' | grep -qx "$$1"
	}
	port=$$PGPORT
	if [ -z "$$port" ] && [ -s "$$RUN_DIR/port" ]; then port=$$(<"$$RUN_DIR/port"); fi
	if [ -z "$$port" ]; then
	    port=5432
	    while taken $$port; do port=$$((port + 1)); done
	fi
	echo "$$port" >"$$RUN_DIR/port"

	printf '%s\n' '' \
	    "  dashboard and API   http://$$LISTEN/" \
	    "  the admin token     $$RUN_DIR/state/admin-token" \
	    "  SQL                 psql -h $$RUN_DIR/run -p $$port -U postgres" \
	    "  stop                Ctrl-C" ''
	export HEADREST_LISTEN="$$LISTEN"
	export HEADREST_STATE_DIR="$$RUN_DIR/state"
	export HEADREST_POSTGRES__SUPERVISE=true
	export HEADREST_POSTGRES__DATA_DIR="$$RUN_DIR/data"
	export HEADREST_POSTGRES__SOCKET_DIR="$$RUN_DIR/run"
	export HEADREST_POSTGRES__PORT="$$port"
	export PGBACKREST_CONFIG="$$RUN_DIR/pgbackrest.conf"
	export PGBACKREST_REPO1_PATH="$$RUN_DIR/repo"
	export PGBACKREST_LOCK_PATH="$$RUN_DIR/lock"
	export PGBACKREST_LOG_PATH="$$RUN_DIR/log"
	export PGBACKREST_SPOOL_PATH="$$RUN_DIR/spool"
	cd /
	exec "$$binary" serve

test: packages promtool rust
	@set -x
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	if $(CARGO) nextest --version >/dev/null 2>&1; then
	    $(CARGO) test --locked --doc
	    $(CARGO) nextest run --locked --no-fail-fast
	    image=(nextest run --ignore-default-filter -E 'binary(container)')
	else
	    # Two at a time, as .config/nextest.toml says: many tests run a PostgreSQL of their own.
	    export RUST_TEST_THREADS=2
	    $(CARGO) test --locked --no-fail-fast --lib --bins --test api --test architecture --test notify \
	        --test deployment --test real --test supervise
	    image=(test --test container)
	fi
	if $(MAKE) --no-print-directory engine; then
	    $(MAKE) --no-print-directory images
	    $(CARGO) "$${image[@]}" --locked --no-fail-fast
	elif [ -n "$${REQUIRE_CONTAINERS:-}" ]; then
	    echo 'make test: no container engine answers, and one is required' >&2; exit 1
	else
	    echo 'make test: no container engine answers; the tests of the image are left out' >&2
	fi

# A container engine answers, or can be started.
engine:
	@docker info >/dev/null 2>&1 || {
	    [ -x "$(ENGINE_TOOL)" ] && "$(ENGINE_TOOL)" $(foreach suite,$(SUITES),debian:$(suite)-slim) \
	        rust:slim-bookworm
	}

# The images that tests/container runs: one for each Debian, and the overlay on a plain PostgreSQL.
images:
	@build() {
	    echo "building headrest-test:$$1 on $$2" >&2
	    docker build --quiet --build-arg BASE="$$2" --file "$$3" --tag "headrest-test:$$1" "$$4" >/dev/null
	}
	for suite in $(SUITES); do
	    build $$suite debian:$$suite-slim docker/Dockerfile .
	done
	build plain debian:trixie-slim tests/container/plain.Dockerfile tests/container
	build overlay headrest-test:plain docker/Dockerfile.overlay .

# One seed, or several: SEED=1-50. A walk that fails prints the fewest steps that still fail.
walk: packages rust
	@export HEADREST_WALK_SEED=$(or $(SEED),1) HEADREST_WALK_STEPS=$(or $(STEPS),30)
	$(CARGO) test --locked --test real -- --nocapture --exact walk::walks_from_the_seed_of_the_environment

bench: packages rust
	@if $(MAKE) --no-print-directory engine; then $(MAKE) --no-print-directory images; fi
	$(CARGO) bench --locked --bench headrest -- $(WHAT)

# PostgreSQL, pgBackRest and a C compiler (SQLite is compiled in) are there, or are installed. The
# cluster that Debian makes of its own is left alone.
packages:
	@missing=()
	compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || command -v postgres >/dev/null ||
	    missing+=(postgresql)
	command -v pgbackrest >/dev/null || missing+=(pgbackrest)
	command -v cc >/dev/null || missing+=(gcc libc6-dev)
	[ $${#missing[@]} -gt 0 ] || exit 0
	if [ $(USER_ID) != 0 ]; then
	    echo "missing; install with: sudo apt-get install $${missing[*]}" >&2
	    exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update
	apt-get install -y --no-install-recommends "$${missing[@]}" </dev/null

# promtool tests the alert rules. Debian has it in a package that also starts a Prometheus, so only the
# program is taken out of it; nothing is installed.
promtool:
	@! command -v promtool >/dev/null && [ ! -x $(TOOLS)/promtool ] || exit 0
	mkdir -p $(TOOLS)/package
	cd $(TOOLS)/package
	[ $(USER_ID) != 0 ] || apt-get update
	apt-get download prometheus || {
	    echo 'promtool is missing: install Prometheus, or put it into $(TOOLS)' >&2
	    exit 1
	}
	dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x -C .. --strip-components=3 ./usr/bin/promtool
	rm -rf ../package

rust:
	@command -v $(CARGO) >/dev/null || {
	    wanted=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
	    echo "cargo is missing: install Rust $$wanted or later, for example with rustup" >&2
	    exit 1
	}
