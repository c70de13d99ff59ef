# The decoder image: `make image`, then
#   docker run --rm --network none -v "$PWD/streams:/in:ro" -v "$PWD/out:/out" clic-decoder
# or, the judge's way, `decode` without arguments in the folder that holds the streams:
#   docker run --rm --network none -v "$PWD/streams:/work" -w /work clic-decoder decode
# docs/decoder.md has the rest.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends binutils
# Where the CPU build of torch comes from: PyTorch's own index, or with TORCH_INDEX= a wheel in the folder wheels.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt wheels* /src/
RUN python -c "import tomllib; print(*tomllib.load(open('/src/pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > /src/requirements.txt \
 && pip install --no-cache-dir --no-compile --target /opt/decoder/packages --find-links /src \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c /src/constraints.txt -r /src/requirements.txt
COPY submission /opt/decoder/submission
COPY image/trim.py /src/
ENV PYTHONPATH=/opt/decoder:/opt/decoder/packages
# Of all that was installed, only what decoding loads; torch's libraries without the names of their symbols. The second
# run decodes with what is left.
RUN python -B /src/trim.py /opt/decoder/packages \
 && strip --strip-unneeded /opt/decoder/packages/torch/lib/*.so \
 && python -B /src/trim.py /opt/decoder/packages \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/decoder \
 && chmod -R a+rX,go-w /opt/decoder

FROM python:3.11-slim-bookworm
COPY --from=build /opt/decoder /opt/decoder
ARG VERSION
ARG LADDER
LABEL org.opencontainers.image.title="clic-decoder" \
      org.opencontainers.image.description="Decodes *.clic streams into PNGs" \
      org.opencontainers.image.version="$VERSION" \
      clic.ladder="$LADDER"
ENV PYTHONPATH=/opt/decoder:/opt/decoder/packages
# -P: what lies in the folder where it runs is no module of it. The first start also writes the bytecode of Python's
# own modules, which the base image lacks.
RUN printf '%s\n' '#!/bin/sh' 'exec python -P -m submission.decode "$@"' > /usr/local/bin/decode \
 && chmod 755 /usr/local/bin/decode \
 && said=$(decode --version) && echo "$said" \
 && test "${VERSION:+$said}" = "${VERSION:+version $VERSION, ladder $LADDER}"
ENV PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
CMD ["decode", "/in", "-o", "/out"]
