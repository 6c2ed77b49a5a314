"""`python -m lcm_cli` is `lcm`."""

import sys

from lcm_cli.app import main

sys.exit(main())
