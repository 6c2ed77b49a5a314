"""The subcommands of lcm, one module each; installed as lcm_cli.commands."""
