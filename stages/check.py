"""Check params.yaml as a whole, before anything else runs."""

from dfganext import pipeline, settings


def main() -> None:
    settings.load()


if __name__ == "__main__":
    pipeline.run(main)
