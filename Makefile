# SPDX-License-Identifier: AGPL-3.0-only

# lxd-recover: `make` builds bin/lxd-recover, `make demo` shows the job, `make test` runs everything.

DEPS    := $(CURDIR)/.deps
DQLITE  := $(DEPS)/dqlite
BIN     := bin/lxd-recover
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# libdqlite is linked statically from $(DQLITE); so are SQLite, LZ4 and libuv from Debian's -dev packages. The flags for cgo stand
# beside the code. Without the tag libsqlite3 Go compiles an SQLite of its own, so that a plain `go build` works, too.
export CGO_ENABLED := 1
TAGS    := libsqlite3,netgo,osusergo
LDFLAGS := -s -w -X github.com/lxd-recover/lxd-recover/internal/cli.Version=$(VERSION) \
	-linkmode external -extldflags "-static -Wl,--no-warnings"

# Tools, built when they are needed. golangci-lint takes a minute and a half of two processors, the first time.
GOLANGCI_LINT := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
ACTIONLINT    := go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
GOTESTSUM     := go run gotest.tools/gotestsum@v1.13.0

# $(call group,NAME) runs a group of tests like `go test`, and leaves its events for the table that ends `make test`.
RESULTS := bin/results
group    = $(GOTESTSUM) --format standard-quiet --jsonfile $(RESULTS)/$(1).json --
TESTED  := fuzz unit damage real faults

# Groups of which `make test` takes a sample with fixed seeds, and `make campaign`, by CAMPAIGN=1, everything.
SAMPLED := damage faults cluster resync backups sizes incus
export CAMPAIGN

.PHONY: all build man snap deb deps test-deps test-peers demo test test-unit test-damage test-real test-faults test-cluster test-resync test-backups test-sizes test-incus campaign test-race fuzz bench lint clean FORCE

all: build

build: $(BIN)

$(BIN): deps FORCE
	go build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $@ ./cmd/lxd-recover

# Man pages in bin/man, completions for bash, zsh and fish in bin/completions, from the commands' own help.
man: deps
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 0)} go run -tags $(TAGS) ./docs/gen bin

# bin/lxd-recover_VERSION_ARCH.snap. Without snapd here, `snap pack` runs out of the tests' guest image, which needs root.
snap: build man $(if $(shell command -v snap),,$(DEPS)/.apt-test)
	rm -f bin/*.snap
	snap/local/pack.sh '$(VERSION)'

# bin/lxd-recover_VERSION_ARCH.deb, which installs the program, its man pages and completions, and no front-end.
deb: build man
	rm -f bin/*.deb
	deb/pack.sh '$(VERSION)'

# What the build needs: compilers and libraries from apt, libdqlite from Debian's source package.
deps: $(DEPS)/.apt-build $(DQLITE)/lib/libdqlite.a

# What the tests and the demo need besides: Debian's LXD, unpacked and never installed, and what it calls.
test-deps: deps $(DEPS)/.apt-test $(DEPS)/lxd5/.done

# LXD 6.6 and microcluster's example, built from their sources in four minutes, and Debian 13's Incus, in a root of its own in 20 seconds: only when
# tests/peers has changed.
test-peers: deps $(DEPS)/.apt-peers $(DEPS)/.apt-test
	tests/peers/build-incus.sh $(DEPS)/incus
	tests/peers/build-lxd.sh $(DQLITE) $(DEPS)/lxd6
	tests/peers/build-microcluster.sh $(DQLITE) $(DEPS)/microcluster

APT_BUILD := autoconf automake libtool pkg-config dpkg-dev gcc libc6-dev libuv1-dev liblz4-dev libsqlite3-dev
APT_TEST  := iproute2 util-linux rsync openssl squashfs-tools attr xz-utils strace time e2fsprogs \
	mmdebstrap systemd-container debian-archive-keyring nftables
APT_PEERS := lxc-dev libudev-dev libcap-dev libacl1-dev libseccomp-dev
APT_BENCH := pigz

$(DEPS)/.apt-build: APT := $(APT_BUILD)
$(DEPS)/.apt-test:  APT := $(APT_TEST)
$(DEPS)/.apt-peers: APT := $(APT_PEERS)
$(DEPS)/.apt-bench: APT := $(APT_BENCH)
$(DEPS)/.apt-build $(DEPS)/.apt-test $(DEPS)/.apt-peers $(DEPS)/.apt-bench: tests/apt-install.sh Makefile
	mkdir -p $(DEPS)
	tests/apt-install.sh $(APT)
	touch $@

$(DQLITE)/lib/libdqlite.a: | $(DEPS)/.apt-build
	internal/engine/build-libdqlite.sh $(DQLITE) > $(DEPS)/libdqlite.log 2>&1 || { tail -n 30 $(DEPS)/libdqlite.log; exit 1; }

$(DEPS)/lxd5/.done: | $(DEPS)/.apt-test
	tests/cluster/unpack-lxd.sh $(DEPS)/lxd5

demo: build test-deps
	go run -tags $(TAGS) ./tests/demo

# Whatever fails, the table has what ran until then.
test: build man test-deps $(DEPS)/.apt-peers lint
	rm -rf $(RESULTS)
	@failed=0; \
	{ $(MAKE) fuzz && \
		$(MAKE) --jobs 2 --output-sync=target test-unit test-damage test-peers && \
		$(MAKE) --jobs 2 --output-sync=target test-real test-faults; } || failed=1; \
	go run ./tests/table $(RESULTS) $(TESTED) && exit $$failed

# The quick loop. One package, one test: make test-unit PKG=./internal/raftlog RUN=TestEdited
PKG ?= ./internal/... ./cmd/... ./docs/... ./tests/table
test-unit: deps
	$(call group,unit) -tags $(TAGS) -count 1 -timeout 20m $(if $(RUN),-run '$(RUN)') $(PKG)

# What the real libdqlite makes of hundreds of damaged directories; with CAMPAIGN=1 of thousands.
test-damage: deps
	$(call group,damage) -tags $(TAGS) -count 1 -timeout 50m ./tests/damage

# Real clusters, guests with systemd and snapd, the pages of docs/. They mostly wait for elections and heartbeats, so that four of
# them run at the same time, and the faults, which need the processors, beside them.
test-real: build man test-deps test-peers
	$(call group,real) -tags $(TAGS) -count 1 -timeout 80m -p 1 -parallel 4 $$(go list ./tests/... | grep -v '/faults\|/damage\|/table')

# Kills, errors and power cuts at system calls that touch the disk: a sample of them, or all (CAMPAIGN=1).
test-faults: build test-deps test-peers
	mkdir -p $(RESULTS)
	$(if $(CAMPAIGN),FAULTS_REPORT=$(CURDIR)/$(RESULTS)/faults.md) nice -n 10 $(call group,faults) -tags $(TAGS) -count 1 -timeout $(if $(CAMPAIGN),300m,80m) ./tests/faults/...

# Kills, signals, frozen connections, full disks, reboots and power cuts at the events of a run over the whole cluster. test-unit has a sample of them.
test-cluster: deps
	mkdir -p $(RESULTS)
	$(if $(CAMPAIGN),CLUSTER_FAULTS_REPORT=$(CURDIR)/$(RESULTS)/cluster.md) nice -n 10 $(call group,cluster) -tags $(TAGS) -count 1 -timeout 120m ./internal/clusterrun

# Members brought back in simulated clusters, by right and wrong ways. `make test` has it among the units; this is for CAMPAIGN=1.
test-resync: deps
	nice -n 10 $(call group,resync) -tags $(TAGS) -count 1 -timeout 50m -run 'Resync' ./internal/survivor

# Backups under writing, an archive over snapshots, and resyncs with kills, on real clusters: what `make test` takes a part of.
test-backups: build man test-deps test-peers
	$(call group,backups) -tags $(TAGS) -count 1 -timeout 180m -run 'Test(Backup|Archive|ResyncKilled)$$' ./tests

# Starts of Incus with a forgotten member or leader: what `make test` takes a part of.
test-incus: build man test-deps test-peers
	$(call group,incus) -tags $(TAGS) -count 1 -timeout 60m -run '^TestIncusForgotten' ./tests

# Everything that `make test` takes a sample of, which takes hours; docs/reliability.md is written from what was counted. A part of it: make campaign
# PARTS="cluster backups".
PARTS ?= $(SAMPLED)
campaign: build man test-deps test-peers
	rm -rf $(RESULTS)
	@failed=0; $(MAKE) --jobs 2 --output-sync=target --keep-going $(addprefix test-,$(PARTS)) CAMPAIGN=1 || failed=1; \
	go run ./tests/table $(RESULTS) $(PARTS) && exit $$failed
	tests/reliability.sh $(RESULTS) '$(VERSION)' $(PARTS)

# Clusters of all sizes, from all states: what `make test` takes a part of (tests/sizes_test.go).
test-sizes: build man test-deps test-peers
	CAMPAIGN=1 $(call group,sizes) -tags $(TAGS) -count 1 -timeout 120m -run 'TestClusterRecover(Sizes|AllSizes|Many)$$' ./tests

# A short run of every fuzz target; `make fuzz FUZZTIME=10m` for a long one. The short run is a number of inputs, not a time:
# with a time Go reports "context deadline exceeded" as a failure when the end comes at the wrong moment.
FUZZTIME ?= 10000x
fuzz: deps
	$(GOTESTSUM) --format standard-quiet --jsonfile $(RESULTS)/fuzz.json --raw-command -- tests/fuzz.sh $(FUZZTIME) -tags $(TAGS)

test-race: build test-deps
	go test -race -tags $(TAGS) -timeout 50m ./internal/...

# Everything measured against named tools and against LXD 6.6's own, as root, in some fifteen minutes and 20 GB of disk;
# docs/performance.md is written from it. To try: make bench BENCH='-size 64 -runs 1'
BENCH ?= -sizes 64,256,1024,4096 -page docs/performance.md
bench: build test-deps test-peers $(DEPS)/.apt-bench
	go test -tags $(TAGS) -run '^$$' -bench . -benchmem ./internal/raftlog
	go run -tags $(TAGS) ./tests/bench $(BENCH)

lint: deps
	@test -z "$$(gofmt -l cmd docs internal tests snap)" || { gofmt -l cmd docs internal tests snap; echo "run gofmt -w on these"; exit 1; }
	tests/spdx.sh
	$(ACTIONLINT) .github/workflows/*.yml
	$(GOLANGCI_LINT) run --build-tags $(TAGS) ./...

clean:
	rm -rf bin
