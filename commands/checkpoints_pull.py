"""lcm checkpoints pull: the same as lcm pull."""

from .pull import EPILOG as EPILOG
from .pull import main as main
