"""`python -m cmd_video.cli VERB ...`, and what `accelerate launch -m cmd_video.cli train ...` starts."""

import sys

from cmd_video.cli import main

if __name__ == "__main__":
    sys.exit(main())
