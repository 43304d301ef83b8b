# One image for every role: `docker run millrace api`, `docker run millrace worker payment`.

FROM rust:1.95-slim-bookworm AS build
# docker build --build-arg MILLRACE_COMMIT=$(git rev-parse --short=12 HEAD): what --version tells.
ARG MILLRACE_COMMIT=
# Names of functions stay, for backtraces; line tables are four fifths of the program.
ENV CARGO_PROFILE_RELEASE_STRIP=debuginfo
# jemalloc is built with it.
RUN apt-get update && apt-get install -y --no-install-recommends make
WORKDIR /src
COPY . .
# The caches stay on the builder, so the program is copied out of the target folder in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --package millrace --bin millrace \
    && cp target/release/millrace /millrace

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="millrace" \
      org.opencontainers.image.description="Order processing on NATS JetStream" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT"
# Certificate authorities, for TLS to the servers and to a payment gateway.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /millrace /usr/local/bin/millrace
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/millrace/
# Nobody on the host; nothing in the image is this user's.
USER 65532:65532
EXPOSE 8080 9464
ENTRYPOINT ["millrace"]
CMD ["--help"]
