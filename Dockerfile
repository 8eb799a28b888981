# The champion as a container; docs/promotion-and-serving.md says how to build and run it
FROM python:3.11-slim
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MALLOC_ARENA_MAX=1
COPY version/requirements.txt /version/
RUN pip install --no-cache-dir -r /version/requirements.txt
COPY version /version
USER 65534:65534
EXPOSE 5001
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:5001/health', timeout=4)"]
CMD ["mlflow", "models", "serve", "-m", "/version", "--env-manager", "local", "--host", "0.0.0.0", "--port", "5001"]
