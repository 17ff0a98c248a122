"""python -m minimax2"""

import sys

from minimax2.cli import main

sys.exit(main())
