"""lcm checkpoints: the group of commands on checkpoints, each in a module checkpoints_NAME."""

HELP = "List, check, publish, convert and remove checkpoints."
SUBCOMMANDS = (  # in the order of the help
    "list",
    "show",
    "pull",
    "push",
    "verify",
    "remove",
    "convert",
)
