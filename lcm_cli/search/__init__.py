"""Search and mining in concept space: nearest sentences, indexes, pairs of translations."""
