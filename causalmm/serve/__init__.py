"""The HTTP service: `causalmm serve`, on Ray Serve. docs/serve.md describes it."""
