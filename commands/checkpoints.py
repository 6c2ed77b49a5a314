"""lcm checkpoints: a group of commands, each in a module checkpoints_NAME."""

HELP = "List, check, publish, convert, export and remove checkpoints."
SUBCOMMANDS = (  # in the order of the help
    "list",
    "show",
    "pull",
    "push",
    "verify",
    "remove",
    "convert",
    "export",
)
