"""``python -m align.cli`` is ``align``."""

from align.cli.main import main

main()
