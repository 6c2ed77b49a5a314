"""Text without concepts: languages, sentences, paragraphs, lengths."""
