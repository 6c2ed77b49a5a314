"""Text processing without concepts: languages, sentences, words, paragraphs and lengths."""
