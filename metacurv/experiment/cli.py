"""The command line of the experiment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from . import comparison, options, redraw
from .run_folder import FolderError, RunFolder
from .training import DivergedError

INTERRUPTED = 130  # what a shell reports after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment that the arguments describe. Returns: the exit status."""
    parser = options.build_parser()
    arguments = parser.parse_args(argv)
    if arguments.redraw is not None:
        try:
            redraw.redraw(arguments.redraw)
        except FolderError as error:
            parser.error(str(error))
        return 0
    config = options.to_config(parser, arguments)
    root = arguments.out or Path("runs") / f"mnist1d-{config.digest}"
    try:
        comparison.run(
            config,
            RunFolder(root, config),
            fresh=arguments.fresh,
            checkpoint_seconds=arguments.checkpoint_seconds,
            progress=arguments.progress,
        )
    except FolderError as error:
        parser.error(str(error))
    except DivergedError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "without --fresh" if arguments.fresh else "again"
        print(
            f"\nInterrupted; run the same command {again} to go on from the last checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0
