"""Commands on checkpoints: pull, convert, list, verify, remove and push."""
