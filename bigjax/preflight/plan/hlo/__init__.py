"""Reading a compiled program: `text` parses it into a `module`; `costs`, `collectives`, `buffers` and `loops` count."""
