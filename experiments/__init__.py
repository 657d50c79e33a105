"""Commands: the place where the parts of the library are composed and effects happen."""
