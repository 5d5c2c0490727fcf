"""``python -m ppgen``: the same as the ``ppgen`` command."""

from ppgen.cli import main

main()
