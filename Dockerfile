# The image of ingestd: `docker build -t ingestd .` (BuildKit: Docker 23 or newer, or DOCKER_BUILDKIT=1 before).
#
# What is built is fixed by Cargo.lock, by what it is built with by the two tags below. Both are of one Debian, so that the
# binary meets the C library that it was linked to. No `# syntax=` line: the build asks no registry but for the bases.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm
ARG RUNTIME_IMAGE=debian:12.15-slim
# Only brings the dashboard's charts, which the lock file fixes by their digest.
ARG NODE_IMAGE=node:22-bookworm-slim

FROM ${NODE_IMAGE} AS page
WORKDIR /page
COPY src/http/dashboard/page/package.json src/http/dashboard/page/package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
COPY --from=page /page/node_modules/uplot /uplot
ENV INGESTD_UPLOT_DIR=/uplot

# The symbols stay behind: the image is for running. Crates and objects are kept between builds of one machine.
# /out/state becomes the journal's volume: a new volume takes over owner and mode of the image's folder.
ENV CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=symbols
RUN --mount=type=cache,id=ingestd-crates,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=ingestd-target,target=/src/target,sharing=locked \
    cargo build --release --locked --bin ingestd \
    && install -D target/release/ingestd /out/ingestd \
    && install --directory --mode=0700 /out/state

FROM ${RUNTIME_IMAGE}

# Authorities of TLS to PostgreSQL and Redis: the slim image has none.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chown=65532:65532 /out/state /var/lib/ingestd
COPY --from=build /out/ingestd /usr/local/bin/ingestd
# Both licences ask that their text comes with every copy.
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/ingestd/

# Numbers, as Kubernetes' runAsNonRoot can judge no names. Nothing but the volume is ever written.
USER 65532:65532
WORKDIR /var/lib/ingestd
VOLUME /var/lib/ingestd

# All addresses, since loopback of a container is of no use. The server refuses that without keys: give API_KEYS_FILE, or
# AUTH=off where the network lets nobody else in. The image makes this choice for nobody.
# There is no PostgreSQL in the image: give DATABASE_URL or DATABASE_URL_FILE.
ENV LISTEN_ADDR=0.0.0.0:8000 \
    JOURNAL_DIR=/var/lib/ingestd/journal
EXPOSE 8000

# A stop takes 29 s at most (src/limits.rs, STOP_WAIT_MAX). Docker kills after 10 s by default: use
# `docker run --stop-timeout 45`, `docker stop --time 45`, or `stop_grace_period: 45s` in Compose. And `--restart
# unless-stopped`: after an error of writing or syncing the journal the server ends with 1, to be started again.
STOPSIGNAL SIGTERM

# By /readyz. A large journal is read before the server listens, so nothing counts in the first minute.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["ingestd", "healthcheck"]

ENTRYPOINT ["ingestd"]
CMD ["serve"]

# Last, as they change with every commit: docker build --build-arg REVISION="$(git rev-parse HEAD)" …
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ingestd" \
      org.opencontainers.image.description="Accepts batches of JSON events over HTTP and stores them, durably and exactly once, in PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="debian:12.15-slim"
