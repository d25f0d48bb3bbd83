"""The command line. Each verb reads files and writes files; what a verb does stands in the room of its name.

The verbs of a module below join the group ``cli`` when it is imported. Each is thin: flags are read, one function of a
room is called, and what came of it is said.
"""

from mapo.cli import building, labeling, laboratory, pairs, pictures, style, training
from mapo.cli.entry import main
from mapo.cli.shared import cli

__all__ = ["building", "cli", "labeling", "laboratory", "main", "pairs", "pictures", "style", "training"]
