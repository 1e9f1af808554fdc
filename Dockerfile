# Build: the same two steps as on a laptop.
FROM rust:1-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ make python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ENV TORCHLANE_CACHE=/cache
RUN make build
# Beside the binary, where its rpath ($ORIGIN/../lib) finds them.
RUN mkdir -p /image/bin /image/lib \
    && cp target/release/torchlane /image/bin/ \
    && cp /cache/libtorch-*/lib/*.so* /image/lib/

# Run: no Python, no compiler.
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends libstdc++6 ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home torchlane
COPY --from=build /image /opt/torchlane
ENV PATH=/opt/torchlane/bin:$PATH
USER 10001:10001
EXPOSE 50051 8080
# Alive, though models may still be loading; Kubernetes has its own probes.
HEALTHCHECK --start-period=10s CMD ["torchlane", "health", "--live"]
ENTRYPOINT ["torchlane"]
CMD ["serve", "--repository", "/models", "--grpc-addr", "0.0.0.0:50051", "--http-addr", "0.0.0.0:8080"]
