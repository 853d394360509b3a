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
    except SystemExit as ended:
        if _is_interrupt(ended):
            print(
                "flor: interrupted; what was computed is kept, ask again to go on", file=sys.stderr
            )
            sys.exit(130)
        raise


def _is_interrupt(ended: BaseException | None) -> bool:
    """Typer makes an exit of a KeyboardInterrupt, and says nothing."""
    while ended is not None and not isinstance(ended, KeyboardInterrupt):
        ended = ended.__cause__ or ended.__context__
    return ended is not None
