# `make` alone lists the targets. Nothing here needs root or Docker. The
# integration tests run real servers, which need Java 17+ and Maven once.

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT ?= $(shell git rev-parse --verify --short HEAD 2>/dev/null || echo unknown)
TIME ?= 60s
SEEDS ?= 10000
GOLANGCI_LINT_VERSION := v2.15.0

# Without a usable home directory every cache moves under .cache: Go's, the
# linter's, and those of the servers.
ifneq ($(shell test -n "$$HOME" && test -w "$$HOME" && echo usable),usable)
export HOME := $(CURDIR)/.cache/home
endif

# Go's own stamping runs git, also for tests, and fails where git distrusts the
# directory's owner. The version comes from VERSION and COMMIT alone.
export GOFLAGS := $(shell $(GO) env GOFLAGS) -buildvcs=false
LDFLAGS = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

# The race detector needs a C compiler. Without one the tests run all the same, and say so.
ifneq ($(shell command -v $(firstword $(shell $(GO) env CC)) 2>/dev/null),)
TEST = CGO_ENABLED=1 $(GO) test -race
else
TEST = echo 'no C compiler: testing without the race detector' && CGO_ENABLED=0 $(GO) test
endif

GOLANGCI_LINT := .cache/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)

# A recipe runs this as `$(unit_packages) && go test $$packages`, so that a
# package that does not load stops it.
unit_packages = all=$$($(GO) list ./...) && packages=$$(echo "$$all" | grep -vE '/test/(integration|sim)|/internal/servers$$')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the static binaries bin/walferry and bin/walferry-demo
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/walferry ./cmd/walferry-demo
	chmod 755 bin/walferry bin/walferry-demo # as root the demo changes to another account

.PHONY: demo
demo: build ## Run the demo: Postgres to Kafka on this machine (EVENTS=n sets how many events)
	bin/walferry-demo $(if $(EVENTS),--events $(EVENTS))

# The fuzz targets' seeds are ordinary tests to `go test`: unit runs them all.
.PHONY: test
test: vet lint unit ## Run everything a change must pass: vet, lint, unit with fuzz seeds, simulation, integration
	@$(MAKE) sim SEEDS=2000
	@$(MAKE) integration

.PHONY: vet
vet: ## Run go vet
	$(GO) vet ./...
	$(GO) vet -tags faults,capture ./test/integration

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Run golangci-lint, formatting included
	$(GOLANGCI_LINT) run ./...

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## Format the code the way lint wants it
	$(GOLANGCI_LINT) fmt ./...

.PHONY: unit
unit: ## Run the unit tests and every fuzz seed, under the race detector
	$(unit_packages) && $(TEST) $$packages

# The seed of a panic is in its traceback, by a label of the goroutine.
simulate = cd test/sim && GODEBUG=tracebacklabels=1 $(GO) test -count 1 -timeout 60m -run TestSimulation

.PHONY: sim
sim: ## Simulate SEEDS (10000) runs of everything with faults, in fake time
	$(simulate) -seeds $(SEEDS)

.PHONY: nightly
nightly: ## Simulate 50000 runs with seeds from the clock
	$(simulate) -first 0 -seeds 50000

.PHONY: mutants
mutants: ## Plant known bugs one at a time; the tests must turn red for each
	$(GO) run ./test/mutants

.PHONY: faults
faults: servers build ## Break real servers by the fault matrix (ROW=1,20: only these rows; DELIVERY=exactly_once: only with it)
	$(GO) test -c -tags faults -o bin/faults.test ./test/integration
	cd test/integration && ROW='$(ROW)' DELIVERY='$(DELIVERY)' ../../bin/faults.test -test.run '^TestFaults$$' -test.timeout 180m

.PHONY: soak
soak: servers build ## Break real servers at random (MINUTES=2; SEED=n repeats the choices; DELIVERY; FAULTS=kill: only these)
	$(GO) test -c -tags faults -o bin/faults.test ./test/integration
	cd test/integration && SEED='$(SEED)' MINUTES='$(MINUTES)' DELIVERY='$(DELIVERY)' FAULTS='$(FAULTS)' ../../bin/faults.test -test.run '^TestSoak$$' -test.timeout 0

.PHONY: bench
bench: servers build ## Measure walferry beside others (QUICK=1: minutes; PEERS=1: Debezium as well; BENCH: more flags)
	$(GO) run ./bench $(if $(QUICK),--quick) $(if $(PEERS),--peers) $(BENCH)

.PHONY: fuzz
fuzz: ## Fuzz each target for TIME (60s)
	@grep -rHo --include='*_test.go' --exclude-dir=.cache '^func Fuzz[A-Za-z0-9_]*' . | \
	while IFS=: read -r file func; do \
		name=$${func#func }; \
		echo "$(GO) test -fuzz $$name $$(dirname "$$file")"; \
		$(GO) test -run '^$$' -vet=off -fuzz "^$$name\$$" -fuzztime $(TIME) -fuzzminimizetime 1s "$$(dirname "$$file")" </dev/null || exit 1; \
	done

.PHONY: captures
captures: servers ## Write the captured streams in testdata anew, from Postgres 14 to 18
	$(GO) test -tags capture -count=1 -run TestCapture ./test/integration

.PHONY: servers
servers: ## Fetch Postgres and Kafka for the integration tests into .cache, once
	sh test/servers/fetch.sh

# The servers of a run write 6 GB, most of it databases of a few rows: it goes to memory if there is room for twice as much.
in_memory = room=$$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 {print $$4}'); \
	if [ "$${room:-0}" -gt 12582912 ]; then export WALFERRY_TEST_DATA="$${WALFERRY_TEST_DATA-/dev/shm}"; fi

.PHONY: integration
integration: servers build ## Run the tests against real Postgres and Kafka servers (WALFERRY_TEST_DATA=dir: keep their data there)
	$(in_memory); $(TEST) -p 1 -timeout 30m -count=1 ./internal/servers ./test/integration/...

.PHONY: cover
cover: ## Measure the unit tests' coverage into cover.out
	$(unit_packages) && $(GO) test -coverprofile=cover.out $$packages
	$(GO) tool cover -func=cover.out | tail -n 1

# The core is what an event and an LSN pass through: bridge without configuration (wire.go
# maps it) and metrics (admin.go serves them), replication, decode and sink.
CORE = $(filter-out %_test.go bridge/wire.go bridge/metrics.go bridge/admin.go,$(wildcard bridge/*.go replication/*.go decode/*.go sink/*.go))

.PHONY: core
core: ## Count the core's lines of code, without blank lines and comments
	@grep -hvE '^[[:space:]]*(//.*)?$$' $(CORE) | wc -l

.PHONY: clean
clean: ## Remove what build and cover made (.cache keeps the linter and the servers)
	rm -rf bin cover.out

# Built from source, so that the linter runs with the Go that builds the code.
# GOFLAGS is cleared: flags meant for this module would break another's build.
$(GOLANGCI_LINT):
	GOFLAGS= CGO_ENABLED=0 GOBIN='$(CURDIR)/.cache/bin' $(GO) install -trimpath -ldflags '-s -w' \
		github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv .cache/bin/golangci-lint $@
