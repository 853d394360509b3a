"""`flor-hf` and `flor-lightning`: parse, call one function, print, return an exit code.

0 done · 1 the user can fix it · 2 usage · 3 diverged · 130 interrupted.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point of both console scripts."""
    from flor_plugins.cli.app import app
    from flor_plugins.errors import Diverged, FlorError

    try:
        app(standalone_mode=True)
    except Diverged as error:
        print(f"flor: {error}", file=sys.stderr)
        sys.exit(3)
    except FlorError as error:
        print(f"flor: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("flor: interrupted; what was computed is kept, ask again to go on", file=sys.stderr)
        sys.exit(130)
