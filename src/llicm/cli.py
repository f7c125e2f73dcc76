# SPDX-License-Identifier: Apache-2.0
"""The command `llicm`. What a user can do wrong ends in one sentence and exit code 1, not in a traceback.

The parts are imported where they are needed: `llicm --help` should not wait for torch.
"""

import argparse
import sys
from collections.abc import Sequence

from llicm import __version__
from llicm.errors import UserError

__all__ = ["main"]


def _vlm_convert(arguments: argparse.Namespace) -> None:
    from llicm.vlm.checkpoint import convert

    convert(arguments.source, arguments.target, arguments.model)


def _restorer_convert(arguments: argparse.Namespace) -> None:
    from llicm.restore.released import convert_universal_ir

    convert_universal_ir(arguments.source, arguments.target, steps=arguments.steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llicm", description="Image compression for low-level machine vision.")
    parser.add_argument("--version", action="version", version=f"llicm {__version__}")
    rooms = parser.add_subparsers(required=True, metavar="COMMAND")

    vlm = rooms.add_parser("vlm", help="the vision-language model").add_subparsers(required=True, metavar="COMMAND")
    convert = vlm.add_parser(
        "convert",
        help="a released DA-CLIP checkpoint to safetensors",
        description="Convert a released DA-CLIP checkpoint, such as daclip_ViT-B-32.pt, to safetensors: only the "
        "weights, checked name by name, with the model's configuration.",
    )
    convert.add_argument("source", metavar="IN", help="the checkpoint (.pt, .pth, .bin or .safetensors)")
    convert.add_argument("target", metavar="OUT.safetensors", help="the file to write")
    convert.add_argument(
        "--model",
        default="ViT-B-32",
        help="what IN holds: a model of open_clip, or a JSON file with its configuration (default: %(default)s)",
    )
    convert.set_defaults(run=_vlm_convert)

    restorer = rooms.add_parser("restorer", help="the restorers").add_subparsers(required=True, metavar="COMMAND")
    convert = restorer.add_parser(
        "convert",
        help="released weights of the diffusion restorer to safetensors",
        description="Convert the released weights of the universal diffusion restorer, universal-ir.pth, to a restorer "
        "of this project: only the weights, checked name by name, with their configuration.",
    )
    convert.add_argument("source", metavar="IN", help="the released file (.pth, .pt or .safetensors)")
    convert.add_argument("target", metavar="OUT.safetensors", help="the file to write")
    convert.add_argument(
        "--steps", type=int, default=100, help="calls of the network for an image, 1 to 100 (default: %(default)s)"
    )
    convert.set_defaults(run=_restorer_convert)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (of the process if None); returns the exit code.

    Raises:
        SystemExit: with 2 for arguments that argparse refuses, with 0 after `--help` and `--version`.
    """
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
