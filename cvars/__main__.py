"""``python -m cvars`` is the ``cvars`` command."""

from cvars.cli.main import run

if __name__ == "__main__":
    run()
