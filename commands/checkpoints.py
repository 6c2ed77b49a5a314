"""lcm checkpoints: the group of commands on checkpoints, each in a module checkpoints_NAME."""

HELP = "Convert checkpoints of other programs."
SUBCOMMANDS = ("convert",)  # in the order of the help
