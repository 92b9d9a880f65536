"""Console: what people touch, the command line and the HTTP API. Never holds state of its own."""
