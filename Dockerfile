# syntax=docker/dockerfile:1
# The gateway's image: an interpreter, the locked packages, the package `wrapper`. .dockerignore
# lists the only files that are copied, so no key and no .env can end up in a layer.

FROM python:3.13.15-slim-trixie AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/venv/bin:$PATH

FROM base AS packages
# The compiler is for gunicorn's request parser, which is published as source. It is not in the
# final stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements.txt requirements-fast.txt ./
# The lock files have the hash of every package. Only wheels, except for the parser (its build
# requirements have no hash): no other package runs its own code at installation. Compiled to
# bytecode here, because a read-only container cannot do it and a start should not.
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-compile --require-hashes --only-binary :all: -r requirements.txt \
    && pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-compile --require-hashes --no-deps -r requirements-fast.txt \
    && python -m compileall -q -j 0 /opt/venv/lib

FROM base
RUN useradd --uid 1000 --user-group --no-create-home --shell /usr/sbin/nologin app
WORKDIR /app
COPY --from=packages /opt/venv /opt/venv
COPY wsgi.py ./
COPY config/ config/
COPY wrapper/ wrapper/
# data/ holds the usage table and temporary files of uploads (TMPDIR), which must neither be kept in
# memory nor fill a small /tmp. demo/ holds the keys of the demo, metrics/ the token of /metrics. They
# are writable by any user, as /tmp is, so that the container can run as the owner of the mounted configuration.
RUN python -m compileall -q -j 0 /app \
    && mkdir /app/data /app/demo /app/metrics \
    && chmod -R a+rX /app \
    && chmod 1777 /app/data /app/demo /app/metrics
ENV HOST=0.0.0.0 \
    PORT=8080 \
    WRAPPER_CONFIG=/app/config/gateway.toml \
    WRAPPER_KEYS=/app/config/keys.toml \
    WRAPPER_STORE=sqlite:////app/data/usage.db \
    TMPDIR=/app/data
USER 1000:1000
EXPOSE 8080
# Liveness, not readiness: a restart does not help when a provider is down.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', os.environ['PORT'], timeout=2); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
# Open streams have GRACEFUL_TIMEOUT (30 s) to end: use `docker stop --time 40`.
STOPSIGNAL SIGTERM
CMD ["python", "-m", "wrapper", "serve"]
