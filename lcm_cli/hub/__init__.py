"""Cards of checkpoints, their files on this machine, and downloads from URLs and the Hub."""
