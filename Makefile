# Shortcuts for the usual commands: make help

PREFIX = /usr/local
DESTDIR =
CARGO = cargo

binary = target/release/powerview
bindir = $(DESTDIR)$(PREFIX)/bin
datadir = $(DESTDIR)$(PREFIX)/share
musl = x86_64-unknown-linux-musl
deb_options =

.PHONY: help build test lint deny fmt bench demo ci install deb static clean

help:
	@echo "build    release build, $(binary)"
	@echo "test     all tests, except slow ones"
	@echo "lint     formatter and clippy, as CI runs them"
	@echo "deny     advisories, licences, versions and sources of the dependencies; needs cargo-deny"
	@echo "fmt      format the code"
	@echo "bench    benchmarks"
	@echo "demo     ingest a small tree into files of line protocol, without a server"
	@echo "ci       everything that must pass before a change is merged"
	@echo "install  install the binary and its shell completions; DESTDIR and PREFIX ($(PREFIX)) apply"
	@echo "deb      Debian package in target/debian; needs cargo-deb"
	@echo "static   binary without shared libraries; needs musl-tools and the target $(musl)"
	@echo "clean    remove target/"

build:
	$(CARGO) build --release --locked

test:
	$(CARGO) test --locked --tests

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

deny:
	$(CARGO) deny --locked check

fmt:
	$(CARGO) fmt --all

bench:
	$(CARGO) bench --locked

demo:
	fixtures/demo/run

ci:
	.ci/run

# Does not build if the binary exists, so that `sudo make install` needs no toolchain. Run `make build` first after a change.
$(binary):
	$(CARGO) build --release --locked

install: $(binary)
	install -D -m 755 $(binary) $(bindir)/powerview
	install -d $(datadir)/bash-completion/completions $(datadir)/zsh/site-functions $(datadir)/fish/vendor_completions.d
	$(binary) completions bash >$(datadir)/bash-completion/completions/powerview
	$(binary) completions zsh >$(datadir)/zsh/site-functions/_powerview
	$(binary) completions fish >$(datadir)/fish/vendor_completions.d/powerview.fish

# `make deb binary=target/$(musl)/release/powerview` packages the static binary.
deb: $(binary)
	packaging/generate $(binary) target/package
	$(CARGO) deb --no-build --locked $(deb_options)

static:
	$(CARGO) build --release --locked --target $(musl)

clean:
	$(CARGO) clean
