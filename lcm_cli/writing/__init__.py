"""Generated text: continuations, summaries and expansions, and checks that refuse failed ones."""
