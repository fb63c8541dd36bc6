"""The HTTP API: one file a noun, one error handler. It writes to the store and never calls a backend."""
