"""The checkpoints that come with lcm, and the cards of those that can be pulled."""
