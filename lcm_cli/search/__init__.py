"""Search and mining in concept space: nearest sentences, indexes, translations in two texts."""
