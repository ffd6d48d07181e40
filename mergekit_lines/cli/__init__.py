"""``mergekit-lines``: what a recipe cannot do. One file per command, loaded when it is called.

``--help``, ``--version`` and completion import neither torch nor mergekit, nor any command.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from mergekit_lines._version import __version__
from mergekit_lines.errors import LinesError, nearest

# Name, which is also the module's and the function's, and the first line of its help.
COMMANDS = {
    "merge": "Merge a recipe by our kernels, mergekit's own methods too.",
    "inspect": "Show what a recipe will do, without reading weights.",
    "verify": "Recompute a merged model's tensors in float64.",
    "edit": "Scale one model's change from its base by depth.",
    "sweep": "Tune one or two keys of a recipe by evaluation.",
    "search": "Tune any number of keys of a recipe by proposals.",
    "soup": "Trace the rewarded-soup front between two policies.",
    "greedy": "Choose checkpoints for a soup greedily, with LiNeS after.",
    "show": "Make a page to look at of a sweep, search or soup.",
    "learn": "Learn a coefficient for each block on texts or images.",
    "push": "Put a merged model on the Hub, with its card, in one commit.",
    "pull": "Take the recipe out of a model on the Hub.",
    "doctor": "Tell whether merge_method: lines works in mergekit-yaml here.",
}
EPILOG = """
\b
Exit status:
  0  done
  1  a problem with the recipe, a model, the disk or the installation
  2  wrong usage of the command

\b
Completion, for the rc file of the shell:
  bash  eval "$(_MERGEKIT_LINES_COMPLETE=bash_source mergekit-lines)"
  zsh   eval "$(_MERGEKIT_LINES_COMPLETE=zsh_source mergekit-lines)"
  fish  _MERGEKIT_LINES_COMPLETE=fish_source mergekit-lines | source

mergekit-yaml merges too, with merge_method: lines or lines_postprocess.
"""


class LazyGroup(click.Group):
    """A group that knows its commands' names and first lines, and imports the one called."""

    _is_process = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is told with the nearest name."""
        name = args[0]
        if name in COMMANDS or ctx.resilient_parsing or name.startswith("-"):
            return super().resolve_command(ctx, args)
        commands = ", ".join(COMMANDS)
        raise click.UsageError(
            f"No such command {name!r}, wanted one of {commands}.{nearest(name, COMMANDS)}"
        )

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run a command line: the process's own where no arguments are handed over."""
        self._is_process = args is None
        return super().main(args, *more, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what the system refuses it, as a full disk for stdout, is a sentence.

        Raises:
            LinesError: with the system's words.
        """
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has enough: click ends quietly
                raise
            place = error.filename or "stdout or another file"
            raise LinesError(
                f"{place}: {error.strerror or error}. Check the place and the disk."
            ) from error
        finally:
            if self._is_process:
                _end_at_a_signal()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name without importing any."""
        completions = [
            CompletionItem(name, help=line)
            for name, line in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return completions + click.Command.shell_complete(self, ctx, incomplete)


def _end_at_a_signal() -> None:
    """Let another Ctrl-C end the process by the signal itself, and not in a traceback.

    The command has done what it had to; what is left is Python's own end, a second or so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(OSError, ValueError):  # a closed stdout; a thread of somebody's
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@click.group("mergekit-lines", cls=LazyGroup, epilog=EPILOG)
@click.version_option(__version__, prog_name="mergekit-lines")
@click.pass_context
def main(ctx: click.Context) -> None:
    """LiNeS for mergekit: look before you merge, edit a model without a recipe."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False
