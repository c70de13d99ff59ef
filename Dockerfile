# The decoder image: `docker build -t clic-decoder .`, then
#   docker run --rm --network none -v "$PWD/streams:/in:ro" -v "$PWD/out:/out" clic-decoder
# or, the judge's way, `decode` without arguments in the folder that holds the streams:
#   docker run --rm --network none -v "$PWD/streams:/work" -w /work clic-decoder decode
FROM python:3.11-slim-bookworm AS packages
# Where the CPU build of torch comes from: PyTorch's own index by default, or a folder of wheels.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml /src/
RUN python -m venv /opt/decoder \
 && /opt/decoder/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch==2.13.0 \
 && /opt/decoder/bin/python -c "import tomllib; print(*tomllib.load(open('/src/pyproject.toml','rb'))['project']['dependencies'], sep='\n')" > /src/requirements.txt \
 && /opt/decoder/bin/pip install --no-cache-dir -r /src/requirements.txt \
 && find /opt/decoder -name __pycache__ -prune -exec rm -rf {} +

FROM python:3.11-slim-bookworm
COPY --from=packages /opt/decoder /opt/decoder
COPY submission /opt/decoder/app/submission
RUN printf '%s\n' '#!/bin/sh' 'exec /opt/decoder/bin/python -B -m submission.decode "$@"' > /usr/local/bin/decode \
 && chmod 755 /usr/local/bin/decode \
 && useradd --create-home --uid 1000 judge
ENV PYTHONPATH=/opt/decoder/app PYTHONDONTWRITEBYTECODE=1
USER judge
CMD ["decode", "/in", "-o", "/out"]
