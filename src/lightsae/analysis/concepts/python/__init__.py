"""What Python's own `tokenize` and `ast` say of each character of a module."""
