"""What is trained: concept models and spaces, and the losses they share."""
