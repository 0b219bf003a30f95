# The image of a control plane and of every service: one program, which its arguments tell what it is.
# Everything is installed from lock files, with hashes; nothing of what builds is in the image.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
WORKDIR /build
COPY deploy/image/requirements.lock deploy/image/build.lock ./
RUN python -m venv /opt/llama-deploy \
    && /opt/llama-deploy/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r build.lock
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /opt/build/bin/python -m hatchling build -t wheel -d dist \
    && /opt/llama-deploy/bin/pip install --no-cache-dir --no-index --no-deps dist/*.whl \
    && /opt/llama-deploy/bin/python -m compileall -q /opt/llama-deploy/lib

FROM python:${PYTHON_VERSION}-slim
COPY --from=build /opt/llama-deploy /opt/llama-deploy
COPY deploy/image/healthcheck.py /opt/llama-deploy/healthcheck.py
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin deploy \
    && install --directory --owner=deploy --group=deploy /app /data
ENV PATH=/opt/llama-deploy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
EXPOSE 8000
# SIGTERM reaches llamactl itself, which lets what runs finish (--drain-timeout, 30 s) and ends with 0.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "/opt/llama-deploy/healthcheck.py"]
ENTRYPOINT ["llamactl"]
CMD ["serve", "--host=0.0.0.0", "--allow-remote", "--store=/data/store.db", "--ready-file=/tmp/ready.json"]
