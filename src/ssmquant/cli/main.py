"""The entry point: collects the commands and turns errors into messages and exit statuses.

Status 0: done; 1: a check failed; 2: bad input; 3: a fault of ssmquant itself; 130: interrupted.
"""

from __future__ import annotations

import io
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ssmquant._version import __version__
from ssmquant.cli.bench import bench
from ssmquant.cli.chat import chat
from ssmquant.cli.compare import compare
from ssmquant.cli.console import stderr, stdout
from ssmquant.cli.demo import demo
from ssmquant.cli.eval import evaluate
from ssmquant.cli.generate import generate
from ssmquant.cli.inspect import inspect
from ssmquant.cli.plan import plan
from ssmquant.cli.quantize import quantize
from ssmquant.cli.recipes import recipes
from ssmquant.cli.tune import tune
from ssmquant.cli.verify import verify
from ssmquant.errors import InputError, SsmquantError

__all__ = ["app", "main"]

_DEBUG = "--debug"
_INTERNAL = 3
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
# The first that fits; an OSError is a disk, a permission or a network in the way.
_STATUSES: tuple[tuple[type[Exception], int], ...] = ((InputError, 2), (SsmquantError, 1), (OSError, 2))


class _Commands(TyperGroup):
    """All commands; one place where errors become messages."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take --debug wherever it stands: it is wanted after a command has failed, so it gets typed last."""
        before_separator = args[: args.index("--")] if "--" in args else args
        if _DEBUG in before_separator:
            args.remove(_DEBUG)
            args.insert(0, _DEBUG)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stderr().print("interrupted; nothing was left half written")
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            # The parser's own errors carry their status; a reader of our pipe that has gone ends us quietly.
            if hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError)):
                raise
            status = next((status for kind, status in _STATUSES if isinstance(error, kind)), _INTERNAL)
            _explain(error, status, debug=ctx.params["debug"])
            raise typer.Exit(status) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quantise state-space language models (Mamba, Mamba-2, hybrids) and run them in integer arithmetic.",
    epilog="Exit status: 0 done, 1 a check failed, 2 bad input, 3 a fault of ssmquant. Start with `ssmquant demo`.",
)
app.command("demo")(demo)
app.command("recipes")(recipes)
app.command("plan")(plan)
app.command("quantize")(quantize)
app.command("eval")(evaluate)
app.command("compare")(compare)
app.command("generate")(generate)
app.command("chat")(chat)
app.command("bench")(bench)
app.command("inspect")(inspect)
app.command("verify")(verify)
app.command("tune")(tune)


def _show_version(wanted: bool) -> None:
    if wanted:
        stdout().print(f"ssmquant {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show tracebacks; taken anywhere in the line.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit with its status."""
    # A text in a script that the terminal cannot show must not end the work with an encoding error.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="ssmquant")


def _explain(error: Exception, status: int, *, debug: bool) -> None:
    console = stderr()
    if debug:
        console.print(traceback.format_exc(), markup=False)
    if status == _INTERNAL:
        message = (
            f"internal error: {type(error).__name__}: {error}\n"
            f"this is a fault of ssmquant; please report it with what the same command prints with {_DEBUG}"
        )
    else:
        message = f"error: {error}"
    console.print(message, markup=False, style="red", soft_wrap=True)
