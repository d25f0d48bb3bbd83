"""``python -m mapo``."""

from mapo.cli import main

main()
